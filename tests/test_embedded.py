"""The embedded Postgres, with real processes. The lock they all share tells whether anybody is left."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from gatepost.postgres.embedded import EmbeddedError, EmbeddedPostgres, Server, binaries
from tests.gatepost_process import until

OWNER = Path(__file__).with_name("embedded_owner.py")
SOURCE = Path(binaries.__file__).parents[2]
NOBODY, STRANGER = 65534, 65533
IS_ROOT = os.getuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")

if not any(binaries.find_binaries(None)):
    pytest.skip("no Postgres binaries", allow_module_level=True)


def is_free(data_dir: Path) -> bool:
    """Whether no process of Gatepost or its Postgres is left."""
    for name in (".", "lock"):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(data_dir / name, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            finally:
                os.close(fd)
    return True


def process(pid: int, field: str) -> str:
    command = ["ps", "-o", f"{field}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def is_gone(pid: int) -> bool:
    return process(pid, "stat")[:1] in {"", "Z"}  # a zombie is gone: nobody may be there to reap orphans


@contextlib.contextmanager
def connected(server: Server, *, superuser: bool = False) -> Iterator[Any]:
    connection = psycopg2.connect(
        host=server.socket_dir,
        port=server.port,
        user="postgres" if superuser else server.user,
        password=server.superuser_password if superuser else server.password,
        dbname=server.database,
        connect_timeout=60,
    )
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def keep(server: Server) -> None:
    with connected(server) as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
        cursor.execute("INSERT INTO kept VALUES (1)")


def kept(server: Server) -> int:
    with connected(server) as cursor:
        cursor.execute("SELECT count(*) FROM kept")
        return int(cursor.fetchone()[0])


def answers(server: Server) -> bool:
    with contextlib.suppress(psycopg2.OperationalError), connected(server):
        return True
    return False


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="gp-"))
    path.chmod(0o755)
    yield path
    until(lambda: all(is_free(lock.parent) for lock in path.rglob("lock")))
    shutil.rmtree(path)


class Owner:
    """embedded_owner.py, running."""

    def __init__(self, what: str, data_dir: Path, *more: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, str(OWNER), what, str(data_dir), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
        )
        self.alarm = threading.Timer(300, self.process.kill)
        self.alarm.start()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()  # ends at the latest when the alarm kills the owner
        return dict(json.loads(line)) if line else {}

    def say_go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


Make = Callable[..., EmbeddedPostgres]
Run = Callable[..., Owner]


@pytest.fixture
def run(folder: Path) -> Iterator[Run]:
    owners: list[Owner] = []

    def run(what: str = "own", data_dir: Path | None = None, *more: str) -> Owner:
        owner = Owner(what, data_dir or folder / "data", *more)
        owners.append(owner)
        return owner

    yield run
    for owner in owners:
        owner.alarm.cancel()
        if owner.process.poll() is None:
            owner.kill()
        for pipe in (owner.process.stdin, owner.process.stdout):
            if pipe and not pipe.closed:
                pipe.close()


@pytest.fixture
def make(folder: Path, run: Run) -> Iterator[Make]:  # after `run`, so that it is torn down before
    made: list[EmbeddedPostgres] = []

    def make(data_dir: Path | None = None, **options: Any) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(data_dir or folder / "data", **options))
        return made[-1]

    yield make
    for postgres in made:
        postgres.stop()


def test_the_first_start_makes_a_database_owned_by_an_ordinary_role(make: Make, folder: Path) -> None:
    server = make().start()
    with connected(server) as cursor:
        cursor.execute(
            "SELECT current_user, current_database(), rolsuper, rolcreaterole FROM pg_roles "
            "WHERE rolname = current_user"
        )
        assert cursor.fetchone() == ("gatepost", "gatepost", False, False)
        cursor.execute("SHOW listen_addresses")
        assert cursor.fetchone() == ("",)
        cursor.execute("SHOW fsync")
        assert cursor.fetchone() == ("on",)
    with connected(server, superuser=True) as cursor:
        cursor.execute("SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256$%'")
        assert cursor.fetchone() == (2,)
        cursor.execute("SELECT DISTINCT type, auth_method FROM pg_hba_file_rules ORDER BY 1")
        assert cursor.fetchall() == [("host", "reject"), ("local", "scram-sha-256")]


def test_names_that_need_quoting_work(make: Make) -> None:
    with connected(make(user='a "b"', database="c'd").start()) as cursor:
        cursor.execute("SELECT current_user, current_database()")
        assert cursor.fetchone() == ('a "b"', "c'd")


def test_a_wrong_password_is_refused(make: Make) -> None:
    server = make().start()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(host=server.socket_dir, port=server.port, user="postgres", password="x", dbname="postgres")


def test_a_later_start_is_a_new_process_with_the_old_data(make: Make) -> None:
    postgres = make()
    first = postgres.start()
    keep(first)
    assert postgres.start() == first
    postgres.stop()
    second = postgres.start()
    assert second.pid != first.pid
    assert (second.password, kept(second)) == (first.password, 1)


def test_a_clean_stop_leaves_nothing(make: Make, folder: Path) -> None:
    postgres = make()
    server = postgres.start()
    assert postgres.alive
    assert not postgres.wait_exit(0)
    watcher = int(process(server.pid, "ppid"))
    with connected(server) as cursor:
        postgres.stop()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT 1")
    assert is_free(folder / "data")
    assert is_gone(server.pid)
    assert is_gone(watcher)
    assert not Path(server.socket_dir).exists()
    assert not postgres.alive
    assert postgres.wait_exit(0)
    postgres.stop()


def test_an_owner_killed_takes_its_server_along_but_no_committed_row(make: Make, run: Run, folder: Path) -> None:
    owner = run()
    facts = owner.hear()
    server = EmbeddedPostgres.attach(folder / "data")
    assert server
    keep(server)
    with connected(server) as cursor:  # a client that stays does not keep the server
        owner.kill()
        until(lambda: is_free(folder / "data"))
        until(lambda: is_gone(facts["pid"]))
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("SELECT 1")
    assert kept(make().start()) == 1


def test_an_owner_killed_is_succeeded_at_once(make: Make, run: Run) -> None:
    for _ in range(3):
        owner = run()
        assert "pid" in owner.hear()
        owner.kill()
        postgres = make()
        keep(postgres.start())
        postgres.stop()
    assert kept(make().start()) == 3


def test_other_children_of_a_killed_owner_do_not_keep_its_server(run: Run, folder: Path) -> None:
    owner = run("own-with-children")
    facts = owner.hear()
    try:
        os.kill(owner.process.pid, signal.SIGKILL)
        until(lambda: is_free(folder / "data"))
        assert not any(is_gone(child) for child in facts["children"])
    finally:
        for child in facts["children"]:
            os.kill(child, signal.SIGKILL)


def test_ctrl_c_reaches_the_owner_only(run: Run, folder: Path) -> None:
    owner = run()
    assert "pid" in owner.hear()
    os.killpg(owner.process.pid, signal.SIGINT)
    assert owner.hear() == {"alive": True}
    owner.say_go_on()
    assert owner.hear() == {"alive": False}
    assert is_free(folder / "data")


def test_a_second_owner_is_told_the_folder_and_the_pid(make: Make, run: Run, folder: Path) -> None:
    postgres = make()
    server = postgres.start()
    error = run().hear()["error"]
    assert str(folder / "data") in error
    assert str(os.getpid()) in error
    with pytest.raises(EmbeddedError, match=str(os.getpid())):
        make().start()
    assert postgres.alive
    keep(server)


def test_of_two_starts_at_once_one_wins(make: Make) -> None:
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(make().start())
        except EmbeddedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["EmbeddedError", "Server"]


def test_attach_finds_the_server_of_another_process(make: Make, run: Run, folder: Path) -> None:
    assert EmbeddedPostgres.attach(folder / "data") is None
    postgres = make()
    server = postgres.start()
    keep(server)
    assert EmbeddedPostgres.attach(folder / "data") == server
    assert run("attach").hear() == {"pid": server.pid, "count": 1}
    postgres.stop()
    assert run("attach").hear() == {"pid": None, "count": None}


def test_leftovers_of_an_interrupted_initdb_are_cleared(make: Make, folder: Path) -> None:
    (folder / "data" / "pgdata.new" / "base").mkdir(parents=True)
    (folder / "data" / "pgdata.new" / "PG_VERSION").write_text("18\n")
    (folder / "data" / "lock").touch()
    (folder / "data" / "password").write_text("half")
    keep(make().start())
    assert not (folder / "data" / "pgdata.new").exists()


@pytest.mark.parametrize(
    "seen",
    ["lock", "password", "pgdata.new", "pgdata.new/global/pg_control", "pgdata.new/base/5", "pgdata", "run"],
)
def test_an_owner_killed_in_its_first_start_is_repaired(make: Make, run: Run, folder: Path, seen: str) -> None:
    data_dir = folder / "data"
    for _ in range(5):
        owner = run()
        until(lambda: (data_dir / seen).exists() or (data_dir / "run").exists())
        came = (data_dir / seen).exists()
        owner.kill()
        if came:
            break
        # It had gone before anybody looked: once more from the beginning.
        until(lambda: is_free(data_dir))
        shutil.rmtree(data_dir)
    assert came
    server = make().start()
    keep(server)
    assert kept(server) == 1


def test_a_stale_pid_that_another_process_has_does_not_matter(make: Make, folder: Path) -> None:
    postgres = make()
    server = postgres.start()
    keep(server)
    lines = (folder / "data/pgdata/postmaster.pid").read_text().splitlines()
    postgres.stop()
    (folder / "data/pgdata/postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]))
    (folder / "data/lock").write_text(json.dumps({"owner": os.getppid()}))
    (folder / "data/run").mkdir(0o700)
    (folder / "data/run/.s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    assert EmbeddedPostgres.attach(folder / "data") is None
    assert kept(postgres.start()) == 1


def test_a_killed_postmaster_is_noticed_and_started_again(make: Make, folder: Path) -> None:
    postgres = make()
    for round_ in range(3):
        server = postgres.start()
        keep(server)
        with connected(server) as cursor:
            os.kill(server.pid, signal.SIGKILL)
            assert postgres.wait_exit(60)
            assert not postgres.alive
            again = postgres.start()
            assert again.pid != server.pid
            assert kept(again) == round_ + 1
            with pytest.raises(psycopg2.OperationalError):
                cursor.execute("SELECT 1")


def test_a_killed_watcher_does_not_set_the_server_free(make: Make, folder: Path) -> None:
    postgres = make()
    server = postgres.start()
    keep(server)
    os.kill(int(process(server.pid, "ppid")), signal.SIGKILL)
    assert postgres.wait_exit(60)
    assert kept(postgres.start()) == 1
    until(lambda: is_gone(server.pid))


def test_a_crashed_backend_does_not_end_the_server(make: Make, folder: Path) -> None:
    postgres = make()
    server = postgres.start()
    keep(server)
    with connected(server) as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        os.kill(cursor.fetchone()[0], signal.SIGKILL)
    # Until the postmaster has noticed, it still lets us in.
    until(lambda: "signal 9" in (folder / "data" / "postgres.log").read_text())
    until(lambda: answers(server))
    assert kept(server) == 1
    assert postgres.alive


def test_the_log_holds_no_secret_and_no_statement(make: Make, folder: Path) -> None:
    server = make().start()
    failing = [
        "SELEC 'hush'",
        "SELECT 'hush'::uuid",
        "SELECT 1 / length(left('hush', 0))",
        "INSERT INTO names VALUES ('hush')",
        "DO $$ BEGIN RAISE WARNING 'hush'; RAISE EXCEPTION 'hush'; END $$",
        "ALTER ROLE gatepost PASSWORD 'hush' NOTHING",
    ]
    with connected(server) as cursor:
        cursor.execute("CREATE TABLE names (name text PRIMARY KEY)")
        cursor.execute("INSERT INTO names VALUES ('hush')")
        for statement in failing:
            with pytest.raises(psycopg2.Error):
                cursor.execute(statement)
    log = folder / "data" / "postgres.log"
    with connected(server) as cursor, connected(server) as other:
        cursor.execute("SELECT pg_backend_pid()")
        backend = cursor.fetchone()[0]

        def wait() -> None:
            with contextlib.suppress(psycopg2.OperationalError):
                cursor.execute("SELECT 'hush', pg_sleep(60)")

        waiting = threading.Thread(target=wait)
        waiting.start()

        def is_waiting() -> bool:
            other.execute("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %s", (backend,))
            return bool(other.fetchone()[0])

        until(is_waiting)
        os.kill(backend, signal.SIGKILL)
        waiting.join(60)
        until(lambda: "signal 9" in log.read_text())
    until(lambda: answers(server))  # it may hang on a shutdown before
    for secret in ("hush", server.password, server.superuser_password):
        assert secret not in log.read_text()


def test_a_big_log_starts_anew(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = make()
    postgres.start()
    postgres.stop()
    monkeypatch.setattr("gatepost.postgres.embedded.server.LOG_BYTES", 10)
    postgres.start()
    assert (folder / "data/postgres.log").read_text().count("starting PostgreSQL") == 1


def test_no_password_shows_in_a_repr(make: Make) -> None:
    server = make().start()
    assert server.password not in repr(server)
    assert server.superuser_password not in repr(server)


def test_everything_is_closed_to_others(make: Make, run: Run, folder: Path) -> None:
    server = make().start()
    data_dir = folder / "data"
    for closed in (data_dir, data_dir / "pgdata", Path(server.socket_dir)):
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    for secret in ("lock", "password", "superuser-password", "postgres.log"):
        assert stat.S_IMODE((data_dir / secret).stat().st_mode) == 0o600
    socket = Path(server.socket_dir) / f".s.PGSQL.{server.port}"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    if IS_ROOT:
        assert data_dir.stat().st_uid != 0
        for place in (data_dir, Path(server.socket_dir)):
            listed = subprocess.run(
                ["/bin/ls", place], user=STRANGER, extra_groups=[], capture_output=True, check=False
            )
            assert listed.returncode != 0
        assert run("knock", socket, "--uid", str(STRANGER)).hear() == {"refused": True}
        assert run("knock", socket).hear() == {"refused": False}


def test_a_path_too_long_for_a_socket_works(make: Make, folder: Path) -> None:
    data_dir = folder / ("long" * 20) / ("path" * 20)
    postgres = make(data_dir)
    server = postgres.start()
    assert not server.socket_dir.startswith(str(data_dir))
    assert stat.S_IMODE(Path(server.socket_dir).stat().st_mode) == 0o700
    keep(server)
    assert EmbeddedPostgres.attach(data_dir) == server
    postgres.stop()
    assert not Path(server.socket_dir).exists()


@as_root
def test_a_socket_folder_of_another_user_is_not_trusted(make: Make, folder: Path) -> None:
    data_dir = folder / ("long" * 20) / ("path" * 20)
    postgres = make(data_dir)
    socket_dir = Path(postgres.start().socket_dir)
    postgres.stop()
    socket_dir.mkdir(0o700)
    try:
        os.chown(socket_dir, STRANGER, STRANGER)
        with pytest.raises(EmbeddedError, match=str(socket_dir)):
            postgres.start()
    finally:
        socket_dir.rmdir()
    assert is_free(data_dir)


def test_a_folder_with_other_things_in_it_is_left_alone(make: Make, folder: Path) -> None:
    (folder / "mine").write_text("x")
    with pytest.raises(EmbeddedError, match="other things"):
        make(folder).start()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_data_of_another_major_version_is_named(make: Make, folder: Path) -> None:
    postgres = make()
    postgres.start()
    postgres.stop()
    (folder / "data/pgdata/PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedError, match="made by Postgres 9"):
        postgres.start()
    assert is_free(folder / "data")


def test_a_server_that_cannot_start_says_why_at_once(make: Make, folder: Path) -> None:
    postgres = make()
    postgres.start()
    postgres.stop()
    with (folder / "data/pgdata/postgresql.conf").open("a") as config:
        config.write("no_such_setting = 1\n")
    began = time.monotonic()
    with pytest.raises(EmbeddedError, match="no_such_setting"):
        postgres.start(timeout=300)
    assert time.monotonic() - began < 60
    assert is_free(folder / "data")


def test_missing_binaries_are_named(make: Make, folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="pip install"):
        make(binaries=folder).start()
    assert is_free(folder / "data")


def test_it_starts_from_a_worker_thread_that_ends(make: Make) -> None:
    postgres = make()
    thread = threading.Thread(target=postgres.start)
    thread.start()
    thread.join(300)
    assert not postgres.wait_exit(0.3)
    keep(postgres.start())


@as_root
def test_root_works_below_a_folder_closed_to_the_servers_user(make: Make, folder: Path) -> None:
    folder.chmod(0o700)
    postgres = make(run_as="nobody")
    keep(postgres.start())
    assert process(postgres.start().pid, "uid") == str(NOBODY)
    postgres.stop()
    assert kept(make().start()) == 1  # keeps to the folder's owner
    assert (folder / "data").stat().st_uid == NOBODY


@as_root
def test_root_copies_binaries_that_the_servers_user_cannot_reach(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries, "CACHE", folder / "cache")
    prefix = next(binaries.find_binaries(None)).parent
    if not (prefix / "share").exists():
        pytest.skip("these binaries cannot be moved")
    closed = folder / "closed" / prefix.parent.name
    shutil.copytree(prefix, closed / prefix.name, ignore=shutil.ignore_patterns("include"))
    with contextlib.suppress(FileNotFoundError):
        shutil.copytree(f"{prefix.parent}.libs", f"{closed}.libs")
    (folder / "closed").chmod(0o700)
    for _ in range(2):
        postgres = make(binaries=closed / prefix.name / "bin")
        keep(postgres.start())
        postgres.stop()
    (copy,) = (folder / "cache").iterdir()
    assert (copy.stat().st_uid, stat.S_IMODE(copy.stat().st_mode)) == (0, 0o755)


@as_root
def test_an_ordinary_user_runs_it_too(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "CACHE", folder / "cache")
    found = next(binaries.find_binaries(None))
    reachable = binaries.copy_for_others(found) if (found.parent / "share").exists() else found
    home = folder / "home"
    home.mkdir(0o700)
    os.chown(home, NOBODY, NOBODY)
    more = ("--binaries", str(reachable), "--uid", str(NOBODY))
    for _ in range(2):
        owner = run("own", home / "data", *more)
        assert process(owner.hear()["pid"], "uid") == str(NOBODY)
        assert "in use" in run("own", home / "data", *more).hear()["error"]
        owner.kill()
        until(lambda: is_free(home / "data"))
    owner = run("own", home / "data", *more)
    assert "pid" in owner.hear()
    owner.say_go_on()
    assert owner.hear() == {"alive": False}


@as_root
def test_root_is_no_user_to_run_it_as(make: Make) -> None:
    for name in ("root", "no-such-user"):
        with pytest.raises(EmbeddedError, match=name):
            make(run_as=name).start()


@pytest.mark.parametrize("name", ["root", "a-user-who-is-not-there"])
def test_an_ordinary_user_cannot_run_it_as_another_user(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    postgres = make(run_as=name)
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    with pytest.raises(EmbeddedError, match=f"only root can run Postgres as {name}"):
        postgres.start()
