"""The server: an app, its engine, and the features mounted on it. The only module that knows them all."""

import asyncio
import contextlib
import errno
import gc
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Any, ClassVar, NoReturn

from aiohttp import web

from gatepost import events, schema
from gatepost.accounts import handlers as accounts
from gatepost.admin import handlers as admin
from gatepost.admin import record
from gatepost.background import every
from gatepost.config import Config
from gatepost.credentials import Credentials
from gatepost.db import LOOKUP_CONNECTIONS, Database, Dsn
from gatepost.embedded import EmbeddedError, EmbeddedPostgres
from gatepost.errors import DatabaseUnavailable
from gatepost.forward_auth import handlers as forward_auth
from gatepost.ops import handlers as ops
from gatepost.ops import openapi
from gatepost.recovery import handlers as recovery
from gatepost.sessions import handlers as sessions
from gatepost.sessions import own as own_sessions
from gatepost.sessions import upkeep
from gatepost.sessions.guard import LAST_SEEN, LOOKUP
from gatepost.sessions.lookup import Lookup
from gatepost.sessions.upkeep import LastSeen
from gatepost.web import (
    CONFIG,
    CREDENTIALS,
    DATABASE,
    MAX_BODY,
    QuietLogger,
    cors,
    log,
    mount,
    problems,
    set_common_headers,
)

ROUTES = [
    *sessions.routes,
    *own_sessions.routes,
    *accounts.routes,
    *recovery.routes,
    *forward_auth.routes,
    *ops.routes,
    *admin.routes,
    *record.routes,
]


@cache
def api_document() -> str:
    """What `/openapi.json` answers. The routes are always the same, so it is made once."""
    return openapi.render(ROUTES)


class StartError(Exception):
    """The server cannot start; the message is one line that says why and what to do."""


