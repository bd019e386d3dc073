"""`/admin/events`: the record of what happened, for operators."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.admin import cursor, events_queries
from gatepost.admin.handlers import Limit
from gatepost.http.app import DATABASE, json_response
from gatepost.http.body import UUID, read_query
from gatepost.http.operation import operation
from gatepost.sessions.guard import guarded_for
from gatepost.sessions.session import Session, timestamp

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _moment(text: Any) -> datetime:
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError("must be a time of RFC 3339, with its offset")
    # Python knows microseconds at most.
    moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.upper()))
    try:
        return moment.astimezone(UTC)  # Postgres takes no offset of 16 hours and more
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999 of UTC") from None


Id = Annotated[str, Field(pattern=rf"^{UUID}$")]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]


class Which(BaseModel):
    """Which events to list, the newest first."""

    model_config = ConfigDict(strict=True, extra="forbid")

    limit: Limit = 50
    cursor: str | None = None
    user: Id | None = None
    actor: Id | None = None
    kind: str | None = Field(None, pattern=r"^[a-z]+(_[a-z]+)*$", max_length=64)
    since: Moment | None = Field(None, alias="from")
    until: Moment | None = Field(None, alias="to")


class EventDocument(TypedDict):
    """One event. ``actor_id`` is who did it, where that was not the user."""

    id: int
    at: str
    kind: str
    user_id: str | None
    actor_id: str | None
    session_handle: str | None
    ip: str | None
    user_agent: str | None
    detail: dict[str, Any]


class EventPage(TypedDict):
    """Some events; ``next`` is the cursor of those that follow, null at the end."""

    events: list[EventDocument]
    next: str | None


@operation(EventPage, query=Which)
@guarded_for("admin")
async def list_events(request: web.Request, _session: Session) -> web.Response:
    """What happened, a page at a time, the newest first."""
    asked = read_query(request, Which)
    which = events_queries.Filter(asked.user, asked.actor, asked.kind, asked.since, asked.until)
    before = cursor.event(asked.cursor)
    found = await request.app[DATABASE].read(events_queries.page, which, before=before, most=asked.limit + 1)
    shown = found[: asked.limit]
    following = cursor.before_event(shown[-1].at, shown[-1].id) if len(found) > len(shown) else None
    documents = [EventDocument(**{**event._asdict(), "at": timestamp(event.at)}) for event in shown]  # type: ignore[typeddict-item]
    return json_response(EventPage(events=documents, next=following))


routes = [web.get("/admin/events", list_events)]
