"""Second factors in SQL: one function, one statement, one round trip."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from gatepost.errors import (
    ConfirmationRequired,
    InvalidCode,
    LastFactor,
    LoginExpired,
    NoSecondFactor,
    NotFound,
    TooManyFactors,
    Unauthorized,
)
from gatepost.factors.passkeys import Signed
from gatepost.factors.recovery_codes import Codes
from gatepost.factors.totp import Factor, Match
from gatepost.factors.vault import Sealed
from gatepost.mail.outbox.queries import told
from gatepost.postgres.database import Connection, Statement
from gatepost.security.throttle import TAKE, Bucket, Taken, given_back, judge, parameters
from gatepost.sessions.current_password import MINE, Current, Origin, decide
from gatepost.sessions.queries import Opened
from gatepost.sessions.session import User, timestamp

# TOTP factors of one user: each is one more code that a guess may hit.
MOST = 5
# How a code of an app, or a recovery code, proves who somebody is beside the password (RFC 8176).
METHODS = ["mfa", "otp"]
# Tries that a ticket is worth.
TRIES = 5

# ---------------------------------------------------------------------------------------------- one's own


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
    return Candidates([_factor(*row[:4])], row[4]) if row else None


def _factor(factor_id: str, sealed: bytes, key: str | None, last_step: int) -> Factor:
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


# ----------------------------------------------------------------------------------- the step of a login

_FIND_TICKET = Statement(f"""
    WITH t AS (
        SELECT * FROM {TAKE}
    ), tried AS (
        UPDATE gatepost.login_tickets SET tries = tries + 1
        WHERE ticket_hash = :ticket AND tries < :tries AND expires_at > clock_timestamp()
            AND (SELECT refusing FROM t) IS NULL
        RETURNING user_id
    )
    SELECT t.*, extract(epoch FROM clock_timestamp())::float8, tried.user_id::text,
        f.id::text, f.sealed, f.key, f.last_step
    FROM t LEFT JOIN tried ON true
        LEFT JOIN gatepost.totp_factors f ON f.user_id = tried.user_id AND f.confirmed_at IS NOT NULL
""")


class Ticket(NamedTuple):
    """A login that waits for its further step: whose, and what a code may fit."""

    user_id: str
    candidates: Candidates


async def find_ticket(connection: Connection, ticket: bytes, buckets: Sequence[Bucket]) -> tuple[Ticket, Taken]:
    """Take from the throttles, and one of the tries that the ticket with this hash is worth: one round trip.

    May run twice, as `throttle.take` says: that costs another try. Raises TooManyAttempts, LoginExpired.
    """
    rows = await _FIND_TICKET.all(connection, ticket=ticket, tries=TRIES, **parameters(buckets))
    taken, (now, user_id, *_) = judge(buckets, rows[0])
    if user_id is None:
        raise LoginExpired
    return Ticket(user_id, Candidates([_factor(*row[-4:]) for row in rows if row[-4]], now)), taken


class Proof(NamedTuple):
    """What was given turned out to be: the factor that a code fits, the hash of a recovery code, or a passkey that
    has signed; none of them, if it fits nothing. ``language``: in which the owner is told of a recovery code that is
    used; None where no mail is sent.
    """

    match: Match | None = None
    recovery: bytes | None = None
    signed: Signed | None = None
    language: str | None = None

    @property
    def methods(self) -> list[str]:
        """How it proves who somebody is (RFC 8176)."""
        return self.signed.methods if self.signed else METHODS

    def parameters(self) -> dict[str, Any]:
        """For a statement that calls ``gatepost.prove``."""
        return {
            "factor": self.match.factor.id if self.match else None,
            "step": self.match.step if self.match else None,
            "recovery": self.recovery,
            "passkey": self.signed.passkey.id if self.signed else None,
            "counter": self.signed.counter if self.signed else None,
            "challenge": self.signed.challenge if self.signed else None,
            "language": self.language,
        }


_FINISH_LOGIN = Statement("""
    SELECT * FROM gatepost.finish_login(:ticket, CAST(:factor AS uuid), CAST(:step AS bigint), :recovery,
        CAST(:passkey AS uuid), CAST(:counter AS bigint), :challenge, :language, CAST(:how AS text[]),
        :token_hash, :lifetime, :max_per_user, CAST(:ip AS inet), :user_agent, :place,
        :guesses, :guesses_burst, :guesses_every, CAST(:taken AS bytea[]), CAST(:taken_everys AS float8[]))
