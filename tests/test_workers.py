"""Several processes: who serves, who is replaced, and what is left when one is killed."""

import asyncio
import contextlib
import fcntl
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gatepost.config import Config, ConfigError, DbConfig, PasswordsConfig, WebServerConfig
from gatepost.http.graceful_shutdown import Stopping
from gatepost.postgres.database import Dsn
from gatepost.postgres.embedded import EmbeddedPostgres, Server
from gatepost.security.credentials import cores, share
from tests.conftest import PASSWORD, eventually, rows
from tests.gatepost_process import Process, gatepost, running, until
from tests.proxy import proxy
from tests.test_server import ADA, CHEAP, OPEN, decided, environment_of, nobody_is_connected, refuses
from tests.test_stopping import PROMPT, Site, connect

TWO = ("--workers", "2")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_one_process_imports_no_gunicorn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import gatepost.cli, sys; print('gunicorn' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_connections_spread_over_the_workers_and_a_session_is_known_to_each(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, *TWO, **environment_of(dsn), **OPEN, **CHEAP) as process:
        assert "2 processes, 20 connections" in process.banner
        assert f"Hashing: {max(2, cores())} at once" in process.banner
        process.request("POST", "/account", ADA)
        token = process.request("POST", "/user", ADA)[1]["session_id"]
        workers = process.workers
        assert len(workers) == 2

        def open_files() -> list[int]:
            return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers]

        before = open_files()
        host, port = process.url.removeprefix("http://").split(":")
        with contextlib.ExitStack() as held:

            def each_has_some() -> bool:
                held.enter_context(socket.create_connection((host, int(port))))
                return all(now >= then + 5 for now, then in zip(open_files(), before, strict=True))

            until(each_has_some)
        assert {process.request("GET", "/user", token=token)[0] for _ in range(20)} == {200}


async def test_a_worker_leaves_connections_to_others_by_accepting_one_at_a_time() -> None:
    site = Site(Stopping())
    task = await site.start(accepts=1)
    with contextlib.ExitStack() as held:
        for _ in range(40):
            held.enter_context(socket.create_connection(("127.0.0.1", site.port)))
        for turn in range(10):
            assert site.connections <= 2 * turn  # some Pythons accept one more than they are told
            await asyncio.sleep(0)
        await eventually(lambda: site.connections == 40)
    site.stopping.begin()
    await task


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_workers_together_hash_no_more_at_once_than_one_process_would(threads: int | None, workers: int) -> None:
    config = PasswordsConfig(threads=threads, queue=100)
    shares = [share(config, worker, workers) for worker in range(workers)]
    assert sum(part.threads or 0 for part in shares) == max(workers, min(threads or cores(), cores()))
    assert sum(part.queue for part in shares) == 100


def test_more_connections_than_the_embedded_postgres_has_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"lower db\.pool_size"):
        Config(webserver=WebServerConfig(workers=10))
    Config(webserver=WebServerConfig(workers=10), db=DbConfig(pool_size=9))
    Config(webserver=WebServerConfig(workers=10), db=DbConfig(host="x", user="x", database="x"))


def test_the_command_line_goes_before_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"webserver": {"workers": 3}}')
    assert Config.load(file).webserver.workers == 3
    assert Config.load(file, workers=2).webserver.workers == 2
    with pytest.raises(ConfigError, match=r"lower db\.pool_size"):
        Config.load(file, workers=100)


def test_a_worker_killed_in_mid_login_is_replaced_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    done = threading.Event()
    with running(tmp_path, *TWO, **OPEN, GATEPOST_SESSIONS__MAX_PER_USER="1000", **CHEAP) as process:
        process.request("POST", "/account", ADA)

        def log_in() -> None:
            while not done.is_set():
                try:
                    status, body = process.request("POST", "/user", ADA)
                except (OSError, http.client.HTTPException):  # that of the worker that was killed
                    continue
                if status == 200:
                    acknowledged.append(body["session_id"])

        clients = [threading.Thread(target=log_in) for _ in range(4)]
        for client in clients:
            client.start()
        until(lambda: len(acknowledged) >= 20)
        first, second = process.workers
        os.kill(first, signal.SIGKILL)
        until(lambda: process.replaced(first))
        so_far = len(acknowledged)
        until(lambda: len(acknowledged) >= so_far + 20)
        assert second in process.workers
        done.set()
        for client in clients:
            client.join()
        lost = [t for t in acknowledged if decided(process, t) != 200]
        assert lost == []
        assert process.end() == 0
    assert "SIGKILL" in process.output  # the operator is told


def test_a_killed_arbiter_leaves_no_process_behind_and_can_be_started_again_at_once(tmp_path: Path) -> None:
    with running(tmp_path, *TWO, **OPEN, **CHEAP) as process:
        process.request("POST", "/account", ADA)
        token = process.request("POST", "/user", ADA)[1]["session_id"]
        server = EmbeddedPostgres.attach(tmp_path / "gatepost-data")
        assert server is not None
        workers = process.workers
        process.popen.kill()
        process.popen.wait()
        until(lambda: refuses(process.url))
        port = process.url.rpartition(":")[2]
        with running(tmp_path, *TWO, **OPEN, GATEPOST_WEBSERVER__PORT=port) as successor:
            assert successor.request("GET", "/user", token=token)[0] == 200
            until(lambda: all(map(gone, [*workers, server.pid])))
            assert successor.end() == 0
    assert EmbeddedPostgres.attach(tmp_path / "gatepost-data") is None


