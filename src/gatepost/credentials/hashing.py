"""The threads that hash: few, at the lowest priority, with a bounded number waiting for them."""

import asyncio
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gatepost.credentials.kinds import Kind
from gatepost.errors import Overloaded


class Derived(NamedTuple):
    """A digest, when its thread began with it (by ``time.monotonic``), and the seconds it took."""

    digest: bytes
    began: float
    seconds: float


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nice() -> None:
    # On Linux a thread has a niceness of its own: hashing takes only what sign-ins under way leave over
    # (measured under load: p99 of other requests 9.9 -> 6.5 ms). Elsewhere it would slow the whole process.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def derive(kind: Kind, secret: bytes) -> Derived:
    """What a thread does: compute, and look at the clock."""
    began = time.monotonic()
    digest = kind.derive(secret)
    return Derived(digest, began, time.monotonic() - began)


class Hasher:
    """A bounded number of hashes at a time, off the event loop."""

    def __init__(self, threads: int | None, queue: int) -> None:
        self.threads = min(threads or cores(), cores())
        self.hashes = 0
        self.seconds = self.seconds_waited = 0.0
        """What those hashes took, and how long they waited for a thread."""
        self._under_way = 0
        self._lock = threading.Lock()
        self._admission = threading.BoundedSemaphore(self.threads + queue)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="hashing", initializer=_nice)

    def close(self) -> None:
        """Stop the threads; what waits for one is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def derive(self, kind: Kind, secret: bytes) -> Derived:
        """Compute one. Raises Overloaded when more wait than may."""
        if not self._admission.acquire(blocking=False):
            raise Overloaded
        self._count(1)
        asked = time.monotonic()
        work = self._pool.submit(derive, kind, secret)
        work.add_done_callback(self._release)
        derived = await asyncio.wrap_future(work)
        self.hashes += 1
        self.seconds += derived.seconds
        self.seconds_waited += derived.began - asked
        return derived

    def _release(self, _work: object) -> None:
        # When the work is over, which is not when a cancelled caller stops waiting for it.
        self._admission.release()
        self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:  # for the threads end their work where they are
            self._under_way += more

    @property
    def running(self) -> int:
        """Hashes being computed."""
        return min(self._under_way, self.threads)

    @property
    def waiting(self) -> int:
        """Hashes that wait for a thread."""
        return self._under_way - self.running
