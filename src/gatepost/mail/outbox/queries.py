"""The outbox in SQL: one function, one statement, one round trip."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from gatepost.mail.codes import Code
from gatepost.postgres.database import Connection, Statement
from gatepost.security.throttle import TAKE, Bucket, judge, parameters

# ----------------------------------------------------------------------------------------------- queueing


def told(
    notice: Literal["password_changed", "password_recovered", "factor_changed"], users: str, detail: str = "'{}'"
) -> str:
    """A common table expression that queues a notice to every verified address of the users in ``users``.

    ``users``: a common table expression with a column ``user_id``. ``detail``: SQL, for the template. The statement
    has a parameter ``language``, which is None where no mail is sent.
    """
    return f"""
    told AS (
        INSERT INTO gatepost.outbox (kind, user_id, address, language, detail)
        SELECT '{notice}', e.user_id, e.address, CAST(:language AS text), CAST({detail} AS jsonb)
        FROM {users} AS w JOIN gatepost.emails e ON e.user_id = w.user_id AND e.verified_at IS NOT NULL
        WHERE CAST(:language AS text) IS NOT NULL
    )"""


_QUEUE_RECOVERY = Statement("""
    INSERT INTO gatepost.outbox (kind, language, detail)
    VALUES ('recovery', :language, CAST(:detail AS jsonb)) RETURNING id
""")


async def queue_recovery(connection: Connection, name: str, address: str | None, language: str) -> None:
    """Queue the mail to whoever is called so, or has this verified address. Whether there is one is looked up by the
    sender, so that the request takes the same time for all.
    """
    detail = json.dumps({"name": name, "address": address})
    await _QUEUE_RECOVERY.all(connection, language=language, detail=detail)


# ------------------------------------------------------------------------------------------------ sending


class Mail(NamedTuple):
    """A mail that is due. ``user_id`` and ``address`` are None for a recovery, until it is looked up."""

    id: str
    kind: str
    user_id: str | None
    email_id: str | None
    address: str | None
    language: str
    detail: dict[str, Any]
    created_at: datetime
    tries: int
    username: str | None
    epoch: int | None

    @property
    def recipient(self) -> "Recipient | None":
        """Who it is for; None while that is not known."""
        if self.user_id is None or self.username is None or self.epoch is None or self.address is None:
            return None
        return Recipient(self.user_id, self.username, self.epoch, self.email_id, self.address)


# By age of what is due, as the index has it. Whoever takes a mail puts it off for as long as sending may take.
_TAKE_DUE = Statement("""
    WITH due AS (
        SELECT id FROM gatepost.outbox WHERE due_at <= clock_timestamp() ORDER BY due_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE gatepost.outbox o SET due_at = clock_timestamp() + make_interval(secs => :lease), tries = tries + 1
        FROM due WHERE o.id = due.id RETURNING o.*
    )
    SELECT t.id::text, t.kind, t.user_id::text, t.email_id::text, t.address, t.language, t.detail, t.created_at,
        t.tries, u.username, u.epoch
    FROM taken t LEFT JOIN gatepost.users u ON u.id = t.user_id
""")


async def take_due(connection: Connection, *, most: int, lease: float) -> list[Mail]:
    """Mails that are due, for this process alone for ``lease`` seconds."""
    return [Mail(*row) for row in await _TAKE_DUE.all(connection, most=most, lease=lease)]


class Recipient(NamedTuple):
    """Who a mail is for. ``subject``: what a typed code is bound to."""

    user_id: str
    username: str
    epoch: int
    email_id: str | None
    address: str


# A user of this name comes before one with this address, as for a login.
_FIND_RECOVERED = Statement("""
    WITH named AS (
        SELECT u.id FROM gatepost.users u WHERE u.canonical = :name
    ), found AS (
        SELECT e.user_id, e.id, e.address, e.canonical
        FROM gatepost.emails e JOIN named n ON n.id = e.user_id WHERE e.is_primary
        UNION ALL
        SELECT e.user_id, e.id, e.address, e.canonical
        FROM gatepost.emails e
        WHERE e.canonical = CAST(:address AS text) AND e.verified_at IS NOT NULL AND NOT EXISTS (SELECT FROM named)
    )
    SELECT u.id::text, u.username, u.epoch, f.id::text, f.address, f.canonical
    FROM found f JOIN gatepost.users u ON u.id = f.user_id WHERE u.disabled_at IS NULL
""")


async def find_recovered(connection: Connection, name: str, address: str | None) -> tuple[Recipient, str] | None:
    """Who asks for a way back, and the address in canonical form; None for a user who is not found, is disabled or
    has no verified address.
    """
    row = await _FIND_RECOVERED.first(connection, name=name, address=address)
    return (Recipient(*row[:5]), row[5]) if row else None


_KEEP_CODE = Statement("""
    INSERT INTO gatepost.codes (purpose, user_id, email_id, address, since, epoch, link_hash, typed_hash, expires_at)
    SELECT :purpose, id, CAST(:email_id AS uuid), CAST(:address AS text), CAST(:since AS timestamptz), :epoch,
        :link_hash, :typed_hash,
        clock_timestamp() + make_interval(secs => :lifetime)
    FROM gatepost.users WHERE id = :user_id FOR KEY SHARE
    RETURNING id
