"""What the event loop does for a request before any throttle: none of it grows faster than what was sent.

Work is counted in calls, which are the same on every machine. That count does not see what happens within one call
of C. There the clock judges, and only if it is over the bound and half the text takes far less than half the time.
"""

import asyncio
import ipaddress
import json
import random
import sys
import threading
import time
import unicodedata
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings, target
from hypothesis import strategies as st
from multidict import CIMultiDict
from precis_i18n import get_profile
from yarl import URL

from gatepost.accounts import policy, profile
from gatepost.admin import cursor
from gatepost.admin.handlers import Page
from gatepost.admin.user import canonical_prefix
from gatepost.config import Config, PasswordsConfig
from gatepost.errors import Overloaded, Problem
from gatepost.forward_auth import handlers as forwarding
from gatepost.http import access_log, app, body, client, strict_json, tokens
from gatepost.mail.codes import as_typed, hash_link
from gatepost.mail.mailer import Mailer
from gatepost.ops import handlers as ops
from gatepost.pages import forms, return_to
from gatepost.postgres.database import Dsn
from gatepost.security import addresses, email
from gatepost.security.credentials import prepare
from gatepost.security.identifier import Identifier
from gatepost.security.names import canonical
from gatepost.security.precis import MAX_MARKS, Profile
from tests.conftest import Client, log_in, register, rows

MAX = body.MAX_BODY
# Calls in 20 ms, at 200 ns each on a slow machine.
MAX_CALLS = 100_000
SECONDS = 0.02


def attempt(function: Callable[[str], object], text: str) -> object:
    try:
        return function(text)
    except (ValueError, Problem) as refused:
        return type(refused)


def calls(function: Callable[[str], object], text: str) -> int:
    """How many calls, of Python and of C, it takes."""
    count = 0

    def note(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    # What is remembered for ever (of code points) is not counted; what is remembered of a text is: the next differs.
    attempt(function, text)
    text = text[:-1]
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        attempt(function, text)
    finally:
        sys.setprofile(before)
    return count


def seconds(function: Callable[[str], object], *texts: str) -> list[float]:
    """The processor's time of each, of the best of several runs in turn."""
    best = [float("inf")] * len(texts)
    for shorter in range(2, 9):
        for index, whole in enumerate(texts):
            text = whole[:-shorter]
            began = time.thread_time()
            attempt(function, text)
            best[index] = min(best[index], time.thread_time() - began)
        if best[0] < SECONDS / 4:
            break
    return best


def request(headers: Any = (), path: str = "/") -> Any:
    config = Config()
    return make_mocked_request("GET", path, headers=CIMultiDict(headers), app={app.CONFIG: config})


def cookies(text: str) -> object:
    return tokens._session_cookie(request([("Cookie", text), ("Cookie", text[:-1])]), "localhost")


def forwarded(text: str) -> object:
    trusted = [ipaddress.ip_network("0.0.0.0/0")]
    return addresses.client(ipaddress.ip_address("10.0.0.1"), [text] * 128, trusted)


def patched(text: str) -> object:
    value = strict_json.decode(text.encode("utf-8", "replace"))
    return profile.patched(value, value) if isinstance(value, dict) else value


def registration(text: str) -> object:
    return policy.judge(text, text, PasswordsConfig())


def query(text: str) -> object:
    made = request()
    made._rel_url = URL.build(path="/", query_string=text.encode("ascii", "ignore").decode(), encoded=True)
    return body.read_query(made, Page)


def content_type(text: str) -> object:
    return body.media_type(request([("Content-Type", text)]))


def forward_auth(text: str) -> object:
    headers = [(name, text) for name in ("X-Forwarded-Uri", "X-Original-URI", "X-Forwarded-Host") for _ in range(2)]
    made = request([*headers, ("X-Forwarded-Method", text), ("Host", text)])
    asked = forwarding._asked(made)
    forwarding._refuse_ambiguous_paths(made)
    return asked


def other_headers(text: str) -> object:
    made = request([(name, text) for name in ("User-Agent", "X-Request-ID", "Origin", "Host", "Expect")])
    access_log.name_request(made, web.Response())
    return client.user_agent(made), tokens._is_local(made, text), ops._is_from_here(made)


SUBJECTS: dict[str, Callable[[str], object]] = {
    "a password": prepare,
    "a name": canonical,
    "a registration": registration,
    "JSON": lambda text: strict_json.decode(text.encode("utf-8", "replace")),
    "a merge patch": patched,
    "cookies": cookies,
    "X-Forwarded-For": forwarded,
    "a cursor": cursor.name,
    "a query": query,
    "Content-Type": content_type,
    "what proxies say": forward_auth,
    "other headers": other_headers,
    "an address": lambda text: email.parse(f"a@{text}.org"),
    "the longest address": lambda text: email.parse(f"a@{text[:120]}.org"),
    "what is before an @": lambda text: email.parse(f"{text[:120]}@example.org"),
    "an identifier": lambda text: Identifier.of(f"{text}@x.org", addresses=True),
    "Accept-Language": lambda text: Mailer(Config(), None).language(request([("Accept-Language", text)])),
    "a typed code": as_typed,
    # A form may be four times as long as what programs send: it has two passwords, each letter in twelve bytes.
    "a form": lambda text: forms.fields_of(text.encode("utf-8", "replace") * 4),
    "what a script has written into a form": lambda text: forms.proof({"passkey": text}),
    "a way back": lambda text: return_to.safe(f"/{text}", ["https://app.example"]),
    "a way back to elsewhere": lambda text: return_to.safe(f"https://app.example/{text}", ["https://app.example"]),
    "a search of users": lambda text: canonical_prefix(text[:128]),
}

# Each is repeated until it fills what may be sent.
PIECES = [
    *(chr(next(c for c in range(0xA0, 0x110000) if unicodedata.category(chr(c)) == category)) for category in
      ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
       "Sm", "Sc", "Sk", "So", "Zs", "Cf", "Cn", "Co")),
    "\u30fb", "\u0660", "\u06f0", "\u0628\u200c", "\u094d\u200d", "l\u00b7", "\u0375\u03b1", "\u05d0\u05f3",
    "a\u0301", "\u0315\u0300", "\u0f73", "\u0344", "\ufdfa", "\u0958", "\u0130", "\u1fa7", "\U0001d15e",
    "\u1100\u1161\u11a8",
    "\u05d0", "a", " ", "\t", ";", "session=;", "session;", "; session=x ", ",", "10.0.0.1,", "[::1],", "1,", "&",
    "a=&", "limit=1&", "%", '"', '\\"', "[", "{", '{"a":', '"a":1,', "1", "9e9,", "\\u0000", "A", "_", "=", "AQ",
    ";\"", "a=;", "/.", "%2e.a/", "a*0=\"b\";",
]  # fmt: skip
WRAPPED = ["", '{"a":"', "[", '{"a":[']


