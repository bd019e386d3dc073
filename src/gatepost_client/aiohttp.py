"""For aiohttp's server: a middleware and a decorator, and the policies of aiohttp-security.

app = web.Application(middlewares=[gatepost(verifier)])

@signed_in(role="staff")
async def notes(request: web.Request) -> web.Response:
    who = request[SIGNED_IN]
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gatepost_client.identity import NotKnown, SignedIn, bearer
from gatepost_client.verifier import Verifier

SIGNED_IN = "gatepost.signed_in"
"""Where a request has its SignedIn, or None."""


def gatepost(verifier: Verifier) -> Middleware:
    """A middleware: each request with a session's token has its user at ``request[SIGNED_IN]``; others have None.

    503 when it is not known whose session it is.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            request[SIGNED_IN] = await verifier.check(bearer(request.headers.get(hdrs.AUTHORIZATION)))
        except NotKnown as error:
            raise _unavailable(error) from error
        return await handler(request)

    return middleware


def signed_in(role: str | None = None) -> Callable[[Handler], Handler]:
    """A decorator, below the middleware: 401 without a session, 403 without ``role``."""

    def decorate(handler: Handler) -> Handler:
        async def guarded(request: web.Request) -> web.StreamResponse:
            found: SignedIn | None = request[SIGNED_IN]
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


def _unavailable(error: NotKnown) -> web.HTTPException:
    return web.HTTPServiceUnavailable(headers={hdrs.RETRY_AFTER: str(error.retry_after)})


class IdentityPolicy:
    """For `aiohttp_security.setup`: the session's token is the identity. Logging in and out is Gatepost's."""

    async def identify(self, request: web.Request) -> str | None:
        """The token of the request."""
        return bearer(request.headers.get(hdrs.AUTHORIZATION))

    async def remember(
        self, request: web.Request, response: web.StreamResponse, identity: str, **kwargs: Any
    ) -> None:
        """Nothing: the page keeps the token that Gatepost gave it."""

    async def forget(self, request: web.Request, response: web.StreamResponse) -> None:
        """Nothing: `DELETE /user` ends the session."""


class AuthorizationPolicy:
    """For `aiohttp_security.setup`: a user's permissions are the roles."""

    def __init__(self, verifier: Verifier) -> None:
        self._check: Callable[[str | None], Awaitable[SignedIn | None]] = verifier.check

    async def authorized_userid(self, identity: str) -> str | None:
        """The user's id. Raises a 503 when it is not known."""
        found = await self._find(identity)
        return None if found is None else found.user_id

    async def permits(self, identity: str | None, permission: str, context: Any = None) -> bool:  # noqa: ARG002
        """Whether the user has this role. Raises a 503 when it is not known."""
        found = await self._find(identity)
        return found is not None and permission in found.roles

    async def _find(self, identity: str | None) -> SignedIn | None:
        try:
            return await self._check(identity)
        except NotKnown as error:
            raise _unavailable(error) from error
