"""Counts of events, peaks of gauges, and the state of things, in SQL."""

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from gatepost.errors import NotPermitted
from gatepost.postgres.database import Connection, Database, Statement
from gatepost.security.credentials.hashing import Hasher

# Seconds after which an event is surely there to be counted: a statement that records one has 1.8 seconds.
SETTLED = 30
# Seconds of events that one statement counts at most.
STEP = 3600
KEPT = {"minute": 3 * 3600, "hour": 62 * 86400}
"""For how many seconds counts and peaks are kept."""

# One node at a time: whoever finds the row locked leaves the counting to the other. Minutes are whole when they are
# counted; hours grow.
_COUNT = Statement("""
    WITH step AS (
        SELECT at AS since, least(
            date_trunc('minute', clock_timestamp() - make_interval(secs => :settled), 'UTC'),
            at + make_interval(secs => :step)) AS until
        FROM gatepost.event_counts_until FOR UPDATE SKIP LOCKED
    ), found AS (
        SELECT date_trunc('minute', e.at, 'UTC') AS at, e.kind, count(*) AS count
        FROM step JOIN gatepost.events e ON e.at >= step.since AND e.at < step.until
        GROUP BY 1, 2
    ), minutes AS (
        INSERT INTO gatepost.event_counts (span, at, kind, count)
        SELECT 'minute', at, kind, count FROM found
        WHERE at > clock_timestamp() - make_interval(secs => :minutes_kept)
        ON CONFLICT (span, at, kind) DO UPDATE SET count = excluded.count
    ), hours AS (
        INSERT INTO gatepost.event_counts (span, at, kind, count)
        SELECT 'hour', date_trunc('hour', at, 'UTC'), kind, sum(count) FROM found GROUP BY 1, 2, 3
        ON CONFLICT (span, at, kind) DO UPDATE SET count = event_counts.count + excluded.count
    ), old AS (
        DELETE FROM gatepost.event_counts
        WHERE span = 'minute' AND at < clock_timestamp() - make_interval(secs => :minutes_kept)
            OR span = 'hour' AND at < clock_timestamp() - make_interval(secs => :hours_kept)
    )
    UPDATE gatepost.event_counts_until u SET at = step.until FROM step WHERE step.until > step.since
    RETURNING step.until < date_trunc('minute', clock_timestamp() - make_interval(secs => :settled), 'UTC')
""")


async def count_events(connection: Connection) -> bool:
    """Count the events of the next hour that are not counted yet; whether there are more."""
    row = await _COUNT.first(
        connection, settled=SETTLED, step=STEP, minutes_kept=KEPT["minute"], hours_kept=KEPT["hour"]
    )
    return bool(row and row[0])


async def count_all(database: Database) -> None:
    """Count whatever is not counted yet, an hour in each statement. Does nothing where our role may not.

    Raises DatabaseUnavailable.
    """
    with contextlib.suppress(NotPermitted):
        while await database.write(count_events):
            pass


class Counted(NamedTuple):
    """How many events of a kind there were in the time that begins with ``at``, or the highest value of a gauge."""

    at: datetime
    kind: str
    number: int


# What is not counted yet is counted here, unless it is more than ten minutes: then somebody has to look why. There is
# one bound, for the index, without a volatile function: with several, all of a month's events were read.
_COUNTS = Statement("""
    SELECT date_trunc(:unit, c.at, 'UTC'), c.kind, sum(c.count)::bigint
    FROM (
        SELECT at, kind, count FROM gatepost.event_counts
        WHERE span = :span AND at >= :since AND kind = ANY (CAST(:kinds AS text[]))
        UNION ALL
        SELECT e.at, e.kind, 1 FROM gatepost.events e
        WHERE e.kind = ANY (CAST(:kinds AS text[])) AND e.at >= greatest(
            :since, (SELECT at FROM gatepost.event_counts_until), statement_timestamp() - interval '10 minutes')
    ) AS c
    GROUP BY 1, 2
""")


async def counts(
    connection: Connection, *, unit: str, span: str, since: datetime, kinds: Sequence[str]
) -> list[Counted]:
    """How many events of these kinds there were since then, by ``unit``; from the counts by ``span``."""
    rows = await _COUNTS.all(connection, unit=unit, span=span, since=since, kinds=list(kinds))
    return [Counted(*row) for row in rows]


# Sessions as Postgres estimates the rows: it costs the same for any number of them. In the order of the key, so that
# nodes that do this at the same time wait for each other instead of ending in a deadlock.
_RECORD = Statement("""
    WITH old AS (
        DELETE FROM gatepost.gauge_peaks
        WHERE span = 'minute' AND at < clock_timestamp() - make_interval(secs => :minutes_kept)
            OR span = 'hour' AND at < clock_timestamp() - make_interval(secs => :hours_kept)
    )
    INSERT INTO gatepost.gauge_peaks AS before (span, at, name, peak)
    SELECT s.span, date_trunc(s.span, clock_timestamp(), 'UTC'), g.name, g.value
    FROM (VALUES ('hour'), ('minute')) AS s (span), (VALUES
        ('hashes_waiting', CAST(:hashes_waiting AS bigint)),
        ('live_sessions', pg_stat_get_live_tuples('gatepost.sessions'::regclass))) AS g (name, value)
    WHERE g.value > 0
    ORDER BY s.span, g.name
    ON CONFLICT (span, at, name) DO UPDATE SET peak = excluded.peak WHERE excluded.peak > before.peak
    RETURNING 1
""")


async def record_gauges(connection: Connection, hashes_waiting: int) -> None:
    """Keep how many sessions are live, and how many hashes have waited in this process lately."""
    await _RECORD.all(connection, hashes_waiting=hashes_waiting, minutes_kept=KEPT["minute"], hours_kept=KEPT["hour"])


async def record_all(database: Database, hasher: Hasher) -> None:
    """`record_gauges`. Does nothing where our role may not. Raises DatabaseUnavailable."""
    with contextlib.suppress(NotPermitted):
        await database.write(record_gauges, hasher.take_peak())


_PEAKS = Statement("""
    SELECT date_trunc(:unit, at, 'UTC'), name, max(peak)
    FROM gatepost.gauge_peaks WHERE span = :span AND at >= :since GROUP BY 1, 2
""")


async def peaks(connection: Connection, *, unit: str, span: str, since: datetime) -> list[Counted]:
    """The highest value of each gauge since then, by ``unit``; from the peaks by ``span``."""
    return [Counted(*row) for row in await _PEAKS.all(connection, unit=unit, span=span, since=since)]


class State(NamedTuple):
    """How things are now. ``lag``: seconds that are not counted yet."""

    now: datetime
    lag: float
    schema: str
    live_sessions: int
    users: int


# As Postgres estimates the rows, which costs the same for any number of them. Sessions that have expired are swept
# within a minute.
_STATE = Statement("""
    SELECT clock_timestamp(), extract(epoch FROM clock_timestamp() - u.at)::float8,
        (SELECT version_num FROM gatepost.alembic_version),
        (SELECT pg_stat_get_live_tuples('gatepost.sessions'::regclass)),
        (SELECT pg_stat_get_live_tuples('gatepost.users'::regclass))
    FROM gatepost.event_counts_until u
""")


async def state(connection: Connection) -> State:
    """How things are now, by the database's clock."""
    row = await _STATE.first(connection)
    assert row is not None
    return State(*row)
