"""A roll-out: earlier code, taken from the repository's own history, serves while its schema is migrated to the
newest, and then beside the newest code. `make test ARGS="-k rolled_out -rP"` prints what was measured.
"""

import asyncio
import io
import itertools
import random
import socket
import statistics
import subprocess
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psycopg2
import pytest

from gatepost.postgres import schema
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import Credentials
from tests.conftest import CHEAP, PASSWORD, PostgresServer, rows
from tests.gatepost_process import gatepost, running

ROOT = Path(__file__).parent.parent
CLIENTS = 4
VISITS = 40
# Seconds between two visits of a client: the machine is to have something left for a migration and a second node.
PAUSE = 0.05
# Enough that a lock for the time of a whole table would be seen.
USERS = 50_000
# Seconds between two looks at the locks, at most.
LOOK = 0.2
# What conflicts with reading or with writing a table (Postgres' table of conflicting lock modes).
MODES = ["ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"]


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise LookupError(done.stderr.decode().strip())
    return done.stdout


def previous_release() -> str:
    """The newest tag before this commit; until there is one, the commit before the newest migration."""
    try:
        return git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^").decode().strip()
    except LookupError:
        [newest] = (schema.migrations_folder() / "versions").glob(f"{schema.newest()}_*.py")
        added = git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
        return f"{added[-1]}^" if added else "HEAD"


def first_migration() -> str:
    """The commit that the first migration came with."""
    return git("log", "--diff-filter=A", "--format=%H", "--", "migrations/versions/0001_*.py").decode().split()[-1]


@pytest.fixture(params=[previous_release, first_migration], ids=lambda find: find.__name__)
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the source and the migrations of then."""
    try:
        if git("rev-parse", "--is-shallow-repository").strip() == b"true":
            pytest.skip("a shallow clone has no earlier code: fetch the whole history")
        archive = git("archive", "--format=zip", request.param(), "src", "migrations")
    except (LookupError, FileNotFoundError) as error:
        pytest.skip(f"no history to take earlier code from: {error}")
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(tmp_path / "earlier")
    return tmp_path / "earlier"


@dataclass
class Load:
    """Users who log in, look, change their password where that can be done, and log out, at nodes drawn by chance.

    Any answer but the right one ends it.
    """

    http: aiohttp.ClientSession
    nodes: list[str]
    change_at: list[str]
    phase: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)

    async def ask(
        self, node: str, method: str, path: str, expected: int, body: object = None, token: str = ""
    ) -> dict[str, str]:
        began, phase = time.monotonic(), self.phase
        headers = {"Authorization": token} if token else {}
        async with self.http.request(method, node + path, json=body, headers=headers) as answer:
            document: dict[str, str] = await answer.json()
            assert answer.status == expected, f"{phase}: {method} {path} at {node}: {document}"
        self.seconds.setdefault(phase, []).append(time.monotonic() - began)
        return document

    async def visit(self, name: str) -> None:
        here, there = random.choices(self.nodes, k=2)
        token = (await self.ask(here, "POST", "/user", 200, {"username": name, "password": PASSWORD}))["session_id"]
        await self.ask(there, "GET", "/user", 200, token=token)
        if self.change_at:
            body, node = {"current": PASSWORD, "new": PASSWORD}, random.choice(self.change_at)
            before, token = token, (await self.ask(node, "PUT", "/account/password", 200, body, token))["session_id"]
            await self.ask(here, "GET", "/user", 401, token=before)
        await self.ask(there, "DELETE", "/user", 200, token=token)
        await self.ask(here, "GET", "/user", 401, token=token)

    async def run(self, phase: str, until: asyncio.Event | None = None) -> None:
        """``VISITS`` of each client, or as many as there are until ``until`` is set."""
        self.phase = phase

        async def client(number: int) -> None:
            for visits in itertools.count():
                if until.is_set() if until else visits == VISITS:
                    return
                await self.visit(f"visitor{number}")
                await asyncio.sleep(PAUSE)

        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(client(number))


@asynccontextmanager
async def load(*nodes: str) -> AsyncIterator[Load]:
    async with aiohttp.ClientSession() as http:
        change_at = []
        for node in nodes:
            async with http.put(f"{node}/account/password") as answer:
                if answer.status == 401:  # it is there, and asks who we are
                    change_at.append(node)
        yield Load(http, list(nodes), change_at)


@contextmanager
def locks(dsn: Dsn) -> Iterator[dict[tuple[str, ...], float]]:
    """The longest that each lock on a table of ours was held or waited for, in seconds, looked at every 10 ms.

    Of the time between two looks no more than ``LOOK`` counts: whoever could not look for longer stood still, and so,
    most likely, did whoever had the lock.
    """
    longest: dict[tuple[str, ...], float] = {}
    stop = threading.Event()
    connection = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    connection.autocommit = True

    def watch() -> None:
        seen: dict[tuple[str, ...], float] = {}
        before = time.monotonic()
        with connection.cursor() as cursor:
            while not stop.wait(0.01):
                cursor.execute(
                    "SELECT c.relname, l.mode, l.granted::text, l.pid::text, l.virtualtransaction "
                    "FROM pg_locks l JOIN pg_class c ON c.oid = l.relation AND c.relkind = 'r' "
                    "WHERE l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                    "AND c.relnamespace = to_regnamespace('gatepost') AND (l.mode = ANY (%s) OR NOT l.granted)",
                    (MODES,),
                )
                now = time.monotonic()
                passed, before = min(now - before, LOOK), now
                seen = {lock: seen[lock] + passed if lock in seen else 0.0 for lock in cursor}
                for lock, seconds in seen.items():
                    longest[lock[:3]] = max(longest.get(lock[:3], 0.0), seconds)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield longest
    finally:
        stop.set()
        watcher.join()
        connection.close()


async def people(dsn: Dsn) -> None:
    """The visitors, and many others with passwords, sessions and a past, in the words of the first schema."""
    credentials = Credentials(CHEAP, b"k" * 32)
    stored = await credentials.create(PASSWORD)
    credentials.close()
    rows(
        dsn,
        "INSERT INTO gatepost.users (username, canonical) SELECT name, name FROM ("
        "SELECT 'visitor' || generate_series(0, %s) UNION ALL SELECT 'user' || generate_series(1, %s)) n (name)",
        CLIENTS - 1,
        USERS,
    )
    rows(
        dsn,
        "INSERT INTO gatepost.passwords (user_id, setting, digest, norm) SELECT id, %s, %s, %s FROM gatepost.users",
        stored.setting.phc,
        stored.digest,
        stored.norm,
    )
    rows(
        dsn,
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at) "
        "SELECT sha256(id::text::bytea), id, 1, now() + interval '1 day' FROM gatepost.users",
    )
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, user_id) "
        "SELECT 'authn_login_success', id FROM gatepost.users, generate_series(1, 3)",
    )


def environment_of(dsn: Dsn) -> dict[str, str]:
    return {
        "GATEPOST_DB__HOST": dsn.hosts[0],
        "GATEPOST_DB__PORT": str(dsn.port),
        "GATEPOST_DB__USER": dsn.user,
        "GATEPOST_DB__PASSWORD": dsn.password,
        "GATEPOST_DB__DATABASE": dsn.database,
        "GATEPOST_PASSWORDS__MEMORY_KIB": str(CHEAP.memory_kib),
        "GATEPOST_PASSWORDS__ITERATIONS": str(CHEAP.iterations),
    }


def migrate(cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As an operator does it: one that could not get a lock in its second is run again."""
    for _ in range(5):
        done = gatepost("migrate", cwd=cwd, **environment)
        if "lock timeout" not in done.stderr:
            break
    return done


