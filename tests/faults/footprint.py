"""What a process holds: S5 says that a fault leaves nothing of it behind."""

import os
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
    """Memory (PSS, MB), open files and sockets other than connections to Postgres, threads, and those connections."""

    memory: float
    descriptors: int
    threads: int
    connections: int

    @classmethod
    def of(cls, pid: int, connections: int) -> "Footprint":
        """Of a process, which has so many connections to Postgres."""
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        return cls(pss_mb(pid), descriptors - connections, threads, connections)

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
