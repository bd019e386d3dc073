"""No input whatsoever gives a 5xx or a connection that ends without an answer.

One server for the module, on a thread with a loop of its own; the examples are bytes written to a socket. What is
generated is always a whole request, or no HTTP at all: half a request is rightly waited for.
"""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gatepost.config import AccountsConfig, Config, SessionsConfig, WebServerConfig
from gatepost.server import WebServer
from tests.conftest import CHEAP, PASSWORD, UNLIMITED, PostgresServer, db_config

TOKEN = b"0af76519-16cd-43dd-8448-eb211c80319c"


def fuzz(examples: int) -> settings:
    # Derandomised: a failure in CI is a failure everywhere. Too much is generated to be shrunk for long.
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass
class Service:
    """A running Gatepost, and what it complained of."""

    port: int
    complaints: list[str] = field(default_factory=list)

    def answer(self, request: bytes) -> int:
        """Send these bytes; return the status of the answer, which must be sound and no 5xx."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection,
            connection.makefile("rb") as stream,
        ):
            connection.sendall(request)
            status = 100
            while status < 200:
                line = stream.readline(1000)
                assert line.startswith(b"HTTP/1."), ("no answer", line)
                status = int(line.split()[1])
                head = b"".join(iter(lambda: stream.readline(10_000), b"\r\n"))
            headers = BytesParser(policy=HTTP).parsebytes(head, headersonly=True)
            bodiless = request.startswith(b"HEAD ") or status == 204
            body = b"" if bodiless else stream.read(int(headers["Content-Length"]))
        assert status < 500, (status, body)
        assert self.complaints == []
        if not bodiless and headers["Server"] == "gatepost":
            value = json.loads(body)
            assert isinstance(value, dict)
            if status >= 400 and headers["Content-Type"] == "application/problem+json":
                assert value["status"] == status
                assert value["code"] not in {"internal_error", ""}
        return status


class _Complaints(logging.Handler):
    def __init__(self, complaints: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        # Said once of any client that sends such a header: it is no fault.
        if "X-Forwarded-For of a private address" not in record.getMessage():
            self.complaints.append(record.getMessage())


@pytest.fixture(scope="module")
def service(postgres: PostgresServer, template: str) -> Iterator[Service]:
    with postgres.database(template) as dsn:
        config = Config(
            webserver=WebServerConfig(port=0, cors_origins=("https://app.example",)),
            db=db_config(dsn),
            accounts=AccountsConfig(registration="open"),
            passwords=CHEAP,
            sessions=SessionsConfig(),
            throttle=UNLIMITED,
        )
        started: Service | None = None
        ready, stop = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def serve() -> None:
            nonlocal started
            server = WebServer(config)
            await server.initializer()
            runner = server.runner()
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            found = Service(runner.addresses[0][1])
            loop.set_exception_handler(lambda _, context: found.complaints.append(str(context)))
            started = found
            ready.set()
            await stop.wait()
            await runner.cleanup()

        def run() -> None:
            try:
                loop.run_until_complete(serve())
            finally:
                loop.close()
                ready.set()

        thread = threading.Thread(target=run, name="fuzzed server")
        thread.start()
        ready.wait(120)
        assert started is not None
        handler = _Complaints(started.complaints)
        logging.getLogger("gatepost").addHandler(handler)
        try:
            credentials = json.dumps({"username": "ada", "password": PASSWORD}).encode()
            assert started.answer(request(b"POST", b"/account", credentials)) == 201
            yield started
            # Whatever it was sent, it serves as before.
            for _ in range(20):
                assert started.answer(request(b"POST", b"/user", credentials)) == 200
        finally:
            logging.getLogger("gatepost").removeHandler(handler)
            loop.call_soon_threadsafe(stop.set)
            thread.join(120)
        assert not thread.is_alive()


Headers = list[tuple[bytes, bytes]]


def request(method: bytes, path: bytes, body: bytes | None, headers: Headers | None = None, chunk: int = 0) -> bytes:
    """A whole request; in chunks of this size where one is given."""
    lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: gatepost.test"]
    if headers is None:
        headers = [(b"Content-Type", b"application/json")]
    lines += [name + b": " + value for name, value in headers]
    if body is None:
        return b"\r\n".join(lines) + b"\r\n\r\n"
    if not chunk:
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + framed


# ------------------------------------------------------------------------------------------------- bodies

# Characters that have broken software before.
weird = st.sampled_from(
    [
        "\0",
        "\ud800",
        "\udfff",
        "\u202e",
        "\u200d",
        "\ufeff",
        "\ufdd0",
        "\uffff",
        "İ",
        "ß",
        "ſ",
        "ς",
        "\u0958",
        "\u0345",
    ]
) | st.sampled_from(
    [
        "\U0001f600",
        "\U0010ffff",
        "\u0301",
        "\u05d0",
        "\u0627",
        "\u0660",
        "Ａ",
        "ｱ",
        "'",
        '"',
        "\\",
        "%",
        "%s",
        "$",
        ";",
        "\x1b",
    ]
)
strings = st.text(max_size=20) | st.lists(weird | st.sampled_from("abcXYZ019 "), max_size=40).map("".join)
long_strings = st.builds(lambda s, n: s * n, strings, st.sampled_from([1, 10, 100, 400]))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | long_strings
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=5) | st.dictionaries(strings, v, max_size=5), max_leaves=20
)
keys = st.sampled_from(["username", "password", "is_admin", "__proto__", "Username", ""]) | strings
objects = st.dictionaries(keys, values, max_size=6)
logins = st.builds(
    lambda username, password, extra: {**extra, "username": username, "password": password},
    long_strings | st.just("ada"),
    long_strings | st.just(PASSWORD),
    st.just({}) | objects,
)


@st.composite
def json_bytes(draw: st.DrawFn) -> bytes:
    """JSON, nearly JSON, and things that pass for JSON in Python."""
    value = draw(logins | objects | values)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, None, 2])))
    # Encoded with lone surrogates as they are, which no decoder of UTF-8 takes.
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16-le"])), "surrogatepass")


@st.composite
def mutated_json(draw: st.DrawFn) -> bytes:
    """A valid login, a few bytes of which were cut out, repeated or replaced."""
    body = bytearray(json.dumps(draw(logins), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass"))
    tokens = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\u0000",
        b"\\ud83d",
        b"NaN",
        b"1e999",
        b"-",
        b"\xff",
    ]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = start + draw(st.integers(0, 8))
        put = draw(st.sampled_from(tokens) | st.binary(max_size=4) | st.just(bytes(body[start:end]) * 3))
        body[start:end] = put
    return bytes(body)


@st.composite
def deep_json(draw: st.DrawFn) -> bytes:
    """Nesting, closed or not."""
    opened, shut = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]"), (b'["[",', b"]")]))
    depth = draw(st.sampled_from([1, 8, 15, 16, 17, 18, 200, 1300]))
    core = draw(st.sampled_from([b"1", b"", b'"', b'{"username":"a","password":"b"}', b'"\\ud800"', b"9" * 5000]))
    nested = (
        opened * depth + core + draw(st.sampled_from([shut * depth, b"", shut * (depth - 1), shut * (depth + 1)]))
    )
    return draw(st.sampled_from([nested, b'{"username":' + nested + b"}", nested + nested]))


bodies = st.one_of(
    json_bytes(), mutated_json(), deep_json(), st.binary(max_size=300), st.binary(min_size=8100, max_size=8300)
)
posts = st.sampled_from([b"/user", b"/account"])
LENGTHENED = b'{"username":"%s","password":"correct horse battery"}'  # as normalising does some characters


@fuzz(160)
@given(path=posts, body=bodies, chunk=st.sampled_from([0, 0, 0, 1, 7, 5000]))
@example(path=b"/user", body=b"", chunk=0)
@example(path=b"/account", body=LENGTHENED % ("İ".encode() * 128), chunk=0)
@example(path=b"/account", body=LENGTHENED % ("\ufb2c".encode() * 128), chunk=0)
@example(path=b"/user", body=b"{" * 8192, chunk=1)
def test_no_body_breaks_it(service: Service, path: bytes, body: bytes, chunk: int) -> None:
    status = service.answer(request(b"POST", path, body, chunk=chunk))
    if len(body) > 8192:
        assert status == 413
    else:
        assert status in {200, 201, 400, 401, 409, 422}


@fuzz(60)
@given(path=posts, login=logins)
def test_no_name_or_password_breaks_it(service: Service, path: bytes, login: dict[str, Any]) -> None:
    """Always well-formed JSON with both fields, so that what lies behind the decoder is reached."""
    body = json.dumps({"username": login["username"], "password": login["password"]}).encode()
    status = service.answer(request(b"POST", path, body))
    assert status in {200, 201, 400, 401, 409, 413, 422}


# ------------------------------------------------------------------------------------------------ headers

KNOWN = [
    b"Authorization",
    b"Content-Type",
    b"Content-Encoding",
    b"Expect",
    b"Origin",
    b"Access-Control-Request-Method",
    b"X-Request-ID",
    b"User-Agent",
    b"Host",
    b"Connection",
    b"Upgrade",
    b"Cookie",
    b"Accept-Encoding",
    b"Content-Length",
    b"Transfer-Encoding",
    b"Range",
    b"If-None-Match",
    b"X-Forwarded-For",
]
token_characters = st.sampled_from(list(b"!#$%&'*+-.^_`|~azAZ09")).map(lambda c: bytes([c]))
legal_names = st.lists(token_characters, min_size=1, max_size=12).map(b"".join)
# What may stand in a value: visible ASCII, spaces, and every byte above.
legal_values = st.lists(st.sampled_from([*range(0x20, 0x7F), 9, *range(0x80, 0x100)]), max_size=60).map(bytes)
meant_values = st.sampled_from(
    [
        TOKEN,
        b"Bearer " + TOKEN,
        b"__Host-session=" + TOKEN,
        b"{" + TOKEN + b"}",
        TOKEN.upper(),
        "".join(chr(c + 0xFEE0) if 0x30 <= c <= 0x39 else chr(c) for c in TOKEN).encode(),
        b"application/json",
        b"application/json; charset=utf-7",
        b'multipart/form-data; boundary="',
        b"gzip",
        b"identity",
        b"deflate, gzip",
        b"100-continue",
        b"200-stop",
        b"https://app.example",
        b"close",
        b"keep-alive, Upgrade",
        b"websocket",
        b"h2c",
        b"bytes=0-",
        b"-1",
        b"1e3",
        b"18446744073709551616",
        b"\xc2\xa0",
        b"*",
        b"",
    ]
)
# Also what may not: control characters, line ends, NUL.
any_names = st.sampled_from(KNOWN) | legal_names | st.binary(max_size=12)
any_values = (
    meant_values | legal_values | st.binary(max_size=60) | st.binary(min_size=1, max_size=3).map(lambda b: b * 2800)
)
requests = st.sampled_from([(b"POST", b"/user"), (b"POST", b"/account"), (b"GET", b"/user"), (b"DELETE", b"/user")])
LOGIN = b'{"username":"ada","password":"not the right one"}'


@fuzz(120)
@given(
    what=requests,
    headers=st.lists(st.tuples(st.sampled_from(KNOWN[:-5]) | legal_names, meant_values | legal_values), max_size=6),
)
@example(what=(b"GET", b"/user"), headers=[(b"Authorization", b"\xff" * 100), (b"User-Agent", b"\xed\xa0\x80")])
@example(what=(b"POST", b"/user"), headers=[(b"Expect", b"\x80")])
def test_no_legal_header_breaks_it(service: Service, what: tuple[bytes, bytes], headers: Headers) -> None:
    method, path = what
    body = LOGIN if method == b"POST" else None
    assert service.answer(request(method, path, body, headers)) in {400, 401, 403, 415, 417, 422}


@fuzz(120)
@given(what=requests, headers=st.lists(st.tuples(any_names, any_values), min_size=1, max_size=6))
@example(what=(b"GET", b"/user"), headers=[(b"Authorization", b"a\0b")])
@example(what=(b"POST", b"/user"), headers=[(b"Content-Length", b"5")])
@example(what=(b"GET", b"/user"), headers=[(b"X: y\r\nAuthorization", TOKEN), (b"Authorization", TOKEN)])
def test_no_header_at_all_leaves_it_without_an_answer(
    service: Service, what: tuple[bytes, bytes], headers: Headers
) -> None:
    method, path = what
    body = LOGIN if method == b"POST" else None
    service.answer(request(method, path, body, headers))


@fuzz(60)
@given(
    method=st.sampled_from([b"GET", b"HEAD", b"OPTIONS", b"PUT", b"TRACE", b"get", b"G\0T", b"FOO", b"", b"PRI"])
    | st.binary(min_size=1, max_size=8).filter(lambda b: b.strip(b"\r\n") != b""),
    path=st.sampled_from(
        [b"*", b"/user", b"//", b"/..", b"/%", b"/%ff", b"http://[", b"http://x:99999/", b"a:1", b""]
    )
    | st.binary(max_size=40)
    | legal_values.map(lambda v: b"/user?" + v),
)
def test_no_request_line_leaves_it_without_an_answer(service: Service, method: bytes, path: bytes) -> None:
    service.answer(request(method, path, None))
