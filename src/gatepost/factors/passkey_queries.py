"""Passkeys in SQL: one function, one statement, one round trip."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from typing_extensions import TypedDict

from gatepost.errors import InvalidPasskey, LastFactor, NotFound, PasskeyTaken, PasskeyUnknown, TooManyPasskeys
from gatepost.factors.passkeys import NewPasskey, Signed, Stored
from gatepost.factors.queries import RAISED, WITHOUT_THE_LAST
from gatepost.factors.recovery_codes import Codes
from gatepost.mail.outbox.queries import told
from gatepost.postgres.database import Connection, Statement, naming
from gatepost.security.throttle import TAKE, Bucket, Taken, judge, parameters
from gatepost.sessions.current_password import Origin
from gatepost.sessions.queries import Opened
from gatepost.sessions.session import User, timestamp

# Passkeys of one user.
MOST = 20


class PasskeyDocument(TypedDict):
    """A passkey, as its owner sees it. ``synced``: whether it may be on several devices; ``backed_up``: whether it
    was, when it was made.
    """

    id: str
    name: str
    synced: bool
    backed_up: bool
    created_at: str
    last_used_at: str | None


def _document(
    passkey_id: str, name: str, synced: bool, backed_up: bool, created_at: datetime, last_used_at: datetime | None
) -> PasskeyDocument:
    return {
        "id": passkey_id,
        "name": name,
        "synced": synced,
        "backed_up": backed_up,
        "created_at": timestamp(created_at),
        "last_used_at": timestamp(last_used_at) if last_used_at else None,
    }


_COLUMNS = "id::text, name, synced, backed_up, created_at, last_used_at"

_PASSKEYS_OF = Statement(f"SELECT {_COLUMNS} FROM gatepost.passkeys WHERE user_id = :user_id ORDER BY created_at")


async def passkeys_of(connection: Connection, user_id: str) -> list[PasskeyDocument]:
    """A user's passkeys, the oldest first."""
    return [_document(*row) for row in await _PASSKEYS_OF.all(connection, user_id=user_id)]


_CREDENTIALS_OF = Statement("SELECT credential_id FROM gatepost.passkeys WHERE user_id = :user_id")


async def credentials_of(connection: Connection, user_id: str) -> list[bytes]:
    """What the user's passkeys are called by browsers."""
    return [bytes(row[0]) for row in await _CREDENTIALS_OF.all(connection, user_id=user_id)]


# The first factor brings recovery codes with it.
_ADD = Statement(
    """
    WITH fresh AS (
        INSERT INTO gatepost.used_challenges (challenge_hash)
        SELECT :challenge
        WHERE (SELECT count(*) FROM gatepost.passkeys WHERE user_id = :user_id) < :most
        ON CONFLICT DO NOTHING RETURNING 1
    ), confirmed AS (
        INSERT INTO gatepost.passkeys (user_id, credential_id, public_key, sign_count, name, synced, backed_up)
        SELECT :user_id, :credential_id, :public_key, :sign_count, :name, :synced, :backed_up FROM fresh
        RETURNING *
    ), first_codes AS (
        INSERT INTO gatepost.recovery_codes (user_id, code_hash)
        SELECT c.user_id, h FROM confirmed c, unnest(CAST(:hashes AS bytea[])) AS h
        WHERE NOT EXISTS (SELECT FROM gatepost.recovery_codes r WHERE r.user_id = c.user_id)
        RETURNING 1
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'factor_added', user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent,
            '{"factor": "passkey"}' FROM confirmed
    ), """
    + RAISED
    + ", "
    + told("factor_changed", "confirmed", """'{"change": "passkey_added"}'""")
    + f"""
    SELECT EXISTS (SELECT FROM first_codes), (SELECT count(*) FROM gatepost.passkeys WHERE user_id = :user_id),
        {_COLUMNS}
    FROM (VALUES (1)) AS always LEFT JOIN confirmed ON true
"""
)