async def test_an_upgrade_is_rolled_out_without_a_lost_request_or_a_long_lock(
    postgres: PostgresServer, earlier: Path, tmp_path: Path
) -> None:
    with postgres.database() as dsn:
        newer = environment_of(dsn)
        older = {**newer, "PYTHONPATH": str(earlier / "src"), "GATEPOST_WEBSERVER__PORT": str(free_port())}
        migrated = await asyncio.to_thread(gatepost, "migrate", cwd=tmp_path, **older)
        assert migrated.returncode == 0, migrated.stderr
        await people(dsn)
        with running(tmp_path, **older) as old:
            async with load(old.url) as traffic:
                await traffic.run("before")
                going_on = asyncio.create_task(traffic.run("migrating", done := asyncio.Event()))
                with locks(dsn) as held:
                    began = time.monotonic()
                    migrated = await asyncio.to_thread(migrate, tmp_path, newer)
                    took = time.monotonic() - began
                done.set()
                await going_on
                assert migrated.returncode == 0, migrated.stderr
                assert max(held.values(), default=0) < 1, held
                with running(tmp_path, **newer) as new:
                    async with load(old.url, new.url) as both:
                        await both.run("side by side")
            assert old.end() == 0
        restarted(earlier, tmp_path, older)
    report(traffic.seconds | both.seconds, took, held)


def restarted(earlier: Path, cwd: Path, environment: dict[str, str]) -> None:
    """The earlier code comes up again on the schema that is newer than itself; if it cannot, it says so."""
    of_then = max(file.name[:4] for file in (earlier / "migrations" / "versions").glob("[0-9]*_*.py"))
    found = (earlier / "src" / "gatepost").rglob("schema.py")
    asks = any("serves_from" in path.read_text("utf-8") for path in found)
    if of_then == schema.newest() or asks:
        with running(cwd, **environment) as process:
            assert process.request("POST", "/user", {"username": "visitor0", "password": PASSWORD})[0] == 200
    else:
        refused = gatepost("run", cwd=cwd, **environment)
        assert refused.returncode == 1
        assert "newer than this Gatepost" in refused.stderr
        assert refused.stderr.count("\n") == 1


def report(seconds: dict[str, list[float]], took: float, held: dict[tuple[str, ...], float]) -> None:
    p99 = {phase: statistics.quantiles(of, n=100)[98] for phase, of in seconds.items()}
    for phase, value in p99.items():
        print(f"{phase}: {len(seconds[phase])} answers, p99 {value * 1000:.1f} ms, {value / p99['before']:.2f}x")
    print(f"migrating {USERS} users took {took:.1f} s; locks held or waited for, longest first:")
    for (table, mode, granted), longest in sorted(held.items(), key=lambda item: -item[1]):
        print(f"  {table} {mode} {'held' if granted == 'true' else 'waited for'}: {longest * 1000:.0f} ms")


def free_port() -> int:
    # The first code did not say which port it was given for 0.
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
