"""Users in SQL, as operators see and change them: one function, one statement, one round trip."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gatepost.accounts.profile import too_large
from gatepost.admin.access_queries import Reset
from gatepost.admin.actor import BY, NOTE, Actor
from gatepost.admin.user import Managed
from gatepost.errors import EmailTaken, LastAdmin, Problem, UsernameTaken
from gatepost.http import strict_json
from gatepost.mail.codes import hash_link
from gatepost.postgres.database import Connection, Statement, naming
from gatepost.security.credentials import Stored
from gatepost.security.email import Address

_REFUSALS: Mapping[str, Callable[[], Problem]] = {
    "users_canonical_key": UsernameTaken,
    "emails_verified_key": EmailTaken,
    "users_last_admin": LastAdmin,
    "users_profile_size_check": too_large,
}

# A scalar subquery instead of EXISTS: for EXISTS the planner may read all of `passwords` into a hash table first. An
# order and a limit for addresses, of which nobody has more than ten: so an index is read, also with old statistics.
_COLUMNS = """
    u.id::text, u.username, u.canonical, u.roles, u.profile,
    (SELECT count(*) = 1 FROM gatepost.passwords p WHERE p.user_id = u.id),
    (SELECT coalesce(jsonb_agg(jsonb_build_object('address', e.address, 'verified', e.verified_at IS NOT NULL,
            'primary', e.is_primary) ORDER BY e.is_primary DESC, e.created_at, e.id), '[]')
        FROM (SELECT * FROM gatepost.emails WHERE user_id = u.id ORDER BY canonical LIMIT 10) AS e),
    u.created_at, u.disabled_at
"""

_READ = Statement(f"SELECT {_COLUMNS} FROM gatepost.users u WHERE u.id = :id")
_FIND = Statement(f"SELECT {_COLUMNS} FROM gatepost.users u WHERE u.canonical = :canonical")


async def read(connection: Connection, user_id: str) -> Managed | None:
    """The user of this id."""
    row = await _READ.first(connection, id=user_id)
    return Managed(*row) if row else None


async def find(connection: Connection, canonical: str) -> Managed | None:
    """The user of this canonical name."""
    row = await _FIND.first(connection, canonical=canonical)
    return Managed(*row) if row else None


class Filter(NamedTuple):
    """Which users to list; None asks for nothing. ``prefix`` is of the canonical name, ``email`` canonical."""

    prefix: str = ""
    role: str | None = None
    disabled: bool | None = None
    email: str | None = None


# Parameters are constants to the planner, since the driver writes them into the statement: a condition for a filter
# that is not given folds away, and what remains proves the predicate of a partial index.
_PAGE = Statement(f"""
    SELECT {_COLUMNS} FROM gatepost.users u
    WHERE u.canonical > :after AND u.canonical ^@ :prefix
        AND (CAST(:role AS text) IS NULL OR u.roles <> '{{}}' AND u.roles @> ARRAY[CAST(:role AS text)])
        AND (CAST(:email AS text) IS NULL
            OR u.id IN (SELECT e.user_id FROM gatepost.emails e WHERE e.canonical = CAST(:email AS text)))
        AND (CAST(:disabled AS boolean) IS NOT TRUE OR u.disabled_at IS NOT NULL)
        AND (CAST(:disabled AS boolean) IS NOT FALSE OR u.disabled_at IS NULL)
    ORDER BY u.canonical LIMIT :most
""")


async def page(connection: Connection, which: Filter, *, after: str, most: int) -> list[Managed]:
    """Up to ``most`` users by canonical name, beginning after ``after``."""
    rows = await _PAGE.all(connection, after=after, most=most, **which._asdict())
    return [Managed(*row) for row in rows]


class NewUser(NamedTuple):
    """A user to be."""

    username: str
    canonical: str
    roles: Sequence[str]
    profile: dict[str, Any]
    email: Address | None = None
    """Verified: the operator vouches for it."""


_CREATE = Statement(f"""
    WITH u AS (
        INSERT INTO gatepost.users (username, canonical, roles, profile)
        VALUES (:username, :canonical, CAST(:roles AS text[]), CAST(:profile AS jsonb)) RETURNING *
    ), password AS (
        INSERT INTO gatepost.passwords (user_id, setting, digest, norm, pepper)
        SELECT id, :setting, CAST(:digest AS bytea), :norm, :pepper FROM u
        WHERE CAST(:setting AS text) IS NOT NULL RETURNING user_id
    ), reset AS (
        INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at)
        SELECT id, CAST(:code_hash AS bytea), clock_timestamp() + make_interval(secs => :lifetime) FROM u
        WHERE CAST(:code_hash AS bytea) IS NOT NULL RETURNING user_id, expires_at
    ), email AS (
        INSERT INTO gatepost.emails (user_id, address, canonical, verified_at, is_primary)
        SELECT id, :address, :canonical_address, clock_timestamp(), true FROM u
        WHERE CAST(:address AS text) IS NOT NULL RETURNING address
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, actor_id, ip, user_agent, detail)
        SELECT 'user_created', id, {BY},
            {NOTE} || CASE WHEN roles = '{{}}' THEN '{{}}' ELSE jsonb_build_object('roles', roles) END FROM u
        UNION ALL SELECT 'authn_password_reset_started', user_id, {BY}, {NOTE} FROM reset
    )
    SELECT u.id::text, u.username, u.canonical, u.roles, u.profile,
        EXISTS (SELECT FROM password),
        (SELECT coalesce(jsonb_agg(jsonb_build_object('address', address, 'verified', true, 'primary', true)), '[]')
            FROM email),
        u.created_at, u.disabled_at, (SELECT expires_at FROM reset)
    FROM u
