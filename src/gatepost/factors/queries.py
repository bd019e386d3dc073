"""One's own second factors in SQL: one function, one statement, one round trip. `proving_queries` has their use."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from typing_extensions import TypedDict

from gatepost.errors import (
    LastFactor,
    NoSecondFactor,
    NotFound,
    TooManyFactors,
)
from gatepost.factors.recovery_codes import Codes
from gatepost.factors.totp import Factor, Match
from gatepost.factors.vault import Sealed
from gatepost.mail.outbox.queries import told
from gatepost.postgres.database import Connection, Statement
from gatepost.sessions.current_password import Origin
from gatepost.sessions.session import timestamp

# TOTP factors of one user: each is one more code that a guess may hit.
MOST = 5
# How a code of an app, or a recovery code, proves who somebody is beside the password (RFC 8176).
METHODS = ["mfa", "otp"]


class FactorDocument(TypedDict):
    """A second factor, as its owner sees it. It counts once it is confirmed."""

    id: str
    kind: str
    name: str
    created_at: str
    confirmed_at: str | None
    last_used_at: str | None


class FactorsAnswer(TypedDict):
    """A user's second factors, and how many recovery codes are left."""

    factors: list[FactorDocument]
    recovery_codes: int


class Factors(NamedTuple):
    """A user's second factors, the oldest first, and how many recovery codes are left."""

    factors: list[FactorDocument]
    recovery_codes: int

    def document(self) -> FactorsAnswer:
        """As the API shows it."""
        return {"factors": self.factors, "recovery_codes": self.recovery_codes}


_FACTORS_OF = Statement("""
    SELECT (SELECT count(*) FROM gatepost.recovery_codes WHERE user_id = :user_id),
        f.id::text, f.name, f.created_at, f.confirmed_at, f.last_used_at
    FROM (VALUES (1)) AS always LEFT JOIN gatepost.totp_factors f ON f.user_id = :user_id ORDER BY f.created_at
""")


async def factors_of(connection: Connection, user_id: str) -> Factors:
    """A user's second factors, the oldest first."""
    rows = await _FACTORS_OF.all(connection, user_id=user_id)
    return Factors([_document(*row) for _, *row in rows if row[0] is not None], rows[0][0])


def _document(
    factor_id: str, name: str, created_at: datetime, confirmed_at: datetime | None, last_used_at: datetime | None
) -> FactorDocument:
    return {
        "id": factor_id,
        "kind": "totp",
        "name": name,
        "created_at": timestamp(created_at),
        "confirmed_at": timestamp(confirmed_at) if confirmed_at else None,
        "last_used_at": timestamp(last_used_at) if last_used_at else None,
    }


# One unconfirmed factor at a time: it takes the place of an earlier one.
_ADD = Statement("""
    WITH replaced AS (
        DELETE FROM gatepost.totp_factors WHERE user_id = :user_id AND confirmed_at IS NULL
    )
    INSERT INTO gatepost.totp_factors (user_id, name, sealed, key)
    SELECT :user_id, :name, :sealed, :key
    WHERE (SELECT count(*) FROM gatepost.totp_factors
           WHERE user_id = :user_id AND confirmed_at IS NOT NULL) < :most
    RETURNING id::text, name, created_at, confirmed_at, last_used_at
""")


async def add(connection: Connection, user_id: str, name: str, sealed: Sealed) -> FactorDocument:
    """Add a TOTP factor, which counts once it is confirmed. Raises TooManyFactors."""
    row = await _ADD.first(connection, user_id=user_id, name=name, sealed=sealed.text, key=sealed.key, most=MOST)
    if row is None:
        raise TooManyFactors
    return _document(*row)


_UNCONFIRMED = Statement("""
    SELECT id::text, sealed, key, last_step, extract(epoch FROM clock_timestamp())::float8
    FROM gatepost.totp_factors
    WHERE user_id = :user_id AND id = :factor_id AND confirmed_at IS NULL
        AND created_at > clock_timestamp() - interval '1 hour'
""")


class Candidates(NamedTuple):
    """Factors that a code may fit ``now``, in seconds since 1970 by the database's clock."""

    factors: list[Factor]
    now: float


async def unconfirmed(connection: Connection, user_id: str, factor_id: str) -> Candidates | None:
    """A factor that waits for its first code."""
    row = await _UNCONFIRMED.first(connection, user_id=user_id, factor_id=factor_id)
    return Candidates([as_factor(*row[:4])], row[4]) if row else None


