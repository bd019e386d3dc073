"""What bad input gets: a test for each row of the table, over real HTTP; raw TCP where a client would refuse."""

import asyncio
import contextlib
import gzip
import json
import logging
import time
import uuid
import zlib
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, NamedTuple

import pytest

from gatepost.config import Config
from gatepost.errors import BadRequest
from gatepost.http import strict_json
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import hashing
from tests.conftest import (
    PASSWORD,
    UNLIMITED,
    Client,
    CountRoundTrips,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
)

LOGIN = b'{"username":"ada","password":"correct horse battery"}'
JSON = {"Content-Type": "application/json"}
BOTH = pytest.mark.parametrize("path", ["/user", "/account"])
TABLES = ("users", "passwords", "sessions", "events", "deployment_keys", "throttles", "known_places")


class Answer(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The body of an error, which has one shape wherever the error comes from."""
        return judge(self.status, self.headers, self.body)


def judge(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    assert headers["Content-Type"] == "application/problem+json", (status, body)
    problem: dict[str, Any] = json.loads(body)
    assert problem["status"] == status
    assert {"type", "title", "status", "code", "detail"} <= set(problem)
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Request-ID"]
    return problem


async def exchange(client: Client, request: bytes, *, seconds: float = 60) -> Answer:
    """Send exactly these bytes and return the final answer; no answer at all is a failure."""
    assert client.server.port is not None
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    try:
        async with asyncio.timeout(seconds):
            writer.write(request)
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, _, fields = head.partition(b"\r\n")
                status = int(line.split()[1])
                if status >= 200:
                    break
            headers = BytesParser(policy=HTTP).parsebytes(fields, headersonly=True)
            bodiless = request.startswith(b"HEAD ") or status in {204, 304}
            body = b"" if bodiless else await reader.readexactly(int(headers["Content-Length"]))
            return Answer(status, {str(k): str(v) for k, v in headers.items()}, body)
    finally:
        writer.close()


def raw(method: str, path: str, *headers: bytes, body: bytes | None = None) -> bytes:
    """A request, header lines as given."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: gatepost.test", *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def chunked(path: str, body: bytes, size: int) -> bytes:
    """A POST in chunks of this size."""
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return raw("POST", path, b"Content-Type: application/json", b"Transfer-Encoding: chunked") + framed


async def post(client: Client, path: str, body: bytes, **headers: str) -> Answer:
    async with client.post(path, data=body, headers={**JSON, **headers}) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


async def refused(client: Client, path: str, body: bytes, status: int, **headers: str) -> dict[str, Any]:
    """The problem that this body gets; the status must be this one."""
    answer = await post(client, path, body, **headers)
    assert answer.status == status, (body[:200], answer)
    return answer.problem()


async def assert_prompt(client: Client) -> None:
    """The server goes on serving."""
    async with asyncio.timeout(60), client.get("/ping") as answer:
        assert answer.status == 200


# ------------------------------------------------------------------------------------------- not JSON: 400

AROUND = b'{"username":"ada","password":"correct horse battery","x":%s}'
MALFORMED = {
    "body_not_utf8": [
        b'{"username":"\xff","password":"correct horse battery"}',
        b'{"username":"ad\xe9","password":"correct horse battery"}',
        b'{"username":"\xc0\xaf","password":"overlong encoding"}',
        b'{"username":"\xed\xa0\x80","password":"a surrogate, encoded"}',
        b"\x80",
        LOGIN.decode().encode("utf-16"),
        LOGIN + b"\xfe",
    ],
    "body_not_json": [
        b"",
        b" \r\n\t",
        b"username=ada&password=correct+horse+battery",
        b"\xef\xbb\xbf" + LOGIN,
        LOGIN.decode().encode("utf-16-le"),
        LOGIN.replace(b'"', b"'"),
        LOGIN + LOGIN,
        LOGIN + b"\0",
        LOGIN[:-1] + b",}",
        b"// a comment\n" + LOGIN,
        b'{"username":"a\nda","password":"correct horse battery"}',
        b'{"username":"a\0da","password":"correct horse battery"}',
        b'{"username":"\\x61da","password":"correct horse battery"}',
        b'{"username":"\\u00g1","password":"correct horse battery"}',
        *(AROUND % n for n in (b"01", b"+1", b".5", b"1.", b"0x10", b"1_000", "１".encode(), b"nan", b"True")),
        b"]" * 40 + b"[" * 16,
    ],
    "number_not_finite": [
        AROUND % n for n in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"[[1e400]]", b"9" * 309)
    ],
    "duplicate_key": [
        LOGIN[:-1] + b',"username":"eve"}',
        LOGIN[:-1] + b',"\\u0075sername":"eve"}',
        LOGIN[:-1] + b',"password":"correct horse battery"}',
        AROUND % b'{"a":1,"a":1}',
        AROUND % b'[{"":1,"":2}]',
    ],
    "body_too_deep": [
        AROUND % (b"[" * 16 + b"]" * 16),
        AROUND % (b'{"a":' * 16 + b"1" + b"}" * 16),
        b"[" * 17 + b"]" * 17,
        b"[" * 8000,
        b'{"a":' * 1600,
        b'{"a\\\\":[' * 1000,
    ],
    "number_too_long": [
        AROUND % (b"1" * 5000),
        AROUND % (b"-" + b"9" * 5000),
        AROUND % (b"0." + b"1" * 5000),
        AROUND % (b"1e" + b"0" * 5000),
        AROUND % (b"1" * 401),
    ],
    "lone_surrogate": [
        b'{"username":"\\ud800","password":"correct horse battery"}',
        b'{"username":"ada","password":"correct horse \\udfff battery"}',
        b'{"username":"ada\\ude00\\ud83d","password":"a pair the wrong way round"}',
        AROUND % b'{"\\uDBFF":1}',
        AROUND % b'[[{"a":["\\ud83dx"]}]]',
    ],
    "nul_character": [
        b'{"username":"ada\\u0000","password":"correct horse battery"}',
        b'{"username":"ada","password":"correct horse battery\\u0000"}',
        AROUND % b'{"\\u0000":1}',
        b'{"\\u0000":1}',
    ],
}


