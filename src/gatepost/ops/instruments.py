"""Connects parts with the metrics: each part keeps its own numbers, which are read at a scrape."""

import math
import time

from gatepost.errors import DatabaseUnavailable
from gatepost.ops import queries
from gatepost.postgres.database import Database
from gatepost.security.credentials import Credentials
from gatepost.sessions.lookup import Lookup
from gatepost.telemetry import logs
from gatepost.telemetry.metrics import Metrics

# Seconds for which the database's numbers are reused: several scrapers may ask.
EVERY = 10.0
TABLES = ["users", "sessions", "events"]


def follow(metrics: Metrics, credentials: Credentials, lookup: Lookup, pools: dict[str, Database]) -> None:
    """Follow the parts of one server. ``pools``: its databases by what they serve."""
    hasher = credentials.hasher
    metrics.follow("gatepost_hashing_running", "Password hashes being computed.", lambda: hasher.running)
    metrics.follow("gatepost_hashing_waiting", "Password hashes that wait for a thread.", lambda: hasher.waiting)
    metrics.follow("gatepost_hashing_threads", "Threads that hash.", lambda: hasher.threads)
    metrics.follow("gatepost_hashes_total", "Password hashes computed.", lambda: hasher.hashes)
    metrics.follow("gatepost_hashing_seconds_total", "Seconds spent computing them.", lambda: hasher.seconds)
    metrics.follow(
        "gatepost_hashing_waiting_seconds_total",
        "Seconds they have waited for a thread.",
        lambda: hasher.seconds_waited,
    )
    metrics.follow("gatepost_session_check_queries_total", "Queries for session checks.", lambda: lookup.queries)
    metrics.follow(
        "gatepost_session_check_tokens_total", "Different tokens that those queries asked for.", lambda: lookup.tokens
    )
    metrics.follow(
        "gatepost_log_lines_dropped_total", "Lines left out because nobody read the log in time.", logs.dropped
    )
    for name, database in pools.items():
        _follow_pool(metrics, name, database)


def _follow_pool(metrics: Metrics, name: str, database: Database) -> None:
    pool = database.pool
    connections, text = "gatepost_database_connections", "Open connections to the database."
    metrics.follow(connections, text, lambda: pool.freesize, pool=name, state="idle")
    metrics.follow(connections, text, lambda: pool.size - pool.freesize, pool=name, state="used")
    metrics.follow("gatepost_database_connections_max", "Connections there may be.", lambda: pool.maxsize, pool=name)
    metrics.follow(
        "gatepost_database_waiting", "Requests that wait for a connection.", lambda: pool.waiting, pool=name
    )
    metrics.follow(
        "gatepost_database_acquire_timeouts_total",
        "Requests that have waited for a connection in vain.",
        lambda: pool.timeouts,
        pool=name,
    )


class Census:
    """Numbers that only the database knows: whether it answers, and about how many rows there are."""

    def __init__(self, metrics: Metrics, database: Database) -> None:
        self._database = database
        self._asked_at = -math.inf
        self._up = metrics.gauge(
            "gatepost_database_up", "Whether the database answered when it was last asked.", across="mostrecent"
        )
        self._rows = metrics.gauge(
            "gatepost_table_rows", "Rows, as Postgres estimates them.", ["table"], across="mostrecent"
        )

    async def take(self) -> None:
        """Ask the database, unless it was asked within ``EVERY`` seconds. Without an answer the numbers are NaN."""
        if time.monotonic() - self._asked_at < EVERY:
            return
        self._asked_at = time.monotonic()
        rows: dict[str, int] = {}
        try:
            rows = await self._database.read(queries.rows, TABLES)
        except DatabaseUnavailable:
            self._up.set(0)
        else:
            self._up.set(1)
        for table in TABLES:
            self._rows.labels(table).set(rows.get(table, math.nan))