def filled(piece: str, size: int = MAX) -> str:
    return piece * (size // len(piece.encode("utf-8", "surrogatepass")))


def judge(name: str, text: str, half: str) -> None:
    subject = SUBJECTS[name]
    whole = calls(subject, text)
    assert whole <= MAX_CALLS, (name, text[:20])
    assert whole <= 2.5 * calls(subject, half) + 200, (name, text[:20])
    clock(name, text, half)


def clock(name: str, text: str, half: str) -> None:
    long, short = seconds(SUBJECTS[name], text, half)
    assert long < SECONDS or long < 3 * short, (name, text[:20])


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_worst_of_each_kind_of_character_is_prepared_in_bounded_work(name: str) -> None:
    for piece in PIECES:
        for wrap in WRAPPED:
            judge(name, wrap + filled(piece, MAX - len(wrap)), wrap + filled(piece, MAX // 2 - len(wrap)))


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_text_that_a_search_finds_takes_more(name: str) -> None:
    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=6))
    def search(pieces: list[str]) -> None:
        text = filled("".join(pieces) or "a")
        cost = calls(SUBJECTS[name], text)
        target(float(cost))
        assert cost <= MAX_CALLS
        clock(name, text, text[: len(text) // 2])

    search()


def test_cookies_that_are_too_long_together_are_not_read() -> None:
    pair, other = f"session={uuid.uuid4()}", ("Cookie", "x" * (8 * 1024 - 100))
    assert tokens._session_cookie(request([("Cookie", pair), other]), "localhost")
    assert not tokens._session_cookie(request([("Cookie", pair), other, other, other]), "localhost")


# --------------------------------------------------------------------------- the library's judgements, and ours


CONTEXTUAL = (
    "\u30fb\u30ab\u0660\u06f0\u200c\u200d\u0628\u064b\u094d\u0915\u00b7l\u0375\u03b1\u05f3\u05f4\u05d0aA \u3000"
)
OTHERS = "\u0301\u0378\ue000\u1100\uff76\u0130\u0345\u2126\u00df\u03c2"


@pytest.mark.parametrize("name", ["UsernameCaseMapped", "UsernameCasePreserved", "OpaqueString"])
def test_what_is_enforced_and_refused_is_what_the_library_does(name: str) -> None:
    ours, theirs = Profile(name), get_profile(name)

    def outcome(enforce: Callable[[str], str], text: str) -> object:
        try:
            return enforce(text)
        except UnicodeEncodeError as error:
            return error.encoding, error.object, error.start, error.end, error.reason

    @settings(max_examples=1500, derandomize=True, deadline=None, database=None)
    @given(st.text(st.sampled_from(CONTEXTUAL + OTHERS), max_size=9) | st.text(max_size=12))
    def compare(text: str) -> None:
        assert outcome(ours.enforce, text) == outcome(theirs.enforce, text)

    compare()


def test_every_code_point_by_itself_and_between_letters_is_judged_as_the_library_does() -> None:
    ours, theirs = Profile("OpaqueString"), get_profile("OpaqueString")
    for code in random.Random(8264).sample(range(0x110000), 5000) + list(range(0x3100)):
        text = f"a{chr(code)}b"
        assert attempt(ours.enforce, text) == attempt(theirs.enforce, text), hex(code)


def test_more_marks_on_one_letter_than_any_language_has_are_refused_before_they_are_sorted() -> None:
    assert canonical("a" + MAX_MARKS * "\u0323").startswith("\u1ea1")
    with pytest.raises(ValueError, match="too many marks"):
        canonical("a" + (MAX_MARKS + 1) * "\u0323")


def test_a_character_that_only_becomes_marks_when_it_is_decomposed_counts_as_one() -> None:
    """No mark by its own class, and several in what is sorted: 2,700 of U+0F73 took 31 ms (measured)."""
    every = (chr(code) for code in range(0x110000))
    hidden = [c for c in every if not unicodedata.combining(c) and unicodedata.combining(decomposed(c)[0])]
    assert hidden
    for character in hidden:
        prepare("a" + MAX_MARKS * character)
        with pytest.raises(ValueError, match="too many marks"):
            prepare("a" + (MAX_MARKS + 1) * character)


def test_ten_digits_with_a_rule_do_not_read_the_text_ten_times() -> None:
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 2600)))
    one, ten = "\u0660", "".join(map(chr, range(0x0660, 0x066A)))
    assert calls(prepare, ten + letters) <= calls(prepare, one + letters) + 1000


