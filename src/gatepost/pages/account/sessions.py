"""`/me/sessions`: where one is signed in, and ending that."""

from aiohttp import web

from gatepost.http.app import CONFIG, DATABASE
from gatepost.pages.account.devices import devices
from gatepost.pages.acting import Act, Page, Shown
from gatepost.sessions import own, queries
from gatepost.sessions.session import Session


async def _sessions(request: web.Request, session: Session) -> Shown:
    idle_timeout = request.app[CONFIG].sessions.idle_timeout
    found = await request.app[DATABASE].read(queries.sessions_of, session.user_id, idle_timeout)
    return {
        "sessions": found,
        "current": session.handle,
        "devices": await devices(each["user_agent"] for each in found),
    }


SESSIONS = Page("/me/sessions", "account/sessions.html", _sessions)

routes = [
    SESSIONS.route(),
    Act(SESSIONS, "/me/sessions/{handle}/end", own.end_one, "session_ended").route(),
    Act(
        SESSIONS, "/me/sessions/end-others", own.end_many, "sessions_ended", body=lambda _: {"scope": "others"}
    ).route(),
]