def as_factor(factor_id: str, sealed: bytes, key: str | None, last_step: int) -> Factor:
    """A factor from its columns."""
    return Factor(factor_id, Sealed(bytes(sealed), key), last_step)


RAISED = """
    raised AS (
        UPDATE gatepost.sessions s SET confirmed_at = clock_timestamp(), amr = ARRAY(
            SELECT m FROM unnest(s.amr) AS m UNION SELECT m FROM unnest(CAST(:how AS text[])) AS m ORDER BY m)
        FROM confirmed c WHERE s.user_id = c.user_id AND s.handle = :handle
    )"""
"""A common table expression: the session of whoever has a row in ``confirmed`` has just been proved by ``how``."""

WITHOUT_THE_LAST = """
    without_codes AS (
        DELETE FROM gatepost.recovery_codes
        WHERE user_id IN (SELECT c.user_id FROM counted c, others o WHERE o.number = 0)
    ), without_tickets AS (
        DELETE FROM gatepost.login_tickets WHERE user_id IN (SELECT user_id FROM counted)
    )"""
"""Common table expressions: of whoever has a row in ``counted``, logins that wait for a second factor go; where
``others`` has none left, so do the recovery codes.
"""

# The first factor brings recovery codes with it. Whoever has confirmed it has given a code of it just now.
_CONFIRM = Statement(
    """
    WITH confirmed AS (
        UPDATE gatepost.totp_factors SET confirmed_at = clock_timestamp(), last_step = :step
        WHERE user_id = :user_id AND id = :factor_id AND confirmed_at IS NULL RETURNING *
    ), first_codes AS (
        INSERT INTO gatepost.recovery_codes (user_id, code_hash)
        SELECT c.user_id, h FROM confirmed c, unnest(CAST(:hashes AS bytea[])) AS h
        WHERE NOT EXISTS (SELECT FROM gatepost.recovery_codes r WHERE r.user_id = c.user_id)
        RETURNING 1
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'factor_added', user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent, '{"factor": "totp"}'
        FROM confirmed
    ), """
    + RAISED
    + ", "
    + told("factor_changed", "confirmed", """'{"change": "added"}'""")
    + """
    SELECT EXISTS (SELECT FROM first_codes), id::text, name, created_at, confirmed_at, last_used_at FROM confirmed
"""
)


async def confirm(
    connection: Connection, user_id: str, origin: Origin, *, match: Match, codes: Codes, language: str | None
) -> tuple[FactorDocument, bool]:
    """Let a factor count whose code was given; whether ``codes`` are its user's recovery codes now.

    The session is one of two factors from now on. Raises NotFound.
    """
    row = await _CONFIRM.first(
        connection,
        user_id=user_id,
        factor_id=match.factor.id,
        step=match.step,
        hashes=codes.hashes,
        how=METHODS,
        language=language,
        **origin._asdict(),
    )
    if row is None:
        raise NotFound
    has_codes, *columns = row
    return _document(*columns), has_codes


_REMOVE = Statement(
    """
    WITH others AS (
        SELECT (SELECT count(*) FROM gatepost.passkeys WHERE user_id = :user_id)
            + (SELECT count(*) FROM gatepost.totp_factors
               WHERE user_id = :user_id AND id <> :factor_id AND confirmed_at IS NOT NULL) AS number
    ), demanded AS (
        SELECT FROM gatepost.users u, others o
        WHERE u.id = :user_id AND u.roles && CAST(:two_factors_for AS text[]) AND o.number = 0
    ), removed AS (
        DELETE FROM gatepost.totp_factors
        WHERE user_id = :user_id AND id = :factor_id AND (confirmed_at IS NULL OR NOT EXISTS (SELECT FROM demanded))
        RETURNING user_id, confirmed_at
    ), counted AS (
        SELECT user_id FROM removed WHERE confirmed_at IS NOT NULL
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent, detail)
        SELECT 'factor_removed', user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent,
            '{"factor": "totp"}' FROM counted
    ), """
    + WITHOUT_THE_LAST
    + ", "
    + told("factor_changed", "counted", """'{"change": "removed"}'""")
    + """
    SELECT EXISTS (SELECT FROM removed),
        EXISTS (SELECT FROM gatepost.totp_factors WHERE user_id = :user_id AND id = :factor_id)
"""
)


