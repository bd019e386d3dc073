"""Mail addresses in SQL."""

from datetime import datetime
from typing import NamedTuple

from typing_extensions import TypedDict

from gatepost.errors import EmailTaken, InvalidCode, NotFound, TooManyEmails
from gatepost.postgres.database import Connection, Statement, naming
from gatepost.security.email import Address
from gatepost.security.throttle import given_back
from gatepost.sessions.current_password import MINE, Current, Origin, decide
from gatepost.sessions.session import timestamp

# Addresses of one user, unverified ones too: private, at work, an old one.
MOST = 10


class EmailDocument(TypedDict):
    """A mail address, as its owner sees it."""

    id: str
    address: str
    primary: bool
    verified_at: str | None
    created_at: str


class Email(NamedTuple):
    """A row about an address."""

    id: str
    address: str
    is_primary: bool
    verified_at: datetime | None
    created_at: datetime

    def document(self) -> EmailDocument:
        """As the API shows it."""
        return {
            "id": self.id,
            "address": self.address,
            "primary": self.is_primary,
            "verified_at": timestamp(self.verified_at) if self.verified_at else None,
            "created_at": timestamp(self.created_at),
        }


_COLUMNS = "id::text, address, is_primary, verified_at, created_at"

_EMAILS_OF = Statement(f"""
    SELECT {_COLUMNS} FROM gatepost.emails WHERE user_id = :user_id ORDER BY is_primary DESC, created_at, id
""")


async def emails_of(connection: Connection, user_id: str) -> list[Email]:
    """A user's addresses, the primary one first."""
    return [Email(*row) for row in await _EMAILS_OF.all(connection, user_id=user_id)]


_RECORDED = """
    recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        SELECT {kind}, user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent FROM {source}
    )"""


# ------------------------------------------------------------------------------------------------- adding


def claimed(users: str) -> str:
    """Common table expressions that claim an address for the user in ``users`` and queue its code. Claimed again, an
    unverified address gets another code. Parameters: ``address``, ``canonical_address``, ``language``.
    """
    return f"""
    email AS (
        INSERT INTO gatepost.emails AS e (user_id, address, canonical)
        SELECT w.id, :address, :canonical_address FROM {users} AS w
        WHERE {MOST} > (
            SELECT count(*) FROM gatepost.emails o WHERE o.user_id = w.id AND o.canonical <> :canonical_address)
        ON CONFLICT (user_id, canonical) DO UPDATE SET
            address = CASE WHEN e.verified_at IS NULL THEN excluded.address ELSE e.address END,
            created_at = CASE WHEN e.verified_at IS NULL THEN clock_timestamp() ELSE e.created_at END
        RETURNING id, user_id, address, is_primary, verified_at, created_at
    ), queued AS (
        INSERT INTO gatepost.outbox (kind, user_id, email_id, address, language)
        SELECT 'verify_email', user_id, id, address, :language FROM email WHERE verified_at IS NULL
    )"""


_ADD = Statement(
    MINE
    + f"{claimed('(SELECT id FROM mine WHERE matches)')}, "
    + given_back("mine WHERE matches")
    + ", "
    + """recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        SELECT 'email_added', user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent FROM email
        UNION ALL
        SELECT 'authn_password_change_fail', id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent
        FROM mine WHERE unchanged AND confirmed AND NOT matches
    )
    SELECT mine.confirmed, mine.unchanged, mine.matches,
        e.id::text, e.address, e.is_primary, e.verified_at, e.created_at
    FROM mine LEFT JOIN email e ON true
"""
)


async def add(
    connection: Connection, user_id: str, origin: Origin, *, current: Current, address: Address, language: str
) -> Email:
    """Claim an address for a user, and queue the mail with its code.

    Raises WrongPassword, Unauthorized, SettingChanged, TooManyEmails.
    """
    row = await _ADD.first(
        connection,
        id=user_id,
        address=address.written,
        canonical_address=address.canonical,
        language=language,
        **current.parameters(),
        **origin._asdict(),
    )
    email_id, *rest = decide(row)
    if email_id is None:
        raise TooManyEmails
    return Email(email_id, *rest)


# ----------------------------------------------------------------------------------------------- changing

# Whoever has stolen a session or a password adds an address of their own, and may then use it. The change is told to
# those that were verified before; what is told can be undone, so a thief's address must not be among them. The last
# of a user's addresses is told of its own removal.
_TOLD = """
    told AS (
        INSERT INTO gatepost.outbox (kind, user_id, address, language, detail)
        SELECT 'email_changed', e.user_id, e.address, :language,
            jsonb_build_object('change', CAST(:change AS text), 'address', w.address, 'since', e.verified_at)
        FROM {changed} AS w JOIN gatepost.emails e ON e.user_id = w.user_id AND e.verified_at IS NOT NULL
        WHERE e.verified_at < coalesce(w.verified_at, 'infinity')
            OR (e.id = w.id AND CAST(:change AS text) = 'removed' AND NOT EXISTS (
                SELECT FROM gatepost.emails o WHERE o.user_id = e.user_id AND o.verified_at < e.verified_at))
    )"""

