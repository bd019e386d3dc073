"""Look-ups of unknown tokens: counted in memory, and taken from the throttles together, once a second."""

import time
from collections import Counter

from gatepost.postgres.database import Database
from gatepost.security import throttle
from gatepost.security.throttle import Throttle

# Seconds between two rounds, which is how late another node learns of them.
INTERVAL = 1.0
# Places that are remembered at once. Beyond them nothing is counted: tokens cannot be guessed anyway.
MOST = 10_000


class FailedLookups:
    """How many there have been, by place, and which places have had too many.

    Nobody waits for this: a token is looked up first, so a valid one always passes and costs nothing here.
    """

    def __init__(self, database: Database, buckets: Throttle) -> None:
        self._database = database
        self._throttle = buckets
        self._counts: Counter[bytes] = Counter()
        self._empty_until: dict[bytes, float] = {}

    def count(self, place: str) -> float:
        """Count one; the seconds for which this place has none left, 0 if it has."""
        key = self._throttle.for_lookup(place).key
        left = self._empty_until.get(key, 0) - time.monotonic()
        if left > 0:
            return left
        if self._counts[key] >= self._throttle.lookup.burst:
            return INTERVAL  # more in one round than there can be
        if key in self._counts or len(self._counts) < MOST:
            self._counts[key] += 1
        return 0

    async def write(self) -> None:
        """Take what was counted from the throttles, and hear which are empty. Raises DatabaseUnavailable."""
        now = time.monotonic()
        self._empty_until = {key: until for key, until in self._empty_until.items() if until > now}
        if not self._counts:
            return
        counts, self._counts = self._counts, Counter()
        empty = await self._database.write(throttle.charge, self._throttle.lookup, counts)
        self._empty_until |= {key: now + seconds for key, seconds in empty.items()}
