"""Accounts in SQL: one function, one statement, one round trip."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from gatepost.credentials import Stored
from gatepost.db import Connection, Statement, UniqueViolation
from gatepost.errors import UsernameTaken
from gatepost.sessions.session import User
from gatepost.tables import users

_CREATE = Statement("""
    WITH account AS (
        INSERT INTO gatepost.users (username, canonical) VALUES (:username, :canonical)
        RETURNING id, username, roles, profile
    ), password AS (
        INSERT INTO gatepost.passwords (user_id, setting, digest, norm, pepper)
        SELECT id, :setting, :digest, :norm, :pepper FROM account
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
        SELECT 'user_created', id, CAST(:ip AS inet), :user_agent FROM account
    )
    SELECT id, username, roles, profile FROM account
""")


async def create(
    connection: Connection,
    username: str,
    canonical: str,
    password: Stored,
    *,
    ip: str | None = None,
    user_agent: str | None = None,
) -> User:
    """Add a user with a password, and its event. Raises UsernameTaken: Postgres judges, nobody asks first."""
    try:
        row = await _CREATE.first(
            connection,
            username=username,
            canonical=canonical,
            setting=password.setting.phc,
            digest=password.digest,
            norm=password.norm,
            pepper=password.setting.pepper,
            ip=ip,
            user_agent=user_agent,
        )
    except UniqueViolation as error:
        if error.diag.constraint_name == "users_canonical_key":
            raise UsernameTaken from None
        raise
    assert row is not None
    return User(*row)


class Entry(NamedTuple):
    """A line of the list of users."""

    id: UUID
    username: str
    roles: list[str]
    created_at: datetime
    disabled_at: datetime | None


_LIST = Statement(
    sa.select(users.c.id, users.c.username, users.c.roles, users.c.created_at, users.c.disabled_at).order_by(
        users.c.canonical
    )
)


async def list_users(connection: Connection) -> list[Entry]:
    """Every user, by canonical name."""
    return [Entry(*row) for row in await _LIST.all(connection)]


# The epoch ends every session at once, also one that a login under way is about to open; the rows go with it.
_DISABLE = Statement("""
    WITH account AS (
        UPDATE gatepost.users SET disabled_at = coalesce(disabled_at, clock_timestamp()), epoch = epoch + 1
        WHERE canonical = :canonical RETURNING id
    ), ended AS (
        DELETE FROM gatepost.sessions WHERE user_id IN (SELECT id FROM account) RETURNING user_id, handle
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, detail)
        SELECT 'user_disabled', id, CAST(NULL AS uuid), CAST('{}' AS jsonb) FROM account
        UNION ALL SELECT 'session_revoked', user_id, handle, '{"reason": "user_disabled"}' FROM ended
    )
    SELECT id FROM account
""")


async def disable(connection: Connection, canonical: str) -> bool:
    """Disable a user and end every session; False when there is no such user."""
    return await _DISABLE.first(connection, canonical=canonical) is not None