_VERIFY = Statement(f"""
    WITH code AS (
        DELETE FROM gatepost.codes c USING gatepost.users u
        WHERE c.purpose = 'verify_email' AND (c.link_hash = :code_hash OR c.typed_hash = :code_hash)
            AND c.email_id::text = :email_id AND c.user_id = :user_id AND c.expires_at > clock_timestamp()
            AND u.id = c.user_id AND u.epoch = c.epoch
        RETURNING c.email_id
    ), claimed AS (
        SELECT e.id, e.user_id, e.address, CAST(NULL AS timestamptz) AS verified_at
        FROM gatepost.emails e JOIN code c ON c.email_id = e.id WHERE e.verified_at IS NULL
    ), verified AS (
        UPDATE gatepost.emails e SET verified_at = coalesce(e.verified_at, clock_timestamp()),
            is_primary = e.is_primary OR NOT EXISTS (
                SELECT FROM gatepost.emails p WHERE p.user_id = :user_id AND p.is_primary)
        FROM code c WHERE e.id = c.email_id
        RETURNING e.id, e.user_id, e.address, e.is_primary, e.verified_at, e.created_at
    ), {_TOLD.format(changed="claimed")}, {_RECORDED.format(kind="'email_verified'", source="verified")}
    SELECT {_COLUMNS} FROM verified
""")


async def verify(
    connection: Connection, user_id: str, email_id: str, origin: Origin, *, code_hash: bytes, language: str
) -> Email:
    """A code that was mailed to this address proves that it is this user's. Raises InvalidCode, EmailTaken."""
    with naming({"emails_verified_key": EmailTaken}):
        row = await _VERIFY.first(
            connection,
            user_id=user_id,
            email_id=email_id,
            code_hash=code_hash,
            language=language,
            change="added",
            **origin._asdict(),
        )
    if row is None:
        raise InvalidCode
    return Email(*row)


# First the one and then the other: an index on (user_id) WHERE is_primary admits no two at any moment.
_MAKE_PRIMARY = Statement(f"""
    UPDATE gatepost.emails e SET is_primary = false
    WHERE e.user_id = :user_id AND e.is_primary AND e.id::text <> :email_id AND EXISTS (
        SELECT FROM gatepost.emails w
        WHERE w.id::text = :email_id AND w.user_id = :user_id AND w.verified_at IS NOT NULL);

    WITH wanted AS (
        SELECT id, user_id, address, verified_at FROM gatepost.emails
        WHERE user_id = :user_id AND id::text = :email_id AND verified_at IS NOT NULL AND NOT is_primary
    ), changed AS (
        UPDATE gatepost.emails e SET is_primary = true FROM wanted w WHERE e.id = w.id RETURNING e.user_id
    ), {_TOLD.format(changed="wanted")}, {_RECORDED.format(kind="'email_primary_changed'", source="changed")}
    SELECT {_COLUMNS.replace("is_primary", "true")} FROM gatepost.emails
    WHERE user_id = :user_id AND id::text = :email_id AND verified_at IS NOT NULL
""")


async def make_primary(connection: Connection, user_id: str, email_id: str, origin: Origin, language: str) -> Email:
    """Let mail go to this verified address. Raises NotFound."""
    row = await _MAKE_PRIMARY.first(
        connection, user_id=user_id, email_id=email_id, language=language, change="primary", **origin._asdict()
    )
    if row is None:
        raise NotFound
    return Email(*row)


# Without a primary address, the one that was verified first takes its place.
_REMOVE = Statement(f"""
    WITH gone AS (
        DELETE FROM gatepost.emails WHERE user_id = :user_id AND id::text = :email_id
        RETURNING id, user_id, address, verified_at, is_primary
    ), verified AS (
        SELECT * FROM gone WHERE verified_at IS NOT NULL
    ), {_TOLD.format(changed="verified")}, {_RECORDED.format(kind="'email_removed'", source="gone")}
    SELECT is_primary FROM gone
""")
_NEXT_PRIMARY = Statement("""
    UPDATE gatepost.emails SET is_primary = true WHERE id = (
        SELECT id FROM gatepost.emails WHERE user_id = :user_id AND verified_at IS NOT NULL
        ORDER BY verified_at, id LIMIT 1)
    RETURNING id
""")


