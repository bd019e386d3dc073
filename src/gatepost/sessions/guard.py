"""Who is asking: the one way for a handler to learn of its caller."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from gatepost.errors import Unauthorized
from gatepost.sessions.lookup import Lookup
from gatepost.sessions.session import Session, hash_token
from gatepost.web import Handler, bearer_token

LOOKUP = web.AppKey("lookup", Lookup)

GuardedHandler = Callable[[web.Request, Session], Awaitable[web.StreamResponse]]


def guarded(handler: GuardedHandler) -> Handler:
    """Give ``handler`` the session whose token the request carries; without one it is 401, before the handler."""

    async def guard(request: web.Request) -> web.StreamResponse:
        session = await request.app[LOOKUP].find(hash_token(bearer_token(request)))
        if session is None:
            raise Unauthorized
        return await handler(request, session)

    guard.__name__ = getattr(handler, "__name__", "guarded")
    guard.__doc__ = handler.__doc__
    return guard