def test_an_embedded_postgres_that_is_killed_is_started_again_once_for_all(tmp_path: Path) -> None:
    with running(tmp_path, *TWO, **OPEN, **CHEAP) as process:
        process.request("POST", "/account", ADA)
        token = process.request("POST", "/user", ADA)[1]["session_id"]
        server = EmbeddedPostgres.attach(tmp_path / "gatepost-data")
        assert server is not None
        workers = process.workers
        os.kill(server.pid, signal.SIGKILL)

        def another() -> Server | None:
            now = EmbeddedPostgres.attach(tmp_path / "gatepost-data")
            return now if now and now.pid != server.pid else None

        again = until(another)
        until(lambda: process.request("GET", "/user", token=token)[0] == 200)
        assert again
        assert again.socket_dir == server.socket_dir
        assert process.workers == workers
        assert process.end() == 0


def test_sighup_replaces_the_workers_by_ones_that_have_read_the_configuration_again(dsn: Dsn, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"accounts": {"registration": "closed"}}')
    with running(tmp_path, *TWO, **environment_of(dsn)) as process:
        assert process.request("POST", "/account", ADA)[0] == 403
        before = process.workers
        answers: list[int] = []
        done = threading.Event()

        def ask() -> None:
            with contextlib.closing(connect(process)) as connection:
                answered = time.monotonic()
                while not done.is_set():
                    asked = time.monotonic()
                    try:
                        connection.request("GET", "/health/ready")
                        with connection.getresponse() as answer:
                            answers.append(answer.status)
                            answer.read()
                    except (OSError, http.client.HTTPException):
                        if asked - answered < PROMPT:
                            raise
                        connection.close()
                    answered = time.monotonic()

        clients = [threading.Thread(target=ask) for _ in range(8)]
        for client in clients:
            client.start()
        until(lambda: len(answers) >= 40)
        config.write_text('{"accounts": {"registration": "open"}}')
        process.popen.send_signal(signal.SIGHUP)
        until(lambda: all(map(gone, before)))
        done.set()
        for client in clients:
            client.join()
        assert set(answers) == {200}  # the node stays: no load balancer need turn away
        assert len(process.workers) == 2
        assert process.request("POST", "/account", ADA)[0] == 201
        assert process.end() == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ('{"accounts": {"registration": "sometimes"}}', "accounts.registration"),
        ('{"webserver": {"host": "127.0.0.2"}}', "webserver.host cannot change without a restart"),
        ("{", "is not JSON"),
    ],
)
def test_sighup_with_a_configuration_that_cannot_be_used_changes_nothing(
    dsn: Dsn, tmp_path: Path, changed: str, said: str
) -> None:
    with running(tmp_path, *TWO, **environment_of(dsn)) as process:
        before = process.workers
        (tmp_path / "config.json").write_text(changed)
        process.popen.send_signal(signal.SIGHUP)
        until(lambda: said in process.output)
        assert process.request("GET", "/health/ready")[0] == 200
        assert process.workers == before
        assert process.end() == 0


