"""Stopping: who is served until when, and that nobody who was let in goes unanswered."""

import asyncio
import contextlib
import http.client
import json
import os
import pty
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest
from aiohttp import web

from gatepost.http import graceful_shutdown
from gatepost.http.graceful_shutdown import Stopping, serve
from gatepost.postgres.database import Dsn
from tests.conftest import eventually, rows
from tests.gatepost_process import Process, running, until
from tests.test_server import ADA, CHEAP, OPEN, environment_of, refuses

# Seconds after its last answer within which a client must ask to be sure of another one: half of what an idle
# connection is kept for. More go by where the machine stands still.
PROMPT = graceful_shutdown.LINGER / 2

EITHER = pytest.mark.parametrize("workers", ["1", "2"])


def connect(process: Process) -> http.client.HTTPConnection:
    host, port = process.url.removeprefix("http://").split(":")
    return http.client.HTTPConnection(host, int(port), timeout=60)


class Client(threading.Thread):
    """Asks again and again over one connection, and over a new one when it is told that this was its last answer.

    Ends when nobody listens any more. ``unanswered``: what became of requests that were sent in time, and not
    answered.
    """

    def __init__(self, process: Process, token: str) -> None:
        super().__init__()
        self._process, self._token = process, token
        self.answers: list[int] = []
        self.unanswered: list[str] = []

    def run(self) -> None:
        connection = connect(self._process)
        answered = 0.0
        while True:
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError:
                    return
                answered = time.monotonic()
            asked = time.monotonic()
            try:
                connection.request("GET", "/user", headers={"Authorization": self._token})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                if asked - answered < PROMPT:
                    self.unanswered.append(repr(error))
                connection.close()
            else:
                self.answers.append(answer.status)
                answered = time.monotonic()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    started: list[Client] = []
    yield started
    for client in started:
        client.join(60)


@EITHER
def test_sigterm_under_load_leaves_no_accepted_request_unanswered(
    dsn: Dsn, tmp_path: Path, clients: list[Client], workers: str
) -> None:
    with running(tmp_path, "--workers", workers, **environment_of(dsn), **OPEN, **CHEAP, **PATIENT) as process:
        process.request("POST", "/account", ADA)
        token = process.request("POST", "/user", ADA)[1]["session_id"]
        clients += [Client(process, token) for _ in range(8)]
        for client in clients:
            client.start()
        until(lambda: min(len(client.answers) for client in clients) >= 20)
        assert process.end() == 0  # long before it would have lost patience
        for client in clients:
            client.join(60)
    assert [client.unanswered for client in clients] == [[]] * len(clients)
    assert {status for client in clients for status in client.answers} == {200}


@EITHER
def test_readiness_turns_false_first_and_every_answer_closes_its_connection(
    dsn: Dsn, tmp_path: Path, workers: str
) -> None:
    with running(
        tmp_path, "--workers", workers, **environment_of(dsn), GATEPOST_WEBSERVER__SHUTDOWN_DELAY="5"
    ) as process:
        idle = connect(process)
        idle.request("GET", "/ping")
        first = idle.getresponse()
        assert (first.status, first.headers["Connection"]) == (200, None)
        first.read()
        process.popen.send_signal(signal.SIGTERM)
        while (answer := process.request("GET", "/health/ready"))[0] == 200:
            pass  # which it does not say for longer than it serves
        assert answer == (503, {**answer[1], "code": "stopping", "status": 503})
        assert process.request("GET", "/health/live")[0] == 200  # over a new connection, like those before
        told = None
        while told is None:  # of two workers, the other may have heard of it first
            idle.request("GET", "/ping")  # and over the old one
            last = idle.getresponse()
            assert (last.status, json.load(last)["text"]) == (200, "pong")
            told = last.headers["Connection"]
        assert told == "close"
        assert process.wait() == 0
        assert refuses(process.url)


# For stopping, and for a body that does not come: longer than a test waits for the end of a process.
PATIENT = {"GATEPOST_WEBSERVER__SHUTDOWN_TIMEOUT": "300", "GATEPOST_WEBSERVER__BODY_TIMEOUT": "300"}


def half_a_request(process: Process) -> socket.socket:
    """A connection over which a login has begun and does not come to its end."""
    host, port = process.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    return connection


@EITHER
def test_a_second_sigterm_ends_it_at_once(tmp_path: Path, workers: str) -> None:
    with running(tmp_path, "--workers", workers, **PATIENT) as process:
        with half_a_request(process):
            process.popen.send_signal(signal.SIGTERM)
            until(lambda: refuses(process.url))
            assert process.popen.poll() is None
            workers_left = process.workers
            assert process.end() in {0, 128 + signal.SIGTERM}  # long before it would have lost patience
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers_left))


def test_a_single_process_passes_sighup_over_and_says_so(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, **environment_of(dsn)) as process:
        process.popen.send_signal(signal.SIGHUP)
        until(lambda: "SIGHUP is passed over" in process.output or process.popen.poll() is not None)
        assert process.request("GET", "/health/ready")[0] == 200
        assert process.end() == 0
    assert process.output.count("SIGHUP") == 1


