"""What asks for the current password, in SQL: changing it, and deleting the account."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gatepost.accounts.queries import Origin
from gatepost.errors import LastAdmin, Unauthorized, WrongPassword
from gatepost.postgres.database import Connection, Statement, naming
from gatepost.security.credentials import Setting, Stored
from gatepost.security.throttle import TAKE, Bucket, Taken, given_back, judge, parameters
from gatepost.sessions.queries import SettingChanged


class Secret(NamedTuple):
    """How a user's password was hashed; without one, ``canonical`` says what it seems to be."""

    canonical: str
    setting: Setting | None


class Current(NamedTuple):
    """The digest that a given password has under ``setting``, and what the attempt took from the throttles."""

    setting: Setting
    digest: bytes
    taken: Taken = Taken()


_FIND_SECRET = Statement(f"""
    SELECT t.*, u.canonical, p.setting, p.pepper, p.norm
    FROM {TAKE} t
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


# Both statements lock the user's row first. A login, a change and a disabling of one user therefore run one after the
# other, and each sees what the one before committed. They lock the session's row too, for the same reason with a
# logout. `mine` is empty when the session has ended meanwhile.
_MINE = """
    SELECT FROM gatepost.users WHERE id = :id FOR NO KEY UPDATE;
    SELECT FROM gatepost.sessions WHERE user_id = :id AND handle = :handle FOR KEY SHARE;

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
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT CASE WHEN matches THEN 'user_deleted' ELSE 'authn_password_change_fail' END,
            id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent, CAST('{}' AS jsonb) FROM mine WHERE unchanged
        UNION ALL
        SELECT 'session_revoked', s.user_id, s.handle, CAST(:ip AS inet), :user_agent, '{"reason": "user_deleted"}'
        FROM gatepost.sessions s JOIN mine ON mine.id = s.user_id AND mine.matches
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
