"""Confirming with the current password that it is still the user who acts."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from aiohttp import web

from gatepost.errors import Unauthorized, Unavailable
from gatepost.http.app import CONFIG, CREDENTIALS, REFUNDS, THROTTLE
from gatepost.http.client import Client
from gatepost.sessions.current_password import Current, Origin, find_secret
from gatepost.sessions.queries import SettingChanged
from gatepost.sessions.session import Session

T = TypeVar("T")


@contextlib.asynccontextmanager
async def confirming(app: web.Application, client: Client, session: Session, password: str) -> AsyncIterator[Current]:
    """Take an attempt from the throttles, and hash the given password, which the statement that acts compares."""
    credentials = app[CREDENTIALS]
    async with app[REFUNDS].attempt(find_secret, session.user_id, app[THROTTLE].for_password(session.user_id)) as (
        secret,
        taken,
    ):
        if secret is None:
            raise Unauthorized
        setting = secret.setting or credentials.dummy(secret.canonical)
        digest = await client.while_connected(credentials.digest(setting, password, client.queue_share))
        yield Current(setting, digest, app[CONFIG].sessions.fresh, taken)


async def unless_changed(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try again once if the password was rehashed between reading its setting and comparing its digest."""
    for _ in range(2):
        with contextlib.suppress(SettingChanged):
            return await attempt()
    raise Unavailable("The password was being changed: try again.")


def origin(client: Client, session: Session) -> Origin:
    """Where this request comes from, for its event."""
    return Origin(session.handle, client.ip, client.user_agent)
