"""The server: an app with the routes mounted on it, its engine, and the parts that handlers find in the app."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple, TypeVar

from aiohttp import web

from gatepost.config import Config
from gatepost.factors.vault import refuse_missing_key
from gatepost.http import _aiohttp
from gatepost.http.access_log import AccessLog
from gatepost.http.app import (
    CONFIG,
    CREDENTIALS,
    DATABASE,
    DOCUMENT,
    FOR_OPERATORS,
    METRICS,
    REFUNDS,
    STOPPING,
    THROTTLE,
    UNTRUSTED_PROXY,
    cors,
    mount,
    problems,
    set_common_headers,
)
from gatepost.http.body import MAX_BODY
from gatepost.http.connection_limits import OPERATOR_CONNECTIONS
from gatepost.http.feature import SWEEP, Parts
from gatepost.http.graceful_shutdown import ACCEPTS, LINGER, Stopping, on_signals, serve
from gatepost.http.runner import Runner
from gatepost.postgres import schema
from gatepost.postgres.connection import ANSWER_TIMEOUT
from gatepost.postgres.database import LOOKUP_CONNECTIONS, Database, Dsn
from gatepost.postgres.embedded import EmbeddedError, EmbeddedPostgres
from gatepost.process.banner import welcome
from gatepost.process.periodic import every
from gatepost.process.sockets import bind
from gatepost.routes import FEATURES, OPERATOR_PAGES, OPERATOR_ROUTES, PUBLIC_PAGES, PUBLIC_ROUTES, api_document
from gatepost.security import refunds, throttle
from gatepost.security.credentials import Credentials, refuse_missing_pepper, share
from gatepost.security.refunds import Refunds
from gatepost.security.throttle import Throttle
from gatepost.telemetry.logs import OneWarning, log
from gatepost.telemetry.metrics import Metrics

T = TypeVar("T")


class Prepared(NamedTuple):
    """What the arbiter has prepared for a worker, which checks nothing again: the database may be away by then, and
    its schema newer.
    """

    dsn: Dsn
    operators: socket.socket | None
    worker: int
    """Which one it is, counted from 0."""


class WebServer:
    """Gatepost over HTTP: ``app`` serves, ``initializer`` connects it to its database.

    Nothing here is global, so several can run in one process. ``operators`` is the app on the operators' own address,
    where there is one; it comes and goes with ``app``. ``migrate``: bring the schema up to date first (an
    embedded database always is). ``given``: what has been made ready before, of one among several processes.
    """

    def __init__(self, config: Config, *, migrate: bool = False, given: Prepared | None = None) -> None:
        self.config = config
        self.stopping = Stopping()
        self.metrics = Metrics()
        access_log = AccessLog(self.metrics, checks=config.log.checks)
        apart = config.webserver.operator_port is not None
        pages, operator_pages = (PUBLIC_PAGES, OPERATOR_PAGES) if config.pages.enabled else ([], [])
        all_pages = pages + operator_pages
        self.app = (
            self._application(PUBLIC_ROUTES, pages, access_log)
            if apart
            else self._application(PUBLIC_ROUTES + OPERATOR_ROUTES, all_pages, access_log)
        )
        # Operators sign in on their own address, too.
        self.operators = self._application(OPERATOR_ROUTES, all_pages, access_log) if apart else None
        self._share(CONFIG, config)
        self._share(METRICS, self.metrics)
        self._share(UNTRUSTED_PROXY, OneWarning())
        self._share(STOPPING, self.stopping)
        document: Callable[[], bytes] = api_document
        self.app[DOCUMENT] = document
        self.app[FOR_OPERATORS] = False
        self.app.on_cleanup.append(self._close)
        self.operators_port = config.webserver.operator_port
        self.dsn = given.dsn if given else None
        self._given = given
        self._migrate = migrate or config.db.embedded
        self._resources = contextlib.AsyncExitStack()

    def _application(
        self, routes: list[web.RouteDef], pages: list[web.RouteDef], access_log: AccessLog
    ) -> web.Application:
        app = web.Application(middlewares=[problems(access_log)], client_max_size=MAX_BODY)
        mount(app, routes, pages)
        app.on_response_prepare.append(set_common_headers)
        app.on_response_prepare.append(self.stopping.close_connection)
        if self.config.webserver.cors_origins:
            app.on_response_prepare.append(cors(self.config.webserver.cors_origins))
        return app

    def _share(self, key: web.AppKey[T], value: T) -> None:
        for app in self._apps:
            app[key] = value

    @property
    def _apps(self) -> list[web.Application]:
        return [app for app in (self.app, self.operators) if app is not None]

    async def initializer(self) -> web.Application:
        """Open everything that serving needs; on failure nothing stays open.

        Raises UnsupportedLibrary, schema.SchemaError, embedded.EmbeddedError, errors.MissingSecret,
        errors.DatabaseUnavailable, and StartError when the operators' address cannot be had.
        """
        try:
            await self._open()
        except BaseException:
            await self._resources.aclose()
            raise
        return self.app

    async def _open(self) -> None:
        _aiohttp.require()
        db = self.config.db
        operators = self._bind_for_operators()
        if self._given is None:
            self.dsn = await self._start_postgres()
            await schema.make_ready(self.dsn, db.start_timeout, migrate=self._migrate)
        assert self.dsn is not None
        database = await self._open_database(self.dsn, db.pool_size - LOOKUP_CONNECTIONS)
        if self._given is None:
            await refuse_missing_secrets(self.config, database)
        await self._open_kit(database)
        parts = Parts(self.config, self.metrics, self.dsn, database, self._apps)
        for feature in FEATURES:
            if feature.settings:
                value = getattr(self.config, feature.settings.name, None) or feature.settings.model()
                parts.share(feature.settings.key, value)
            if feature.open:
                await self._resources.enter_async_context(feature.open(parts))
        if operators is not None:
            await self._serve_operators(operators)
        # Everything that exists now is kept out of garbage collections: otherwise a full one takes 30 to 60 ms while
        # serving.
        gc.collect()
        gc.freeze()
        log.info("serving", version=version("gatepost"))

    async def _open_kit(self, database: Database) -> None:
        """What every feature shares."""
        worker = self._given.worker if self._given else 0
        passwords = share(self.config.passwords, worker, self.config.webserver.workers if self._given else 1)
        credentials = await Credentials.open(passwords, database)
        self._resources.callback(credentials.close)
        attempts = Refunds(database)
        self._share(DATABASE, database)
        self._share(CREDENTIALS, credentials)
        self._share(THROTTLE, await Throttle.open(self.config.throttle, database))
        self._share(REFUNDS, attempts)
        await self._resources.enter_async_context(every(refunds.INTERVAL, attempts.write, once_more=True))
        sweep = self.metrics.sweeping("throttles", partial(throttle.sweep, database))
        await self._resources.enter_async_context(every(SWEEP, sweep))

    def _bind_for_operators(self) -> socket.socket | None:
        webserver = self.config.webserver
        if webserver.operator_port is None:
            return None
        if self._given is not None:
            assert self._given.operators is not None
            sock = self._given.operators.dup()
        else:
            sock = bind(webserver.operator_host, webserver.operator_port, "operator_port")
        return self._resources.enter_context(sock)

    async def _serve_operators(self, sock: socket.socket) -> None:
        assert self.operators is not None
        self.operators[FOR_OPERATORS] = True
        # The operators' connections end last, so they have had the others' time already.
        runner = Runner(self.operators, self.config, most=OPERATOR_CONNECTIONS, shutdown_timeout=ANSWER_TIMEOUT)
        await runner.setup()
        self._resources.push_async_callback(runner.cleanup)
        await web.SockSite(runner, sock).start()
        self.operators_port = sock.getsockname()[1]

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
        log.info("stopped")

    def runner(self, *, shutdown_timeout: float | None = None) -> Runner:
        """What serves `app`, once `initializer` is done, with the deadlines and limits of the configuration.

        Raises ConfigError.
        """
        runner = Runner(self.app, self.config, shutdown_timeout=shutdown_timeout)
        runner.follow(self.metrics)
        return runner

    def run(self, announce: Callable[[str], None] | None = None) -> None:
        """Serve until a signal says to stop (`graceful_shutdown.on_signals`).

        ``announce`` is given a few lines about it once requests are accepted; by default they are printed. Raises
        what `runner` and `initializer` raise, and StartError when the address cannot be had.
        """
        webserver = self.config.webserver
        with bind(webserver.host, webserver.port, "port") as sock:
            asyncio.run(self._run(sock, announce or partial(print, flush=True)))

    async def _run(self, sock: socket.socket, announce: Callable[[str], None]) -> None:
        on_signals(self.stopping, self.config.webserver.shutdown_delay)
        await self.serve(sock, lambda: announce(self.welcome(sock.getsockname()[1])))

    async def serve(self, sock: socket.socket, ready: Callable[[], None], *, accepts: int = ACCEPTS) -> None:
        """Serve on ``sock`` until `stopping` begins. ``ready`` is called once requests are accepted.

        ``accepts``: connections to accept in one turn of the event loop. Raises what `runner` and `initializer`
        raise.
        """
        if await self.stopping.unless(self.initializer()) is None:
            return
        linger = min(LINGER, self.config.webserver.shutdown_timeout / 2)
        left = self.config.webserver.shutdown_timeout - linger
        await serve(
            self.runner(shutdown_timeout=left), sock, self.stopping, linger=linger, accepts=accepts, ready=ready
        )

    def welcome(self, port: int) -> str:
        """What is said once `initializer` is done and ``port`` is listened to."""
        assert self.dsn is not None
        return welcome(self.config, self.dsn, port, self.operators_port, self.app[CREDENTIALS].memory_kib)


async def _keep_running(postgres: EmbeddedPostgres) -> None:
    """Start the embedded Postgres again when it ends by itself: there is no operator to do it."""
    while True:
        await asyncio.to_thread(postgres.wait_exit)
        log.error("the embedded Postgres has ended by itself; starting it again")
        try:
            await asyncio.to_thread(postgres.start)
        except EmbeddedError as error:
            log.error("the embedded Postgres does not start", reason=str(error))
            await asyncio.sleep(1)


async def refuse_missing_secrets(config: Config, database: Database) -> None:
    """Raise MissingSecret when something is stored that needs a secret which we do not have."""
    await refuse_missing_pepper(config.passwords, database)
    await refuse_missing_key(config.factors, database)


async def create_app() -> web.Application:
    """The app as configured, for those who run it themselves: `make dev`, gunicorn, a test."""
    return await WebServer(Config.load()).initializer()
