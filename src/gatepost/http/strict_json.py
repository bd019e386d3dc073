"""Strict JSON: text that two parsers could read differently is refused, and so is text that Postgres cannot store."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gatepost.errors import BadRequest

MAX_DEPTH = 16
# Characters: far less than int() and jsonb would take on, and more than any number here can mean. But what was taken
# must be taken again: jsonb writes 1e308 as 309 digits, and 1e-308 as 310 characters and its own digits.
MAX_NUMBER = 400

# One compact encoder: json.dumps() would create one for each call.
encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

# What Postgres cannot keep: U+0000 and lone surrogates.
BAD_CHARACTER = re.compile("[\\0\ud800-\udfff]")

# An unfinished string counts to the end: or each quote in it would be tried as a beginning, in quadratic time.
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def decode(body: bytes) -> Any:
    """The value of a JSON text.

    Raises BadRequest with the code ``body_not_utf8``, ``body_not_json``, ``body_too_deep``, ``duplicate_key``,
    ``number_not_finite``, ``number_too_long``, ``nul_character`` or ``lone_surrogate``.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The body is not UTF-8.", code="body_not_utf8") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise BadRequest(f"The body is nested more than {MAX_DEPTH} deep.", code="body_too_deep")
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"The body is not JSON: {error.msg} at character {error.pos}.", code="body_not_json"
        ) from None
    if "\\u" in text:  # raw, neither could have come through the decoders
        refuse_bad_characters(value)
    return value


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _STRINGS.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise BadRequest("A key occurs twice in one object.", code="duplicate_key")
    return value


def _number(text: str, kind: Callable[[str], float]) -> float:
    if len(text) > MAX_NUMBER:
        raise BadRequest(f"A number has more than {MAX_NUMBER} characters.", code="number_too_long")
    value = kind(text)
    if abs(value) > sys.float_info.max:  # an integer as well: to others it would be infinite
        _not_finite(text)
    return value


def _not_finite(_text: str) -> NoReturn:
    raise BadRequest("A number is not finite.", code="number_not_finite")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=lambda text: _number(text, int),
    parse_float=lambda text: _number(text, float),
    parse_constant=_not_finite,
)


def refuse_bad_characters(value: Any) -> None:
    """Raise BadRequest for U+0000 or a lone surrogate in any string within: Postgres takes neither."""
    if isinstance(value, str):
        if bad := BAD_CHARACTER.search(value):
            if bad[0] == "\0":
                raise BadRequest("A string contains U+0000.", code="nul_character")
            raise BadRequest("A string contains a lone surrogate.", code="lone_surrogate")
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_bad_characters(key)
            refuse_bad_characters(item)
    elif isinstance(value, list):
        for item in value:
            refuse_bad_characters(item)
