"""Sessions in SQL: one function, one statement, one round trip."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from gatepost.postgres.database import Connection, Statement, array
from gatepost.postgres.tables import passwords
from gatepost.security.credentials import Setting, Stored
from gatepost.security.identifier import Identifier
from gatepost.security.throttle import Bucket, Taken, judge, parameters
from gatepost.sessions.session import Session, SessionDocument, User, timestamp

# A function in the database (migration 0007), because Postgres keeps its plan: as SQL from here, planning took 75 us
# of each query, which eleven checks share under load (measured: 12 % more checks a second, p99 3.1 -> 2.8 ms).
_LIVE_SESSIONS = Statement("""
    SELECT * FROM gatepost.live_sessions_3(CAST(:hashes AS bytea[]), :idle_timeout, CAST(:two_factors_for AS text[]))
""")


async def live_sessions(
    connection: Connection, hashes: Sequence[bytes], idle_timeout: int, two_factors_for: Sequence[str] = ()
) -> dict[bytes, Session]:
    """Those of the sessions with these token hashes that are valid now. ``idle_timeout`` in seconds.

    ``two_factors_for``: the roles that demand two factors.
    """
    rows = await _LIVE_SESSIONS.all(
        connection, hashes=array(hashes), idle_timeout=idle_timeout, two_factors_for=list(two_factors_for)
    )
    return {(key := bytes(token_hash)): Session(key, *rest) for token_hash, *rest in rows}


class Entry(NamedTuple):
    """A login that begins: whose, from where, and what it takes from."""

    identifier: Identifier
    place: bytes | None
    buckets: Sequence[Bucket]


# The statements of a login are functions in the database (migrations 0011 and 0013), whose plans Postgres keeps.
_FIND_SETTING = Statement("""
    SELECT * FROM gatepost.find_setting_3(:name, :address, :place,
        CAST(:keys AS bytea[]), CAST(:bursts AS integer[]), CAST(:everys AS float8[]))
""")


async def find_setting(connection: Connection, entry: Entry) -> tuple[Setting | None, Taken]:
    """Take from the throttles, and how this user's password was hashed: one round trip.

    No setting for a user that is not found and for a user without a password. May run twice, as `throttle.take` says.
    Raises TooManyAttempts.
    """
    row = await _FIND_SETTING.first(
        connection,
        name=entry.identifier.name,
        address=entry.identifier.address,
        place=entry.place,
        **parameters(entry.buckets),
    )
    assert row is not None
    taken, setting = judge(entry.buckets, row)
    return Setting(*setting) if setting[0] else None, taken


class Attempt(NamedTuple):
    """A login to be decided: ``digest`` is what the given password has under ``setting``.

    If it is won, ``place`` is remembered, ``taken`` given back, and one taken from ``activity``. If it is
    ``abandoned``, its caller has gone: it is judged, and no session opened.
    """

    identifier: Identifier
    setting: Setting
    digest: bytes
    token_hash: bytes
    activity: Bucket
    ip: str | None
    user_agent: str | None
    place: bytes | None = None
    taken: Taken = Taken()
    abandoned: bool = False


class Opened(NamedTuple):
    """A login that was won. With ``methods``, its token is that of a ticket for a further step, which one of them
    takes, and not yet a session's.
    """

    user: User
    expires_at: datetime
    methods: Sequence[str] = ()


class SettingChanged(Exception):
    """The password was hashed anew since its setting was read; nothing has been decided or recorded."""


# Decides the login, and records what comes of it in the same transaction.
_OPEN_SESSION = Statement("""
    SELECT * FROM gatepost.open_session_4(:name, :address, :setting, :pepper, :digest,
        :token_hash, :lifetime, :max_per_user, CAST(:ip AS inet), :user_agent, :place,
        CAST(:taken AS bytea[]), CAST(:taken_everys AS float8[]), CAST(:limits AS text[]), CAST(:bursts AS integer[]),
        :activity, :activity_burst, :activity_every, :abandoned)
