"""`/sessions`: a user's own sessions, seen and ended."""

from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from gatepost.errors import ForeignOrigin, NotFound
from gatepost.http.app import CONFIG, DATABASE, json_response
from gatepost.http.body import read_query
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.http.tokens import drop_session_cookie
from gatepost.sessions import queries
from gatepost.sessions.guard import acting, guarded
from gatepost.sessions.session import Done, Session, SessionDocument


class OwnSession(SessionDocument):
    """One of my sessions; ``current`` is the one that asks."""

    current: bool


class OwnSessions(TypedDict):
    """My live sessions, the newest first."""

    sessions: list[OwnSession]


@operation(OwnSessions)
@guarded
async def list_mine(request: web.Request, session: Session) -> web.Response:
    """My sessions, on every device."""
    idle_timeout = request.app[CONFIG].sessions.idle_timeout
    found = await request.app[DATABASE].read(queries.sessions_of, session.user_id, idle_timeout)
    own = [OwnSession(**one, current=one["handle"] == session.handle) for one in found]
    return json_response(OwnSessions(sessions=own))


@operation(Done, problems=(NotFound, ForeignOrigin), event="session_revoked")
@guarded
async def end_one(request: web.Request, session: Session) -> web.Response:
    """End one of my sessions."""
    handle = request.match_info["handle"]
    async with acting(request, session) as connection:
        if not await queries.end_sessions_of(connection, session.user_id, _by(request), only=handle):
            raise NotFound
    return _done(request, forget=handle == session.handle)


class Which(BaseModel):
    """Which of my sessions to end."""

    model_config = ConfigDict(strict=True, extra="forbid")

    scope: Literal["others", "all"]


@operation(Done, query=Which, problems=(ForeignOrigin,))
@guarded
async def end_many(request: web.Request, session: Session) -> web.Response:
    """End my other sessions, or all."""
    asked = read_query(request, Which)
    async with acting(request, session) as connection:
        if asked.scope == "others":
            await queries.end_sessions_of(connection, session.user_id, _by(request), but=session.handle)
        else:
            await queries.end_all_sessions_of(connection, session.user_id, _by(request))
    return _done(request, forget=asked.scope == "all")


def _by(request: web.Request) -> queries.Revocation:
    client = Client.of(request)
    return queries.Revocation("user", None, client.ip, client.user_agent)


def _done(request: web.Request, *, forget: bool) -> web.Response:
    response = json_response(Done(status="success"))
    if forget:
        drop_session_cookie(request, response)
    return response


routes = [
    web.get("/sessions", list_mine),
    web.delete("/sessions", end_many),
    web.delete("/sessions/{handle}", end_one),
]
