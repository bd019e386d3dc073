"""The record of what happened, in SQL: one function, one statement, one round trip."""

from datetime import datetime
from typing import Any, NamedTuple

from gatepost.postgres.database import Connection, Statement


class Filter(NamedTuple):
    """Which events to list; None asks for nothing. From ``since``, up to but without ``until``."""

    user: str | None = None
    actor: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None


# Ordered by time first. Ids rise with time too, but by id a query for last year would walk past all events of this
# year.
_PAGE = Statement("""
    SELECT id, at, kind, user_id::text, actor_id::text, session_handle::text, host(ip), user_agent, detail
    FROM gatepost.events
    WHERE (CAST(:before_at AS timestamptz) IS NULL OR (at, id) < (:before_at, :before_id))
        AND (CAST(:user AS uuid) IS NULL OR user_id = :user)
        AND (CAST(:actor AS uuid) IS NULL OR actor_id = :actor)
        AND (CAST(:kind AS text) IS NULL OR kind = :kind)
        AND (CAST(:since AS timestamptz) IS NULL OR at >= :since)
        AND (CAST(:until AS timestamptz) IS NULL OR at < :until)
    ORDER BY at DESC, id DESC LIMIT :most
""")


class Event(NamedTuple):
    """A row of the record."""

    id: int
    at: datetime
    kind: str
    user_id: str | None
    actor_id: str | None
    session_handle: str | None
    ip: str | None
    user_agent: str | None
    detail: dict[str, Any]


async def page(
    connection: Connection, which: Filter, *, before: tuple[datetime, int] | None, most: int
) -> list[Event]:
    """Up to ``most`` events, the newest first, beginning before the one of this time and number."""
    at, number = before or (None, None)
    rows = await _PAGE.all(connection, before_at=at, before_id=number, most=most, **which._asdict())
    return [Event(*row) for row in rows]
