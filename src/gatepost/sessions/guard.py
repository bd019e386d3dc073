"""The guard: how a handler gets its caller's session, and a transaction in which that caller acts."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import hdrs, web

from gatepost.errors import ConfirmationRequired, FactorRequired, Forbidden, TooManyAttempts, Unauthorized
from gatepost.http.app import CONFIG, DATABASE, THROTTLE, Handler
from gatepost.http.client import Client
from gatepost.http.tokens import Asked, session_token
from gatepost.postgres.database import Connection
from gatepost.sessions.authority import demand
from gatepost.sessions.failures import FailedLookups
from gatepost.sessions.lookup import Lookup
from gatepost.sessions.session import Session, hash_token
from gatepost.sessions.upkeep import LastSeen

LOOKUP = web.AppKey("lookup", Lookup)
LAST_SEEN = web.AppKey("last_seen", LastSeen)
FAILED_LOOKUPS = web.AppKey("failed_lookups", FailedLookups)

FOUND: web.RequestKey[Session] = web.RequestKey("found")
"""The caller of a request that only reads: a page and each handler that it asks want it, and it is looked up once."""

GuardedHandler = Callable[[web.Request, Session], Awaitable[web.StreamResponse]]


async def caller(request: web.Request, asked: Asked | None = None, *, restricted: bool = False) -> Session | None:
    """The session whose token the request carries; with ``restricted``, also one that lacks a second factor.

    Raises what `session_token` raises, FactorRequired, and DatabaseUnavailable.
    """
    session = request.get(FOUND) if asked is None else None
    if session is None:
        session = await request.app[LOOKUP].find(hash_token(session_token(request, asked)))
        if session is not None:
            request.app[LAST_SEEN].record(session.token_hash)
            if asked is None and request.method in (hdrs.METH_GET, hdrs.METH_HEAD):
                request[FOUND] = session
    if session is not None and session.restricted and not restricted:
        raise FactorRequired
    return session


def no_session(request: web.Request) -> Unauthorized | TooManyAttempts:
    """The error for an unknown token. The look-up is counted, and the count is written later in the background."""
    place = Client.of(request).place
    seconds = request.app[FAILED_LOOKUPS].count(place) if place else 0
    return request.app[THROTTLE].lookup.refusal(seconds) if seconds else Unauthorized()


def guarded(handler: GuardedHandler) -> Handler:
    """Give ``handler`` its caller; without a session it is 401, before the handler."""
    return _guard(handler, None)


def guarded_for(role: str) -> Callable[[GuardedHandler], Handler]:
    """`guarded`, and 403 for a caller without this role."""
    return lambda handler: _guard(handler, role)


def guarded_also_without_factor(handler: GuardedHandler) -> Handler:
    """`guarded`, also for a user whose role demands a second factor and who has none yet: for adding one."""
    return _guard(handler, None, restricted=True)


def _guard(handler: GuardedHandler, role: str | None, *, restricted: bool = False) -> Handler:
    async def guard(request: web.Request) -> web.StreamResponse:
        session = await caller(request, restricted=restricted)
        if session is None:
            raise no_session(request)
        if role is not None and role not in session.roles:
            raise Forbidden
        return await handler(request, session)

    guard.__name__ = getattr(handler, "__name__", "guarded")
    guard.__module__ = handler.__module__
    guard.__doc__ = handler.__doc__
    guard.__dict__.update(handler.__dict__)  # what `operation` has noted of it
    GUARDED[guard] = role
    return guard


def demand_fresh(request: web.Request, session: Session) -> None:
    """Raise ConfirmationRequired, unless the caller has lately proved who it is. For what only reads;
    `acting_confirmed` judges what changes something.
    """
    if session.confirmed_ago > request.app[CONFIG].sessions.fresh:
        raise ConfirmationRequired


@contextlib.asynccontextmanager
async def acting(
    request: web.Request, session: Session, *, role: str | None = None, on: str | None = None
) -> AsyncIterator[Connection]:
    """A transaction in which the caller changes something. The guard judged before the body was read, which a client
    may send slowly, so the session and the role are judged again here by `demand`, and locked. Raises Unauthorized,
    Forbidden, DatabaseUnavailable.
    """
    async with request.app[DATABASE].transaction() as connection:
        await demand(connection, session, request.app[CONFIG].sessions.idle_timeout, role=role, on=on)
        yield connection


@contextlib.asynccontextmanager
async def acting_confirmed(
    request: web.Request, session: Session, *, role: str | None = None, on: str | None = None
) -> AsyncIterator[Connection]:
    """`acting`, for a caller who has lately proved who it is. Raises also ConfirmationRequired."""
    limits = request.app[CONFIG].sessions
    async with request.app[DATABASE].transaction() as connection:
        if await demand(connection, session, limits.idle_timeout, role=role, on=on) > limits.fresh:
            raise ConfirmationRequired
        yield connection


GUARDED: dict[Handler, str | None] = {}
"""Every guarded handler and the role it demands: what the test of the route table asks."""
