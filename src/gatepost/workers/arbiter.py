"""The process that looks after those that serve."""

import signal
from typing import TYPE_CHECKING

import gunicorn.arbiter
from gunicorn.errors import HaltServer

from gatepost.telemetry.logs import log

if TYPE_CHECKING:
    from gatepost.workers.application import Workers


class Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]
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
        self.app.merge_metrics()
        super().murder_workers()

    def handle_hup(self) -> None:
        """Replace all workers, by ones that have read the configuration again."""
        if self.app.read_again():
            super().handle_hup()

    def handle_usr2(self) -> None:
        """gunicorn would start a second arbiter; ours has the address and the embedded Postgres to itself."""
        log.warning("SIGUSR2 is passed over: start another Gatepost and stop this one")