""")


async def open_session(
    connection: Connection, attempt: Attempt, *, lifetime: int, max_per_user: int
) -> Opened | None:
    """Decide a login: compare the digest, open the session or a ticket, end those over the cap, record the event.

    ``lifetime`` in seconds. None when the login is lost, whatever the reason. Raises SettingChanged, TooManyAttempts.
    """
    row = await _OPEN_SESSION.first(
        connection,
        name=attempt.identifier.name,
        address=attempt.identifier.address,
        setting=attempt.setting.phc,
        pepper=attempt.setting.pepper,
        digest=attempt.digest,
        token_hash=attempt.token_hash,
        ip=attempt.ip,
        user_agent=attempt.user_agent,
        place=attempt.place,
        limits=[limit.name for limit in attempt.taken.exhausted],
        bursts=array(limit.burst for limit in attempt.taken.exhausted),
        lifetime=lifetime,
        max_per_user=max_per_user,
        activity=attempt.activity.key,
        activity_burst=attempt.activity.limit.burst,
        activity_every=attempt.activity.limit.every,
        abandoned=attempt.abandoned,
        **attempt.taken.parameters(),
    )
    assert row is not None
    unchanged, refusing, methods, expires_at, *user = row
    if unchanged is False:
        raise SettingChanged
    if refusing is not None:
        raise attempt.activity.limit.refusal(refusing)
    return Opened(User(*user), expires_at, methods or ()) if expires_at else None


_REHASH = Statement(
    sa.update(passwords)
    .where(passwords.c.user_id == sa.bindparam("id"), passwords.c.digest == sa.bindparam("old"))
    .values(
        setting=sa.bindparam("new_setting"),
        digest=sa.bindparam("new_digest"),
        norm=sa.bindparam("new_norm"),
        pepper=sa.bindparam("new_pepper"),
    )
)


async def rehash(connection: Connection, user_id: UUID, old: bytes, new: Stored) -> None:
    """Keep the same password under a stronger setting, unless it was changed meanwhile."""
    await _REHASH.all(
        connection,
        id=user_id,
        old=old,
        new_setting=new.setting.phc,
        new_digest=new.digest,
        new_norm=new.norm,
        new_pepper=new.setting.pepper,
    )


_NOTE_BREACHED = Statement("""
    INSERT INTO gatepost.events (kind, user_id, ip, user_agent)
    VALUES ('authn_password_breached', :user_id, CAST(:ip AS inet), :user_agent) RETURNING 1
""")


async def note_breached(connection: Connection, user_id: UUID, ip: str | None, user_agent: str | None) -> None:
    """Record that a user signs in with a password that is known from a breach."""
    await _NOTE_BREACHED.all(connection, user_id=user_id, ip=ip, user_agent=user_agent)


_END_SESSION = Statement("""
    WITH ended AS (
        DELETE FROM gatepost.sessions s USING gatepost.users u
        WHERE s.token_hash = :token_hash AND u.id = s.user_id AND u.epoch = s.epoch
            AND u.disabled_at IS NULL AND s.expires_at > clock_timestamp()
            AND s.last_seen_at > clock_timestamp() - make_interval(secs => :idle_timeout)
        RETURNING s.user_id, s.handle
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        SELECT 'authn_logout', user_id, handle, CAST(:ip AS inet), :user_agent FROM ended
    )
    SELECT handle FROM ended
""")


async def end_session(
    connection: Connection, token_hash: bytes, idle_timeout: int, *, ip: str | None, user_agent: str | None
) -> bool:
    """End the live session with this token hash; False when there is none. ``idle_timeout`` in seconds."""
    row = await _END_SESSION.first(
        connection, token_hash=token_hash, idle_timeout=idle_timeout, ip=ip, user_agent=user_agent
    )
    return row is not None


_SESSIONS_OF = Statement("""
    SELECT s.handle::text, s.created_at, s.last_seen_at, s.expires_at, host(s.ip), s.user_agent, s.amr,
        coalesce(s.confirmed_at, s.created_at)
    FROM gatepost.sessions s JOIN gatepost.users u ON u.id = s.user_id AND u.epoch = s.epoch
    WHERE s.user_id = :user_id AND u.disabled_at IS NULL AND s.expires_at > clock_timestamp()
        AND s.last_seen_at > clock_timestamp() - make_interval(secs => :idle_timeout)
    ORDER BY s.created_at DESC
