"""`/operator/events`: what has happened, found, followed and taken along."""

import csv
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from aiohttp import hdrs, web

from gatepost.admin import events_handlers, events_queries
from gatepost.errors import InvalidBody
from gatepost.http.app import DATABASE
from gatepost.http.body import GIVEN, read_query
from gatepost.pages.account.activity import SAID
from gatepost.pages.account.devices import devices
from gatepost.pages.acting import ROWS, Page, Shown
from gatepost.pages.forms import ask
from gatepost.pages.page import PAGES, signed_in, told
from gatepost.sessions.guard import LOOKUP
from gatepost.sessions.session import Session, timestamp

# Events that are read at once for a file.
BATCH = 500
ROLE = "admin"
KINDS = {*SAID, "service_added", "service_revoked", "user_deleted"}
_FILTERS = ("user", "actor", "kind", "from", "to", "cursor")
_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


def _asked(request: web.Request) -> dict[str, str]:
    """The filters that are given. What a browser's field for a time gives has no offset: it is UTC."""
    asked = {name: request.query[name].strip() for name in _FILTERS if request.query.get(name, "").strip()}
    for name in ("from", "to"):
        if _LOCAL.fullmatch(asked.get(name, "")):
            asked[name] += "Z" if asked[name].count(":") == 2 else ":00Z"
    return asked


async def _events(request: web.Request, _session: Session) -> Shown:
    asked = _asked(request)
    values = {"asked": asked, "kinds": sorted(KINDS)}
    try:
        found = (await ask(request, events_handlers.list_events, **asked, limit=ROWS)).document
    except InvalidBody as problem:
        return {**values, "events": [], "next": None, **told(request, problem)}
    return {**values, "next": found["next"], "events": await shown(request, found["events"])}


async def shown(request: web.Request, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events as the template has them: what it would call for each costs twice as much there as it does here."""
    names = await devices(event["user_agent"] for event in events)
    words = request.app[PAGES].words(request)
    return [
        {
            "kind": event["kind"],
            "user_id": event["user_id"],
            "at": event["at"],
            "when": words.moment(event["at"]),
            "where": "".join(f", {each}" for each in (event["ip"], names.get(event["user_agent"])) if each),
            "detail": event["detail"],
        }
        for event in events
    ]


EVENTS = Page("/operator/events", "operator/events.html", _events, role=ROLE)

_COLUMNS = ("id", "at", "kind", "user_id", "actor_id", "session_handle", "ip", "user_agent", "detail")


def _row(event: events_queries.Event) -> dict[str, Any]:
    return {**event._asdict(), "at": timestamp(event.at)}


def _json_line(event: events_queries.Event) -> str:
    return json.dumps(_row(event), ensure_ascii=False) + "\n"


def _csv_line(event: events_queries.Event) -> str:
    """One line (RFC 4180). A cell that a spreadsheet would take for a formula begins with an apostrophe (OWASP, CSV
    injection): a user agent is whatever a client says.
    """
    row = {**_row(event), "detail": json.dumps(event.detail, ensure_ascii=False)}
    cells = ("" if row[name] is None else str(row[name]) for name in _COLUMNS)
    line = io.StringIO()
    csv.writer(line).writerow(f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell for cell in cells)
    return line.getvalue()


def _file(kind: str, media_type: str, write: Callable[[events_queries.Event], str], head: str = "") -> web.RouteDef:
    """The route of a file with all events that the filters let through, the newest first."""

    @signed_in(ROLE)
    async def download(request: web.Request, session: Session) -> web.StreamResponse:
        request[GIVEN] = {name: text for name, text in _asked(request).items() if name != "cursor"}
        which = read_query(request, events_handlers.Which)
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: f"{media_type}; charset=utf-8",
                hdrs.CONTENT_DISPOSITION: f'attachment; filename="events.{kind}"',
            }
        )
        await response.prepare(request)
        if request.method != hdrs.METH_HEAD:
            await response.write(head.encode())
            wanted = events_queries.Filter(which.user, which.actor, which.kind, which.since, which.until)
            async for events in _batches(request, session, wanted):
                await response.write("".join(map(write, events)).encode("utf-8", "replace"))
        await response.write_eof()
        return response

    return web.get(f"{EVENTS.path}.{kind}", download)


async def _batches(
    request: web.Request, session: Session, which: events_queries.Filter
) -> AsyncIterator[list[events_queries.Event]]:
    """As fast as the client takes them, so that a long history is never in memory as a whole, and for as long as the
    client may see them. Raises ConnectionError, which breaks the answer off, when that is over.
    """
    before = None
    while events := await request.app[DATABASE].read(events_queries.page, which, before=before, most=BATCH):
        yield events
        if len(events) < BATCH:
            return
        before = (events[-1].at, events[-1].id)
        now = await request.app[LOOKUP].find(session.token_hash)
        if now is None or now.restricted or ROLE not in now.roles:
            raise ConnectionError("the session has ended, or its user is no operator any more")


routes = [
    EVENTS.route(),
    _file("csv", "text/csv", _csv_line, ",".join(_COLUMNS) + "\r\n"),
    _file("jsonl", "application/jsonl", _json_line),
]
