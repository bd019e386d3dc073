"""The decoder and the readers of headers, by what must hold for any input."""

import json
import math
import re
import uuid
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gatepost.errors import BadRequest, Unauthorized
from gatepost.http.client import user_agent
from gatepost.http.strict_json import decode
from gatepost.http.tokens import session_token

CODES = {
    "body_not_utf8",
    "body_not_json",
    "body_too_deep",
    "duplicate_key",
    "number_not_finite",
    "number_too_long",
    "nul_character",
    "lone_surrogate",
}

thorough = settings(deadline=None, derandomize=True, max_examples=200)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
numbers = st.integers(-(10**98), 10**98) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
# Bytes that mean something to JSON, so that the decoder is reached in its depths.
fragments = st.sampled_from(
    [b"{", b"}", b"[", b"]", b":", b",", b'"', b'"a"', b"\\", b"\\u", b"\\ud800", b"\\u0000", b'\\"']
) | st.sampled_from(
    [b"1", b"-", b"1e9", b"999", b"NaN", b"Infinity", b"true", b"null", b" ", b"\n", b"\xff", b"\0", b"\xed\xa0\x80"]
)
near_json = st.lists(fragments, max_size=40).map(b"".join)


def refusal(body: bytes) -> str | None:
    """The code with which the decoder refuses this body, or None."""
    try:
        decode(body)
    except BadRequest as error:
        return error.code
    return None


