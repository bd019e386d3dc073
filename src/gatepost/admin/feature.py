"""Administration: over HTTP for the role `admin`, and from a shell."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

import typer

from gatepost.admin import (
    commands,
    events_handlers,
    factors_commands,
    factors_handlers,
    handlers,
    retention,
    sessions_commands,
    sessions_handlers,
)
from gatepost.http.feature import Feature, Parts


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    sweep = partial(retention.sweep, parts.database, parts.config.events.retention)
    async with parts.sweeping("events", sweep):
        yield


def _commands(user: typer.Typer) -> None:
    commands.register(user)
    sessions_commands.register(user)
    factors_commands.register(user)


FEATURE = Feature(
    operator_routes=[
        *handlers.routes,
        *sessions_handlers.routes,
        *factors_handlers.routes,
        *events_handlers.routes,
    ],
    open=_open,
    user_commands=_commands,
    tags={
        "admin": "Users, their sessions and events, for the role `admin`.",
    },
    events={
        "authn_login_unlock": "",
        "authn_password_reset_started": "",
        "factors_removed": "",
        "privilege_permissions_changed": "`old` and `new` roles",
        "user_disabled": "",
        "user_enabled": "",
    },
)
