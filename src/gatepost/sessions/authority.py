"""Whether a caller may still act, in SQL: asked in the transaction that acts, and true until it ends."""

from gatepost.errors import Forbidden, Unauthorized
from gatepost.postgres.database import Connection, Statement
from gatepost.sessions.session import Session

# Whatever takes the authority away changes one of these rows. It commits before the last statement here, which then
# sees it, or waits for this transaction. Users are locked in the order of their ids, so that two administrators who
# act on each other do not deadlock.
_STILL = Statement("""
    SELECT FROM gatepost.users WHERE id IN (:user_id, :other) ORDER BY id FOR NO KEY UPDATE;
    SELECT FROM gatepost.sessions WHERE token_hash = :token_hash FOR KEY SHARE;

    SELECT u.roles, CASE WHEN 'mfa' = ANY (s.amr) OR gatepost.second_factors(u.id) IS NULL
        THEN date_part('epoch', clock_timestamp() - coalesce(s.confirmed_at, s.created_at)) ELSE 'infinity' END
    FROM gatepost.sessions s JOIN gatepost.users u ON u.id = s.user_id AND u.epoch = s.epoch
    WHERE s.token_hash = :token_hash AND u.id = :user_id AND u.disabled_at IS NULL
        AND s.expires_at > clock_timestamp()
        AND s.last_seen_at > clock_timestamp() - make_interval(secs => :idle_timeout)
""")


async def demand(
    connection: Connection,
    session: Session,
    idle_timeout: int,
    *,
    role: str | None = None,
    on: str | None = None,
) -> float:
    """Let nobody take the caller's session or ``role`` away until the transaction ends.

    ``on``: the id of the user who is acted on, whose row is locked as well. ``idle_timeout`` in seconds. Returns the
    seconds since the caller has last proved who it is: infinite for a user with a second factor whose session was
    opened before there was one. Raises Unauthorized when the session has ended since it was looked up, Forbidden when
    the role is gone.
    """
    row = await _STILL.first(
        connection,
        user_id=session.user_id,
        other=on or session.user_id,
        token_hash=session.token_hash,
        idle_timeout=idle_timeout,
    )
    if row is None:
        raise Unauthorized
    if role is not None and role not in row[0]:
        raise Forbidden
    return float(row[1])