def strings(value: Any) -> list[str]:
    """Every string in a value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [s for item in value for s in strings(item)]
    if isinstance(value, dict):
        return [s for key, item in value.items() for s in [key, *strings(item)]]
    return []


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def assert_sound(body: bytes) -> None:
    """The decoder refuses with one of its codes, or agrees with json.loads and keeps its own bounds."""
    if (code := refusal(body)) is not None:
        assert code in CODES
        return
    value = decode(body)
    assert value == json.loads(body.decode("utf-8"))
    assert depth(value) <= 16
    assert not any(re.search("[\0\ud800-\udfff]", s) for s in strings(value))
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@thorough
@given(st.binary(max_size=64) | near_json)
@example(b"")
@example(b"\xef\xbb\xbf{}")
@example(b'"\\')
@example(b'{"a":1,"a":1}')
def test_any_bytes_are_refused_with_a_code_or_mean_what_json_says(body: bytes) -> None:
    assert_sound(body)


@thorough
@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_every_plain_value_is_taken_however_it_is_written(value: Any, escaped: bool, indent: int | None) -> None:
    decoded = decode(json.dumps(value, ensure_ascii=escaped, indent=indent).encode())
    assert decoded == value
    assert depth(decoded) == depth(value)


@thorough
@given(values, st.data())
def test_a_changed_byte_is_refused_or_means_what_json_says(value: Any, data: st.DataObject) -> None:
    body = json.dumps({"k": value}).encode()
    at = data.draw(st.integers(0, len(body) - 1))
    put = data.draw(st.binary(max_size=2) | fragments)
    assert_sound(body[:at] + put + body[at + data.draw(st.integers(0, 2)) :])


@thorough
@given(values)
def test_every_beginning_of_an_object_is_not_json(value: Any) -> None:
    body = json.dumps({"k": value}).encode()
    assert {refusal(body[:end]) for end in range(len(body))} == {"body_not_json"}


@thorough
@given(st.lists(st.sampled_from(["[%s]", '{"a":%s}', '{"[{":["}"],"b":%s}', '[1,"\\"[",%s,[]]']), max_size=40))
def test_sixteen_deep_is_taken_and_seventeen_is_not(layers: list[str]) -> None:
    body = "1"
    for layer in layers:
        body = layer.replace("%s", body)
    deep = depth(json.loads(body))
    assert refusal(body.encode()) == ("body_too_deep" if deep > 16 else None)
    shut = json.dumps(body * 2)  # brackets within a string are none
    assert decode(shut.encode()) == body * 2


@pytest.mark.parametrize("n", [16, 17, 1000, 4000])
def test_the_depth_is_counted_exactly(n: int) -> None:
    for opened, shut in ((b"[", b"]"), (b'{"a":', b"}")):
        body = opened * n + b"1" + shut * n
        assert refusal(body) == (None if n <= 16 else "body_too_deep")


@thorough
@given(st.dictionaries(text, values, min_size=1, max_size=4), st.data())
def test_a_key_that_occurs_twice_is_refused_wherever_and_however_it_is_written(
    value: dict[str, Any], data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(value)))
    again = '"' + "".join(f"\\u{unit:04x}" for unit in _utf16(key)) + '"'
    twice = json.dumps(value)[:-1] + f",{again}:0}}"
    assert refusal(twice.encode()) == "duplicate_key"
    assert refusal(f'[{{"x":{twice}}}]'.encode()) == "duplicate_key"
    # Siblings may share their keys.
    once = json.dumps(value)
    assert refusal(f"[{once},{once}]".encode()) is None


def _utf16(value: str) -> list[int]:
    units = value.encode("utf-16-be")
    return [int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2)]


@thorough
@given(
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E+400", "-" + "9" * 309, "9" * 90 + "e300"]
    ),
    values,
)
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(number: str, value: Any) -> None:
    for body in (number, f"[{number}]", f'{{"a":[{json.dumps(value)},{{"b":{number}}}]}}'):
        assert refusal(body.encode()) == "number_not_finite"


@pytest.mark.parametrize("digits", [401, 4301, 5000, 8000])
def test_a_number_of_more_than_four_hundred_characters_is_refused(digits: int) -> None:
    for number in ("1" * digits, "-" + "1" * (digits - 1), "0." + "1" * (digits - 2), "1e" + "0" * (digits - 2)):
        assert len(number) == digits
        assert refusal(number.encode()) == "number_too_long"
    assert decode(b"1" * 309) == int("1" * 309)
    assert math.isclose(decode(b"0." + b"3" * 398), 1 / 3)


@thorough
@given(text, text, st.integers(0xD800, 0xDFFF), st.booleans())
def test_a_lone_surrogate_is_refused_in_strings_and_keys(before: str, after: str, unit: int, as_key: bool) -> None:
    quoted = json.dumps(before)[:-1] + f"\\u{unit:04x}" + json.dumps(after)[1:]
    # What follows must not complete the pair: it never does, since `text` begins with no lone low half.
    for body in (f'[[{{"a":{quoted}}}]]', f'{{"a":{{{quoted}:1}}}}') if as_key else (quoted, f"[{quoted}]"):
        assert refusal(body.encode()) == "lone_surrogate"


@thorough
@given(text, text)
def test_nul_is_refused_in_strings_and_keys(before: str, after: str) -> None:
    quoted = json.dumps(before)[:-1] + "\\u0000" + json.dumps(after)[1:]
    for body in (quoted, f"[[{quoted}]]", f'{{"a":{{{quoted}:1}}}}'):
        assert refusal(body.encode()) == "nul_character"
    raw = json.dumps(before)[:-1] + "\0" + json.dumps(after)[1:]
    assert refusal(raw.encode()) == "body_not_json"


def test_a_backslash_before_a_u_is_no_escape() -> None:
    assert decode(rb'"\\u0000 \\ud800"') == r"\u0000 \ud800"


# ---------------------------------------------------------------------------------------------- headers


def carrying(*headers: tuple[str, str]) -> web.Request:
    """A request with these headers, as aiohttp decodes them: with surrogates for what is no UTF-8."""
    return cast("web.Request", SimpleNamespace(method="GET", headers=CIMultiDict(headers), cookies={}))


def given_token(*values: str) -> str | None:
    """The token that these Authorization headers carry, or None for 401."""
    try:
        return session_token(carrying(*(("Authorization", value) for value in values)))
    except Unauthorized:
        return None


@thorough
@given(st.uuids(version=4), st.sampled_from(["", "Bearer ", "bearer ", "BEARER  ", "bEaReR    "]))
def test_every_uuid4_is_a_token_raw_and_after_bearer(number: uuid.UUID, scheme: str) -> None:
    assert given_token(scheme + str(number)) == str(number)
    blocks = str(number).split("-")
    for i, block in enumerate(blocks):
        upper = "-".join([*blocks[:i], block.upper(), *blocks[i + 1 :]])
        assert given_token(scheme + upper) == (str(number) if upper == str(number) else None)
    with pytest.raises(BadRequest):
        given_token(scheme + str(number), scheme + str(number))


@thorough
@given(st.uuids(version=4), st.data())
def test_a_token_with_a_changed_character_is_malformed_or_unknown(number: uuid.UUID, data: st.DataObject) -> None:
    token = str(number)
    at = data.draw(st.integers(0, len(token)))
    put = data.draw(st.text(st.sampled_from("0aF-g{} \t\n٣３²") | st.characters(), max_size=2))
    changed = token[:at] + put + token[at + data.draw(st.integers(0, 1)) :]
    found = given_token(changed)
    assert found is None or found == changed
    if found is not None:
        assert str(uuid.UUID(found)) == found
        assert uuid.UUID(found).version == 4
        found.encode("ascii")


@thorough
@given(st.text() | st.uuids().map(str) | st.binary().map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_nothing_but_a_canonical_uuid4_is_a_token(value: str) -> None:
    found = given_token(value)
    if found is not None:
        number = uuid.UUID(found)
        assert (str(number), number.version, number.variant) == (found, 4, uuid.RFC_4122)


@thorough
@given(st.text(max_size=400) | st.binary(max_size=400).map(lambda b: b.decode("utf-8", "surrogateescape")))
@example("\U0001f600" * 400)
@example("\udcff" * 400)
@example("\0")
def test_any_user_agent_becomes_text_that_postgres_takes(value: str) -> None:
    found = user_agent(carrying(("User-Agent", value)))
    if not value:
        assert found is None
        return
    assert found is not None
    assert "\0" not in found
    assert len(found) <= 256
    assert len(found.encode("utf-8")) <= 2048
    if value.isprintable() and len(value) <= 256:
        assert found == value
