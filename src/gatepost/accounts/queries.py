"""Accounts in SQL: one function, one statement, one round trip."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from gatepost.credentials import Setting, Stored
from gatepost.db import Connection, Statement, naming
from gatepost.errors import LastAdmin, Unauthorized, UsernameTaken, WrongPassword
from gatepost.sessions.queries import SettingChanged
from gatepost.sessions.session import User
from gatepost.tables import passwords, users
from gatepost.throttle import Bucket, Taken, given_back, judge, parameters

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
    with naming({"users_canonical_key": UsernameTaken}):
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
    """The profile, kept from others until the transaction ends; None without such a user."""
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


class Origin(NamedTuple):
    """Where a request came from, for its event."""

    handle: str | None
    ip: str | None
    user_agent: str | None


async def update(
    connection: Connection,
    user_id: str,
    origin: Origin,
    *,
    name: tuple[str, str] | None,
    profile: dict[str, Any] | None,
) -> None:
    """Change the name (display and canonical form), the profile, or both. Raises UsernameTaken."""
    username, canonical = name or (None, None)
    changed = [field for field, value in (("username", name), ("profile", profile)) if value is not None]
    with naming({"users_canonical_key": UsernameTaken}):
        await _UPDATE.all(
            connection,
            id=user_id,
            username=username,
            canonical=canonical,
            profile=None if profile is None else json.dumps(profile, ensure_ascii=False),
            changed=changed,
            **origin._asdict(),
        )


class Secret(NamedTuple):
    """How a user's password was hashed; without one, ``canonical`` says what it seems to be."""

    canonical: str
    setting: Setting | None


class Current(NamedTuple):
    """The digest that a given password has under ``setting``, and what the attempt took from the throttles."""

    setting: Setting
    digest: bytes
    taken: Taken = Taken()


_FIND_SECRET = Statement("""
    SELECT t.*, u.canonical, p.setting, p.pepper, p.norm
    FROM gatepost.take(CAST(:keys AS bytea[]), CAST(:bursts AS integer[]), CAST(:everys AS float8[])) t
        LEFT JOIN gatepost.users u ON u.id = :id LEFT JOIN gatepost.passwords p ON p.user_id = u.id
""")


async def find_secret(connection: Connection, user_id: str, buckets: Sequence[Bucket]) -> tuple[Secret | None, Taken]:
    """Take from the throttles, and what checking this user's password needs: one round trip.

    May run twice, as `throttle.take` says. Raises TooManyAttempts.
    """
    row = await _FIND_SECRET.first(connection, id=user_id, **parameters(buckets))
    assert row is not None
    taken, (canonical, *setting) = judge(buckets, row)
    return Secret(canonical, Setting(*setting) if setting[0] else None) if canonical else None, taken


# Both lock the user's row first, so that a login, a change and a disabling of one user come one after the other, and
# the second statement sees what the one before did. `mine` is empty when the session has ended meanwhile.
_MINE = """
    SELECT FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE;

    WITH mine AS (
        SELECT u.id, coalesce(p.digest = :digest AND p.setting = :setting, false) AS matches,
            coalesce(p.setting = :setting, true) AS unchanged
        FROM gatepost.users u
            JOIN gatepost.sessions s ON s.user_id = u.id AND s.epoch = u.epoch AND s.handle = :handle
            LEFT JOIN gatepost.passwords p ON p.user_id = u.id
        WHERE u.id = :id AND u.disabled_at IS NULL AND s.expires_at > clock_timestamp()
    ),
"""

_CHANGE_PASSWORD = Statement(
    _MINE
    + """
    changed AS (
        UPDATE gatepost.passwords SET setting = :new_setting, digest = :new_digest, norm = :new_norm,
            pepper = :new_pepper, changed_at = clock_timestamp()
        WHERE user_id = (SELECT id FROM mine WHERE matches) RETURNING user_id
    ), bumped AS (
        UPDATE gatepost.users SET epoch = epoch + 1
        WHERE id = (SELECT user_id FROM changed) RETURNING id, epoch
    ), renewed AS (
        UPDATE gatepost.sessions s SET token_hash = :token_hash, epoch = b.epoch FROM bumped b
        WHERE s.user_id = b.id AND s.handle = :handle RETURNING s.expires_at
    ), ended AS (
        DELETE FROM gatepost.sessions s USING bumped b WHERE s.user_id = b.id AND s.handle <> :handle
        RETURNING s.user_id, s.handle
    ), forgotten AS (
        DELETE FROM gatepost.password_resets r USING bumped b WHERE r.user_id = b.id
    ), mistrusted AS (
        DELETE FROM gatepost.known_places k USING bumped b
        WHERE k.user_id = b.id AND k.place IS DISTINCT FROM CAST(:place AS bytea)
    ), """
    + given_back("mine WHERE matches")
    + """, recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT CASE WHEN matches THEN 'authn_password_change' ELSE 'authn_password_change_fail' END,
            id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent, CAST('{}' AS jsonb)
        FROM mine WHERE unchanged
        UNION ALL
        SELECT 'session_revoked', user_id, handle, CAST(:ip AS inet), :user_agent,
            '{"reason": "password_change"}' FROM ended
    )
    SELECT mine.unchanged, mine.matches, renewed.expires_at FROM mine LEFT JOIN renewed ON true
"""
)


