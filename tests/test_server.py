"""The server as a process: first start, stop, kill, and what stands in the way of starting."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import psycopg2
import pytest
from aiohttp import web

from gatepost.config import Config, DbConfig, WebServerConfig
from gatepost.errors import DatabaseUnavailable
from gatepost.postgres.database import Dsn
from gatepost.postgres.embedded import EmbeddedPostgres
from gatepost.server import WebServer
from tests.conftest import PASSWORD, Client, StartServer, eventually, log_in, register, rows, status_of
from tests.gatepost_process import Process, environment, gatepost, running, until

OPEN = {"GATEPOST_ACCOUNTS__REGISTRATION": "open"}
ADA = {"username": "ada", "password": PASSWORD}


def environment_of(dsn: Dsn) -> dict[str, str]:
    return {
        "GATEPOST_DB__HOST": dsn.hosts[0],
        "GATEPOST_DB__PORT": str(dsn.port),
        "GATEPOST_DB__USER": dsn.user,
        "GATEPOST_DB__PASSWORD": dsn.password,
        "GATEPOST_DB__DATABASE": dsn.database,
    }


def test_run_in_an_empty_folder_serves_says_where_and_stops_with_zero(tmp_path: Path) -> None:
    with running(tmp_path, **OPEN) as process:
        assert str(tmp_path / "gatepost-data") in process.banner
        assert "curl" in process.banner
        assert process.request("POST", "/account", ADA)[0] == 201
        status, body = process.request("POST", "/user", ADA)
        assert status == 200
        assert process.request("GET", "/user", token=body["session_id"])[0] == 200
        assert process.end() == 0
    assert EmbeddedPostgres.attach(tmp_path / "gatepost-data") is None
    with running(tmp_path) as process:
        assert "gatepost user add" in process.banner  # closed unless it is said to be open
        assert process.request("GET", "/user", token=body["session_id"])[0] == 200
        assert process.request("POST", "/account", ADA)[0] == 403
        assert process.end(signal.SIGINT) == 0


def test_kill_9_in_a_login_loop_loses_no_acknowledged_session_and_leaves_no_server(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with running(tmp_path, **OPEN, GATEPOST_SESSIONS__MAX_PER_USER="1000", **CHEAP) as process:
        process.request("POST", "/account", ADA)

        def log_in_until_it_is_gone() -> None:
            try:
                while True:
                    status, body = process.request("POST", "/user", ADA)
                    if status == 200:
                        acknowledged.append(body["session_id"])
            except (OSError, http.client.HTTPException):
                pass

        clients = [threading.Thread(target=log_in_until_it_is_gone) for _ in range(4)]
        for client in clients:
            client.start()
        until(lambda: len(acknowledged) >= 40, 300)
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        for client in clients:
            client.join()
    with running(tmp_path, **OPEN) as process:
        lost = [t for t in acknowledged if decided(process, t) != 200]
        assert lost == []


# As tests/conftest.py has it.
CHEAP = {
    "GATEPOST_PASSWORDS__MEMORY_KIB": "8192",
    "GATEPOST_PASSWORDS__ITERATIONS": "1",
    "GATEPOST_PASSWORDS__QUEUE_TIMEOUT": "60",
}


def decided(process: Process, token: str) -> int:
    """What `GET /user` answers once it can: where the machine stood still, it has said that it could not."""
    return until(lambda: status if (status := process.request("GET", "/user", token=token)[0]) != 503 else 0)


def nobody_is_connected(dsn: Dsn) -> None:
    """A backend ends a moment after its connection."""
    until(lambda: rows(dsn, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == [(1,)])


def test_a_second_gatepost_on_the_same_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        second = gatepost("run", cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0")
        assert second.returncode == 1
        assert f"in use by process {process.popen.pid}" in second.stderr
        assert second.stderr.count("\n") == 1


def test_an_embedded_postgres_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path, **OPEN) as process:
        process.request("POST", "/account", ADA)
        token = process.request("POST", "/user", ADA)[1]["session_id"]
        server = EmbeddedPostgres.attach(tmp_path / "gatepost-data")
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        seen: set[int] = set()
        while (status := process.request("GET", "/user", token=token)[0]) != 200 or len(seen) == 0:
            seen.add(status)
            assert status in {200, 503}
            assert time.monotonic() < deadline
            if (again := EmbeddedPostgres.attach(tmp_path / "gatepost-data")) and again.pid != server.pid:
                seen.add(0)
        assert process.end() == 0


def test_a_given_postgres_is_served_and_not_migrated_unasked(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, **environment_of(dsn), **OPEN) as process:
        assert process.request("POST", "/account", ADA)[0] == 201
    rows(dsn, "DROP SCHEMA gatepost CASCADE")
    refused = gatepost("run", cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0", **environment_of(dsn))
    assert refused.returncode == 1
    assert "not migrated: run `gatepost migrate`" in refused.stderr
    with running(tmp_path, "--migrate", **environment_of(dsn), **OPEN) as process:
        assert process.request("POST", "/account", ADA)[0] == 201


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        ("port in use", "is in use: set webserver.port to a free one"),
        ("database down", "cannot connect to Postgres at 127.0.0.1:1"),
        ("schema newer", "9999, newer than this Gatepost"),
        ("bad key", "webserver.prot: there is no such key"),
        ("port 70000", "webserver.port"),
        ("no such file", "nowhere.json: there is no such file"),
        ("not json", "config.json: is not JSON"),
        ("bad binaries", "bin"),
    ],
)
def test_what_stands_in_the_way_of_starting_is_one_line_and_nothing_is_half_started(
    dsn: Dsn, tmp_path: Path, sabotage: str, said: str
) -> None:
    arguments, variables = ["run"], {"GATEPOST_WEBSERVER__PORT": "0", **environment_of(dsn)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        match sabotage:
            case "port in use":
                variables["GATEPOST_WEBSERVER__PORT"] = str(taken.getsockname()[1])
            case "database down":
                variables |= {"GATEPOST_DB__HOST": "127.0.0.1", "GATEPOST_DB__PORT": "1"}
                variables["GATEPOST_DB__START_TIMEOUT"] = "0"
            case "schema newer":
                rows(dsn, "UPDATE gatepost.alembic_version SET version_num = '9999'")
                rows(dsn, "COMMENT ON TABLE gatepost.alembic_version IS NULL")
            case "bad key":
                (tmp_path / "config.json").write_text('{"webserver": {"prot": 1}}')
            case "port 70000":
                variables["GATEPOST_WEBSERVER__PORT"] = "70000"
            case "no such file":
                arguments += ["--config", "nowhere.json"]
            case "not json":
                (tmp_path / "config.json").write_text("{")
            case "bad binaries":
                variables = {"GATEPOST_WEBSERVER__PORT": "0", "GATEPOST_DB__BINARIES": str(tmp_path / "no" / "bin")}
        done = gatepost(*arguments, cwd=tmp_path, **variables)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    nobody_is_connected(dsn)
    assert EmbeddedPostgres.attach(tmp_path / "gatepost-data") is None


def test_sigterm_while_it_starts_ends_it_with_zero_and_stops_what_was_started(dsn: Dsn, tmp_path: Path) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as holder:
        holder.cursor().execute("LOCK gatepost.deployment_keys IN ACCESS EXCLUSIVE MODE")
        for _ in range(5):  # it does not wait there for long: where the machine stands still, it has given up
            starting = subprocess.Popen(
                [sys.executable, "-m", "gatepost", "run"],
                cwd=tmp_path,
                env=environment(GATEPOST_WEBSERVER__PORT="0", **environment_of(dsn)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                until(lambda starting=starting: rows(dsn, waiting) or starting.poll() is not None)  # type: ignore[misc]
                starting.send_signal(signal.SIGTERM)
                said = starting.communicate(timeout=90)[0]
            finally:
                starting.kill()
            if "did not answer in time" not in said:
                break
        assert (said, starting.returncode) == ("", 0)


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        # On the loopback this is done at once, or the attempt is passed over.
        socket.create_connection((host, int(port)), timeout=0.2).close()
    except OSError:
        return True
    return False


async def test_two_servers_in_one_process_do_not_know_of_each_other(
    config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    one = await start_server(config)
    other = await start_server(
        Config(
            webserver=WebServerConfig(port=0),
            db=DbConfig(data_dir=tmp_path / "data"),
            accounts=config.accounts,
            passwords=config.passwords,
        )
    )
    await register(one, "ada")
    await register(other, "ada")
    token = await log_in(one)
    assert await status_of(one, token) == 200
    assert await status_of(other, token) == 401


async def test_an_initializer_that_fails_leaves_nothing_open(config: Config, dsn: Dsn) -> None:
    rows(dsn, "DROP TABLE gatepost.deployment_keys")
    with pytest.raises(psycopg2.errors.UndefinedTable):
        await WebServer(config).initializer()
    nobody_is_connected(dsn)
    bad = config.model_copy(
        update={"db": config.db.model_copy(update={"host": "127.0.0.1", "port": 1, "start_timeout": 0.0})}
    )
    with pytest.raises(DatabaseUnavailable):
        await WebServer(bad).initializer()


async def test_a_stopped_server_gives_back_its_threads_and_connections(config: Config, dsn: Dsn) -> None:
    async def cycle() -> None:
        server = WebServer(config)
        await server.initializer()
        runner = server.runner()
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(url) as session:
            await session.post("/user", json=ADA)
        await runner.cleanup()

    def held() -> tuple[int, int]:
        # The loop's own threads are not ours to give back: it makes a second one now and then.
        threads = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
        return len(threads), len(list(Path("/proc/self/fd").iterdir()))

    await cycle()
    before = held()
    for _ in range(3):
        await cycle()
    # A client's own connection is gone a turn of the loop after it was closed, a thread a moment after its last work.
    await eventually(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    nobody_is_connected(dsn)


async def test_health_tells_a_dead_database_from_a_dead_process(client: Client, dsn: Dsn) -> None:
    async def codes() -> dict[str, int]:
        return {path: (await client.get(path)).status for path in ("/ping", "/health/live", "/health/ready")}

    assert await codes() == {"/ping": 200, "/health/live": 200, "/health/ready": 200}
    rows(dsn, f"ALTER DATABASE {dsn.database} CONNECTION LIMIT 0")
    rows(dsn, "ALTER SCHEMA gatepost RENAME TO elsewhere")
    assert (await codes())["/health/live"] == 200
    assert (await codes())["/health/ready"] >= 500


async def test_ping_answers_as_it_always_has(client: Client) -> None:
    answer = await client.get("/ping")
    body: Any = await answer.json()
    assert body == {"text": "pong", "status": "success"}
