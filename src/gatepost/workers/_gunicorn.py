"""What is used of gunicorn, and of aiohttp's worker for it, that they do not promise: all of it, and nowhere else.

`PRIVATE` names each part and what would break without it. `require` refuses to start where one is missing, and each
has a test in `tests/test_private_parts.py`. All were there in gunicorn 27.0.1 and aiohttp 3.14.4.
"""

import signal
import socket
from collections.abc import Mapping
from typing import Protocol

import gunicorn
import gunicorn.arbiter
from aiohttp.worker import GunicornWebWorker
from gunicorn.errors import HaltServer

from gatepost.errors import UnsupportedLibrary
from gatepost.telemetry.logs import log

PRIVATE: Mapping[tuple[type, str], str] = {
    (gunicorn.arbiter.Arbiter, "LISTENERS"): "the sockets that workers inherit: ours would be closed in them",
    (gunicorn.arbiter.Arbiter, "WORKERS"): "the workers that run: two would have one slot",
    (
        gunicorn.arbiter.Arbiter,
        "WORKER_BOOT_ERROR",
    ): "a worker's exit code when it cannot start: it would start again",
    (gunicorn.arbiter.Arbiter, "signal"): "how signals arrive: a second SIGTERM would wait like the first",
    (gunicorn.arbiter.Arbiter, "stop"): "how workers are ended: they would not know that all of them are",
    (gunicorn.arbiter.Arbiter, "reap_workers"): "what happens when a worker ends: a stop could end with an error",
    (gunicorn.arbiter.Arbiter, "murder_workers"): "what is done every second: nobody would look after Postgres",
    (gunicorn.arbiter.Arbiter, "handle_hup"): "SIGHUP: a configuration that cannot be used would end the service",
    (gunicorn.arbiter.Arbiter, "handle_usr2"): "SIGUSR2: a second arbiter would be started",
    (GunicornWebWorker, "_run"): "what a worker does: it would serve by aiohttp's rules",
    (GunicornWebWorker, "notify"): "a worker's sign of life: it would be killed after half a minute",
    (GunicornWebWorker, "handle_exit"): "SIGTERM in a worker: it would not stop gracefully",
    (GunicornWebWorker, "handle_quit"): "SIGQUIT in a worker: it would not stop at once",
}


def require() -> None:
    """Raise UnsupportedLibrary unless all that is used is there."""
    for (owner, name), purpose in PRIVATE.items():
        if not hasattr(owner, name):
            release = f"gunicorn {gunicorn.__version__} with aiohttp's worker"
            raise UnsupportedLibrary.missing(release, f"{owner.__name__}.{name}", purpose)


class Master(Protocol):
    """What the arbiter asks of the application that it runs."""

    sock: socket.socket
    operators: socket.socket | None
    stopping: bool

    def let_go(self) -> None:
        """Tell the workers that all of them are to end."""

    def keep_postgres(self) -> None:
        """Start an embedded Postgres again that has ended."""

    def merge_metrics(self) -> None:
        """Merge the metrics of workers that have ended."""

    def read_again(self) -> bool:
        """Read the configuration again; whether it can be used."""


class Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]
    """gunicorn's, with an embedded Postgres to look after."""

    def __init__(self, app: Master) -> None:
        super().__init__(app)
        self.LISTENERS = [sock for sock in (app.sock, app.operators) if sock is not None]

    def signal(self, sig: int, frame: object) -> None:
        """A second SIGTERM ends the workers at once."""
        again = sig == signal.SIGTERM and self.app.stopping
        super().signal(signal.SIGQUIT if again else sig, frame)

    def stop(self, graceful: bool = True) -> None:
        """End all workers."""
        self.app.let_go()
        super().stop(graceful)

    def reap_workers(self) -> None:
        """Reap workers that have ended. One that could not boot ends all; while that is under way, a second one is
        ignored.
        """
        try:
            super().reap_workers()
        except HaltServer:
            if not self.app.stopping:
                raise

    def murder_workers(self) -> None:
        """Called by gunicorn once a second, and when a child has ended."""
        self.app.keep_postgres()
        self.app.merge_metrics()
        super().murder_workers()

    def handle_hup(self) -> None:
        """Replace all workers, by ones that have read the configuration again."""
        if self.app.read_again():
            super().handle_hup()

    def handle_usr2(self) -> None:
        """gunicorn would start a second arbiter; ours has the address and the embedded Postgres to itself."""
        log.warning("SIGUSR2 is passed over: start another Gatepost and stop this one")


class Worker(GunicornWebWorker):
    """aiohttp's worker, which does what `serve` says."""

    async def serve(self) -> None:
        """Serve until told to stop."""
        raise NotImplementedError

    async def _run(self) -> None:
        await self.serve()