""")


async def create(
    connection: Connection,
    new: NewUser,
    actor: Actor,
    *,
    password: Stored | None = None,
    reset: Reset | None = None,
) -> tuple[Managed, datetime | None]:
    """Add a user, with a password or a started reset or neither; the user, and until when the reset counts.

    Raises UsernameTaken, EmailTaken, InvalidBody.
    """
    with naming(_REFUSALS):
        row = await _CREATE.first(
            connection,
            username=new.username,
            canonical=new.canonical,
            roles=list(new.roles),
            profile=strict_json.encode(new.profile),
            address=new.email.written if new.email else None,
            canonical_address=new.email.canonical if new.email else None,
            setting=password.setting.phc if password else None,
            digest=password.digest if password else None,
            norm=password.norm if password else None,
            pepper=password.setting.pepper if password else None,
            code_hash=hash_link(reset.code) if reset else None,
            lifetime=reset.lifetime if reset else 0,
            **actor.values(),
        )
    assert row is not None
    return Managed(*row[:-1]), row[-1]


class Change(NamedTuple):
    """What to change of a user; None leaves it as it is. ``name``: display and canonical form."""

    name: tuple[str, str] | None = None
    profile: dict[str, Any] | None = None
    roles: Sequence[str] | None = None
    disabled: bool | None = None


# The row is locked first, so that `before` is what the update changes, and a login under way either is over or sees
# the change. New roles or disabling raise the epoch, which ends every session, also one that is just being opened.
_CHANGE = Statement(f"""
    SELECT FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE;

    WITH before AS (
        SELECT id, epoch, roles, disabled_at,
            CAST(:roles AS text[]) IS NOT NULL AND roles <> :roles AS new_roles,
            CAST(:disabled AS boolean) IS TRUE AND disabled_at IS NULL AS disabling,
            CAST(:disabled AS boolean) IS FALSE AND disabled_at IS NOT NULL AS enabling
        FROM gatepost.users WHERE id = :id
    ), u AS (
        UPDATE gatepost.users u SET
            username = coalesce(:username, u.username),
            canonical = coalesce(:canonical, u.canonical),
            profile = coalesce(CAST(:profile AS jsonb), u.profile),
            roles = coalesce(CAST(:roles AS text[]), u.roles),
            disabled_at = CASE WHEN b.disabling THEN clock_timestamp()
                               WHEN b.enabling THEN NULL ELSE u.disabled_at END,
            epoch = u.epoch + CASE WHEN b.new_roles OR b.disabling THEN 1 ELSE 0 END
        FROM before b WHERE u.id = b.id RETURNING u.*
    ), ended AS (
        DELETE FROM gatepost.sessions s USING before b
        WHERE s.user_id = b.id AND (b.new_roles OR b.disabling)
        RETURNING s.user_id, s.handle, CASE WHEN b.disabling THEN 'user_disabled' ELSE 'roles_changed' END AS reason
    ), forgotten AS (
        DELETE FROM gatepost.password_resets r USING before b WHERE r.user_id = b.id AND b.disabling
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, actor_id, ip, user_agent, detail)
        SELECT kind, user_id, handle, {BY}, {NOTE} || detail FROM (
            SELECT 1 AS place, 'user_updated' AS kind, id AS user_id, CAST(NULL AS uuid) AS handle,
                jsonb_build_object('changed', CAST(:changed AS text[])) AS detail
            FROM before WHERE CAST(:changed AS text[]) <> '{{}}'
            UNION ALL SELECT 2, 'privilege_permissions_changed', id, NULL,
                jsonb_build_object('old', roles, 'new', CAST(:roles AS text[])) FROM before WHERE new_roles
            UNION ALL SELECT 3, 'user_disabled', id, NULL, '{{}}' FROM before WHERE disabling
            UNION ALL SELECT 3, 'user_enabled', id, NULL, '{{}}' FROM before WHERE enabling
            UNION ALL SELECT 4, 'session_revoked', user_id, handle, jsonb_build_object('reason', reason) FROM ended
        ) AS happened ORDER BY place
    )
    SELECT {_COLUMNS} FROM u
""")


async def change(connection: Connection, user_id: str, what: Change, actor: Actor) -> Managed | None:
    """Change a user; new roles and disabling end every session. None when there is no such user.

    Raises UsernameTaken, LastAdmin, InvalidBody.
    """
    username, canonical = what.name or (None, None)
    changed = [field for field, value in (("username", what.name), ("profile", what.profile)) if value is not None]
    with naming(_REFUSALS):
        row = await _CHANGE.first(
            connection,
            id=user_id,
            username=username,
            canonical=canonical,
            profile=None if what.profile is None else strict_json.encode(what.profile),
            roles=None if what.roles is None else list(what.roles),
            disabled=what.disabled,
            changed=changed,
            **actor.values(),
        )
    return Managed(*row) if row else None


_DELETE = Statement(f"""
    SELECT FROM gatepost.users WHERE id = :id FOR UPDATE;

    WITH ended AS (
        SELECT user_id, handle FROM gatepost.sessions WHERE user_id = :id
    ), deleted AS (
        DELETE FROM gatepost.users WHERE id = :id RETURNING id
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, actor_id, ip, user_agent, detail)
        SELECT 'user_deleted', id, CAST(NULL AS uuid), {BY}, {NOTE} FROM deleted
        UNION ALL
        SELECT 'session_revoked', user_id, handle, {BY}, {NOTE} || '{{"reason": "user_deleted"}}' FROM ended
    )
    SELECT id FROM deleted
""")


async def delete(connection: Connection, user_id: str, actor: Actor) -> bool:
    """Delete a user and all that hangs on it; the events stay. False when there is no such user. Raises LastAdmin."""
    with naming(_REFUSALS):
        row = await _DELETE.first(connection, id=user_id, **actor.values())
    return row is not None
