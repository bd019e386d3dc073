"""Codes for a new password in SQL: one function, one statement, one round trip."""

from gatepost.errors import InvalidCode
from gatepost.mail.outbox.queries import told
from gatepost.postgres.database import Connection, Statement
from gatepost.security.credentials import Stored
from gatepost.security.throttle import Taken, given_back

_FIND_NAME = Statement("""
    SELECT u.canonical FROM gatepost.password_resets r JOIN gatepost.users u ON u.id = r.user_id
    WHERE r.code_hash = :code_hash AND r.expires_at > clock_timestamp() AND u.disabled_at IS NULL
    UNION ALL
    SELECT u.canonical FROM gatepost.codes m JOIN gatepost.users u ON u.id = m.user_id AND u.epoch = m.epoch
    WHERE (m.link_hash = :code_hash OR m.typed_hash = :code_hash) AND m.purpose = 'recovery'
        AND m.expires_at > clock_timestamp() AND u.disabled_at IS NULL
""")


async def find_name(connection: Connection, code_hash: bytes) -> str | None:
    """The canonical name of the user who may choose a new password with this code."""
    row = await _FIND_NAME.first(connection, code_hash=code_hash)
    return row[0] if row else None


# Deleting the code redeems it: of two requests at once, the second finds nothing to delete.
_REDEEM = Statement(
    """
    SELECT FROM gatepost.users WHERE id = (
        SELECT user_id FROM gatepost.password_resets WHERE code_hash = :code_hash
        UNION ALL
        SELECT user_id FROM gatepost.codes WHERE link_hash = :code_hash OR typed_hash = :code_hash)
    FOR NO KEY UPDATE;

    WITH reset AS (
        DELETE FROM gatepost.password_resets r USING gatepost.users u
        WHERE r.code_hash = :code_hash AND r.expires_at > clock_timestamp()
            AND u.id = r.user_id AND u.disabled_at IS NULL
        RETURNING r.user_id
    ), mailed AS (
        DELETE FROM gatepost.codes m USING gatepost.users u
        WHERE (m.link_hash = :code_hash OR m.typed_hash = :code_hash) AND m.purpose = 'recovery'
            AND m.expires_at > clock_timestamp() AND u.id = m.user_id AND u.epoch = m.epoch AND u.disabled_at IS NULL
        RETURNING m.user_id
    ), redeemed AS (
        SELECT user_id, 'reset' AS reason FROM reset UNION ALL SELECT user_id, 'recovery' FROM mailed
    ), kept AS (
        INSERT INTO gatepost.passwords (user_id, setting, digest, norm, pepper)
        SELECT user_id, :setting, :digest, :norm, :pepper FROM redeemed
        ON CONFLICT (user_id) DO UPDATE SET setting = excluded.setting, digest = excluded.digest,
            norm = excluded.norm, pepper = excluded.pepper, changed_at = clock_timestamp()
    ), bumped AS (
        UPDATE gatepost.users SET epoch = epoch + 1 WHERE id = (SELECT user_id FROM redeemed)
    ), ended AS (
        DELETE FROM gatepost.sessions WHERE user_id = (SELECT user_id FROM redeemed) RETURNING user_id, handle
    ), mistrusted AS (
        DELETE FROM gatepost.known_places k USING redeemed r
        WHERE k.user_id = r.user_id AND k.place IS DISTINCT FROM CAST(:place AS bytea)
    ), remembered AS (
        INSERT INTO gatepost.known_places (user_id, place)
        SELECT user_id, CAST(:place AS bytea) FROM redeemed WHERE CAST(:place AS bytea) IS NOT NULL
        ON CONFLICT (user_id, place) DO UPDATE SET seen_at = clock_timestamp()
    ), """
    + told("password_recovered", "redeemed")
    + ", "
    + given_back("redeemed")
    + """, recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'authn_password_change', user_id, CAST(NULL AS uuid), CAST(:ip AS inet), :user_agent,
            jsonb_build_object('reason', reason) FROM redeemed
        UNION ALL
        SELECT 'session_revoked', user_id, handle, CAST(:ip AS inet), :user_agent,
            '{"reason": "password_change"}' FROM ended
    )
    SELECT user_id FROM redeemed
"""
)


async def redeem(
    connection: Connection,
    code_hash: bytes,
    new: Stored,
    *,
    ip: str | None,
    user_agent: str | None,
    language: str | None = None,
    place: bytes | None = None,
    taken: Taken = Taken(),  # noqa: B008 (immutable)
) -> None:
    """Use up a code: keep the new password, end every session, and tell the owner by mail in ``language`` (None where
    no mail is sent). Raises InvalidCode.

    ``place`` is from now on the only one from which the user is known to sign in; ``taken`` is given back.
    """
    row = await _REDEEM.first(
        connection,
        code_hash=code_hash,
        setting=new.setting.phc,
        digest=new.digest,
        norm=new.norm,
        pepper=new.setting.pepper,
        ip=ip,
        user_agent=user_agent,
        language=language,
        place=place,
        **taken.parameters(),
    )
    if row is None:
        raise InvalidCode