async def remove(
    connection: Connection,
    user_id: str,
    factor_id: str,
    origin: Origin,
    *,
    two_factors_for: Sequence[str],
    language: str | None,
) -> None:
    """Remove a factor, and tell its owner by mail in ``language``. Raises NotFound; LastFactor, for the only one of
    a user with one of the roles ``two_factors_for``.
    """
    row = await _REMOVE.first(
        connection,
        user_id=user_id,
        factor_id=factor_id,
        two_factors_for=list(two_factors_for),
        language=language,
        **origin._asdict(),
    )
    assert row is not None
    removed, there = row
    if not removed:
        raise LastFactor if there else NotFound


_NEW_CODES = Statement(
    """
    WITH mine AS (
        SELECT CAST(:user_id AS uuid) AS user_id WHERE gatepost.second_factors(:user_id) IS NOT NULL
    ), replaced AS (
        DELETE FROM gatepost.recovery_codes WHERE user_id IN (SELECT user_id FROM mine)
    ), made AS (
        INSERT INTO gatepost.recovery_codes (user_id, code_hash)
        SELECT user_id, h FROM mine, unnest(CAST(:hashes AS bytea[])) AS h
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        SELECT 'recovery_codes_created', user_id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent FROM mine
    ), """
    + told("factor_changed", "mine", """'{"change": "new_codes"}'""")
    + """
    SELECT user_id FROM mine
"""
)


async def replace_codes(
    connection: Connection, user_id: str, origin: Origin, codes: Codes, language: str | None
) -> None:
    """Let ``codes`` be the user's recovery codes, in place of earlier ones. Raises NoSecondFactor."""
    row = await _NEW_CODES.first(
        connection, user_id=user_id, hashes=codes.hashes, language=language, **origin._asdict()
    )
    if row is None:
        raise NoSecondFactor


# ---------------------------------------------------------------------------------- what the nodes tell

_TELL_ROLES = Statement("""
    WITH named AS (
        SELECT 'two_factors:' || r AS name FROM unnest(CAST(:roles AS text[])) AS r
    ), gone AS (
        DELETE FROM gatepost.settings WHERE name ^@ 'two_factors:' AND name NOT IN (SELECT name FROM named)
    )
    INSERT INTO gatepost.settings (name, value) SELECT name, 1 FROM named ON CONFLICT (name) DO NOTHING RETURNING 1
""")


async def tell_roles(connection: Connection, roles: Sequence[str]) -> None:
    """Let functions in the database know which roles demand two factors."""
    await _TELL_ROLES.all(connection, roles=list(roles))


_PERMITTED = Statement("""
    SELECT FROM gatepost.totp_factors, gatepost.recovery_codes, gatepost.login_tickets, gatepost.passkeys,
        gatepost.used_challenges LIMIT 0
""")


async def permitted(connection: Connection) -> None:
    """Raise NotPermitted where this role has not been granted what an earlier release did without."""
    await _PERMITTED.all(connection)


# ------------------------------------------------------------------------------------------------- sweeps

_SWEEP_TICKETS = Statement("""
    DELETE FROM gatepost.login_tickets WHERE ticket_hash = ANY (ARRAY(
        SELECT ticket_hash FROM gatepost.login_tickets WHERE expires_at < clock_timestamp()
        LIMIT :most FOR UPDATE SKIP LOCKED)) RETURNING 1
""")


async def sweep_tickets(connection: Connection, most: int) -> int:
    """Delete up to ``most`` tickets that have expired; how many there were."""
    return len(await _SWEEP_TICKETS.all(connection, most=most))


_SWEEP_UNCONFIRMED = Statement("""
    DELETE FROM gatepost.totp_factors WHERE id = ANY (ARRAY(
        SELECT id FROM gatepost.totp_factors
        WHERE confirmed_at IS NULL AND created_at < clock_timestamp() - interval '1 hour'
        LIMIT :most FOR UPDATE SKIP LOCKED)) RETURNING 1
""")


async def sweep_unconfirmed(connection: Connection, most: int) -> int:
    """Delete up to ``most`` factors that nobody has confirmed; how many there were."""
    return len(await _SWEEP_UNCONFIRMED.all(connection, most=most))