async def add(  # noqa: PLR0913 (by name)
    connection: Connection,
    user_id: str,
    origin: Origin,
    *,
    made: NewPasskey,
    challenge: bytes,
    name: str,
    codes: Codes,
    how: Sequence[str],
    language: str | None,
) -> tuple[PasskeyDocument, bool]:
    """Keep a passkey that was made for this challenge; whether ``codes`` are its user's recovery codes now.

    The session is one of two factors from now on. Raises InvalidPasskey for a challenge that was used, PasskeyTaken,
    TooManyPasskeys.
    """
    with naming({"passkeys_credential_id_key": PasskeyTaken}):
        row = await _ADD.first(
            connection,
            user_id=user_id,
            challenge=challenge,
            most=MOST,
            name=name,
            hashes=codes.hashes,
            how=list(how),
            language=language,
            **made._asdict(),
            **origin._asdict(),
        )
    assert row is not None
    has_codes, there, *columns = row
    if columns[0] is None:
        raise TooManyPasskeys if there >= MOST else InvalidPasskey
    return _document(*columns), has_codes


_RENAME = Statement(f"""
    UPDATE gatepost.passkeys SET name = :name WHERE id = :id AND user_id = :user_id RETURNING {_COLUMNS}
""")


async def rename(connection: Connection, user_id: str, passkey_id: str, name: str) -> PasskeyDocument:
    """Call a passkey otherwise. Raises NotFound."""
    row = await _RENAME.first(connection, id=passkey_id, user_id=user_id, name=name)
    if row is None:
        raise NotFound
    return _document(*row)


_REMOVE = Statement(
    """
    WITH others AS (
        SELECT (SELECT count(*) FROM gatepost.passkeys WHERE user_id = :user_id AND id <> :id)
            + (SELECT count(*) FROM gatepost.totp_factors
               WHERE user_id = :user_id AND confirmed_at IS NOT NULL) AS number
    ), demanded AS (
        SELECT FROM gatepost.users u, others o
        WHERE u.id = :user_id AND u.roles && CAST(:two_factors_for AS text[]) AND o.number = 0
    ), counted AS (
        DELETE FROM gatepost.passkeys
        WHERE user_id = :user_id AND id = :id AND NOT EXISTS (SELECT FROM demanded) RETURNING user_id
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'factor_removed', user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent,
            '{"factor": "passkey"}' FROM counted
    ), """
    + WITHOUT_THE_LAST
    + ", "
    + told("factor_changed", "counted", """'{"change": "passkey_removed"}'""")
    + """
    SELECT EXISTS (SELECT FROM counted),
        EXISTS (SELECT FROM gatepost.passkeys WHERE user_id = :user_id AND id = :id)
"""
)


async def remove(
    connection: Connection,
    user_id: str,
    passkey_id: str,
    origin: Origin,
    *,
    two_factors_for: Sequence[str],
    language: str | None,
) -> None:
    """Remove a passkey. Raises NotFound, LastFactor."""
    row = await _REMOVE.first(
        connection,
        user_id=user_id,
        id=passkey_id,
        two_factors_for=list(two_factors_for),
        language=language,
        **origin._asdict(),
    )
    assert row is not None
    removed, there = row
    if not removed:
        raise LastFactor if there else NotFound


# ------------------------------------------------------------------------------------------------ signing in

_FIND = Statement(f"""
    SELECT t.*, p.id::text, p.user_id::text, p.public_key, p.synced, u.canonical
    FROM {TAKE} t LEFT JOIN gatepost.passkeys p ON p.credential_id = :credential_id
        LEFT JOIN gatepost.users u ON u.id = p.user_id
""")


class Found(NamedTuple):
    """A passkey, and the canonical name of its user."""

    passkey: Stored
    canonical: str