class WebServer:
    """Gatepost over HTTP: ``app`` serves, ``initializer`` connects it to its database.

    Nothing here is global, so several can run in one process. ``migrate``: bring the schema up to date first (an
    embedded database always is).
    """

    # For aiohttp's AppRunner. Bodies are never decompressed: an encoded one is refused unread.
    runner_options: ClassVar[dict[str, Any]] = {
        "access_log": None,
        "auto_decompress": False,
        "logger": QuietLogger(log, {}),
    }

    def __init__(self, config: Config, *, migrate: bool = False) -> None:
        self.config = config
        self.app = web.Application(middlewares=[problems], client_max_size=MAX_BODY)
        self.app[CONFIG] = config
        self.app[ops.DOCUMENT] = api_document()
        mount(self.app, ROUTES)
        self.app.on_response_prepare.append(set_common_headers)
        if config.webserver.cors_origins:
            self.app.on_response_prepare.append(cors(config.webserver.cors_origins))
        self.app.on_cleanup.append(self._close)
        self.dsn: Dsn | None = None
        self._migrate = migrate or config.db.embedded
        self._resources = contextlib.AsyncExitStack()

    async def initializer(self) -> web.Application:
        """Open everything that serving needs; on failure nothing stays open.

        Raises schema.SchemaError, embedded.EmbeddedError, credentials.MissingPepper or errors.DatabaseUnavailable.
        """
        try:
            await self._open()
        except BaseException:
            await self._resources.aclose()
            raise
        return self.app

    async def _open(self) -> None:
        dsn = self.dsn = await self._start_postgres()
        if self._migrate:
            await asyncio.to_thread(schema.bring_up_to_date, dsn)
        await asyncio.to_thread(schema.check, dsn)
        size = self.config.db.pool_size
        database = await self._open_database(dsn, size - LOOKUP_CONNECTIONS)
        lookups = await self._open_database(dsn, LOOKUP_CONNECTIONS)
        credentials = await Credentials.open(self.config.passwords, database)
        self._resources.callback(credentials.close)
        self.app[DATABASE] = database
        self.app[CREDENTIALS] = credentials
        self.app[LOOKUP] = Lookup(lookups, self.config.sessions.idle_timeout)
        await self._start_upkeep(database)
        # What is here now stays: without it, a full collection in the midst of serving takes 30 to 60 ms.
        gc.collect()
        gc.freeze()

    async def _start_upkeep(self, database: Database) -> None:
        last_seen = self.app[LAST_SEEN] = LastSeen(database)
        self._resources.push_async_callback(_at_last, last_seen.write)
        await self._resources.enter_async_context(every(upkeep.INTERVAL, last_seen.write))
        await self._resources.enter_async_context(every(upkeep.INTERVAL, partial(upkeep.sweep, database)))
        end_events = partial(events.sweep, database, self.config.events.retention)
        await self._resources.enter_async_context(every(upkeep.INTERVAL, end_events))

    async def _start_postgres(self) -> Dsn:
        db = self.config.db
        if not db.embedded:
            return Dsn.of(db)
        postgres = EmbeddedPostgres(db.data_dir, binaries=db.binaries, run_as=db.run_as)
        self._resources.push_async_callback(asyncio.to_thread, postgres.stop)
        server = await asyncio.to_thread(postgres.start)
        keeper = asyncio.create_task(_keep_running(postgres))
        self._resources.callback(keeper.cancel)
        return Dsn.of_embedded(server)

    async def _open_database(self, dsn: Dsn, size: int) -> Database:
        database = await Database.open(dsn, size)
        self._resources.push_async_callback(database.close)
        return database

    async def _close(self, _app: web.Application) -> None:
        await self._resources.aclose()

    def run(self, announce: Callable[[str], None] = print) -> None:
        """Serve until SIGINT or SIGTERM. ``announce`` is given a few lines about it once requests are accepted.

        Raises what `initializer` raises, and StartError when the address cannot be had.
        """
        # aiohttp listens to SIGTERM only once `initializer` is done; as a container's first process we would be
        # deaf until then.
        signal.signal(signal.SIGTERM, _stop)
        with self._bind() as sock:
            web.run_app(
                self.initializer(),
                sock=sock,
                shutdown_timeout=self.config.webserver.shutdown_timeout,
                print=lambda *_: announce(self.welcome(sock.getsockname()[1])),
                **self.runner_options,
            )

    def _bind(self) -> socket.socket:
        """Take the address before anything is started; nobody can connect until `run_app` listens."""
        host, port = self.config.webserver.host, self.config.webserver.port
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartError(f"{host}:{port} is in use: set webserver.port to a free one") from None
            raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        return sock

    def welcome(self, port: int) -> str:
        """Where it listens, where the data lies, and how to try it; once `initializer` is done."""
        assert self.dsn is not None
        webserver, db = self.config.webserver, self.config.db
        host = "127.0.0.1" if webserver.host in {"0.0.0.0", "::"} else webserver.host  # noqa: S104 (compared only)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        data = (
            f"embedded Postgres in {db.data_dir.resolve()}"
            if db.embedded
            else f"{self.dsn.database} on {','.join(self.dsn.hosts)}:{self.dsn.port}"
        )
        credentials = """'{"username": "ada", "password": "correct horse battery"}'"""
        lines = [f"Gatepost listens on {url}", f"Data: {data}", ""]
        if self.config.accounts.registration == "open":
            lines += [
                f"Register:  curl -H 'Content-Type: application/json' -d {credentials} {url}/account",
            ]
        else:
            lines += ["Add a user: gatepost user add ada"]
        lines += [
            f"Log in:    curl -d {credentials} {url}/user",
            f"Who am I:  curl -H 'Authorization: SESSION_ID' {url}/user",
            f"Log out:   curl -X DELETE -H 'Authorization: SESSION_ID' {url}/user",
        ]
        return "\n".join(lines)


async def _at_last(work: Callable[[], Awaitable[None]]) -> None:
    """Do it once more before the end; if the database is gone, so be it."""
    with contextlib.suppress(DatabaseUnavailable):
        await work()


def _stop(*_: object) -> NoReturn:
    raise web.GracefulExit


async def _keep_running(postgres: EmbeddedPostgres) -> None:
    """Start the embedded Postgres again when it ends by itself: there is no operator to do it."""
    while True:
        await asyncio.to_thread(postgres.wait_exit)
        log.error("the embedded Postgres has ended by itself; starting it again")
        try:
            await asyncio.to_thread(postgres.start)
        except EmbeddedError as error:
            log.error("%s", error)
            await asyncio.sleep(1)


async def create_app() -> web.Application:
    """The app as configured, for those who run it themselves: `make dev`, gunicorn, a test."""
    return await WebServer(Config.load()).initializer()
