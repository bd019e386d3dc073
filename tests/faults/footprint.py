"""What a process holds: S5 says that a fault leaves nothing of it behind."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import pss_mb

from tests.faults.history import Violation

# What may be held more than before, in parts of it, and at least: memory moves by itself, for the allocator keeps
# what it was given.
GROWTH = 0.05
LEAST_MB = 5.0
# Threads that resolve names and wait for processes: asyncio starts them when they are wanted, this many at most.
HELPER_THREADS = min(32, (os.cpu_count() or 1) + 4)


@dataclass(frozen=True)
class Footprint:
    """Memory (PSS, MB), open files and sockets other than connections, threads, and connections to Postgres."""

    memory: float
    descriptors: int
    threads: int
    connections: int

    @classmethod
    def of(cls, pid: int, port: int, postgres: int, connections: int) -> "Footprint":
        """Of a process that serves at a port and has so many connections to Postgres, which listens at another."""
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir())) - clients(pid, port) - queries(pid, postgres)
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return cls(pss_mb(pid), descriptors, threads, connections)

    def grown(self, after: "Footprint", pool_size: int, kept: float = 0.0) -> list[Violation]:
        """What breaks S5. ``kept``: MB of memory that may be held besides."""
        bounds = {
            "memory": max(self.memory * (1 + GROWTH), self.memory + LEAST_MB) + kept,
            "descriptors": self.descriptors * (1 + GROWTH),
            "threads": max(self.threads * (1 + GROWTH), self.threads + HELPER_THREADS),
            "connections": pool_size,
        }
        return [
            Violation("S5", f"{name} went from {getattr(self, name):g} to {getattr(after, name):g}")
            for name, bound in bounds.items()
            if getattr(after, name) > bound
        ]


def clients(pid: int, port: int) -> int:
    """How many connections a process has that came in at a port and are established: which of several nodes has
    how many is up to those who connect.
    """
    return _sockets(pid, {i for local, _, i in _established() if local == port})


def queries(pid: int, port: int) -> int:
    """How many connections a process has that it has made to a port: a node has as many as it happened to need."""
    return _sockets(pid, {i for _, remote, i in _established() if remote == port})


def _established() -> Iterator[tuple[int, int, str]]:
    """Ports and inodes."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *rest = line.split()
        if state == "01":
            yield int(local.partition(":")[2], 16), int(remote.partition(":")[2], 16), f"socket:[{rest[5]}]"


def _sockets(pid: int, inodes: set[str]) -> int:
    found = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(file.readlink()) in inodes
    return found
