"""The application that gunicorn runs: everything is prepared here, before the first fork."""

import asyncio
import contextlib
import gc
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from gatepost.config import Config, ConfigError
from gatepost.errors import DatabaseUnavailable, MissingSecret
from gatepost.http import _aiohttp
from gatepost.postgres import schema
from gatepost.postgres.database import Database, Dsn
from gatepost.postgres.embedded import EmbeddedError, EmbeddedPostgres
from gatepost.process.sockets import bind
from gatepost.routes import api_document
from gatepost.server import Prepared, WebServer, refuse_missing_secrets
from gatepost.telemetry import metrics
from gatepost.telemetry.logs import log
from gatepost.workers import _gunicorn
from gatepost.workers.worker import Worker

# Seconds without a heartbeat after which a worker is killed and replaced.
HUNG = 30


class _Log(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's logger, which passes its messages on to ours."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.propagate = True


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
        self._ended: list[int] = []
        self._give_up: Callable[[], object] | None = None
        super().__init__()

    def load_config(self) -> None:
        """Translate our configuration into gunicorn's."""
        webserver = self.config.webserver
        memory = Path("/dev/shm")  # noqa: S108 (unlinked at once; a heartbeat must not wait for a disk)
        settings = {
            "workers": webserver.workers,
            "worker_class": Worker,
            "worker_tmp_dir": str(memory) if os.access(memory, os.W_OK) else None,
            "timeout": HUNG,
            # Workers end by themselves in time; this is for one that hangs.
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
        return lambda slot: WebServer(self.config, given=Prepared(self._dsn, self.operators, slot))

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGQUIT.

        Raises StartError when the address cannot be had, and what WebServer.initializer raises.
        """
        _aiohttp.require()
        _gunicorn.require()
        signal.signal(signal.SIGTERM, self._exit)  # until gunicorn installs its own handler
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
            # What workers share is created before they are forked and then frozen: a garbage collection would write
            # into the shared pages.
            resources.callback(self._forget, metrics.share(), os.getpid())
            import prometheus_client  # noqa: F401, PLC0415 (only now: it looks once for what `share` has made)

            api_document()
            gc.collect()
            gc.freeze()
            self._lifeline, self._hold = os.pipe()
            os.set_blocking(self._lifeline, False)
            _gunicorn.Arbiter(self).run()

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

    def merge_metrics(self) -> None:
        """Merge the metrics of the workers that have ended; while somebody reads them, another time."""
        for pid in self._ended.copy():
            try:
                metrics.worker_ended(pid)
            except BlockingIOError:
                return
            except Exception:  # noqa: BLE001 (or gunicorn would end all of them)
                log.exception("the metrics of a worker that has ended are not merged")
            self._ended.remove(pid)

    def read_again(self) -> bool:
        """Read the configuration again; what cannot be used leaves everything as it is, and is logged."""
        try:
            config = self._read()
            if changed := _fixed(config).items() ^ _fixed(self.config).items():
                raise ConfigError(f"{', '.join(sorted({key for key, _ in changed}))} cannot change without a restart")
            dsn = self._prepare(config, 0.0, migrate=False)
        except (ConfigError, DatabaseUnavailable, EmbeddedError, MissingSecret, schema.SchemaError) as error:
            log.error("nothing is changed", reason=str(error))
            return False
        self.config, self._dsn = config, dsn
        return True

    def _prepare(self, config: Config, patience: float, *, migrate: bool) -> Dsn:
        """See to everything that has to be right before anybody serves; return where the database is."""
        dsn = Dsn.of(config.db) if self._postgres is None else Dsn.of_embedded(self._postgres.start())

        async def look() -> None:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            self._give_up = partial(loop.call_soon_threadsafe, task.cancel)
            try:
                await schema.make_ready(dsn, patience, migrate=migrate)
                database = await Database.open(dsn, 1)
                try:
                    await refuse_missing_secrets(config, database)
                finally:
                    await database.close()
            finally:
                self._give_up = None

        try:
            asyncio.run(look())
        except asyncio.CancelledError:
            raise SystemExit(0) from None
        return dsn

    def _exit(self, *_: object) -> None:
        """End with 0. While an event loop runs, its task is cancelled: an exception that a signal handler raises may
        end up in any callback.
        """
        if self._give_up is None:
            raise SystemExit(0)
        self._give_up()

    def _before_fork(self, arbiter: Any, worker: Worker) -> None:
        # Workers with an older configuration are about to end.
        taken = {other.slot for other in arbiter.WORKERS.values() if other.config is self.config}
        worker.config = self.config
        worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        worker.lifeline = self._lifeline

    def _in_worker(self, _arbiter: Any, _worker: Worker) -> None:
        os.close(self._hold)
        self._hold = -1

    def _after_worker(self, _arbiter: Any, worker: Worker) -> None:
        self._ended.append(worker.pid)

    def _forget(self, folder: Path, arbiter: int) -> None:
        if os.getpid() == arbiter:  # a worker that ends runs this callback too
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
