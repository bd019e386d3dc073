"""Several processes that serve one address, under gunicorn: its arbiter forks workers and looks after them.

The arbiter makes the database ready, once for all of them, keeps an embedded one running, and holds the address.

The workers accept from one listening socket. With one each (SO_REUSEPORT, gunicorn's ``reuse_port``) connections
spread just as evenly (measured: 14 to 18 of 32 here, 13 to 19 there), but those that a worker has not yet accepted
are lost when it ends. asyncio accepts all that wait in one turn, so that one worker of two got 28 to 32 of 32: here
it accepts one a turn.
"""

import asyncio
import contextlib
import gc
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp.worker import GunicornWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from gatepost import metrics, schema
from gatepost.config import Config, ConfigError
from gatepost.credentials import MissingPepper, refuse_missing_pepper
from gatepost.db import Database, Dsn
from gatepost.driver import TRY_AGAIN
from gatepost.embedded import EmbeddedError, EmbeddedPostgres
from gatepost.errors import DatabaseUnavailable
from gatepost.listen import bind
from gatepost.logs import log
from gatepost.routes import api_document
from gatepost.server import Given, WebServer
from gatepost.wire import require_parser

# Seconds without a sign of life after which a worker is killed and replaced.
HUNG = 30
# Between two signs of life.
_BEAT = 1.0


class _Log(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's messages, where all of ours go."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.propagate = True


class _Worker(GunicornWebWorker):
    """Serves as one process does, with its share of the hashing, until the arbiter tells it to stop or is gone."""

    config: Config  # it was forked with
    slot = 0  # among the workers of this configuration, from 0
    lifeline = -1  # reads end of file as soon as the arbiter ends, or all workers are to

    async def _run(self) -> None:
        self.server: WebServer = self.wsgi(self.slot)
        self.loop.add_reader(self.lifeline, self._stop)
        beating = asyncio.create_task(self._beat())
        try:
            await self._serve()
        except Exception:  # noqa: BLE001 (gunicorn would print its text, which may quote a statement)
            log.exception("a worker cannot serve")
            self.exit_code = 1 if self.booted else Arbiter.WORKER_BOOT_ERROR
        finally:
            beating.cancel()

    async def _serve(self) -> None:
        waiting = False
        while not self.server.stopping.begun:
            try:
                await self.server.serve(self.sockets[0], self._ready, accepts=1)
            except DatabaseUnavailable as error:
                # It was there when the arbiter looked. The others get along without it for a time, and so do we.
                if self.booted:
                    raise
                if not waiting:
                    log.warning("waiting for the database", reason=str(error))
                waiting = True
                await self.server.stopping.unless(asyncio.sleep(TRY_AGAIN))

    def _ready(self) -> None:
        self.booted = True
        if self.age == self.config.webserver.workers:  # the last of the first
            port = self.sockets[0].getsockname()[1]
            print(self.server.welcome(port), flush=True)  # noqa: T201

    async def _beat(self) -> None:
        while True:
            self.notify()
            await asyncio.sleep(_BEAT)

    def handle_exit(self, *_: object) -> None:
        """SIGTERM."""
        self._stop()

    def handle_quit(self, *_: object) -> None:
        """SIGQUIT, SIGINT: leave everything as it is."""
        os._exit(0)

    def _stop(self) -> None:
        self.loop.remove_reader(self.lifeline)
        try:
            leaving = os.read(self.lifeline, 1) == b""
        except BlockingIOError:  # the arbiter goes on, without this one
            leaving = False
        orphan = os.getppid() != self.ppid
        delay = self.server.config.webserver.shutdown_delay if leaving and not orphan else 0.0
        self.server.stopping.begin(leaving=leaving, delay=delay)


class _Arbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's, with an embedded Postgres to look after."""

    def __init__(self, app: "Workers") -> None:
        super().__init__(app)
        self.LISTENERS = [sock for sock in (app.sock, app.operators) if sock is not None]

    def signal(self, sig: int, frame: object) -> None:
        """Whoever says SIGTERM twice means it."""
        again = sig == signal.SIGTERM and self.app.stopping
        super().signal(signal.SIGQUIT if again else sig, frame)

    def stop(self, graceful: bool = True) -> None:
        """End all workers."""
        self.app.let_go()
        super().stop(graceful)

    def reap_workers(self) -> None:
        """See who has ended. One that could not boot ends all; while that is under way, a second one is no news."""
        try:
            super().reap_workers()
        except HaltServer:
            if not self.app.stopping:
                raise

    def murder_workers(self) -> None:
        """Once a second, and whenever a child has ended."""
        self.app.keep_postgres()
        super().murder_workers()

    def handle_hup(self) -> None:
        """Replace all workers, by ones that have read the configuration again."""
        if self.app.read_again():
            super().handle_hup()

    def handle_usr2(self) -> None:
        """gunicorn would start a second arbiter; ours has the address and the embedded Postgres to itself."""
        log.warning("SIGUSR2 is passed over: start another Gatepost and stop this one")


class Workers(BaseApplication):  # type: ignore[misc]
    """``webserver.workers`` processes that serve, and this one, which looks after them.

    ``read``: reads the configuration again, for SIGHUP. ``migrate``: bring the schema up to date first.
    """

    def __init__(self, config: Config, read: Callable[[], Config], *, migrate: bool = False) -> None:
        self.config = config
        self.stopping = False
        self._read = read
        self._migrate = migrate
        self._postgres: EmbeddedPostgres | None = None
        super().__init__()

    def load_config(self) -> None:
        """Ours, in gunicorn's terms."""
        webserver = self.config.webserver
        memory = Path("/dev/shm")  # noqa: S108 (unlinked at once; a heartbeat must not wait for a disk)
        settings = {
            "workers": webserver.workers,
            "worker_class": _Worker,
            "worker_tmp_dir": str(memory) if os.access(memory, os.W_OK) else None,
            "timeout": HUNG,
            # They end by themselves in time; this is for one that hangs.
            "graceful_timeout": math.ceil(webserver.shutdown_delay + webserver.shutdown_timeout) + 2,
            "control_socket_disable": True,
            "logger_class": _Log,
            "errorlog": None,
            "loglevel": "warning",
            "pre_fork": self._before_fork,
            "post_fork": self._in_worker,
            "child_exit": self._after_worker,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Callable[[int], WebServer]:
        """What a worker serves; called in it."""
        return lambda slot: WebServer(self.config, given=Given(self._dsn, self.operators, slot))

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGQUIT.

        Raises StartError when the address cannot be had, and what WebServer.initializer raises.
        """
        require_parser()
        signal.signal(signal.SIGTERM, _exit)  # until gunicorn listens to it
        with contextlib.ExitStack() as resources:
            webserver = self.config.webserver
            self.sock = resources.enter_context(bind(webserver.host, webserver.port, "port"))
            self.operators = None
            if webserver.operator_port is not None:
                operators = bind(webserver.operator_host, webserver.operator_port, "operator_port")
                self.operators = resources.enter_context(operators)
            if self.config.db.embedded:
                db = self.config.db
                self._postgres = EmbeddedPostgres(db.data_dir, binaries=db.binaries, run_as=db.run_as)
                resources.callback(self._postgres.stop)
            migrate = self._migrate or self.config.db.embedded
            self._dsn = self._prepare(self.config, self.config.db.start_timeout, migrate=migrate)
            # What the workers have in common is made before they are forked, and stays where it is: a collection
            # would write into the pages that they share.
            resources.callback(self._forget, metrics.share(), os.getpid())
            import prometheus_client  # noqa: F401, PLC0415 (only now: it looks once for what `share` has made)

            api_document()
            gc.collect()
            gc.freeze()
            self._lifeline, self._hold = os.pipe()
            os.set_blocking(self._lifeline, False)
            _Arbiter(self).run()

    def let_go(self) -> None:
        """Tell the workers that all of them are to end, and not just to be replaced."""
        if not self.stopping:
            os.close(self._hold)
        self.stopping = True

    def keep_postgres(self) -> None:
        """Start the embedded Postgres again if it has ended by itself: there is no operator to do it."""
        if self._postgres is None or self._postgres.alive:
            return
        log.error("the embedded Postgres has ended by itself; starting it again")
        try:
            self._postgres.start()
        except EmbeddedError as error:
            log.error("the embedded Postgres does not start", reason=str(error))

    def read_again(self) -> bool:
        """Read the configuration again; what cannot be used leaves everything as it is, and is logged."""
        try:
            config = self._read()
            if changed := _fixed(config).items() ^ _fixed(self.config).items():
                raise ConfigError(f"{', '.join(sorted({key for key, _ in changed}))} cannot change without a restart")
            dsn = self._prepare(config, 0.0, migrate=False)
        except (ConfigError, DatabaseUnavailable, EmbeddedError, MissingPepper, schema.SchemaError) as error:
            log.error("nothing is changed", reason=str(error))
            return False
        self.config, self._dsn = config, dsn
        return True

    def _prepare(self, config: Config, patience: float, *, migrate: bool) -> Dsn:
        """See to everything that has to be right before anybody serves; return where the database is."""
        dsn = Dsn.of(config.db) if self._postgres is None else Dsn.of_embedded(self._postgres.start())

        async def look() -> None:
            await schema.make_ready(dsn, patience, migrate=migrate)
            database = await Database.open(dsn, 1)
            try:
                await refuse_missing_pepper(config.passwords, database)
            finally:
                await database.close()

        asyncio.run(look())
        return dsn

    def _before_fork(self, arbiter: Any, worker: _Worker) -> None:
        # Those of a configuration that was read before are about to go.
        taken = {other.slot for other in arbiter.WORKERS.values() if other.config is self.config}
        worker.config = self.config
        worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        worker.lifeline = self._lifeline

    def _in_worker(self, _arbiter: Any, _worker: _Worker) -> None:
        os.close(self._hold)
        self._hold = -1

    def _after_worker(self, _arbiter: Any, worker: _Worker) -> None:
        metrics.worker_ended(worker.pid)

    def _forget(self, folder: Path, arbiter: int) -> None:
        if os.getpid() == arbiter:  # a worker that ends comes by here too
            metrics.forget(folder)


def _fixed(config: Config) -> dict[str, object]:
    """What a running arbiter cannot change: it holds the addresses and the embedded Postgres."""
    webserver, db = config.webserver, config.db
    return {
        "webserver.host": webserver.host,
        "webserver.port": webserver.port,
        "webserver.operator_host": webserver.operator_host,
        "webserver.operator_port": webserver.operator_port,
        "log.format": config.log.format,
        "log.level": config.log.level,
        "db.host": db.embedded,
        "db.data_dir": db.data_dir,
        "db.binaries": db.binaries,
        "db.run_as": db.run_as,
    }


def _exit(*_: object) -> None:
    raise SystemExit(0)
