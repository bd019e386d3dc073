"""Proving who one is, in SQL: the further step of a login, and confirming a session."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gatepost.errors import (
    ConfirmationRequired,
    InvalidCode,
    LoginExpired,
    Unauthorized,
)
from gatepost.factors.passkeys import Signed
from gatepost.factors.queries import METHODS, Candidates, as_factor
from gatepost.factors.totp import Factor, Match
from gatepost.factors.vault import Sealed
from gatepost.postgres.database import Connection, Statement
from gatepost.security.throttle import TAKE, Bucket, Taken, given_back, judge, parameters
from gatepost.sessions.current_password import MINE, Current, Origin, decide
from gatepost.sessions.queries import Opened
from gatepost.sessions.session import User

# Tries that a ticket is worth.
TRIES = 5

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
    return Ticket(user_id, Candidates([as_factor(*row[-4:]) for row in rows if row[-4]], now)), taken


class Proof(NamedTuple):
    """What was given: the factor that a code fits, the hash of a recovery code, or a passkey that has signed; none of
    them for a code that fits nothing. ``language``: in which the owner is told of a recovery code that is
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
    return Candidates([as_factor(*row[-4:]) for row in rows if row[-4]], now), taken


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
