"""Attempts that come to no judgement: they are given back to the throttles.

Or an overload, or a table that is locked for a while, would lock everybody out who tries again meanwhile.
"""

import contextlib
import itertools
import time
from collections.abc import AsyncIterator

from gatepost import throttle
from gatepost.background import BATCH
from gatepost.db import Database
from gatepost.errors import DatabaseUnavailable, InvalidBody, LastAdmin, Unavailable
from gatepost.throttle import Taken

# Seconds between two rounds.
INTERVAL = 1.0
# Buckets that are remembered at once, in some 3 MB. What is taken from others is lost.
MOST = 10_000


class Unjudged:
    """Gives them back, or holds them until the database answers: that it does not is mostly why nobody judged."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[bytes, tuple[float, float]] = {}
        """By bucket: for how many seconds it was moved on, and since when that is held."""

    @contextlib.asynccontextmanager
    async def given_back(self, taken: Taken) -> AsyncIterator[None]:
        """Give back what was taken if the block comes to no judgement.

        And what the last administrator took, whose password was right: the statement that would have given it back
        was undone as a whole.
        """
        try:
            yield
        except (Unavailable, InvalidBody, LastAdmin) as problem:
            if isinstance(problem, DatabaseUnavailable):  # the answer has waited already
                self._hold(taken)
            elif taken.buckets:
                try:
                    await self._database.write(throttle.give_back, {b.key: b.limit.every for b in taken.buckets})
                except DatabaseUnavailable:
                    self._hold(taken)
            raise

    def _hold(self, taken: Taken) -> None:
        now = time.monotonic()
        for bucket in taken.buckets:
            if bucket.key in self._held or len(self._held) < MOST:
                seconds, since = self._held.get(bucket.key, (0.0, now))
                self._held[bucket.key] = seconds + bucket.limit.every, since

    async def write(self) -> None:
        """Give back what is held; on failure it stays so. Raises DatabaseUnavailable."""
        while batch := {key: self._held.pop(key) for key in list(itertools.islice(self._held, BATCH))}:
            now = time.monotonic()
            # Less what has come back by itself.
            left = {key: seconds - (now - since) for key, (seconds, since) in batch.items()}
            sent = False
            try:
                # A statement that was given up may be carried out much later: not so without its COMMIT, and when
                # nobody knows what became of that, it is not tried again.
                async with self._database.transaction() as connection:
                    await throttle.give_back(connection, {key: s for key, s in left.items() if s > 0})
                    sent = True
            finally:
                for key, (seconds, since) in batch.items() if not sent else ():
                    self._held[key] = seconds + self._held.get(key, (0.0,))[0], since
