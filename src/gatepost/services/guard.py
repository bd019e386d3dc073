"""Who may check other people's sessions: services by their token, and users with the role `verifier`."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import hdrs, web

from gatepost.errors import Forbidden
from gatepost.http.app import DATABASE
from gatepost.services import queries
from gatepost.services.token import service_token
from gatepost.sessions.guard import LOOKUP, caller, no_session
from gatepost.sessions.session import hash_token

ROLE = "verifier"


class Verifier(NamedTuple):
    """One who may check. ``key``: what a notice calls it; ``still``: asks whether it still may."""

    key: str
    still: Callable[[], Awaitable[bool]]


async def demand_verifier(request: web.Request) -> Verifier:
    """Who asks. Raises Unauthorized, Forbidden, TooManyAttempts, DatabaseUnavailable."""
    app = request.app
    token = service_token(request.headers.get(hdrs.AUTHORIZATION, ""))
    if token is not None:
        token_hash = hash_token(token)
        name = await app[DATABASE].read(queries.find, token_hash)
        if name is None:
            raise no_session(request)

        async def is_service() -> bool:
            return await app[DATABASE].read(queries.find, token_hash) is not None

        return Verifier(f"service:{name}", is_service)
    session = await caller(request)
    if session is None:
        raise no_session(request)
    if ROLE not in session.roles:
        raise Forbidden

    async def has_role() -> bool:
        found = await app[LOOKUP].find(session.token_hash)
        return found is not None and ROLE in found.roles

    return Verifier(f"user:{session.user_id}", has_role)
