"""`/admin/users/{id}/sessions`: a user's sessions, for operators. All of it demands the role ``admin``."""

from functools import partial

from aiohttp import web
from typing_extensions import TypedDict

from gatepost.admin import queries
from gatepost.errors import ConfirmationRequired, ForeignOrigin, NotFound
from gatepost.http.app import CONFIG, DATABASE, json_response
from gatepost.http.body import path_id
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.sessions.guard import acting_confirmed, guarded_for
from gatepost.sessions.queries import Revocation, end_all_sessions_of, end_sessions_of, sessions_of
from gatepost.sessions.session import Done, Session, SessionDocument

_acting = partial(acting_confirmed, role="admin")


class UserSessions(TypedDict):
    """A user's live sessions, the newest first."""

    sessions: list[SessionDocument]


@operation(UserSessions, problems=(NotFound,))
@guarded_for("admin")
async def list_sessions(request: web.Request, _session: Session) -> web.Response:
    """The sessions of a user."""
    user_id = await _user_id(request)
    idle_timeout = request.app[CONFIG].sessions.idle_timeout
    found = await request.app[DATABASE].read(sessions_of, user_id, idle_timeout)
    return json_response(UserSessions(sessions=found))


@operation(Done, problems=(NotFound, ConfirmationRequired, ForeignOrigin))
@guarded_for("admin")
async def end_sessions(request: web.Request, session: Session) -> web.Response:
    """End every session of a user, also one that is just being opened."""
    user_id = await _user_id(request)
    async with _acting(request, session, on=user_id) as connection:
        await end_all_sessions_of(connection, user_id, _revocation(request, session))
    return json_response(Done(status="success"))


@operation(Done, problems=(NotFound, ConfirmationRequired, ForeignOrigin), event="session_revoked")
@guarded_for("admin")
async def end_session(request: web.Request, session: Session) -> web.Response:
    """End one session of a user."""
    user_id, handle = path_id(request, "id"), path_id(request, "handle")
    by = _revocation(request, session)
    async with _acting(request, session, on=user_id) as connection:
        if not await end_sessions_of(connection, user_id, by, only=handle):
            raise NotFound
    return json_response(Done(status="success"))


async def _user_id(request: web.Request) -> str:
    """The id in the path. Raises NotFound where no user has it."""
    user_id = path_id(request, "id")
    if await request.app[DATABASE].read(queries.read, user_id) is None:
        raise NotFound
    return user_id


def _revocation(request: web.Request, session: Session) -> Revocation:
    client = Client.of(request)
    return Revocation("admin", session.user_id, client.ip, client.user_agent)


routes = [
    web.get("/admin/users/{id}/sessions", list_sessions),
    web.delete("/admin/users/{id}/sessions", end_sessions),
    web.delete("/admin/users/{id}/sessions/{handle}", end_session),
]