@BOTH
@pytest.mark.parametrize("code", MALFORMED)
async def test_a_body_that_is_not_strict_json_is_400_with_a_code_that_says_which_rule(
    client: Client, dsn: Dsn, path: str, code: str
) -> None:
    for body in MALFORMED[code]:
        problem = await refused(client, path, body, 400)
        assert problem["code"] == code, body[:200]
        assert "horse" not in problem["detail"]
    assert rows(dsn, "SELECT 1 FROM gatepost.users") == []
    assert rows(dsn, "SELECT 1 FROM gatepost.events") == []


@BOTH
async def test_a_body_cut_short_at_any_byte_is_400(client: Client, path: str) -> None:
    for end in range(len(LOGIN)):
        assert (await refused(client, path, LOGIN[:end], 400))["code"] == "body_not_json"


async def test_what_is_just_within_the_decoders_bounds_is_taken(client: Client, ada: dict[str, Any]) -> None:
    deepest = b"[" * 15 + b"]" * 15  # within the object: 16
    for value in (deepest, b"1" * 309, b"1e308", b'"\\ud83d\\ude00"', b'"[[[[[[[[[[[[[[[[[[[[[\\"{{"'):
        assert (await post(client, "/user", AROUND % value)).status == 200, value
    side_by_side = b"[" + b",".join([b"[]"] * 500) + b"]"
    assert (await post(client, "/user", AROUND % side_by_side)).status == 200


def work_of_decoding(body: bytes) -> float:
    """Seconds of processor time, on a good day."""

    def once() -> float:
        began = time.thread_time()
        with contextlib.suppress(BadRequest):
            strict_json.decode(body)
        return time.thread_time() - began

    return min(once() for _ in range(20))


