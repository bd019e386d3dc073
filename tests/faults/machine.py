"""What the machine withheld: a promise in seconds is kept by a service that may run."""

import asyncio
import contextlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from tests.faults.history import Request
from tests.faults.postgres import Postgres
from tests.faults.service import Service

# Seconds between two looks.
PERIOD = 0.1
# What may be hashed for: on threads of the lowest priority, which run when nobody else wants to.
HASHED = {"register", "login", "change"}


class Machine:
    """Looks how long the services and Postgres were ready to run while others ran, and how long nothing ran at all.

    The kernel counts the former, for each thread (Linux' sched-stats.rst); the latter is how late we come to look.
    """

    def __init__(self, services: Sequence[Service], server: Postgres) -> None:
        self._services = services
        self._server = server
        self._waited: dict[tuple[int, int], float] = {}  # by process and thread
        self._moments = [time.monotonic()]
        # Until each moment, in seconds: from the threads that serve, and from all.
        self._serving, self._all = [0.0], [0.0]

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """For as long as the block lasts."""
        self._look()
        looking = asyncio.create_task(self._look_again_and_again())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            self._look()

    def withheld(self, since: float, until: float, *, hashed: bool = True) -> float:
        """Seconds withheld between two moments (monotonic), from all threads or only from those that serve."""
        first = max(bisect_right(self._moments, since) - 1, 0)
        last = min(bisect_left(self._moments, until), len(self._moments) - 1)
        series = self._all if hashed else self._serving
        return series[last] - series[first]

    def took(self, request: Request) -> float:
        """Seconds that a request took of what it was given."""
        kept = self.withheld(request.sent, request.ended, hashed=request.kind in HASHED)
        return max(request.ended - request.sent - kept, 0.0)

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self._look()

    def _look(self) -> None:
        serving = hashing = 0.0
        for thread, waited in self._waits():
            more = max(waited - self._waited.get(thread, 0.0), 0.0)
            self._waited[thread] = waited
            # The longest of them, not their sum: a request waits for one.
            if thread[0] == thread[1]:
                serving = max(serving, more)
            else:
                hashing = max(hashing, more)
        now = time.monotonic()
        late = max(now - self._moments[-1] - PERIOD, 0.0)
        if len(self._moments) == 1:  # what was before we began to look
            late = serving = hashing = 0.0
        self._moments.append(now)
        self._serving.append(self._serving[-1] + late + serving)
        self._all.append(self._all[-1] + late + serving + hashing)

    def _waits(self) -> Iterator[tuple[tuple[int, int], float]]:
        for first in [*(pid for service in self._services for pid in service.pids), *self._server.pids]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                below = Path(f"/proc/{first}/task/{first}/children").read_text("ascii").split()
                for pid in (first, *map(int, below)):
                    for task in Path(f"/proc/{pid}/task").iterdir():
                        seconds = int((task / "schedstat").read_text("ascii").split()[1]) / 1e9
                        yield (pid, int(task.name)), seconds