def test_sigttin_adds_a_worker_and_sigttou_takes_one_away(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, *TWO, **environment_of(dsn)) as process:
        process.popen.send_signal(signal.SIGTTIN)
        until(lambda: len(process.workers) == 3)
        process.popen.send_signal(signal.SIGTTOU)
        until(lambda: len(process.workers) == 2)
        assert process.request("GET", "/health/ready")[0] == 200
        process.popen.send_signal(signal.SIGUSR2)
        until(lambda: "SIGUSR2 is passed over" in process.output)
        assert process.end(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        ("port in use", "is in use: set webserver.port to a free one"),
        ("database down", "cannot connect to Postgres at 127.0.0.1:1"),
        ("schema newer", "9999, newer than this Gatepost"),
        ("pepper gone", "the pepper 'p'"),
    ],
)
def test_what_stands_in_the_way_of_starting_is_one_line_with_workers_and_without(
    dsn: Dsn, tmp_path: Path, sabotage: str, said: str
) -> None:
    variables = {"GATEPOST_WEBSERVER__PORT": "0", "GATEPOST_DB__START_TIMEOUT": "0", **environment_of(dsn)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        match sabotage:
            case "port in use":
                variables["GATEPOST_WEBSERVER__PORT"] = str(taken.getsockname()[1])
            case "database down":
                variables |= {"GATEPOST_DB__HOST": "127.0.0.1", "GATEPOST_DB__PORT": "1"}
            case "schema newer":
                rows(dsn, "UPDATE gatepost.alembic_version SET version_num = '9999'")
                rows(dsn, "COMMENT ON TABLE gatepost.alembic_version IS NULL")
            case "pepper gone":
                peppered = {**variables, "GATEPOST_PASSWORDS__PEPPERS__P": "sixteen characters"}
                added = gatepost("user", "add", "ada", "--password-stdin", cwd=tmp_path, stdin=PASSWORD, **peppered)
                assert added.returncode == 0, added.stderr
        both = [gatepost("run", *workers, cwd=tmp_path, **variables) for workers in ((), TWO)]
    for done in both:
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    nobody_is_connected(dsn)


def test_workers_that_cannot_boot_end_it_instead_of_being_replaced_for_ever(dsn: Dsn, tmp_path: Path) -> None:
    rows(dsn, "DROP TABLE gatepost.deployment_keys")  # which nobody looks for before
    done = gatepost("run", *TWO, cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0", **environment_of(dsn))
    assert done.returncode == 3
    assert "UndefinedTable" in done.stderr
    assert "INSERT" not in done.stderr  # nor what was to be inserted
    assert "Worker failed to boot" in done.stderr


async def test_a_worker_that_starts_while_the_database_is_away_waits_for_it(dsn: Dsn, tmp_path: Path) -> None:
    async with proxy(dsn) as network:
        process = await asyncio.to_thread(Process, tmp_path, *TWO, **environment_of(network.dsn()))
        try:
            first, second = process.workers
            network.silent = True
            network.reset()
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: "waiting for the database" in process.output)
            assert (await asyncio.to_thread(process.request, "GET", "/health/ready"))[0] == 503
            assert second in process.workers
            network.silent = False
            network.reset()
            await asyncio.to_thread(until, lambda: all_ready(process))
            assert len(process.workers) == 2
        finally:
            code = await asyncio.to_thread(process.end)
        assert code == 0


def all_ready(process: Process) -> bool:
    return all(process.request("GET", "/health/ready")[0] == 200 for _ in range(20))


def test_the_workers_metrics_are_one_and_their_folder_is_gone_afterwards(dsn: Dsn, tmp_path: Path) -> None:
    def counted() -> float:
        with urllib.request.urlopen(process.url + "/metrics") as answer:
            found = re.search(
                r'^gatepost_request_duration_seconds_count{[^}]*route="/ping"[^}]*} (\S+)$',
                answer.read().decode(),
                re.MULTILINE,
            )
        return float(found[1]) if found else 0.0

    with running(tmp_path, *TWO, **environment_of(dsn)) as process:
        variables = Path(f"/proc/{process.workers[0]}/maps").read_text()
        folders = set(re.findall(r"(/\S*gatepost-metrics-[^/]+)/", variables))
        assert len(folders) == 1
        for _ in range(30):
            assert process.request("GET", "/ping")[0] == 200
        until(lambda: counted() == 30)  # whichever is asked; the other writes its numbers down every few seconds

        folder = Path(folders.pop())
        lives = 2

        def all_serve() -> bool:
            return process.output.count('"serving"') == lives

        until(all_serve)

        def replace() -> int:
            nonlocal lives
            first = process.workers[0]
            os.kill(first, signal.SIGTERM)
            until(lambda: process.replaced(first))
            lives += 1
            until(all_serve)
            return first

        def those_that_count() -> set[str]:
            return {file.stem.rpartition("_")[2] for file in folder.glob("*.db")}

        def merged() -> bool:
            return those_that_count() == {"dead", *map(str, process.workers)}  # one for all that are gone

        for _ in range(3):
            replace()
            assert counted() == 30  # what one has counted that is gone counts still
            assert merged()
        with (folder / "readers").open() as lock, ThreadPoolExecutor(1) as thread:
            fcntl.flock(lock, fcntl.LOCK_SH)  # as a scrape does
            assert str(replace()) in those_that_count()
            assert counted() == 30
            fcntl.flock(lock, fcntl.LOCK_UN)
            until(merged)
            fcntl.flock(lock, fcntl.LOCK_EX)  # as whoever merges does
            scrape = thread.submit(counted)
            inode = os.fstat(lock.fileno()).st_ino
            until(lambda: re.search(rf"-> FLOCK .*:{inode} ", Path("/proc/locks").read_text()))
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert scrape.result(60) == 30
        assert (folder / "histogram_dead.db").exists()
        assert process.end() == 0
    assert not folder.exists()


def test_the_workers_share_the_operators_address(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, *TWO, **environment_of(dsn), GATEPOST_WEBSERVER__OPERATOR_PORT="0") as process:
        found = re.search(r"^Metrics, health, admin: (\S+)$", process.banner, re.MULTILINE)
        assert found
        for pid in process.workers:
            os.kill(pid, signal.SIGSTOP)
            try:
                with urllib.request.urlopen(found[1] + "/health/ready", timeout=60) as answer:
                    assert answer.status == 200
            finally:
                os.kill(pid, signal.SIGCONT)
        assert process.request("GET", "/health/ready")[0] == 404
        assert process.end() == 0
        assert refuses(found[1])