async def test_the_decoder_is_quick_for_every_body_that_is_small_enough(client: Client) -> None:
    """Every body is decoded on the event loop: one that takes long stops everybody. Of four times the length it takes
    about four times as long, and not sixteen times.
    """
    bodies = [
        b"[" * 17 + b'"' + b'\\"' * 4080,
        b"[" * 17 + b'"' * 8100,
        b"[" * 17 + b"\\" * 8100,
        b"[" * 17 + b'"\\\\' * 2700,
        b"{" * 17 + b'"' + b"\\u0000" * 1350,
        b"[" + b"1," * 4000 + b"1]",
        b"{" + b",".join(b'"%x":0' % i for i in range(1000)) + b"}",
    ]
    for body in bodies:
        assert len(body) <= 8192
        assert (await post(client, "/user", body)).status in {400, 422}
        assert work_of_decoding(body) < 8 * work_of_decoding(body[: len(body) // 4]), body[:40]


async def test_a_client_that_disconnects_within_its_body_is_not_logged_as_a_server_error(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    starts = [
        raw("POST", "/user", b"Content-Length: 100") + LOGIN[:20],
        raw("POST", "/user", b"Transfer-Encoding: chunked") + b"40\r\n" + LOGIN[:20],
    ]
    served = 0
    for start in starts:
        assert client.server.port is not None
        _, writer = await asyncio.open_connection(client.server.host, client.server.port)
        writer.write(start)
        await writer.drain()
        await assert_prompt(client)  # by now it has been read
        writer.close()
        await writer.wait_closed()
        served += 1
    runner = client.server.runner
    assert runner is not None
    http = runner.server
    assert http is not None
    # Only the client's own kept-alive connection remains.
    await eventually(lambda: len(http.connections) <= 1)
    await assert_prompt(client)
    assert served == len(starts)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


# ------------------------------------------------------------------------------- JSON, but not what is needed: 422


@BOTH
@pytest.mark.parametrize("body", ["[]", '"ada"', "1", "null", "true", '[{"username":"ada","password":"x"}]'])
async def test_json_that_is_not_an_object_is_422(client: Client, path: str, body: str) -> None:
    problem = await refused(client, path, body.encode(), 422)
    assert problem["code"] == "invalid_body"
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [("", "not_an_object")]


@BOTH
@pytest.mark.parametrize("field", ["username", "password"])
async def test_a_field_that_is_missing_or_no_string_is_422_and_named(client: Client, path: str, field: str) -> None:
    whole = {"username": "ada", "password": PASSWORD}
    without = {k: v for k, v in whole.items() if k != field}
    problem = await refused(client, path, json.dumps(without).encode(), 422)
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [(field, "required")]
    for value in (None, 1, 0, 1.5, True, [], [PASSWORD], {}, {"$ne": ""}):
        problem = await refused(client, path, json.dumps({**whole, field: value}).encode(), 422)
        assert [(e["field"], e["code"]) for e in problem["errors"]] == [(field, "not_a_string")], value
        assert PASSWORD not in json.dumps(problem)


@BOTH
async def test_every_bad_field_is_named_at_once(client: Client, path: str) -> None:
    problem = await refused(client, path, b'{"username":1,"USERNAME":"ada","Password":"x"}', 422)
    named = {(e["field"], e["code"]) for e in problem["errors"]}
    assert {("username", "not_a_string"), ("password", "required")} <= named
    assert all(e["message"] for e in problem["errors"])


@pytest.mark.parametrize("key", ["is_admin", "roles", "id", "epoch", "", "__proto__", "user.name", "'; --", "ключ"])
async def test_an_unknown_key_at_registration_is_422_and_named(client: Client, dsn: Dsn, key: str) -> None:
    body = {"username": "ada", "password": PASSWORD, key: True}
    problem = await refused(client, "/account", json.dumps(body).encode(), 422)
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [(key, "unknown_field")]
    assert rows(dsn, "SELECT 1 FROM gatepost.users") == []


async def test_unknown_keys_at_login_are_passed_over(client: Client, ada: dict[str, Any]) -> None:
    extra = {"is_admin": True, "remember": 1.5, "device": {"name": None, "ids": [1, 2]}, "": "", "roles": ["admin"]}
    body = json.dumps({"username": "ada", "password": PASSWORD, **extra}).encode()
    answer = await post(client, "/user", body)
    assert answer.status == 200
    assert json.loads(answer.body)["user"] == ada


# ------------------------------------------------------------------------------------------------- too long


async def test_a_name_or_password_over_its_length_is_the_same_401_for_the_same_work(
    client: Client,
    ada: dict[str, Any],
    count_round_trips: CountRoundTrips,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[object] = []
    derive = hashing.derive

    def counted(*args: Any) -> hashing.Derived:
        hashed.append(args)
        return derive(*args)

    monkeypatch.setattr(hashing, "derive", counted)
    attempts = [
        ("ada", "a wrong password, of a fair length"),
        ("ada", PASSWORD + "x" * 1024),
        ("ada", "x" * 1025),
        ("ada", "x" * 8000),
        ("ada", "é" * 3500),
        ("x" * 129, PASSWORD),
        ("x" * 8000, PASSWORD),
        ("x" * 4000, "x" * 4000),
        ("ada" + " " * 200, PASSWORD),
    ]
    answers = set()
    for username, password in attempts:
        hashed.clear()
        body = json.dumps({"username": username, "password": password}, ensure_ascii=False).encode()
        assert len(body) <= 8192
        with count_round_trips() as sent:
            answer = await post(client, "/user", body)
        assert (len(hashed), len(sent)) == (1, 2), (username[:10], len(password))
        answers.add((answer.status, answer.body, answer.headers["WWW-Authenticate"]))
    assert len(answers) == 1
    status, text, _ = answers.pop()
    assert (status, json.loads(text)["code"]) == (401, "invalid_credentials")


@BOTH
async def test_a_body_over_8_kb_is_413_and_one_of_8_kb_is_read(client: Client, path: str) -> None:
    most = LOGIN + b" " * (8192 - len(LOGIN))
    assert (await post(client, path, most)).status in {401, 201}
    for body in (most + b" ", b"x" * 8193, LOGIN + b" " * 1_000_000, b"[" * 100_000):
        problem = await refused(client, path, body, 413)
        assert problem["code"] == "body_too_large"
    await assert_prompt(client)


@BOTH
@pytest.mark.parametrize("size", [1, 100, 8192, 8193, 70_000])
async def test_a_chunked_body_over_8_kb_is_413(client: Client, path: str, size: int) -> None:
    total = max(size, 8193)
    within = await exchange(client, chunked(path, LOGIN + b" " * (8192 - len(LOGIN)), size))
    assert within.status in {401, 201}
    over = await exchange(client, chunked(path, LOGIN + b" " * (total - len(LOGIN)), size))
    assert over.status == 413
    over.problem()


@BOTH
async def test_a_body_that_only_claims_to_be_huge_is_answered_without_waiting_for_it(
    client: Client, path: str
) -> None:
    request = raw("POST", path, b"Content-Type: application/json", b"Content-Length: 99999999999")
    answer = await exchange(client, request + b" " * 9000)
    assert answer.status == 413
    endless = raw("POST", path, b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    answer = await exchange(client, endless + b"2000\r\n" + b" " * 0x2000 + b"\r\n1\r\n \r\n")
    assert answer.status == 413
    await assert_prompt(client)


ENCODINGS = ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "gzip, identity", "identity, gzip", "rot13"]


@BOTH
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_an_encoded_body_is_415_whatever_is_in_it(client: Client, path: str, encoding: str) -> None:
    for body in (LOGIN, gzip.compress(LOGIN), zlib.compress(LOGIN), b"", b"\x1f\x8b garbage"):
        problem = await refused(client, path, body, 415, **{"Content-Encoding": encoding})
        assert problem["code"] == "unsupported_media_type"
    await assert_prompt(client)


@BOTH
async def test_a_second_content_encoding_header_does_not_slip_past_the_first(client: Client, path: str) -> None:
    for body in (gzip.compress(LOGIN), LOGIN):
        lines = b"Content-Type: application/json", b"Content-Encoding: identity", b"Content-Encoding: gzip"
        answer = await exchange(client, raw("POST", path, *lines, body=body))
        assert answer.status == 415, answer
        answer.problem()


async def test_content_encoding_identity_is_no_encoding(client: Client, ada: dict[str, Any]) -> None:
    for encoding in ("identity", "Identity"):
        assert (await post(client, "/user", LOGIN, **{"Content-Encoding": encoding})).status == 200


@BOTH
async def test_a_gzip_bomb_is_415_at_once_and_delays_no_other_request(client: Client, path: str) -> None:
    bomb = gzip.compress(bytes(1 << 26), compresslevel=9)
    assert len(bomb) < 100_000
    nested = gzip.compress(bomb)
    small = gzip.compress(bytes(1 << 22))
    assert len(small) < 8192
    for body in (bomb, nested, small):
        async with asyncio.timeout(60):
            answers = await asyncio.gather(
                *(post(client, path, body, **{"Content-Encoding": "gzip"}) for _ in range(5)), assert_prompt(client)
            )
        assert [answer.status for answer in answers if answer] == [415] * 5
    in_chunks = b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Content-Type: application/json"
    answer = await exchange(client, raw("POST", path, *in_chunks) + b"%x\r\n" % len(bomb) + bomb + b"\r\n0\r\n\r\n")
    assert answer.status == 415
    await assert_prompt(client)


# --------------------------------------------------------------------------------------------- Content-Type

FOREIGN = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/json",
    "application/jsonx",
    "application/vnd.api+json",
    "application",
    "application/json/x",
    "text/plain; x=application/json",
    ";",
    "*/*",
]


@pytest.mark.parametrize("content_type", FOREIGN)
async def test_another_content_type_than_json_will_do_at_login_and_nowhere_else(
    client: Client, ada: dict[str, Any], content_type: str
) -> None:
    assert (await post(client, "/user", LOGIN, **{"Content-Type": content_type})).status == 200
    assert (await refused(client, "/user", b"username=ada", 400, **{"Content-Type": content_type}))["code"]
    problem = await refused(client, "/account", LOGIN, 415, **{"Content-Type": content_type})
    assert problem["code"] == "unsupported_media_type"


async def test_no_content_type_will_do_at_login_and_nowhere_else(client: Client, ada: dict[str, Any]) -> None:
    assert (await exchange(client, raw("POST", "/user", body=LOGIN))).status == 200
    for line in ([], [b"Content-Type:"], [b"Content-Type: \xff/\xfe"]):
        answer = await exchange(client, raw("POST", "/account", *line, body=LOGIN))
        assert answer.status == 415
        assert answer.problem()["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
async def test_json_is_json_in_any_case_and_with_parameters(client: Client, content_type: str) -> None:
    assert (await post(client, "/account", LOGIN, **{"Content-Type": content_type})).status == 201


# -------------------------------------------------------------------------------------------- Authorization


async def unauthorized(client: Client, *lines: bytes) -> None:
    """A request with these header lines is 401 to everything that asks for a session, and may be tried again."""
    for method in ("GET", "DELETE", "HEAD"):
        answer = await exchange(client, raw(method, "/user", *lines))
        assert answer.status == 401, (method, lines, answer)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer"), (method, lines)
        if method != "HEAD":
            assert answer.problem()["code"] == "unauthorized"


async def test_no_empty_or_malformed_authorization_is_401(client: Client, ada: dict[str, Any]) -> None:
    token = await log_in(client)
    await unauthorized(client)
    values = [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Basic YWRhOnBhc3N3b3Jk",
        f"Basic {token}",
        f"Token {token}",
        f"Bearer{token}",
        f"Bearer\t{token}",
        f"Bearer: {token}",
        f"Bearer {token} {token}",
        f"Bearer Bearer {token}",
        f"{token}, {token}",
        f"{token} Bearer",
        f'"{token}"',
        f"Bearer {token},",
        f"Bearer token={token}",
        "null",
        "undefined",
        "0" * 8000,
    ]
    for value in values:
        await unauthorized(client, b"Authorization: " + value.encode())
    assert await status_of(client, token) == 200


async def test_a_token_in_any_spelling_but_its_own_is_401(client: Client, ada: dict[str, Any]) -> None:
    token = await log_in(client)
    number = uuid.UUID(token)
    full_width = token.translate({ord("0") + i: 0xFF10 + i for i in range(10)})
    assert full_width != token
    assert uuid.UUID(full_width) == number  # what a lax parser would make of it
    spellings: list[bytes] = [
        b"{" + token.encode() + b"}",
        token.upper().encode(),
        token.title().encode(),
        f"urn:uuid:{token}".encode(),
        token.replace("-", "").encode(),
        token.replace("-", " ").encode(),
        token.replace("-", "_").encode(),
        (token[:9] + " " + token[9:]).encode(),
        (token[:4] + "-" + token[4:]).encode(),
        token[:-1].encode(),
        token.encode() + b"0",
        b"0x" + token.encode(),
        full_width.encode(),
        token.replace("-", "\u2010").encode(),
        token.encode() + b"\xe9",
        token.encode() + b"\xc2\xa0",
        token.encode() + b"\xff",
        b"\xef\xbb\xbf" + token.encode(),
        token.encode("utf-8") + "\u0301".encode(),
        number.bytes_le.hex().encode(),
        str(number.int).encode(),
    ]
    # Full-width digits cannot be written in latin-1; superscripts, which str.isdigit() takes as well, can.
    superscript = token.translate({ord("1"): "\xb9", ord("2"): "\xb2", ord("3"): "\xb3"})
    if superscript != token:
        spellings.append(superscript.encode("latin-1"))
    for spelling in spellings:
        for scheme in (b"", b"Bearer "):
            await unauthorized(client, b"Authorization: " + scheme + spelling)
    assert await status_of(client, token) == 200


async def test_a_token_with_any_one_digit_changed_is_401(client: Client, ada: dict[str, Any]) -> None:
    token = await log_in(client)
    for i, character in enumerate(token):
        if character != "-":
            other = "0" if character != "0" else "1"
            assert await status_of(client, token[:i] + other + token[i + 1 :]) == 401, i
    assert await status_of(client, str(uuid.uuid4())) == 401
    assert await status_of(client, str(uuid.uuid1())) == 401
    assert await status_of(client, str(uuid.UUID(int=0))) == 401
    assert await status_of(client, token) == 200


async def test_two_authorization_headers_are_400_and_end_nothing(client: Client, ada: dict[str, Any]) -> None:
    token = (await log_in(client)).encode()
    pairs = [
        (b"Authorization: " + token, b"Authorization: " + token),
        (b"Authorization: " + token, b"authorization: nonsense"),
        (b"AUTHORIZATION: ", b"Authorization: Bearer " + token),
    ]
    for lines in pairs:
        for method in ("GET", "DELETE"):
            answer = await exchange(client, raw(method, "/user", *lines))
            assert answer.status == 400
            assert answer.problem()["code"] == "two_authorizations"
    assert await status_of(client, token.decode()) == 200


# ---------------------------------------------------------------------------------------------- broken HTTP

BROKEN = {
    "no host": b"GET /user HTTP/1.1\r\n\r\n",
    "a NUL in a header": raw("GET", "/user", b"Authorization: %s\0"),
    "a control character in a header": raw("GET", "/user", b"Authorization: Bearer %s\x01"),
    "a bare line feed": raw("GET", "/user", b"Authorization: %s\n\x02"),
    "a header name with a space": raw("GET", "/user", b"Authori zation: %s"),
    "a header over 8 KB": raw("GET", "/user", b"Authorization: %s" + b"x" * 9000),
    "too many headers": raw("GET", "/user", *([b"X: %s"] * 1000)),
    "a length and chunks": raw("POST", "/user", b"Transfer-Encoding: chunked", b"Content-Length: 2") + b"0\r\n\r\n",
    "two lengths": raw("POST", "/user", b"Content-Length: 2", b"Content-Length: 3") + b"{}",
    "a negative length": raw("POST", "/user", b"Content-Length: -1"),
    "a chunk longer than its size": raw("POST", "/user", b"Transfer-Encoding: chunked") + b"2\r\n{}%s\r\n0\r\n\r\n",
    "a chunk size that is none": raw("POST", "/user", b"Transfer-Encoding: chunked") + b"%s\r\n{}\r\n0\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a path over 8 KB": raw("GET", "/user?" + "x" * 9000),
    "a path that is no ASCII": b"GET /\xff%s HTTP/1.1\r\nHost: x\r\n\r\n",
    "a version from the future": b"GET /user HTTP/7.7\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("what", BROKEN)
async def test_broken_http_is_answered_with_400_and_its_secrets_stay_out_of_the_log(
    client: Client, what: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    secret = str(uuid.uuid4())
    request = BROKEN[what].replace(b"%s", secret.encode())
    answer = await exchange(client, request)
    assert answer.status == 400
    await assert_prompt(client)
    out, err = capfd.readouterr()
    logged = out + err + caplog.text
    assert secret not in logged
    assert "Traceback" not in logged  # anyone can send this: a line at most


# ------------------------------------------------------------------------------------------------------ SQL

# Legal in a name, every one of them: a username may hold any printable ASCII character but the space.
SQL_NAMES = [
    "ada'--",
    "'OR'1'='1",
    "';DROP/**/TABLE/**/gatepost.users;--",
    "ada\\",
    "ada\\'",
    '"ada"',
    "$1",
    "$$ada$$",
    "%s",
    "%(canonical)s",
    "%",
    "%%",
    ":canonical",
    "{canonical}",
    "ada/*",
    "pg_sleep(9)",
    "null",
    "E'\\x61'",
    "_d_",
]


async def test_sql_in_a_name_is_a_name_like_any_other(
    config: Config, start_server: StartServer, dsn: Dsn, ada: dict[str, Any]
) -> None:
    client = await start_server(config.model_copy(update={"throttle": UNLIMITED}))
    for name in SQL_NAMES:
        user = await register(client, name)
        assert user["username"] == name
        token = await log_in(client, name)
        async with client.get("/user", headers={"Authorization": token}) as answer:
            assert (await answer.json())["user"] == user
        again = await post(client, "/account", json.dumps({"username": name, "password": PASSWORD}).encode())
        assert again.status == 409
    found = {name for (name,) in rows(dsn, "SELECT canonical FROM gatepost.users")}
    assert found == {"ada", *(name.lower() for name in SQL_NAMES)}


async def test_sql_in_a_password_is_a_password_like_any_other(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    passwords = [
        "' OR '1'='1' OR '",
        "'); DROP TABLE gatepost.users; --",
        "x' || pg_sleep(9) || '",
        "%s %(digest)s :digest {digest} $1 %%",
        "\\'; SELECT 1; -- \\",
        "correct horse battery'--",
    ]
    for i, password in enumerate(passwords):
        attempt = json.dumps({"username": "ada", "password": password}).encode()
        assert (await post(client, "/user", attempt)).status == 401
        await register(client, f"user{i}", password)
        assert await status_of(client, await log_in(client, f"user{i}", password)) == 200
    assert rows(dsn, "SELECT count(*) FROM gatepost.users") == [(1 + len(passwords),)]


async def test_sql_in_a_header_is_kept_as_it_is_or_refused(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    attack = "'); DROP TABLE gatepost.sessions; -- %s %(ip)s :ip \\"
    assert (await post(client, "/user", LOGIN, **{"User-Agent": attack, "X-Forwarded-For": attack})).status == 200
    assert rows(dsn, "SELECT user_agent, host(ip) FROM gatepost.sessions") == [(attack, "127.0.0.1")]
    await unauthorized(client, b"Authorization: ' OR '1'='1")
    await unauthorized(client, b"Authorization: Bearer ' OR true --")
    for table in TABLES:
        assert rows(dsn, f"SELECT count(*) FROM gatepost.{table}")[0][0] >= 1
    bytes_ = raw("POST", "/user", b"User-Agent: \xff\xfe\xed\xa0\x80" + b"\xf0\x9f\x98\x80" * 300, body=LOGIN)
    assert (await exchange(client, bytes_)).status == 200