def decomposed(character: str) -> str:
    return unicodedata.normalize("NFD", character)


def test_a_profile_that_is_nested_is_merged_once_for_each_level() -> None:
    deep: dict[str, Any] = {}
    for _ in range(strict_json.MAX_DEPTH - 1):
        deep = {"a": deep}
    assert profile.patched(deep, deep) == json.loads(json.dumps(deep))


async def test_no_password_is_prepared_on_the_event_loop(
    client: Client, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one takes milliseconds, and a code point that the process has not seen 3 us."""
    threads: dict[str, set[int]] = {}
    honest = Profile.enforce

    def note(self: Profile, text: str) -> str:
        threads.setdefault(text, set()).add(threading.get_ident())
        return honest(self, text)

    monkeypatch.setattr(Profile, "enforce", note)
    first, second, third = ("".join(map(chr, range(at, at + 500))) for at in (0x4E00, 0x5E00, 0x6E00))
    await register(client, "ada", first)
    token = await log_in(client, "ada", first)
    headers = {"Authorization": token}
    async with client.put("/account/password", json={"current": first, "new": second}, headers=headers) as answer:
        assert answer.status == 200
        headers = {"Authorization": (await answer.json())["session_id"]}
    rows(
        dsn,
        "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at) "
        "SELECT id, %s, clock_timestamp() + interval '1 hour' FROM gatepost.users RETURNING 1",
        hash_link("ABCD"),
    )
    async with client.post("/account/password/redeem", json={"code": "ABCD", "new": third}) as answer:
        assert answer.status == 200, await answer.text()
    headers = {"Authorization": await log_in(client, "ada", third)}
    async with client.delete("/account", json={"password": third}, headers=headers) as answer:
        assert answer.status == 200
    for text in (first, second, third):
        assert threads[text]
        assert threading.get_ident() not in threads[text]


async def test_no_more_new_passwords_wait_to_be_judged_than_a_second_holds() -> None:
    go_on = threading.Event()
    waiting = [asyncio.create_task(policy.off_the_loop(go_on.wait, 60)) for _ in range(policy._Judging.MOST)]
    try:
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await policy.off_the_loop(int)
    finally:
        go_on.set()
    assert all(await asyncio.gather(*waiting))
    assert await policy.off_the_loop(int, "7") == 7
