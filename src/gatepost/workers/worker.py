"""A process that serves."""

import asyncio
import os
from typing import TYPE_CHECKING

from gatepost.config import Config
from gatepost.errors import DatabaseUnavailable
from gatepost.postgres.connection import TRY_AGAIN
from gatepost.telemetry.logs import log
from gatepost.workers import _gunicorn

if TYPE_CHECKING:
    from gatepost.server import WebServer

# Seconds between two heartbeats.
_BEAT = 1.0


class Worker(_gunicorn.Worker):
    """Serves as one process does, with its share of the hashing, until the arbiter tells it to stop or is gone."""

    config: Config  # the configuration at the time of the fork
    slot = 0  # among the workers of this configuration, from 0
    lifeline = -1  # reads end of file as soon as the arbiter ends, or all workers are to

    async def serve(self) -> None:
        """Serve, and give signs of life."""
        self.server: WebServer = self.wsgi(self.slot)
        self.loop.add_reader(self.lifeline, self._stop)
        beating = asyncio.create_task(self._beat())
        try:
            await self._until_stopped()
        except Exception:  # noqa: BLE001 (gunicorn would print its text, which may quote a statement)
            log.exception("a worker cannot serve")
            self.exit_code = 1 if self.booted else _gunicorn.Arbiter.WORKER_BOOT_ERROR
        finally:
            beating.cancel()

    async def _until_stopped(self) -> None:
        waiting = False
        while not self.server.stopping.begun:
            try:
                await self.server.serve(self.sockets[0], self._ready, accepts=1)
            except DatabaseUnavailable as error:
                # The database was there when the arbiter checked. Other workers serve through an outage, so this one
                # waits as well.
                if self.booted:
                    raise
                if not waiting:
                    log.warning("waiting for the database", reason=str(error))
                waiting = True
                await self.server.stopping.unless(asyncio.sleep(TRY_AGAIN))

    def _ready(self) -> None:
        self.booted = True
        if self.age == self.config.webserver.workers:  # the last of the first generation
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
        except BlockingIOError:  # only this worker is to end
            leaving = False
        orphan = os.getppid() != self.ppid
        delay = self.server.config.webserver.shutdown_delay if leaving and not orphan else 0.0
        self.server.stopping.begin(leaving=leaving, delay=delay)
