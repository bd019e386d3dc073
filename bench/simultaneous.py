"""Guesses at one name at once, where commits are slow: whether they wait for each other tells whether it exists.

Commits are slow on a synchronous standby, or a distant disk. Here Postgres itself waits before each flush
(``commit_delay``), which is as real a wait and needs no second server.
"""

import random
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Protocol

AT_ONCE = 10
COMMIT = 20_000  # microseconds

Kind = Callable[[], dict[str, str]]


class Asks(Protocol):
    """One connection to the service."""

    def ask(self, path: str, document: object) -> tuple[float, bytes]:
        """Seconds until the whole answer was there, and the answer."""

    def close(self) -> None:
        """End it."""


def delay_commits(folder: Path, microseconds: int) -> None:
    """Let every commit of the embedded Postgres below ``folder`` take so much longer, from its next start on."""
    for settings in folder.rglob("postgresql.conf"):
        with settings.open("a", encoding="ascii") as file:
            file.write(f"\ncommit_delay = {microseconds}\ncommit_siblings = 0\n")


def measure_together(
    connect: Callable[[], Asks], path: str, kinds: Mapping[str, Kind], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each request, by kind, where ``AT_ONCE`` of one kind for one name are sent at once each time."""
    order = [name for name in kinds for _ in range(rounds)]
    random.shuffle(order)
    documents = [kinds[name]() for name in order]
    ready = threading.Barrier(AT_ONCE)
    seconds: dict[str, list[float]] = {name: [] for name in kinds}

    def client() -> None:
        with closing(connect()) as connection:
            for name, document in zip(order, documents, strict=True):
                ready.wait()
                seconds[name].append(connection.ask(path, document)[0])

    threads = [threading.Thread(target=client) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds
