"""A user's way back in, in SQL: starting a password reset, refilling the throttles."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from gatepost.admin.actor import BY, NOTE, Actor
from gatepost.errors import NoAddress, NotFound
from gatepost.mail.codes import hash_link
from gatepost.mail.outbox.queries import told
from gatepost.postgres.database import Connection, Statement


class Reset(NamedTuple):
    """A password reset to start. ``lifetime`` in seconds."""

    code: str
    lifetime: int


# FOR KEY SHARE: a user that is deleted at the same time counts as not found, instead of violating the foreign key.
_START_RESET = Statement(f"""
    WITH started AS (
        INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at)
        SELECT id, :code_hash, clock_timestamp() + make_interval(secs => :lifetime)
        FROM (SELECT id FROM gatepost.users WHERE id = :id FOR KEY SHARE) AS u
        ON CONFLICT (user_id) DO UPDATE
        SET code_hash = excluded.code_hash, created_at = clock_timestamp(), expires_at = excluded.expires_at
        RETURNING user_id, expires_at
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, actor_id, ip, user_agent, detail)
        SELECT 'authn_password_reset_started', user_id, {BY}, {NOTE} FROM started
    )
    SELECT expires_at FROM started
""")


async def start_reset(connection: Connection, user_id: str, reset: Reset, actor: Actor) -> datetime | None:
    """Let a user choose a new password with this code, in place of an earlier one; until when it counts.

    Neither the password nor any session ends. None when there is no such user.
    """
    row = await _START_RESET.first(
        connection, id=user_id, code_hash=hash_link(reset.code), lifetime=reset.lifetime, **actor.values()
    )
    return row[0] if row else None


_INVITE = Statement(f"""
    WITH told AS (
        INSERT INTO gatepost.outbox (kind, user_id, email_id, address, language)
        SELECT 'invitation', e.user_id, e.id, e.address, :language
        FROM (SELECT id FROM gatepost.users WHERE id = :id AND disabled_at IS NULL FOR KEY SHARE) AS u
        JOIN gatepost.emails e ON e.user_id = u.id AND e.is_primary
        RETURNING user_id
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, actor_id, ip, user_agent, detail)
        SELECT 'authn_password_reset_started', user_id, {BY}, {NOTE} FROM told
    )
    SELECT EXISTS (SELECT FROM told), EXISTS (SELECT FROM gatepost.users WHERE id = :id)
""")


async def invite(connection: Connection, user_id: str, language: str, actor: Actor) -> None:
    """Queue a mail with which a user chooses a password. Raises NotFound, NoAddress."""
    row = await _INVITE.first(connection, id=user_id, language=language, **actor.values())
    assert row is not None
    told, exists = row
    if not exists:
        raise NotFound
    if not told:
        raise NoAddress


# Every session ends, and every login that waits for a code: they were opened, or begun, with what is gone now.
_REMOVE_FACTORS = Statement(
    f"""
    SELECT FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE;

    WITH u AS (
        SELECT id AS user_id FROM gatepost.users WHERE id = :id
    ), removed AS (
        DELETE FROM gatepost.totp_factors WHERE user_id = :id RETURNING user_id, confirmed_at
    ), passkeys AS (
        DELETE FROM gatepost.passkeys WHERE user_id = :id RETURNING user_id
    ), counted AS (
        SELECT user_id FROM removed WHERE confirmed_at IS NOT NULL UNION ALL SELECT user_id FROM passkeys
    ), without AS (
        SELECT DISTINCT user_id FROM counted
    ), without_codes AS (
        DELETE FROM gatepost.recovery_codes WHERE user_id IN (SELECT user_id FROM without)
    ), without_tickets AS (
        DELETE FROM gatepost.login_tickets WHERE user_id IN (SELECT user_id FROM without)
    ), bumped AS (
        UPDATE gatepost.users SET epoch = epoch + 1 WHERE id IN (SELECT user_id FROM without)
    ), ended AS (
        DELETE FROM gatepost.sessions WHERE user_id IN (SELECT user_id FROM without) RETURNING user_id, handle
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, actor_id, ip, user_agent, detail)
        SELECT 'factors_removed', user_id, CAST(NULL AS uuid), {BY}, {NOTE} FROM without
        UNION ALL
        SELECT 'session_revoked', user_id, handle, {BY}, {NOTE} || '{{"reason": "factors_removed"}}' FROM ended
    ), """
    + told("factor_changed", "without", """'{"change": "removed_by_operator"}'""")
    + """
    SELECT (SELECT count(*) FROM counted) FROM u
"""
)


async def remove_factors(connection: Connection, user_id: str, actor: Actor, language: str | None) -> int | None:
    """Remove a user's second factors and recovery codes, end every session if there were any, and tell the owner by
    mail; how many factors there were. None when there is no such user.
    """
    row = await _REMOVE_FACTORS.first(connection, id=user_id, language=language, **actor.values())
    return int(row[0]) if row else None


_UNLOCK = Statement(f"""
    WITH u AS (
        SELECT id FROM gatepost.users WHERE id = :id
    ), freed AS (
        DELETE FROM gatepost.throttles WHERE key IN (
            SELECT t.key
            FROM u, unnest(CAST(:firsts AS bytea[]), CAST(:lasts AS bytea[])) AS w (first, last)
                JOIN gatepost.throttles t ON t.key BETWEEN w.first AND w.last
            ORDER BY t.key FOR UPDATE OF t)
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, actor_id, ip, user_agent, detail)
        SELECT 'authn_login_unlock', id, {BY}, {NOTE} FROM u
    )
    SELECT id FROM u
""")


async def unlock(connection: Connection, user_id: str, ranges: Sequence[tuple[bytes, bytes]], actor: Actor) -> bool:
    """Fill the throttles of a user again, by their keys (`Throttle.of_account`). False when there is no such user."""
    firsts, lasts = zip(*ranges, strict=True)
    row = await _UNLOCK.first(connection, id=user_id, firsts=list(firsts), lasts=list(lasts), **actor.values())
    return row is not None
