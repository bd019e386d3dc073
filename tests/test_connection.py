"""The wire: deadlines, limits, and answers to what is no HTTP; with deadlines short enough to wait for."""

import asyncio
import contextlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from gatepost.config import Config, ConfigError, WebServerConfig
from gatepost.http import connection, connection_limits, runner
from gatepost.http.app import CREDENTIALS
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import hashing
from gatepost.security.credentials.hashing import Derived
from gatepost.security.credentials.kinds import Kind
from tests import slow_clients
from tests.conftest import PASSWORD, Client, StartServer, eventually, log_in, register, rows
from tests.gatepost_process import environment, gatepost
from tests.slow_clients import Ended, Manner
from tests.test_bad_input import exchange, judge, raw
from tests.test_server import environment_of

# A deadline, and what may be added to it on a busy machine before it counts as none.
DUE, GRACE = 0.4, 60.0
LONG = 120.0

Serve = Callable[..., Any]


@pytest.fixture
def serve(config: Config, start_server: StartServer) -> Serve:
    """Start a server with these keys of ``webserver``; what is not named is long or large."""

    async def start(**changes: Any) -> Client:
        keys = {"header_timeout": LONG, "body_timeout": LONG, "keepalive_timeout": LONG, **changes}
        return await start_server(config.model_copy(update={"webserver": WebServerConfig(port=0, **keys)}))

    return start


def server_of(client: Client) -> runner.Server:
    assert client.server.runner is not None
    server = client.server.runner.server
    assert isinstance(server, runner.Server)
    return server


def busy(client: Client) -> list[connection.Connection]:
    return [c for c in server_of(client).admission.members if c._current_request]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def port_of(client: Client) -> int:
    assert client.server.port is not None
    return client.server.port


@contextlib.asynccontextmanager
async def connected(
    client: Client, source: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(client), local_addr=(source, 0))
    try:
        async with asyncio.timeout(GRACE):
            yield reader, writer
    finally:
        writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The status line of the answer to a small request on this connection; empty when it is closed."""
    try:
        writer.write(slow_clients.GET)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    return head.split(b"\r\n")[0]


OK = b"HTTP/1.1 200 OK"
LOGIN = raw("POST", "/user", body=b'{"username":"nobody","password":"%s"}' % PASSWORD.encode())


@pytest.fixture
def no_hash_ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Until the test does: a login is then under way, and it is not its client that keeps it waiting."""
    go_on, honest = threading.Event(), hashing.derive

    def wait(kind: Kind, secret: Callable[[], bytes]) -> Derived:
        assert go_on.wait(2 * GRACE)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", wait)
    yield
    go_on.set()


# ---------------------------------------------------------------------------------------------- deadlines


async def attended(kind: str, manner: Manner) -> tuple[Ended, float]:
    """How it ended, and seconds from before it connected: for the server it may have begun before the client knew."""
    began = time.monotonic()
    ended = await slow_clients.attend(kind, manner)
    return ended, time.monotonic() - began


@pytest.mark.parametrize("kind", ["headers", "body"])
async def test_a_request_that_trickles_in_is_408_when_its_time_is_over(serve: Serve, kind: str) -> None:
    client = await serve(**{"header_timeout" if kind == "headers" else "body_timeout": DUE})
    ended, seconds = await attended(kind, Manner(port_of(client), pause=DUE / 8, last=GRACE))
    assert ended.status == 408
    assert seconds >= 0.9 * DUE
    assert ended.seconds < GRACE
    await eventually(lambda: not server_of(client).admission.members)


@pytest.mark.parametrize("begun", [slow_clients.BEGUN, slow_clients.BODY, slow_clients.BODY + b"x"])
async def test_a_408_is_a_problem_that_ends_the_connection(serve: Serve, begun: bytes) -> None:
    client = await serve(header_timeout=DUE, body_timeout=DUE)
    answer = await exchange(client, begun)
    assert answer.problem()["code"] == "request_timeout"
    assert answer.headers["Connection"] == "close"
    assert answer.headers["Server"] == "gatepost"
    async with connected(client) as (reader, writer):
        writer.write(begun)
        assert (await reader.read()).count(b"HTTP/1.") == 1  # to its end