""")


class Finish(NamedTuple):
    """The further step of a login, to be decided. If it is won, ``place`` is remembered and ``taken`` given back;
    otherwise one is taken from ``guesses``.
    """

    ticket: bytes
    proof: Proof
    token_hash: bytes
    guesses: Bucket
    ip: str | None
    user_agent: str | None
    place: bytes | None
    taken: Taken


async def finish_login(connection: Connection, finish: Finish, *, lifetime: int, max_per_user: int) -> Opened:
    """Open the session, if the proof holds. ``lifetime`` in seconds.

    Raises InvalidCode, LoginExpired, TooManyAttempts.
    """
    row = await _FINISH_LOGIN.first(
        connection,
        ticket=finish.ticket,
        token_hash=finish.token_hash,
        lifetime=lifetime,
        max_per_user=max_per_user,
        ip=finish.ip,
        user_agent=finish.user_agent,
        place=finish.place,
        guesses=finish.guesses.key,
        guesses_burst=finish.guesses.limit.burst,
        guesses_every=finish.guesses.limit.every,
        how=sorted({"pwd", *finish.proof.methods}),
        **finish.proof.parameters(),
        **finish.taken.parameters(),
    )
    assert row is not None
    alive, refusing, expires_at, *user = row
    if not alive:
        raise LoginExpired
    if refusing is not None:
        raise finish.guesses.limit.refusal(refusing)
    if expires_at is None:
        raise InvalidCode
    return Opened(User(*user), expires_at)


# The old text is compared: the secret may have been sealed anew meanwhile.
_RESEAL = Statement("""
    UPDATE gatepost.totp_factors SET sealed = :sealed, key = :key WHERE id = :id AND sealed = :old RETURNING 1
""")


async def reseal(connection: Connection, factor: Factor, sealed: Sealed) -> None:
    """Keep a factor's secret under another key."""
    await _RESEAL.all(connection, id=factor.id, old=factor.sealed.text, sealed=sealed.text, key=sealed.key)


# ------------------------------------------------------------------------------------------- confirmation

_CANDIDATES = Statement(f"""
    WITH t AS (
        SELECT * FROM {TAKE}
    )
    SELECT t.*, extract(epoch FROM clock_timestamp())::float8, f.id::text, f.sealed, f.key, f.last_step
    FROM t LEFT JOIN gatepost.totp_factors f ON f.user_id = :user_id AND f.confirmed_at IS NOT NULL
""")


async def find_candidates(
    connection: Connection, user_id: str, buckets: Sequence[Bucket]
) -> tuple[Candidates, Taken]:
    """Take from the throttles, and what a code of this user may fit. Raises TooManyAttempts."""
    rows = await _CANDIDATES.all(connection, user_id=user_id, **parameters(buckets))
    taken, (now, *_) = judge(buckets, rows[0])
    return Candidates([_factor(*row[-4:]) for row in rows if row[-4]], now), taken


_CONFIRM_SESSION = Statement(
    """
    WITH c AS (
        SELECT * FROM gatepost.confirm_session(:user_id, :handle, CAST(:factor AS uuid), CAST(:step AS bigint),
            :recovery, CAST(:passkey AS uuid), CAST(:counter AS bigint), :challenge, :language,
            CAST(:how AS text[]), CAST(:ip AS inet), :user_agent)
    ), """
    + given_back("c WHERE c.confirmed_at IS NOT NULL")
    + """
    SELECT alive, confirmed_at FROM c
"""
)


async def confirm_session(
    connection: Connection, user_id: str, origin: Origin, proof: Proof, taken: Taken
) -> datetime:
    """Note that the session's user has proved who it is; when. Raises Unauthorized, InvalidCode."""
    row = await _CONFIRM_SESSION.first(
        connection,
        user_id=user_id,
        how=proof.methods,
        **origin._asdict(),
        **proof.parameters(),
        **taken.parameters(),
    )
    assert row is not None
    alive, confirmed_at = row
    if not alive:
        raise Unauthorized
    if confirmed_at is None:
        raise InvalidCode
    moment: datetime = confirmed_at
    return moment


_CONFIRM_BY_PASSWORD = Statement(
    MINE
    + """
    confirmed AS (
        UPDATE gatepost.sessions s SET confirmed_at = clock_timestamp() FROM mine m
        WHERE m.matches AND NOT m.has_factor AND s.user_id = m.id AND s.handle = :handle
        RETURNING s.user_id, s.confirmed_at
    ), """
    + given_back("confirmed")
    + """, recorded AS (
        INSERT INTO gatepost.events (kind, user_id, session_handle, ip, user_agent)
        SELECT CASE WHEN matches THEN 'session_confirmed' ELSE 'authn_password_change_fail' END,
            id, CAST(:handle AS uuid), CAST(:ip AS inet), :user_agent
        FROM mine WHERE unchanged AND NOT has_factor
    )
    SELECT NOT mine.has_factor, mine.unchanged, mine.matches, c.confirmed_at FROM mine LEFT JOIN confirmed c ON true
"""
)


async def confirm_by_password(connection: Connection, user_id: str, origin: Origin, current: Current) -> datetime:
    """Note that the session's user has given the password again; when.

    Raises WrongPassword, Unauthorized, SettingChanged; ConfirmationRequired for a user with a second factor.
    """
    row = await _CONFIRM_BY_PASSWORD.first(connection, id=user_id, **current.parameters(), **origin._asdict())
    try:
        (moment,) = decide(row)
    except ConfirmationRequired:
        raise ConfirmationRequired("The password is not enough: confirm with your second factor.") from None
    confirmed_at: datetime = moment
    return confirmed_at


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
