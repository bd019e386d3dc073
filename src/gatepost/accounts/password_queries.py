"""What asks for the current password, in SQL: changing it, and deleting the account."""

from datetime import datetime

from gatepost.errors import LastAdmin
from gatepost.mail.outbox.queries import told
from gatepost.postgres.database import Connection, Statement, naming
from gatepost.security.credentials import Stored
from gatepost.security.throttle import given_back
from gatepost.sessions.current_password import MINE, Current, Origin, decide

_CHANGE_PASSWORD = Statement(
    MINE
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
    + told("password_changed", "changed")
    + ", "
    + given_back("mine WHERE matches")
    + """, recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT CASE WHEN matches THEN 'authn_password_change' ELSE 'authn_password_change_fail' END,
            id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent, CAST('{}' AS jsonb)
        FROM mine WHERE unchanged AND confirmed
        UNION ALL
        SELECT 'session_revoked', user_id, handle, CAST(:ip AS inet), :user_agent,
            '{"reason": "password_change"}' FROM ended
    )
    SELECT mine.confirmed, mine.unchanged, mine.matches, renewed.expires_at FROM mine LEFT JOIN renewed ON true
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
    language: str | None = None,
    place: bytes | None = None,
) -> datetime:
    """Keep ``new``, end every other session, let this one go on under ``token_hash``; until when it does.

    The owner is told by mail in ``language``; None where no mail is sent.

    Of the places from which the user has signed in, only ``place`` stays known: another may be a thief's.
    Raises WrongPassword, ConfirmationRequired, Unauthorized, SettingChanged.
    """
    row = await _CHANGE_PASSWORD.first(
        connection,
        id=user_id,
        new_setting=new.setting.phc,
        new_digest=new.digest,
        new_norm=new.norm,
        new_pepper=new.setting.pepper,
        token_hash=token_hash,
        language=language,
        place=place,
        **current.parameters(),
        **origin._asdict(),
    )
    until: datetime
    (until,) = decide(row)
    return until


_DELETE = Statement(
    MINE
    + given_back("mine WHERE matches")
    + """, recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT CASE WHEN matches THEN 'user_deleted' ELSE 'authn_password_change_fail' END,
            id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent, CAST('{}' AS jsonb)
        FROM mine WHERE unchanged AND confirmed
        UNION ALL
        SELECT 'session_revoked', s.user_id, s.handle, CAST(:ip AS inet), :user_agent, '{"reason": "user_deleted"}'
        FROM gatepost.sessions s JOIN mine ON mine.id = s.user_id AND mine.matches
    ), deleted AS (
        DELETE FROM gatepost.users WHERE id = (SELECT id FROM mine WHERE matches)
    )
    SELECT confirmed, unchanged, matches FROM mine
"""
)


async def delete(connection: Connection, user_id: str, origin: Origin, *, current: Current) -> None:
    """Delete the account and all that hangs on it; its events stay, with an id that names nobody any more.

    Raises WrongPassword, ConfirmationRequired, Unauthorized, SettingChanged, LastAdmin.
    """
    with naming({"users_last_admin": LastAdmin}):
        row = await _DELETE.first(
            connection,
            id=user_id,
            **current.parameters(),
            **origin._asdict(),
        )
    decide(row)