""")


async def sessions_of(connection: Connection, user_id: str, idle_timeout: int) -> list[SessionDocument]:
    """A user's live sessions, the newest first. ``idle_timeout`` in seconds."""
    rows = await _SESSIONS_OF.all(connection, user_id=user_id, idle_timeout=idle_timeout)
    return [
        SessionDocument(
            handle=handle,
            created_at=timestamp(created_at),
            last_seen_at=timestamp(last_seen_at),
            expires_at=timestamp(expires_at),
            ip=ip,
            user_agent=user_agent,
            amr=amr,
            authenticated_at=timestamp(authenticated_at),
        )
        for handle, created_at, last_seen_at, expires_at, ip, user_agent, amr, authenticated_at in rows
    ]


class Revocation(NamedTuple):
    """Why a session is ended and who does it; ``actor_id`` is None for the user, and for an operator at
    a shell, of whom ``by`` tells.
    """

    reason: str
    actor_id: str | None
    ip: str | None
    user_agent: str | None
    by: str | None = None


_ENDED = """
    ended AS (
        DELETE FROM gatepost.sessions WHERE user_id = :user_id
            AND (CAST(:only AS text) IS NULL OR handle::text = :only)
            AND (CAST(:but AS text) IS NULL OR handle::text <> :but)
        RETURNING user_id, handle
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, actor_id, session_handle, ip, user_agent, detail)
        SELECT 'session_revoked', user_id, CAST(:actor_id AS uuid), handle, CAST(:ip AS inet), :user_agent,
            jsonb_strip_nulls(jsonb_build_object('reason', CAST(:reason AS text), 'by', CAST(:by AS text))) FROM ended
    )
    SELECT handle FROM ended
"""
# Whatever touches several sessions of a user locks the user first, or two of them could wait for each other.
_LOCK_USER = "SELECT FROM gatepost.users WHERE id = :user_id FOR NO KEY UPDATE;"
_END_SESSIONS_OF = Statement(_LOCK_USER + "WITH " + _ENDED)
# Adding one to the epoch also ends a session that a login under way is about to open.
_END_ALL_SESSIONS_OF = Statement(
    _LOCK_USER + "WITH bumped AS (UPDATE gatepost.users SET epoch = epoch + 1 WHERE id = :user_id)," + _ENDED
)


async def end_sessions_of(
    connection: Connection, user_id: str, by: Revocation, *, only: str | None = None, but: str | None = None
) -> int:
    """End a user's sessions: the one with the handle ``only``, all but the one with ``but``; how many there were."""
    rows = await _END_SESSIONS_OF.all(connection, user_id=user_id, only=only, but=but, **by._asdict())
    return len(rows)


async def end_all_sessions_of(connection: Connection, user_id: str, by: Revocation) -> int:
    """End every session of a user, also those that are just being opened; how many there were."""
    rows = await _END_ALL_SESSIONS_OF.all(connection, user_id=user_id, only=None, but=None, **by._asdict())
    return len(rows)


_TOUCH = Statement("""
    UPDATE gatepost.sessions SET last_seen_at = clock_timestamp() WHERE token_hash IN (
        SELECT token_hash FROM gatepost.sessions
        WHERE token_hash = ANY (CAST(:hashes AS bytea[])) AND last_seen_at < clock_timestamp() - interval '1 minute'
        ORDER BY token_hash FOR NO KEY UPDATE SKIP LOCKED)
""")


async def touch(connection: Connection, hashes: Sequence[bytes]) -> None:
    """The sessions with these token hashes were in use just now. One that another node touches is left to it."""
    await _TOUCH.all(connection, hashes=array(hashes))


# An advisory lock lets one node sweep at a time; it ends with the statement.
_SWEEP_SESSIONS = Statement("""
    DELETE FROM gatepost.sessions WHERE token_hash IN (
        SELECT token_hash FROM gatepost.sessions
        WHERE expires_at < clock_timestamp() AND (SELECT pg_try_advisory_xact_lock(:lock))
        ORDER BY expires_at LIMIT :most FOR UPDATE SKIP LOCKED)
    RETURNING 1
""")


async def sweep_sessions(connection: Connection, lock: int, most: int) -> int:
    """Delete up to ``most`` expired sessions; how many there were. (Idle ones expire as well, later.)"""
    return len(await _SWEEP_SESSIONS.all(connection, lock=lock, most=most))
