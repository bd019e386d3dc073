"""Attempts that were not judged are given back to the throttles. Otherwise an overload or a locked table would lock
out users who try again meanwhile, and so would clients that hang up before their password is hashed.
"""

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from gatepost.errors import (
    BreachedPassword,
    DatabaseUnavailable,
    InvalidCode,
    InvalidPasskey,
    Problem,
    Unauthorized,
    UsernameTaken,
    WrongPassword,
)
from gatepost.postgres.batches import BATCH
from gatepost.postgres.database import Connection, Database
from gatepost.security import throttle
from gatepost.security.throttle import Taken

P = ParamSpec("P")
T = TypeVar("T")

# The errors that a judgement against the caller raises. After any other error the attempt was not judged.
# A breached password counts too: each has perhaps asked another service.
JUDGED = (Unauthorized, WrongPassword, InvalidCode, InvalidPasskey, UsernameTaken, BreachedPassword)
# Seconds between two rounds.
INTERVAL = 1.0
# Buckets that are remembered at once (some 3 MB). What was taken from further ones is not given back.
MOST = 10_000


class Refunds:
    """Gives attempts back, or holds them until the database can be reached: mostly its absence is why they were not
    judged.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[bytes, tuple[float, float]] = {}
        """By bucket: for how many seconds it was moved on, and since when that is held."""

    @contextlib.asynccontextmanager
    async def attempt(
        self,
        query: Callable[Concatenate[Connection, P], Awaitable[tuple[T, Taken]]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> AsyncIterator[tuple[T, Taken]]:
        """Run a query that takes from the throttles, and give that back if the block comes to no judgement.

        The one way to take. No judgement is also a right password whose statement was undone as a whole, and a caller
        who hung up before the hash had begun. Raises TooManyAttempts, DatabaseUnavailable.
        """
        found, taken = await self._database.read(query, *args, **kwargs)
        async with self._unless_judged(taken):
            yield found, taken

    @contextlib.asynccontextmanager
    async def _unless_judged(self, taken: Taken) -> AsyncIterator[None]:
        try:
            yield
        except JUDGED:
            raise
        except BaseException as error:
            # After a database error the client has waited long enough, and a client that hung up waits for nothing:
            # give back later.
            if not isinstance(error, Problem) or isinstance(error, DatabaseUnavailable):
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
            # Less what has refilled in the meantime.
            left = {key: seconds - (now - since) for key, (seconds, since) in batch.items()}
            sent = False
            try:
                # A statement that timed out here may still be carried out later, but not without its COMMIT. If the
                # outcome of the COMMIT is unknown, it is not tried again.
                async with self._database.transaction() as connection:
                    await throttle.give_back(connection, {key: s for key, s in left.items() if s > 0})
                    sent = True
            finally:
                for key, (seconds, since) in batch.items() if not sent else ():
                    self._held[key] = seconds + self._held.get(key, (0.0,))[0], since