async def test_a_body_that_breaks_off_reaches_no_handler_in_part(
    serve: Serve, dsn: Dsn, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(body_timeout=DUE)
    whole = b'{"username":"ada","password":"correct horse battery"}'
    request = raw("POST", "/account", b"Content-Type: application/json", body=whole)
    answer = await exchange(client, request.replace(b"Length: 53", b"Length: 54"))
    assert answer.status == 408
    assert rows(dsn, "SELECT count(*) FROM gatepost.users") == [(0,)]
    assert not caplog.records


async def test_a_connection_on_which_nothing_comes_is_closed_without_an_answer(serve: Serve) -> None:
    client = await serve(header_timeout=DUE)
    ended, seconds = await attended("silent", Manner(port_of(client), last=GRACE))
    assert ended.status is None
    assert seconds >= 0.9 * DUE
    assert ended.seconds < GRACE


async def test_headers_and_bodies_in_pieces_are_served_and_nothing_is_due_between_requests(
    serve: Serve, ada: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve()
    body = b'{"username":"ada","password":"correct horse battery"}'
    pieces = (b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Le", b"ngth: 53\r\n\r\n", body[:9], body[9:])
    received: list[bytes] = []
    honest = connection.Connection.data_received

    def note(accepted: connection.Connection, data: bytes) -> None:
        if data:  # aiohttp feeds its parser nothing, to go on
            received.append(data)
        honest(accepted, data)

    monkeypatch.setattr(connection.Connection, "data_received", note)
    async with connected(client) as (reader, writer):
        await eventually(lambda: bool(server_of(client).admission.members))
        (accepted,) = server_of(client).admission.members
        for _ in range(2):
            received.clear()
            for number, piece in enumerate(pieces, 1):
                assert number == 1 or accepted._due < connection._NEVER
                writer.write(piece)
                await eventually(lambda number=number: len(received) == number)  # type: ignore[misc]
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(OK)
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
            assert accepted._due == connection._NEVER
        assert await ask(reader, writer) == OK


async def test_idle_between_requests_is_no_deadline(serve: Serve) -> None:
    client = await serve(header_timeout=DUE, body_timeout=DUE)
    async with connected(client) as (reader, writer):
        for _ in range(2):
            assert await ask(reader, writer) == OK
            await asyncio.sleep(2 * DUE)
        assert await ask(reader, writer) == OK


async def test_the_next_request_on_a_connection_has_a_deadline_too(serve: Serve) -> None:
    client = await serve(header_timeout=DUE)
    async with connected(client) as (reader, writer):
        assert await ask(reader, writer) == OK
        began = time.monotonic()
        writer.write(slow_clients.BEGUN)
        assert (await reader.read()).startswith(b"HTTP/1.0 408")
        assert time.monotonic() - began >= 0.9 * DUE


async def test_the_time_for_the_first_headers_begins_with_the_connection_and_not_with_their_first_byte(
    serve: Serve,
) -> None:
    client = await serve(header_timeout=60.0)
    async with connected(client) as (reader, writer):
        await eventually(lambda: bool(server_of(client).admission.members))
        (accepted,) = server_of(client).admission.members
        due = accepted._due
        writer.write(slow_clients.BEGUN)
        await eventually(lambda: not accepted._silent)
        assert accepted._due == due
        writer.write(b"x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(slow_clients.BEGUN)
        await eventually(lambda: accepted._due < connection._NEVER)
        assert due - 60.0 * connection._SPREAD < accepted._due


async def test_a_request_begun_behind_another_has_a_deadline_too(serve: Serve) -> None:
    client = await serve(header_timeout=DUE)
    async with connected(client) as (reader, writer):
        writer.write(slow_clients.GET + slow_clients.BEGUN)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x")
        assert b"HTTP/1.0 408" in await reader.read()


async def test_an_idle_connection_is_closed_after_its_time(serve: Serve) -> None:
    client = await serve(keepalive_timeout=DUE)
    ended, seconds = await attended("idle", Manner(port_of(client), last=GRACE))
    assert not ended.refused
    assert seconds >= 0.9 * DUE
    assert ended.seconds < GRACE


async def test_a_client_that_never_reads_is_cut_off_and_cannot_make_us_hoard_answers(serve: Serve) -> None:
    client = await serve(body_timeout=5 * DUE)
    deaf = asyncio.create_task(slow_clients.deaf(Manner(port_of(client), last=GRACE)))
    await eventually(lambda: any(c._paused for c in server_of(client).admission.members))
    (connection,) = server_of(client).admission.members
    assert connection.transport_until_lost is not None
    unsent = [connection.transport_until_lost.get_write_buffer_size()]
    while not connection.transport_until_lost.is_closing():
        unsent.append(connection.transport_until_lost.get_write_buffer_size())
        await asyncio.sleep(DUE / 8)
    async with client.get("/openapi.json") as answer:
        assert max(unsent) <= 2 * len(await answer.read())
    assert (await deaf).seconds < GRACE
    await eventually(lambda: connection not in server_of(client).admission.members)


async def test_of_many_clients_that_never_read_the_oldest_are_cut_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_limits, "MAX_UNTAKEN", 3)
    client = await serve()
    server = server_of(client)
    crowd = []
    for _ in range(5):
        before = set(server.admission.untaken)
        crowd.append(asyncio.create_task(slow_clients.deaf(Manner(port_of(client)))))
        await eventually(lambda before=before: not set(server.admission.untaken) <= before)  # type: ignore[misc]
    try:
        await asyncio.wait(crowd[:2], timeout=GRACE)
        assert [each.done() for each in crowd] == [True, True, False, False, False]
        assert len(server.admission.untaken) == 3
    finally:
        for each in crowd:
            each.cancel()
        await asyncio.wait(crowd)
    await eventually(lambda: not server.admission.untaken)
    async with client.get("/health/live") as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["/user", "/ping"])
async def test_a_body_in_tiny_chunks_is_read_in_small_pieces_and_cut_off_when_it_does_not_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    client = await serve()
    read: list[int] = []
    honest = connection.Connection.data_received

    def note(connection: connection.Connection, data: bytes) -> None:
        read.append(len(data))
        honest(connection, data)

    monkeypatch.setattr(connection.Connection, "data_received", note)
    async with connected(client) as (_, writer):
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"1\r\nx\r\n" * 10_000)
                await writer.drain()
        assert sum(read) < 2 * connection.MAX_CHUNKED
        assert read[0] <= 4096
        assert max(read[1:]) <= 1024
        await eventually(lambda: not server_of(client).admission)


async def test_slow_clients_do_not_keep_others_from_being_served(serve: Serve) -> None:
    # As long as it takes until all of them are there, on a slow machine.
    client = await serve(header_timeout=10 * DUE, body_timeout=10 * DUE)
    manner = Manner(port_of(client), pause=DUE / 2, last=GRACE)
    crowds = [asyncio.create_task(slow_clients.crowd(kind, 50, manner)) for kind in ("headers", "body")]
    await eventually(lambda: len(server_of(client).admission) >= 100)
    for _ in range(50):
        async with client.get("/ping") as answer:
            assert answer.status == 200
    for ended in await asyncio.gather(*crowds):
        assert {client.status for client in ended} <= {408, None}
        assert all(client.seconds < GRACE for client in ended)


# ------------------------------------------------------------------------------------------------- limits


async def test_at_the_connection_limit_the_connection_idle_longest_makes_room(serve: Serve) -> None:
    client = await serve(max_connections=3)
    async with connected(client) as first, connected(client) as second, connected(client) as third:
        for each in (first, second, third, first):  # so the second has been idle longest
            assert await ask(*each) == OK
        async with connected(client) as newcomer:
            assert await ask(*newcomer) == OK
            assert await ask(*second) == b""
            for each in (first, third, newcomer):
                assert await ask(*each) == OK
        assert server_of(client).admission.refused == 0


@pytest.mark.parametrize("patience", [0, 60])
async def test_at_the_connection_limit_a_slow_body_makes_room_as_an_idle_connection_does(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setattr(connection, "_PATIENCE", patience)
    client = await serve(max_connections=2)
    async with connected(client) as slow, connected(client) as idle:
        slow[1].write(slow_clients.BODY)
        await eventually(lambda: len(busy(client)) == 1)
        assert await ask(*idle) == OK
        async with connected(client) as newcomer:
            assert await ask(*newcomer) == OK
            closed = slow if patience == 0 else idle
            assert await closed[0].read() == b""
        assert server_of(client).admission.refused == 0


@pytest.mark.usefixtures("no_hash_ends")
async def test_when_all_are_busy_a_newcomer_is_refused_until_one_is_done(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    client = await serve(max_connections=2)
    async with connected(client) as one, connected(client) as other:
        for _, writer in (one, other):
            writer.write(LOGIN)
        await eventually(lambda: len(busy(client)) == 2)
        for _ in range(3):
            async with connected(client) as newcomer:
                assert await ask(*newcomer) == b""
        assert server_of(client).admission.refused == 3
        assert caplog.text.count("connections refused") == 1  # not a line for each
        one[1].close()
        await eventually(lambda: len(server_of(client).admission) == 1)
        async with client.get("/metrics") as answer:
            text = await answer.text()
            assert "gatepost_connections_refused_total 3.0" in text
            assert "gatepost_connections 2.0" in text


@pytest.mark.usefixtures("no_hash_ends")
async def test_one_address_cannot_take_the_places_of_others(serve: Serve) -> None:
    client = await serve(max_connections=4, max_connections_per_address=2)
    async with connected(client, "127.0.0.2") as one, connected(client, "127.0.0.2") as other:
        for _, writer in (one, other):
            writer.write(LOGIN)
        await eventually(lambda: len(busy(client)) == 2)
        async with connected(client, "127.0.0.2") as third:
            assert await ask(*third) == b""
        async with connected(client, "127.0.0.3") as somebody_else:
            assert await ask(*somebody_else) == OK
    await eventually(lambda: not server_of(client).admission._of_address)


async def test_a_trusted_proxy_may_have_as_many_as_there_are(serve: Serve) -> None:
    client = await serve(
        max_connections=4, max_connections_per_address=2, trusted_proxies=(ip_network("127.0.0.2/31"),)
    )
    async with (
        connected(client, "127.0.0.2") as one,
        connected(client, "127.0.0.2") as other,
        connected(client, "127.0.0.2") as third,
    ):
        for each in (one, other, third, one):
            assert await ask(*each) == OK


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_an_ipv6_host_counts_as_one_whatever_address_of_its_network_it_takes(
    one: str, other: str, same: bool
) -> None:
    assert (connection_limits.network((one, 1)) == connection_limits.network((other, 2, 0, 0))) is same


def test_a_unix_socket_has_no_address() -> None:
    assert connection_limits.network("") is None


async def test_ten_times_the_limit_of_idle_connections_leave_room_for_a_health_check(serve: Serve) -> None:
    client = await serve(max_connections=40)
    descriptors = open_files()
    # So few at once that fewer than the limit come between a connection of ours and its request, however slow it is.
    crowd = asyncio.create_task(slow_clients.crowd("idle", 400, Manner(port_of(client), last=2.0), at_once=5))
    while not crowd.done():
        # A connection of its own for each: one kept alive is idle like all the others, and may be closed like them.
        async with client.get("/health/live", headers={"Connection": "close"}) as answer:
            assert answer.status == 200
        assert len(server_of(client).admission) <= 40
        await asyncio.sleep(0.05)
    ended = await crowd
    assert len(ended) == 400
    await eventually(lambda: open_files() <= descriptors + 5)


# -------------------------------------------------------------------------------------- what must be there


@pytest.fixture
def limits() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_on_open_files_is_raised_as_far_as_the_connections_need(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    config = Config(webserver=WebServerConfig(max_connections=1500))
    assert connection_limits.admissible(config) == 1500
    assert (
        resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        == 1500 + config.db.pool_size + connection_limits.SPARE_DESCRIPTORS
    )


def under(hard_limit: int, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`connection_limits.admissible` in a process that may open so many files."""
    code = (
        "from gatepost.config import Config; from gatepost.http.connection_limits import *; "
        "print(admissible(Config.load()))"
    )
    return subprocess.run(
        ["sh", "-c", f'ulimit -n {hard_limit} && exec "$0" -c "$1"', sys.executable, code],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_where_fewer_files_may_be_open_there_are_fewer_connections_and_a_warning(tmp_path: Path) -> None:
    done = under(700, tmp_path, GATEPOST_DB__POOL_SIZE="8")
    assert done.stdout == "80\n"
    assert "fewer connections than configured" in done.stderr
    refused = under(600, tmp_path)
    assert refused.returncode == 1
    assert f"{ConfigError.__name__}: only 600 files may be open" in refused.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_compiled_parser_it_does_not_start(dsn: Dsn, tmp_path: Path, workers: str) -> None:
    done = gatepost(
        "run",
        "--workers",
        workers,
        cwd=tmp_path,
        AIOHTTP_NO_EXTENSIONS="1",
        GATEPOST_WEBSERVER__PORT="0",
        **environment_of(dsn),
    )
    assert done.returncode == 1
    assert "without its compiled HTTP parser" in done.stderr
    assert done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------- what is no HTTP


@pytest.mark.parametrize(
    "request_",
    [
        b"hunter2 hunter2\r\n\r\n",
        b"GET hunter2 hunter2 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/hunter2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nhunter2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"hunter2" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: hunter2\0\r\n\r\n",
        b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: hunter2\r\n\r\n",
        b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hunter2\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_problem_of_our_shape_that_repeats_nothing(
    client: Client, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await exchange(client, request_)
    problem = judge(400, answer.headers, answer.body)
    assert problem["code"] == "bad_request"
    assert answer.headers["Server"] == "gatepost"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"hunter2" not in answer.body
    assert "hunter2" not in caplog.text


# ------------------------------------------------------------------------- callers who say that this was all


async def said(client: Client, request: bytes) -> bytes:
    """All that is answered to a client that sends this and no more, and still reads."""
    async with connected(client) as (reader, writer):
        writer.write(request)
        writer.write_eof()
        return await reader.read()


async def test_what_was_asked_before_the_client_said_that_this_was_all_is_answered(
    serve: Serve,
) -> None:
    client = await serve()
    await register(client, "ada")
    check = raw("GET", "/user", b"Authorization: " + (await log_in(client, "ada")).encode())
    for request in (slow_clients.GET, check, check + slow_clients.GET + check):
        answers = await said(client, request)
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == request.count(b"HTTP/1.1\r\n"), answers
    assert await said(client, b"") == b""
    await eventually(lambda: len(server_of(client).admission) == 1)  # that of the login


async def test_a_request_that_breaks_off_there_is_400(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = await serve()
    head = len(LOGIN.split(b"\r\n\r\n")[0])
    for broken in (LOGIN[:9], LOGIN[:head], LOGIN[: head + 4], LOGIN[:-1]):
        assert (await said(client, broken))[8:13] == b" 400 ", broken
    answers = await said(client, slow_clients.GET + LOGIN[:-1])
    assert answers.count(b"HTTP/1.1 ") == 2 or answers.startswith(b"HTTP/1.1 200 "), answers
    assert not caplog.records
    await eventually(lambda: not server_of(client).admission)


# ------------------------------------------------------------------------------------------ callers who leave


async def test_the_password_of_a_caller_who_has_gone_is_not_hashed_and_its_place_is_free(
    config: Config, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = config.passwords.model_copy(update={"threads": 1, "queue": 3})
    client = await start_server(config.model_copy(update={"passwords": passwords}))
    await register(client, "ada")
    go_on, hashed, honest = threading.Event(), [], hashing.derive

    def wait(kind: Kind, secret: Callable[[], bytes]) -> Derived:
        hashed.append(secret())
        assert go_on.wait(2 * GRACE)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", wait)
    hasher = client.server.app[CREDENTIALS].hasher  # type: ignore[attr-defined]

    def attempt(number: int) -> bytes:
        return raw("POST", "/user", body=b'{"username":"ada","password":"%d %s"}' % (number, PASSWORD.encode()))

    try:
        async with connected(client) as stays:
            stays[1].write(attempt(0))
            await eventually(lambda: len(hashed) == 1)
            async with connected(client) as one, connected(client) as two, connected(client) as three:
                for number, (_, writer) in enumerate((one, two, three), 1):
                    writer.write(attempt(number))
                await eventually(lambda: hasher.waiting == 3)
                assert (await exchange(client, attempt(4))).status == 503
            await eventually(lambda: hasher.waiting == 0)
            async with client.get("/metrics") as scraped:
                assert 'gatepost_logins_total{outcome="abandoned"} 3.0' in await scraped.text()
            go_on.set()
            assert (await stays[0].readline()).startswith(b"HTTP/1.1 401")
        async with client.post("/user", json={"username": "ada", "password": PASSWORD}) as answer:
            assert answer.status == 200
        assert hashed == [b"0 " + PASSWORD.encode(), PASSWORD.encode()]
    finally:
        go_on.set()


async def test_a_server_stops_with_slow_and_idle_clients_connected(serve: Serve) -> None:
    client = await serve(shutdown_timeout=DUE)
    async with connected(client) as idle, connected(client) as slow:
        assert await ask(*idle) == OK
        slow[1].write(slow_clients.BODY)
        await eventually(lambda: len(busy(client)) == 1)
        async with asyncio.timeout(GRACE):
            await client.server.close()
        assert await idle[0].read() == b""
        with contextlib.suppress(ConnectionError):
            await slow[0].read()