async def change_password(
    connection: Connection,
    user_id: str,
    origin: Origin,
    *,
    current: Current,
    new: Stored,
    token_hash: bytes,
    place: bytes | None = None,
) -> datetime:
    """Keep ``new``, end every other session, let this one go on under ``token_hash``; until when it does.

    Of the places from which the user has signed in, only ``place`` stays known: another may be a thief's.
    Raises WrongPassword, Unauthorized, SettingChanged.
    """
    row = await _CHANGE_PASSWORD.first(
        connection,
        id=user_id,
        setting=current.setting.phc,
        digest=current.digest,
        new_setting=new.setting.phc,
        new_digest=new.digest,
        new_norm=new.norm,
        new_pepper=new.setting.pepper,
        token_hash=token_hash,
        place=place,
        **current.taken.parameters(),
        **origin._asdict(),
    )
    _decided(row)
    assert row is not None
    until: datetime = row[2]
    return until


_DELETE = Statement(
    _MINE
    + given_back("mine WHERE matches")
    + """, recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        SELECT CASE WHEN matches THEN 'user_deleted' ELSE 'authn_password_change_fail' END,
            id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent FROM mine WHERE unchanged
    ), deleted AS (
        DELETE FROM gatepost.users WHERE id = (SELECT id FROM mine WHERE matches)
    )
    SELECT unchanged, matches FROM mine
"""
)


async def delete(connection: Connection, user_id: str, origin: Origin, *, current: Current) -> None:
    """Delete the account and all that hangs on it; its events stay, with an id that names nobody any more.

    Raises WrongPassword, Unauthorized, SettingChanged, LastAdmin.
    """
    with naming({"users_last_admin": LastAdmin}):
        row = await _DELETE.first(
            connection,
            id=user_id,
            setting=current.setting.phc,
            digest=current.digest,
            **current.taken.parameters(),
            **origin._asdict(),
        )
    _decided(row)


def _decided(row: tuple[Any, ...] | None) -> None:
    if row is None:
        raise Unauthorized
    unchanged, matches, *_ = row
    if not unchanged:
        raise SettingChanged
    if not matches:
        raise WrongPassword


_EXPORT = Statement("""
    SELECT json_build_object(
        'user', (SELECT json_build_object('id', u.id, 'username', u.username, 'canonical', u.canonical,
            'roles', u.roles, 'profile', u.profile, 'created_at', u.created_at)),
        'password', (SELECT json_build_object('changed_at', p.changed_at)
            FROM gatepost.passwords p WHERE p.user_id = u.id),
        'password_reset', (SELECT json_build_object('created_at', r.created_at, 'expires_at', r.expires_at)
            FROM gatepost.password_resets r WHERE r.user_id = u.id),
        'sessions', (SELECT coalesce(json_agg(json_build_object('handle', s.handle, 'created_at', s.created_at,
            'last_seen_at', s.last_seen_at, 'expires_at', s.expires_at, 'ip', host(s.ip),
            'user_agent', s.user_agent) ORDER BY s.created_at), '[]')
            FROM gatepost.sessions s WHERE s.user_id = u.id),
        'known_places', (SELECT coalesce(json_agg(json_build_object('seen_at', k.seen_at) ORDER BY k.seen_at), '[]')
            FROM gatepost.known_places k WHERE k.user_id = u.id),
        'events', (SELECT coalesce(json_agg(json_build_object('at', e.at, 'kind', e.kind,
            'session_handle', e.session_handle, 'ip', host(e.ip), 'user_agent', e.user_agent,
            'detail', e.detail) ORDER BY e.id), '[]')
            FROM gatepost.events e WHERE e.user_id = u.id)
    )::text FROM gatepost.users u WHERE u.id = :id
""")


async def export(connection: Connection, user_id: str) -> str | None:
    """Everything held about a user but secrets, as one JSON document."""
    row = await _EXPORT.first(connection, id=user_id)
    return row[0] if row else None