async def find_passkey(
    connection: Connection, credential_id: bytes, buckets: Sequence[Bucket]
) -> tuple[Found | None, Taken]:
    """Take from the throttles, and the passkey that browsers call so: one round trip. Raises TooManyAttempts."""
    row = await _FIND.first(connection, credential_id=credential_id, **parameters(buckets))
    assert row is not None
    taken, (passkey_id, user_id, public_key, synced, canonical) = judge(buckets, row)
    if passkey_id is None:
        return None, taken
    return Found(Stored(passkey_id, user_id, bytes(public_key), synced), canonical), taken


_OF_USER = Statement("""
    SELECT id::text, user_id::text, public_key, synced
    FROM gatepost.passkeys WHERE credential_id = :credential_id AND user_id = :user_id
""")


async def of_user(connection: Connection, user_id: str, credential_id: bytes) -> Stored | None:
    """The passkey of this user that browsers call so."""
    row = await _OF_USER.first(connection, user_id=user_id, credential_id=credential_id)
    return Stored(row[0], row[1], bytes(row[2]), row[3]) if row else None


_SIGN_IN = Statement("""
    SELECT * FROM gatepost.sign_in_with_passkey(:passkey, :counter, :challenge, CAST(:how AS text[]),
        :token_hash, :lifetime, :max_per_user, CAST(:ip AS inet), :user_agent, :place,
        :activity, :activity_burst, :activity_every, CAST(:taken AS bytea[]), CAST(:taken_everys AS float8[]))
""")


class SignIn(NamedTuple):
    """A passkey that has signed, and the session that it is to open."""

    signed: Signed
    token_hash: bytes
    activity: Bucket
    ip: str | None
    user_agent: str | None
    place: bytes | None
    taken: Taken


async def sign_in(connection: Connection, sign_in: SignIn, *, lifetime: int, max_per_user: int) -> Opened:
    """Open the session. ``lifetime`` in seconds. Raises PasskeyUnknown, TooManyAttempts."""
    row = await _SIGN_IN.first(
        connection,
        passkey=sign_in.signed.passkey.id,
        counter=sign_in.signed.counter,
        challenge=sign_in.signed.challenge,
        how=sign_in.signed.methods,
        token_hash=sign_in.token_hash,
        lifetime=lifetime,
        max_per_user=max_per_user,
        ip=sign_in.ip,
        user_agent=sign_in.user_agent,
        place=sign_in.place,
        activity=sign_in.activity.key,
        activity_burst=sign_in.activity.limit.burst,
        activity_every=sign_in.activity.limit.every,
        **sign_in.taken.parameters(),
    )
    assert row is not None
    refusing, expires_at, *user = row
    if refusing is not None:
        raise sign_in.activity.limit.refusal(refusing)
    if expires_at is None:
        raise PasskeyUnknown
    return Opened(User(*user), expires_at)


_NOTE_REFUSED = Statement("""
    INSERT INTO gatepost.events (kind, user_id, ip, user_agent, detail)
    VALUES ('authn_factor_fail', :user_id, CAST(:ip AS inet), :user_agent,
        jsonb_build_object('factor', 'passkey', 'reason', CAST(:reason AS text)))
    RETURNING 1
""")


async def note_refused(
    connection: Connection, user_id: str, reason: str, ip: str | None, user_agent: str | None
) -> None:
    """Record that what a passkey of this user is said to have signed does not hold."""
    await _NOTE_REFUSED.all(connection, user_id=user_id, reason=reason, ip=ip, user_agent=user_agent)


# ------------------------------------------------------------------------------------------------- sweeps

_SWEEP_CHALLENGES = Statement("""
    DELETE FROM gatepost.used_challenges WHERE challenge_hash = ANY (ARRAY(
        SELECT challenge_hash FROM gatepost.used_challenges
        WHERE used_at < clock_timestamp() - make_interval(secs => :lifetime)
        LIMIT :most FOR UPDATE SKIP LOCKED)) RETURNING 1
""")


async def sweep_challenges(connection: Connection, most: int, *, lifetime: float) -> int:
    """Delete up to ``most`` challenges that were used so many seconds ago; how many there were."""
    return len(await _SWEEP_CHALLENGES.all(connection, most=most, lifetime=lifetime))