def test_a_terminal_that_is_closed_stops_what_runs_in_it(
    dsn: Dsn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setattr(Process, "stdin", theirs)
    with running(tmp_path, **environment_of(dsn)) as process:
        os.close(theirs)
        os.close(ours)
        assert process.end(signal.SIGHUP) == 0
    assert "SIGHUP" not in process.output


@EITHER
def test_a_request_that_does_not_end_is_given_up_in_time(dsn: Dsn, tmp_path: Path, workers: str) -> None:
    with (
        running(
            tmp_path, "--workers", workers, **environment_of(dsn), GATEPOST_WEBSERVER__SHUTDOWN_TIMEOUT="1"
        ) as process,
        half_a_request(process) as connection,
    ):
        process.popen.send_signal(signal.SIGTERM)
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert process.wait() == 0


@EITHER
def test_a_body_that_comes_when_idle_connections_have_been_closed_is_answered(
    dsn: Dsn, tmp_path: Path, workers: str
) -> None:
    with (
        running(tmp_path, "--workers", workers, **environment_of(dsn), **OPEN, **CHEAP, **PATIENT) as process,
        contextlib.ExitStack() as opened,
    ):
        process.request("POST", "/account", ADA)
        logins = [opened.enter_context(half_a_request(process)) for _ in range(8)]
        idle = [opened.enter_context(contextlib.closing(connect(process))) for _ in range(8)]
        for client in idle:  # on either worker
            client.request("GET", "/ping")
            client.getresponse().read()
        process.popen.send_signal(signal.SIGTERM)
        for client in idle:
            assert client.sock.recv(1) == b""
        assert process.popen.poll() is None
        for login in logins:
            login.sendall(json.dumps(ADA).encode().ljust(100))
        assert [login.recv(15) for login in logins] == [b"HTTP/1.1 200 OK"] * 8
        assert process.wait() == 0


async def test_a_connection_that_waits_to_be_accepted_is_taken_in_before_the_listener_closes(
    dsn: Dsn, tmp_path: Path
) -> None:
    """The process is stopped in its tracks, so that the connection and SIGTERM are both there when it goes on."""
    with running(tmp_path, **environment_of(dsn)) as process:
        os.kill(process.popen.pid, signal.SIGSTOP)
        waiting = connect(process)
        waiting.request("GET", "/ping")
        process.popen.send_signal(signal.SIGTERM)
        os.kill(process.popen.pid, signal.SIGCONT)
        answer = await asyncio.to_thread(waiting.getresponse)
        assert answer.status == 200
        answer.read()
        assert await asyncio.to_thread(process.wait) == 0


def answered_while_stopping(dsn: Dsn, cwd: Path, workers: str) -> list[int]:
    """What four logins are answered that wait for a lock when the process is told to stop."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with (
        contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as holder,
        running(cwd, "--workers", workers, **environment_of(dsn), **OPEN, **CHEAP, **PATIENT) as process,
        ThreadPoolExecutor(4) as clients,
    ):
        process.request("POST", "/account", ADA)
        holder.cursor().execute("LOCK gatepost.passwords IN ACCESS EXCLUSIVE MODE")
        logins = [clients.submit(process.request, "POST", "/user", ADA) for _ in range(4)]
        until(lambda: len(rows(dsn, waiting)) == 4 or any(login.done() for login in logins))
        process.popen.send_signal(signal.SIGTERM)
        until(lambda: refuses(process.url))
        holder.rollback()
        statuses = [login.result()[0] for login in logins]
        assert process.wait() == 0
    return statuses


@EITHER
def test_requests_in_flight_are_answered_when_it_stops(dsn: Dsn, tmp_path: Path, workers: str) -> None:
    for _ in range(5):
        statuses = answered_while_stopping(dsn, tmp_path, workers)
        if 503 not in statuses:  # where the machine stood still, they have waited for too long
            break
    assert statuses == [200] * 4


async def pong(_request: web.Request) -> web.Response:
    return web.Response(text="pong")


class Site:
    """`serve` at work on a free port, in this process."""

    def __init__(self, stopping: Stopping) -> None:
        self.stopping = stopping
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        app = web.Application()
        app.router.add_get("/", pong)
        app.on_response_prepare.append(stopping.close_connection)
        self._runner = web.AppRunner(app, shutdown_timeout=60)

    @property
    def connections(self) -> int:
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    async def start(self, **options: int) -> "asyncio.Task[None]":
        ready = asyncio.Event()
        work = serve(self._runner, self.sock, self.stopping, linger=60, ready=ready.set, **options)
        task = asyncio.create_task(work)
        await ready.wait()
        return task


async def test_an_idle_connection_may_make_one_more_request_after_the_listener_has_closed() -> None:
    site = Site(Stopping())
    task = await site.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(request)
    assert b"Connection:" not in await reader.readuntil(b"pong")
    site.stopping.begin()
    await eventually(lambda: refuses(f"http://127.0.0.1:{site.port}"))
    writer.write(request)
    assert b"Connection: close" in await reader.readuntil(b"pong")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await task


class ConnectAtTheLastMoment(Stopping):
    """A client connects, and sends its request, when nothing but closing the listener is left to do."""

    port = 0
    client: socket.socket

    async def wait(self) -> None:
        await super().wait()
        self.client = socket.create_connection(("127.0.0.1", self.port))
        self.client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_whoever_has_connected_by_the_time_the_listener_closes_is_answered() -> None:
    stopping = ConnectAtTheLastMoment()
    site = Site(stopping)
    stopping.port = site.port
    task = await site.start()
    stopping.begin()
    await task
    with stopping.client:
        assert stopping.client.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.skipif(sys.platform != "linux", reason="a packet filter of Linux")
def test_after_the_last_accept_no_handshake_completes_and_earlier_ones_are_served() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as early,
        socket.socket() as late,
    ):
        graceful_shutdown._let_nobody_knock(listener)
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            early.sendall(b"request")
            assert accepted.recv(100) == b"request"
