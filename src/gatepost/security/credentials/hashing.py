"""The threads that hash: few, at the lowest priority, with a bounded number waiting for them."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gatepost.config import PasswordsConfig
from gatepost.errors import Overloaded
from gatepost.security.credentials.kinds import Kind


class Derived(NamedTuple):
    """A digest, when its thread began with it (by ``time.monotonic``), and the seconds it took."""

    digest: bytes
    began: float
    seconds: float


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(config: PasswordsConfig, worker: int, workers: int) -> PasswordsConfig:
    """What one of several processes may hash at once, and keep waiting, so that all of them together do not do more.

    ``worker``: counted from 0. Each has a thread at least.
    """
    threads, queue = min(config.threads or cores(), cores()), config.queue
    return config.model_copy(
        update={
            "threads": max(1, threads // workers + (worker < threads % workers)),
            "queue": max(1, queue // workers + (worker < queue % workers)),
        }
    )


def _nice() -> None:
    # On Linux a thread has a niceness of its own: hashing takes only what sign-ins under way leave over
    # (measured under load: p99 of other requests 9.9 -> 6.5 ms). Elsewhere it would slow the whole process.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def derive(kind: Kind, secret: Callable[[], bytes]) -> Derived:
    """Prepare the secret, compute its digest and measure the time, on a thread."""
    began = time.monotonic()
    digest = kind.derive(secret())
    return Derived(digest, began, time.monotonic() - began)


# Weight of the latest hash in the running estimate: about ten hashes after a machine becomes busy, the estimate shows
# it.
_WEIGHT = 0.2


class Load(NamedTuple):
    """Hashes that are admitted, and the seconds that they are expected to take, one after the other."""

    hashes: int = 0
    seconds: float = 0.0


class Hasher:
    """A bounded number of hashes at a time, off the event loop, and none that would begin too late.

    ``queue``: how many may wait for a thread. ``timeout``: seconds that one may wait, by what is expected of those
    before it. While all threads are busy, a *place* has no more of either than it leaves free, so n of them that want
    all they can get leave one (n+1)th: the rule of dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on
    Networking 6(2), 1998).
    """

    def __init__(self, threads: int | None, queue: int, timeout: float) -> None:
        self.threads = min(threads or cores(), cores())
        self.hashes = 0
        self.seconds = self.seconds_waited = 0.0
        """What those hashes took, and how long they waited for a thread."""
        self._most = self.threads + queue
        self._timeout = timeout
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="hashing", initializer=_nice)
        self._lock = threading.Lock()  # threads subtract, the event loop adds
        self._admitted = 0
        self._peak = 0
        self._expected = 0.0  # seconds that all of them will take, one after the other
        self._of_places: dict[str, Load] = {}  # of those that have hashes here
        self._rates: dict[str, float] = {}  # seconds for a unit of `Kind.work`, by family

    def close(self) -> None:
        """Stop the threads; what waits for one is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def running(self) -> int:
        """Hashes being computed."""
        return min(self._admitted, self.threads)

    @property
    def waiting(self) -> int:
        """Hashes that wait for a thread."""
        return self._admitted - self.running

    def take_peak(self) -> int:
        """The most hashes that have waited at once since this was last asked."""
        with self._lock:
            peak, self._peak = self._peak, self.waiting
        return peak

    @property
    def wait(self) -> float:
        """The estimated seconds until a new hash would begin. Unknown until the first hash is done."""
        return self._expected / self.threads if self._admitted >= self.threads else 0.0

    def demand_room(self, place: str | None = None) -> None:
        """Raise Overloaded if a hash that came now would be refused; with the time until those here now are done.

        ``place``: who it is for; None has no share that could be used up.
        """
        if self._admitted < self.threads:
            return
        hashes, seconds = self._of_places.get(place, Load()) if place else Load()
        if hashes >= self._most - self._admitted or seconds / self.threads > self._timeout - self.wait:
            raise Overloaded(self.wait)

    async def derive(self, kind: Kind, secret: Callable[[], bytes], place: str | None = None) -> Derived:
        """Compute one; not at all when the caller is cancelled before its turn. Raises Overloaded.

        ``secret`` is called on the thread: preparing a long password takes milliseconds.

        When it is cancelled later, the digest is computed and returned all the same: the attempt is judged by it.
        """
        self.demand_room(place)
        expected = self._rates.get(kind.family, 0.0) * kind.work
        self._count(1, expected, place)
        asked = time.monotonic()
        work = self._pool.submit(derive, kind, secret)
        # Counted out when the thread is done: a hash that has begun goes on after its caller was cancelled.
        work.add_done_callback(lambda _: self._count(-1, -expected, place))
        future = asyncio.wrap_future(work)
        try:
            await asyncio.wait([future])  # not `shield`, as in `Database.write`
            derived = future.result()
        except asyncio.CancelledError:
            if work.cancel():
                raise
            derived = await future
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
        self.hashes += 1
        self.seconds += derived.seconds
        self.seconds_waited += derived.began - asked
        rate = derived.seconds / kind.work
        before = self._rates.setdefault(kind.family, rate)
        self._rates[kind.family] = before + (rate - before) * _WEIGHT
        return derived

    def _count(self, hashes: int, seconds: float, place: str | None) -> None:
        with self._lock:
            self._admitted += hashes
            self._peak = max(self._peak, self.waiting)
            self._expected = self._expected + seconds if self._admitted else 0.0
            if place:
                before = self._of_places.pop(place, Load())
                if left := before.hashes + hashes:
                    self._of_places[place] = Load(left, before.seconds + seconds)