""")


async def keep_code(
    connection: Connection, purpose: str, to: Recipient, code: Code, *, lifetime: int, since: str | None, typed: bool
) -> None:
    """Let this code be redeemed for ``lifetime`` seconds; with ``typed``, also the short one that is typed.
    ``since``: of an undo, when the address was verified.
    """
    undo = purpose == "undo_email"
    await _KEEP_CODE.all(
        connection,
        purpose=purpose,
        user_id=to.user_id,
        # The address that is brought back may be deleted by then.
        email_id=None if undo else to.email_id,
        address=to.address if undo else None,
        since=since,
        epoch=to.epoch,
        link_hash=code.link_hash,
        typed_hash=code.typed_hash if typed else None,
        lifetime=lifetime,
    )


_KEEP_RECOVERY = Statement(f"""
    WITH t AS (
        SELECT * FROM {TAKE} WHERE NOT CAST(:counted AS boolean)
    ), counted AS (
        UPDATE gatepost.outbox SET detail = detail || '{{"counted": true}}'
        WHERE id = :id AND EXISTS (SELECT FROM t WHERE t.refusing IS NULL)
    ), kept AS (
        INSERT INTO gatepost.codes (purpose, user_id, email_id, epoch, link_hash, typed_hash, expires_at)
        SELECT 'recovery', id, :email_id, :epoch, :link_hash, :typed_hash,
            clock_timestamp() + make_interval(secs => :lifetime)
        FROM (SELECT id FROM gatepost.users WHERE id = :user_id FOR KEY SHARE) AS u
        WHERE NOT EXISTS (SELECT FROM t WHERE t.refusing IS NOT NULL)
    )
    SELECT * FROM t
""")


async def keep_recovery(
    connection: Connection, mail: Mail, to: Recipient, code: Code, bucket: Bucket, *, lifetime: int
) -> None:
    """`keep_code`, and count the mail: once, however often it is tried. Raises TooManyAttempts."""
    row = await _KEEP_RECOVERY.first(
        connection,
        id=mail.id,
        counted=mail.detail.get("counted", False),
        user_id=to.user_id,
        email_id=to.email_id,
        epoch=to.epoch,
        link_hash=code.link_hash,
        typed_hash=code.typed_hash,
        lifetime=lifetime,
        **parameters([bucket]),
    )
    if row:
        judge([bucket], row)


_DONE = Statement("DELETE FROM gatepost.outbox WHERE id = ANY (CAST(:ids AS uuid[])) RETURNING id")


async def done(connection: Connection, ids: Sequence[str]) -> None:
    """These mails have been accepted, or have nobody to go to."""
    await _DONE.all(connection, ids=list(ids))


_PUT_OFF = Statement("""
    UPDATE gatepost.outbox SET due_at = clock_timestamp() + make_interval(secs => :seconds),
        tries = tries - CAST(:tries AS integer), error = :error
    WHERE id = ANY (CAST(:ids AS uuid[])) RETURNING id
""")


async def put_off(connection: Connection, ids: Sequence[str], seconds: float, error: str, *, tried: bool) -> None:
    """Try these mails again in so many seconds. ``tried``: whether it was the mail that was refused, and not the
    server that was away.
    """
    await _PUT_OFF.all(connection, ids=list(ids), seconds=seconds, error=error[:500], tries=0 if tried else 1)


_GIVE_UP = Statement("""
    WITH gone AS (
        DELETE FROM gatepost.outbox WHERE id = :id RETURNING user_id, kind, tries
    )
    INSERT INTO gatepost.events (kind, user_id, detail)
    SELECT 'mail_given_up', user_id, jsonb_build_object('mail', kind, 'tries', tries, 'error', CAST(:error AS text))
    FROM gone RETURNING id
""")


async def give_up(connection: Connection, mail_id: str, error: str) -> None:
    """This mail has been tried for long enough; record that it was not delivered."""
    await _GIVE_UP.all(connection, id=mail_id, error=error[:500])


# ------------------------------------------------------------------------------------------- looking at it


class Waiting(NamedTuple):
    """A mail in the outbox, as operators see it."""

    id: str
    kind: str
    address: str | None
    created_at: datetime
    due_at: datetime
    tries: int
    error: str | None


_WAITING = Statement("""
    SELECT id::text, kind, address, created_at, due_at, tries, error
    FROM gatepost.outbox ORDER BY created_at LIMIT :most
""")


async def waiting(connection: Connection, most: int) -> list[Waiting]:
    """The oldest mails that wait."""
    return [Waiting(*row) for row in await _WAITING.all(connection, most=most)]


_STATE = Statement("""
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0) FROM gatepost.outbox
""")


async def state(connection: Connection) -> tuple[int, float]:
    """How many mails wait, and the age of the oldest in seconds."""
    row = await _STATE.first(connection)
    assert row is not None
    return int(row[0]), float(row[1])