async def remove(connection: Connection, user_id: str, email_id: str, origin: Origin, language: str) -> None:
    """Remove an address; within a transaction. Raises NotFound."""
    row = await _REMOVE.first(
        connection, user_id=user_id, email_id=email_id, language=language, change="removed", **origin._asdict()
    )
    if row is None:
        raise NotFound
    if row[0]:
        await _NEXT_PRIMARY.all(connection, user_id=user_id)


# ------------------------------------------------------------------------------------------------ undoing

# Whoever changed the addresses may know the password: it goes too, and with it all sessions, and every address that
# was verified after the one that this brings back: it may be a thief's. The way back is the mail to that one.
_SPEND_UNDO = Statement("""
    SELECT FROM gatepost.users WHERE id = (SELECT user_id FROM gatepost.codes WHERE link_hash = :code_hash)
    FOR NO KEY UPDATE;

    WITH code AS (
        DELETE FROM gatepost.codes
        WHERE link_hash = :code_hash AND purpose = 'undo_email' AND expires_at > clock_timestamp()
        RETURNING user_id, address, since
    ), bumped AS (
        UPDATE gatepost.users u SET epoch = u.epoch + 1 FROM code c WHERE u.id = c.user_id
    ), closed AS (
        DELETE FROM gatepost.passwords p USING code c WHERE p.user_id = c.user_id
    ), mistrusted AS (
        DELETE FROM gatepost.known_places k USING code c WHERE k.user_id = c.user_id
    ), ended AS (
        DELETE FROM gatepost.sessions s USING code c WHERE s.user_id = c.user_id RETURNING s.user_id, s.handle
    ), younger AS (
        DELETE FROM gatepost.emails e USING code c
        WHERE e.user_id = c.user_id AND e.canonical <> lower(c.address)
            AND (e.verified_at IS NULL OR e.verified_at > c.since)
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'email_changes_undone', user_id, CAST(NULL AS uuid), CAST(:ip AS inet), :user_agent, '{}'::jsonb
        FROM code
        UNION ALL
        SELECT 'session_revoked', user_id, handle, CAST(:ip AS inet), :user_agent,
            '{"reason": "email_changes_undone"}' FROM ended
    )
    SELECT user_id::text, address, since FROM code
""")
_BRING_BACK = Statement("""
    UPDATE gatepost.emails SET is_primary = false WHERE user_id = :user_id AND is_primary;

    WITH email AS (
        INSERT INTO gatepost.emails AS e (user_id, address, canonical, verified_at, is_primary)
        VALUES (:user_id, :address, lower(:address), :since, true)
        ON CONFLICT (user_id, canonical) DO UPDATE
        SET is_primary = true, verified_at = coalesce(e.verified_at, excluded.verified_at)
        RETURNING canonical
    )
    INSERT INTO gatepost.outbox (kind, language, detail)
    SELECT 'recovery', :language, jsonb_build_object('name', ' ', 'address', canonical) FROM email RETURNING id
""")


async def undo(
    connection: Connection, code_hash: bytes, *, ip: str | None, user_agent: str | None, language: str
) -> None:
    """Bring back the address that this code was mailed to, and close the account until a new password is chosen;
    within a transaction. Raises InvalidCode, and EmailTaken when the address is another user's by now.
    """
    row = await _SPEND_UNDO.first(connection, code_hash=code_hash, ip=ip, user_agent=user_agent)
    if row is None:
        raise InvalidCode
    with naming({"emails_verified_key": EmailTaken}):
        await _BRING_BACK.all(connection, user_id=row[0], address=row[1], since=row[2], language=language)


_PERMITTED = Statement("SELECT FROM gatepost.emails, gatepost.codes, gatepost.outbox LIMIT 0")


async def permitted(connection: Connection) -> None:
    """Raise NotPermitted where this role has not been granted what an earlier release did without."""
    await _PERMITTED.all(connection)


# ------------------------------------------------------------------------------------------------- sweeps

_SWEEP_UNVERIFIED = Statement("""
    DELETE FROM gatepost.emails WHERE id = ANY (ARRAY(
        SELECT id FROM gatepost.emails
        WHERE verified_at IS NULL AND created_at < clock_timestamp() - interval '1 day'
        LIMIT :most FOR UPDATE SKIP LOCKED)) RETURNING id
""")


async def sweep_unverified(connection: Connection, most: int) -> int:
    """Forget up to ``most`` addresses that nobody has verified within a day; how many."""
    return len(await _SWEEP_UNVERIFIED.all(connection, most=most))


_SWEEP_CODES = Statement("""
    DELETE FROM gatepost.codes WHERE id = ANY (ARRAY(
        SELECT id FROM gatepost.codes WHERE expires_at < clock_timestamp() LIMIT :most FOR UPDATE SKIP LOCKED))
    RETURNING id
""")


async def sweep_codes(connection: Connection, most: int) -> int:
    """Delete up to ``most`` codes that have expired; how many."""
    return len(await _SWEEP_CODES.all(connection, most=most))
