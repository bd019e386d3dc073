"""Accounts in SQL: one function, one statement, one round trip."""

from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from gatepost.accounts.profile import too_large
from gatepost.errors import UsernameTaken
from gatepost.http import strict_json
from gatepost.mail.queries import claimed
from gatepost.postgres.database import Connection, Statement, naming
from gatepost.postgres.tables import passwords, users
from gatepost.security.credentials import Stored
from gatepost.security.email import Address
from gatepost.sessions.current_password import Origin
from gatepost.sessions.session import User

_CREATE = """
    WITH account AS (
        INSERT INTO gatepost.users (username, canonical) VALUES (:username, :canonical)
        RETURNING id, username, roles, profile
    ), password AS (
        INSERT INTO gatepost.passwords (user_id, setting, digest, norm, pepper)
        SELECT id, :setting, :digest, :norm, :pepper FROM account
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
        SELECT 'user_created', id, CAST(:ip AS inet), :user_agent FROM account
    )%s
    SELECT id, username, roles, profile FROM account
"""
_CREATE_ALONE, _CREATE_WITH_EMAIL = Statement(_CREATE % ""), Statement(_CREATE % f", {claimed('account')}")


async def create(
    connection: Connection,
    username: str,
    canonical: str,
    password: Stored,
    *,
    email: tuple[Address, str] | None = None,
    ip: str | None = None,
    user_agent: str | None = None,
) -> User:
    """Add a user with a password, and its event. ``email``: the address that the user claims, and the language of the
    mail to it. Raises UsernameTaken, from the unique constraint: no query asks first.
    """
    claim = {}
    if email is not None:
        address, language = email
        claim = {"address": address.written, "canonical_address": address.canonical, "language": language}
    with naming({"users_canonical_key": UsernameTaken}):
        row = await (_CREATE_WITH_EMAIL if email else _CREATE_ALONE).first(
            connection,
            **claim,
            username=username,
            canonical=canonical,
            setting=password.setting.phc,
            digest=password.digest,
            norm=password.norm,
            pepper=password.setting.pepper,
            ip=ip,
            user_agent=user_agent,
        )
    assert row is not None
    return User(*row)


class Account(NamedTuple):
    """A user's own view of the account."""

    user: User
    created_at: datetime
    password_changed_at: datetime | None


_READ = Statement(
    sa.select(
        users.c.id,
        users.c.username,
        users.c.roles,
        users.c.profile,
        users.c.created_at,
        passwords.c.changed_at,
    )
    .outerjoin_from(users, passwords)
    .where(users.c.id == sa.bindparam("id"))
)


async def read(connection: Connection, user_id: str) -> Account | None:
    """The account of this id."""
    row = await _READ.first(connection, id=user_id)
    return Account(User(*row[:4]), *row[4:]) if row else None


_LOCK_PROFILE = Statement("SELECT profile FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE")


async def lock_profile(connection: Connection, user_id: str) -> dict[str, Any] | None:
    """The profile, with its row locked until the transaction ends. None if the user is not found."""
    row = await _LOCK_PROFILE.first(connection, id=user_id)
    return row[0] if row else None


_UPDATE = Statement("""
    WITH account AS (
        UPDATE gatepost.users SET username = coalesce(:username, username),
            canonical = coalesce(:canonical, canonical), profile = coalesce(CAST(:profile AS jsonb), profile)
        WHERE id = :id RETURNING id
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'user_updated', id, :handle, CAST(:ip AS inet), :user_agent,
            jsonb_build_object('changed', CAST(:changed AS text[])) FROM account
    )
    SELECT id FROM account
""")


async def update(
    connection: Connection,
    user_id: str,
    origin: Origin,
    *,
    name: tuple[str, str] | None,
    profile: dict[str, Any] | None,
) -> None:
    """Change the name (display and canonical form), the profile, or both. Raises UsernameTaken, InvalidBody."""
    username, canonical = name or (None, None)
    changed = [field for field, value in (("username", name), ("profile", profile)) if value is not None]
    with naming({"users_canonical_key": UsernameTaken, "users_profile_size_check": too_large}):
        await _UPDATE.all(
            connection,
            id=user_id,
            username=username,
            canonical=canonical,
            profile=None if profile is None else strict_json.encode(profile),
            changed=changed,
            **origin._asdict(),
        )
