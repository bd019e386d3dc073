"""For aiohttp's server: a middleware and a decorator. (`gatepost_client.aiohttp_security` has policies for that.)

In an application::

    app = web.Application(middlewares=[gatepost(verifier)])

    @signed_in(role="staff")
    async def notes(request: web.Request) -> web.Response:
        who = request[SIGNED_IN]
"""

from collections.abc import AsyncIterator, Callable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gatepost_client.identity import NotKnown, SignedIn
from gatepost_client.request import session_token
from gatepost_client.verifier import Verifier

SIGNED_IN: web.RequestKey[SignedIn | None] = web.RequestKey("signed_in", SignedIn | None)  # type: ignore[arg-type]
"""Where a request has its SignedIn, or None."""


def gatepost(verifier: Verifier) -> Middleware:
    """A middleware: each request with a session's token has its user at ``request[SIGNED_IN]``; others have None.

    503 when it is not known whose session it is.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            request[SIGNED_IN] = await verifier.check(session_token(request.method, request.headers.get))
        except NotKnown as error:
            raise unavailable(error) from error
        return await handler(request)

    return middleware


def signed_in(role: str | None = None) -> Callable[[Handler], Handler]:
    """A decorator, below the middleware: 401 without a session, 403 without ``role``."""

    def decorate(handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            found = request[SIGNED_IN]
            if found is None:
                raise web.HTTPUnauthorized(headers={hdrs.WWW_AUTHENTICATE: "Bearer"})
            if role is not None and role not in found.roles:
                raise web.HTTPForbidden
            return await handler(request)

        return guarded

    return decorate


def running(verifier: Verifier) -> Callable[[web.Application], AsyncIterator[None]]:
    """For ``app.cleanup_ctx``: the verifier starts and stops with the application."""

    async def context(_app: web.Application) -> AsyncIterator[None]:
        async with verifier:
            yield

    return context


def unavailable(error: NotKnown) -> web.HTTPException:
    """The answer that says that it is not known."""
    return web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: str(error.retry_after)})
