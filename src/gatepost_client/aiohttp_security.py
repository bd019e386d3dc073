"""For aiohttp-security: `aiohttp_security.setup(app, IdentityPolicy(), AuthorizationPolicy(verifier))`."""

from typing import Any

from aiohttp import web
from aiohttp_security.abc import AbstractAuthorizationPolicy, AbstractIdentityPolicy

from gatepost_client.aiohttp import unavailable
from gatepost_client.identity import NotKnown, SignedIn
from gatepost_client.request import session_token
from gatepost_client.verifier import Verifier


class IdentityPolicy(AbstractIdentityPolicy):  # type: ignore[misc]
    """The session's token is the identity. Logging in and out is Gatepost's."""

    async def identify(self, request: web.Request) -> str | None:
        """The token of the request."""
        return session_token(request.method, request.headers.get)

    async def remember(
        self, request: web.Request, response: web.StreamResponse, identity: str, **kwargs: Any
    ) -> None:
        """Nothing: the page keeps the token that Gatepost gave it."""

    async def forget(self, request: web.Request, response: web.StreamResponse) -> None:
        """Nothing: `DELETE /user` ends the session."""


class AuthorizationPolicy(AbstractAuthorizationPolicy):  # type: ignore[misc]
    """A user's permissions are the roles."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier

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
            return await self._verifier.check(identity)
        except NotKnown as error:
            raise unavailable(error) from error
