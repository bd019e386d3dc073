"""`/feed` for services, `/user/events` for people: streams of what has been revoked."""

from functools import partial

from aiohttp import web

from gatepost.errors import FactorRequired, Forbidden, TooManyAttempts, Unauthorized
from gatepost.feed.feed import HEARTBEAT, LEASE, Feed, Missed, Notice, clock
from gatepost.feed.listener import Listener
from gatepost.http.connection import Connection
from gatepost.http.event_stream import COMMENT, EventStream, Write, event
from gatepost.http.operation import operation
from gatepost.services.guard import Verifier, demand_verifier
from gatepost.sessions.guard import LOOKUP, guarded
from gatepost.sessions.session import Session

FEED = web.AppKey("feed", Feed)
LISTENER = web.AppKey("listener", Listener)

# Seconds between two signs of life on a quiet stream: proxies close a connection that is silent for 60 s.
QUIET = 15.0
# Seconds after which a page's session is looked up unasked: nobody tells that one has expired.
LOOK_AGAIN = 60.0


@operation(str, problems=(Unauthorized, Forbidden, FactorRequired, TooManyAttempts), media_type="text/event-stream")
async def feed(request: web.Request) -> web.StreamResponse:
    """Follow revocations as Server-Sent Events: for services, and for users with the role `verifier`.

    `hello` says whether the stream goes on where `Last-Event-ID` left it (`resumed`; otherwise start over), the
    seconds of a lease, and both this node's clock (`now`) and the database's (`time`). `session.revoked` and
    `user.changed` name a session or a user. `reset` says that anything may have changed. A `heartbeat` says up to
    which moment of this node's clock nothing is missing.
    """
    verifier = await demand_verifier(request)
    await request.app[LISTENER].start()
    return EventStream(request, partial(_follow, request, verifier))


async def _follow(request: web.Request, verifier: Verifier, write: Write) -> None:
    followed = request.app[FEED]
    with followed.watch(verifier.key) as watch, followed.listening():
        if not await verifier.still():  # revoked before the watch began
            return
        position = followed.resume(request.headers.get("Last-Event-ID"))
        resumed, position = position is not None, position or followed.end
        now = clock()
        hello = {
            "resumed": resumed,
            "lease": LEASE,
            "heartbeat": HEARTBEAT,
            "now": round(now, 6),
            "time": round(now + followed.ahead, 6),
        }
        await write(event("hello", hello, followed.id_of(position)))
        position = position._replace(proven=float("-inf"))
        while not followed.closed:
            if watch.take() and not await verifier.still():
                return
            try:
                data, position = followed.since(position)
            except Missed:
                return  # it comes back, and is told to start over
            if data:
                await write(data)
            else:
                await followed.changed()


@operation(str, problems=(Unauthorized, TooManyAttempts), media_type="text/event-stream")
@guarded
async def own_events(request: web.Request, session: Session) -> web.StreamResponse:
    """Hear at once when one of my sessions ends, as Server-Sent Events; the stream ends with the session.

    `session.revoked` has the `handle` and whether it is the `current` session; after `user.changed`, ask who I am.
    """
    await request.app[LISTENER].start()
    if isinstance(request.protocol, Connection):
        request.protocol.let_stream()
    return EventStream(request, partial(_tell, request.app, session))


async def _tell(app: web.Application, session: Session, write: Write) -> None:
    followed = app[FEED]
    with followed.watch(f"user:{session.user_id}") as watch:
        await write(event("hello", {"handle": session.handle}))
        due, notices = 0.0, list[Notice]()
        while not followed.closed:
            if notices or clock() >= due:
                if await app[LOOKUP].find(session.token_hash) is None:
                    await write(_revoked(session.handle, current=True))
                    return
                due = clock() + LOOK_AGAIN
            data = b"".join(_event(notice, session) for notice in notices)
            await write(data or COMMENT)
            notices = await watch.wait(QUIET)


def _event(notice: Notice, session: Session) -> bytes:
    if notice.session is not None and notice.session != session.handle:
        return _revoked(notice.session, current=False)
    return event("user.changed", {}) if notice.session is None else b""


def _revoked(handle: str, *, current: bool) -> bytes:
    return event("session.revoked", {"handle": handle, "current": current})


routes = [web.get("/feed", feed), web.get("/user/events", own_events)]
