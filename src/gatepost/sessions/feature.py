"""Logging in and out, checks, and my sessions."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from gatepost.http.app import THROTTLE
from gatepost.http.feature import Feature, Parts
from gatepost.postgres.database import LOOKUP_CONNECTIONS
from gatepost.process.periodic import every
from gatepost.sessions import failures, handlers, own, upkeep
from gatepost.sessions.failures import FailedLookups
from gatepost.sessions.guard import FAILED_LOOKUPS, LAST_SEEN, LOOKUP
from gatepost.sessions.lookup import Lookup
from gatepost.sessions.upkeep import LastSeen


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    last_seen, failed = LastSeen(parts.database), FailedLookups(parts.database, parts[THROTTLE])
    async with (
        parts.connect(LOOKUP_CONNECTIONS) as lookups,
        every(upkeep.INTERVAL, last_seen.write, once_more=True),
        every(failures.INTERVAL, failed.write),
        parts.sweeping("sessions", partial(upkeep.sweep, parts.database)),
    ):
        config = parts.config
        parts.share(LOOKUP, Lookup(lookups, config.sessions.idle_timeout, config.factors.required_for))
        parts.share(LAST_SEEN, last_seen)
        parts.share(FAILED_LOOKUPS, failed)
        yield


FEATURE = Feature(
    routes=[*handlers.routes, *own.routes],
    open=_open,
    tags={
        "user": "The session of whoever asks: log in, who am I, log out.",
        "sessions": "One's own sessions: list and end them.",
    },
    events={
        "authn_login_success": "`amr`, if it was not the password alone",
        "authn_login_factor_required": "the password was right, and a second factor is awaited",
        "authn_logout": "",
        "authn_password_breached": "at a login with `passwords.breached`: the password is known from a breach",
        "authn_login_fail": "`reason`: `unknown_user` (and then no user), `no_password`, `wrong_password` or "
        "`disabled`",
        "authn_login_fail_max": "beside it, when the attempt was the last of a throttle: `limit`, `max`",
        "session_revoked": "`reason`: `user`, `admin`, `session_limit`, `password_change`, `roles_changed`, "
        "`user_disabled`, `user_deleted`, `email_changes_undone` or `factors_removed`; one for each session",
    },
)
