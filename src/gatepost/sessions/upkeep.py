"""Upkeep of sessions: writing when each was last seen, and deleting expired ones."""

from gatepost.postgres.batches import BATCH, in_batches
from gatepost.postgres.database import Database
from gatepost.sessions import queries

# Seconds between two rounds. With jitter it is at least a minute, in which no session is written twice.
INTERVAL = 67.0
_SWEEP_LOCK = 0x67617465_73776570  # "gateswep"


class LastSeen:
    """The sessions in use since the last round, written in one batch a minute instead of once a check."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._hashes: set[bytes] = set()

    def record(self, token_hash: bytes) -> None:
        """Remember that this session is in use."""
        self._hashes.add(token_hash)

    async def write(self) -> None:
        """Write down those remembered; on failure they stay so. Raises DatabaseUnavailable."""
        while self._hashes:
            batch = [self._hashes.pop() for _ in range(min(BATCH, len(self._hashes)))]
            try:
                await self._database.write(queries.touch, batch)
            except BaseException:
                self._hashes.update(batch)
                raise


async def sweep(database: Database) -> int:
    """Delete expired sessions in small batches until few are left; how many. Raises DatabaseUnavailable."""
    return await in_batches(lambda most: database.write(queries.sweep_sessions, _SWEEP_LOCK, most))
