"""The real app on a free port, on a real Postgres, with a database of its own for each test.

Which Postgres: `GATEPOST_TEST_POSTGRES` says `docker`, `embedded` or a URL of a server where databases may be
created; without it, a container where Docker answers and the embedded one elsewhere.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiopg
import psycopg2
import psycopg2.extensions
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, settings
from pydantic import SecretStr

from gatepost.config import (
    AccountsConfig,
    Config,
    DbConfig,
    MailConfig,
    PasswordsConfig,
    SessionsConfig,
    ThrottleConfig,
    WebServerConfig,
)
from gatepost.postgres import schema
from gatepost.postgres._aiopg import DriverConnection
from gatepost.postgres.database import Database, Dsn
from gatepost.postgres.embedded import EmbeddedPostgres
from gatepost.server import WebServer
from tests.documented import Documented
from tests.patience import patience

Client = TestClient[web.Request, web.Application]

PASSWORD = "correct horse battery"
# The least that the configuration admits: these tests are about behaviour, not about cost. Hashing has the lowest
# priority, so beside a busy process one takes seconds: those that wait for it are not refused for that.
CHEAP = PasswordsConfig(memory_kib=8192, iterations=1, queue_timeout=60.0)
# For tests that guess by the thousand and ask about something else. The others have the limits that everybody has.
UNLIMITED = ThrottleConfig.model_validate(
    {key: 1_000_000 if key.endswith("_burst") else 0.001 for key in ThrottleConfig.model_fields if key != "exempt"}
)
UNLIMITED_VARIABLES = {
    f"GATEPOST_THROTTLE__{key.upper()}": str(value) for key, value in UNLIMITED.model_dump(exclude={"exempt"}).items()
}

# How long an example takes is the machine's business. Examples are the same in each run, so that no change is refused
# for what another one has brought in; `--hypothesis-profile=exploring` looks for new ones.
settings.register_profile("exploring", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("any machine", settings.get_profile("exploring"), derandomize=True)
settings.load_profile("any machine")


def docker_answers() -> bool:
    """Whether a Docker engine runs here. With REQUIRE_DOCKER=1, one that does not is a failure."""
    try:
        found = subprocess.run(["docker", "info"], capture_output=True, timeout=120, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    if not found and os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail("REQUIRE_DOCKER=1, but no Docker engine answers")
    return found


@dataclass
class PostgresServer:
    """A running server on which databases may be created, and which may be frozen."""

    dsn: Dsn
    freeze: Callable[[], None]
    thaw: Callable[[], None]
    _names: Iterator[int] = field(default_factory=itertools.count)

    def admin(self, sql: str) -> None:
        """Run one statement outside of any test's database."""
        connection = psycopg2.connect(connect_timeout=60, **self.dsn.parameters(self.dsn.hosts[0]))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(sql)
        finally:
            connection.close()

    def new_name(self) -> str:
        """A name that no other database here has."""
        return f"test_{os.getpid()}_{next(self._names)}"

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[Dsn]:
        """A new database, gone afterwards whoever is still connected to it."""
        name = self.new_name()
        self.admin(f'CREATE DATABASE {name} TEMPLATE "{template}"')
        try:
            yield replace(self.dsn, database=name)
        finally:
            self.admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own configuration reaches a test."""
    for name in list(os.environ):
        if name.startswith("GATEPOST_") and not name.startswith("GATEPOST_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _patience() -> Iterator[None]:
    with patience(much=True):
        yield


@pytest.fixture(autouse=True)
def _deadlines(request: pytest.FixtureRequest) -> Iterator[None]:
    """Those of the service, for a test that is about them."""
    with patience(much=request.node.get_closest_marker("deadlines") is None):
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    choice = os.environ.get("GATEPOST_TEST_POSTGRES", "")
    if "://" in choice:
        yield _named_server(choice)
    elif choice == "docker" or (not choice and docker_answers()):
        yield from _container()
    else:
        yield from _embedded(tmp_path_factory.mktemp("postgres"))


def _named_server(url: str) -> PostgresServer:
    given = psycopg2.extensions.parse_dsn(url)
    dsn = Dsn(
        [given.get("host", "127.0.0.1")],
        int(given.get("port", 5432)),
        given["user"],
        given.get("password", ""),
        given.get("dbname", "postgres"),
    )

    def not_ours() -> None:
        pytest.skip("a server named by GATEPOST_TEST_POSTGRES is not ours to freeze")

    return PostgresServer(dsn, not_ours, not_ours)


def _container() -> Iterator[PostgresServer]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer("postgres:17", username="gatepost", password="a secret of the tests")
    # A power cut ends the tests as well, so nothing has to be on disk. Nobody guesses this password: SCRAM's 4,096
    # hashes for each connection took a quarter of a test's processor time.
    container = container.with_command("postgres -c fsync=off -c full_page_writes=off")
    container = container.with_env("POSTGRES_INITDB_ARGS", "--set scram_iterations=1")
    with container:
        dsn = Dsn(
            [container.get_container_host_ip()],
            int(container.get_exposed_port(5432)),
            "gatepost",
            "a secret of the tests",
            container.dbname,
        )
        wrapped = container.get_wrapped_container()
        yield PostgresServer(dsn, wrapped.pause, wrapped.unpause)


def _embedded(folder: Path) -> Iterator[PostgresServer]:
    embedded = EmbeddedPostgres(folder / "data")
    server = embedded.start(timeout=300)
    dsn = Dsn([server.socket_dir], server.port, "postgres", server.superuser_password, "postgres")

    def every(signal_: signal.Signals) -> Callable[[], None]:
        # The postmaster and its backends: each backend leads a process group of its own. The postmaster stands still
        # while they are listed, so that it forks none past the signal.
        def send() -> None:
            os.kill(server.pid, signal.SIGSTOP)
            children = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", str(server.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            for pid in [*map(int, children), server.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal_)

        return send

    try:
        yield PostgresServer(dsn, every(signal.SIGSTOP), every(signal.SIGCONT))
    finally:
        embedded.stop()


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> Iterator[str]:
    """A migrated database to clone: a tenth of the time of migrating one."""
    with postgres.database() as dsn:
        schema.migrate(dsn)
        yield dsn.database


class Clones:
    """Databases cloned from a template, a few ahead of the tests that want them, and dropped behind them."""

    AHEAD = 2

    def __init__(self, postgres: PostgresServer, template: str) -> None:
        self._postgres = postgres
        self._template = template
        self._work = ThreadPoolExecutor(1, "clones")
        self._ready = deque(self._work.submit(self._make) for _ in range(self.AHEAD))

    def take(self) -> str:
        """The name of a database that nobody has used."""
        self._ready.append(self._work.submit(self._make))
        return self._ready.popleft().result()

    def drop(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._work.submit(self._drop, name)

    def close(self) -> None:
        """Drop those that nobody wanted."""
        for made in self._ready:
            self.drop(made.result())
        self._work.shutdown()

    def _make(self) -> str:
        name = self._postgres.new_name()
        self._postgres.admin(f'CREATE DATABASE {name} TEMPLATE "{self._template}" STRATEGY FILE_COPY')
        return name

    def _drop(self, name: str) -> None:
        self._postgres.admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def clones(postgres: PostgresServer, template: str) -> Iterator[Clones]:
    with contextlib.closing(Clones(postgres, template)) as made:
        yield made


@pytest.fixture
def dsn(postgres: PostgresServer, clones: Clones) -> Iterator[Dsn]:
    """A migrated, empty database."""
    name = clones.take()
    yield replace(postgres.dsn, database=name)
    clones.drop(name)


@pytest.fixture
async def database(dsn: Dsn) -> AsyncIterator[Database]:
    database = await Database.open(dsn, 4)
    yield database
    await database.close()


def db_config(dsn: Dsn, **changes: Any) -> DbConfig:
    """The ``db`` section that names this database."""
    return DbConfig(
        host=",".join(dsn.hosts),
        port=dsn.port,
        user=dsn.user,
        password=SecretStr(dsn.password),
        database=dsn.database,
        **changes,
    )


@pytest.fixture
def config(dsn: Dsn) -> Config:
    return Config(
        webserver=WebServerConfig(port=0),
        db=db_config(dsn),
        accounts=AccountsConfig(registration="open"),
        passwords=CHEAP,
        sessions=SessionsConfig(),
    )


def with_mail(config: Config, folder: Path, **changes: Any) -> Config:
    """The same, and mail is written into this folder."""
    return config.model_copy(update={"mail": MailConfig(directory=folder, **changes)})


def with_every_route(config: Config, folder: Path) -> Config:
    """The same with mail, and with a public URL for passkeys: some routes are there only then."""
    webserver = config.webserver.model_copy(update={"public_url": "https://auth.example"})
    return with_mail(config, folder / "mail").model_copy(update={"webserver": webserver})


class ProductionServer(TestServer):
    """With the runner that `gatepost run` has. ``of``: it has been initialized."""

    def __init__(self, of: WebServer) -> None:
        super().__init__(of.app)
        self._of = of

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner:
        return self._of.runner()


StartServer = Callable[[Config], Awaitable[Client]]


@pytest.fixture
def start_server(aiohttp_client: Callable[..., Awaitable[Client]]) -> Iterator[StartServer]:
    """Start a server of this configuration on a free port; the client speaks real HTTP to it.

    What it answers must be in the OpenAPI document.
    """
    documented = Documented()

    async def start(config: Config) -> Client:
        server = WebServer(config)
        (await server.initializer()).on_response_prepare.append(documented)
        return await aiohttp_client(ProductionServer(server))

    yield start
    assert documented.violations == []


@pytest.fixture
async def client(config: Config, start_server: StartServer) -> Client:
    return await start_server(config)


@pytest.fixture
async def ada(client: Client) -> dict[str, Any]:
    """A registered user."""
    return await register(client, "ada")


# Containers are ended by their context managers, so no second container has to watch over them.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")

CountRoundTrips = Callable[[], contextlib.AbstractContextManager[list[str]]]


@pytest.fixture
def count_round_trips(monkeypatch: pytest.MonkeyPatch) -> CountRoundTrips:
    """Every statement that the driver sends, with its parameters in it."""
    sent: list[str] = []
    execute, fetch = aiopg.Cursor.execute, DriverConnection.fetch

    async def listen_to_aiopg(self: Any, operation: str, parameters: Any = None, **kwargs: Any) -> None:
        sent.append(self.raw.mogrify(operation, parameters).decode())  # BEGIN, COMMIT
        await execute(self, operation, parameters, **kwargs)

    async def listen(self: DriverConnection, sql: str, parameters: Any) -> Any:
        sent.append(self.raw.cursor().mogrify(sql, parameters).decode())
        return await fetch(self, sql, parameters)

    monkeypatch.setattr(aiopg.Cursor, "execute", listen_to_aiopg)
    monkeypatch.setattr(DriverConnection, "fetch", listen)

    @contextlib.contextmanager
    def count() -> Iterator[list[str]]:
        sent.clear()
        seen: list[str] = []
        yield seen
        seen.extend(sent)

    return count


async def register(client: Client, username: str, password: str = PASSWORD) -> dict[str, Any]:
    async with client.post("/account", json={"username": username, "password": password}) as answer:
        body: dict[str, Any] = await answer.json()
        assert answer.status == 201, body
        user: dict[str, Any] = body["user"]
        return user


async def log_in(client: Client, username: str = "ada", password: str = PASSWORD) -> str:
    """Log in and return the token."""
    async with client.post("/user", json={"username": username, "password": password}) as answer:
        body = await answer.json()
        assert answer.status == 200, body
        token: str = body["session_id"]
        return token


async def status_of(client: Client, token: str) -> int:
    """What `GET /user` answers to a token."""
    async with client.get("/user", headers={"Authorization": token}) as answer:
        return answer.status


def rows(dsn: Dsn, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What the database says, asked past the code under test."""
    connection = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Ask until it is true: for what has no event to wait for. Fails after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
