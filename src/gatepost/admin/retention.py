"""Retention of events. Events are written by the statements that do what they record; here old ones are deleted."""

import contextlib

from gatepost.errors import NotPermitted
from gatepost.postgres.batches import in_batches
from gatepost.postgres.database import Connection, Database, Statement

_LOCK = 0x67617465_65766E74  # "gateevnt"

_SWEEP = Statement("""
    DELETE FROM gatepost.events WHERE id IN (
        SELECT id FROM gatepost.events
        WHERE at < clock_timestamp() - make_interval(secs => :retention)
            AND (SELECT pg_try_advisory_xact_lock(:lock))
        ORDER BY at LIMIT :most)
    RETURNING 1
""")


async def _sweep_batch(connection: Connection, retention: int, most: int) -> int:
    return len(await _SWEEP.all(connection, retention=retention, lock=_LOCK, most=most))


async def sweep(database: Database, retention: int) -> int:
    """Delete events older than ``retention`` seconds, in small batches, on one node at a time; how many there were.

    Does nothing where our role may not delete events: somebody else sees to retention then. Raises
    DatabaseUnavailable.
    """
    with contextlib.suppress(NotPermitted):
        return await in_batches(lambda most: database.write(_sweep_batch, retention, most))
    return 0
