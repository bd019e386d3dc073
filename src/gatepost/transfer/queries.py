"""Importing and exporting in SQL, on a connection of its own (`postgres.blocking`)."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gatepost.http import strict_json
from gatepost.postgres.connection import is_pooled
from gatepost.security.credentials import Setting, Stored, foreign
from gatepost.security.credentials.limits import InvalidSetting
from gatepost.transfer.lines import Refusal
from gatepost.transfer.users import ImportedUser

_STAGE = """
    CREATE TEMPORARY TABLE incoming (
        line bigint, id uuid, username text, canonical text COLLATE "C", roles text[], profile jsonb,
        created timestamptz, disabled timestamptz, emails jsonb, setting text, digest bytea, norm text, pepper text
    ) ON COMMIT DELETE ROWS;
    CREATE TEMPORARY TABLE seen (canonical text COLLATE "C" PRIMARY KEY, id uuid UNIQUE, line bigint);
    CREATE TEMPORARY TABLE claimed (canonical text COLLATE "C" PRIMARY KEY, username text);
"""
_COPY = "COPY pg_temp.incoming FROM STDIN (ENCODING 'UTF8')"
# Lines that claim a verified address of another user, or of an earlier line. `claimed` has those of earlier batches,
# which a dry run does not store.
_OF_ANOTHER = """
    WITH wanted AS (
        SELECT i.line, i.canonical AS username, e.canonical
        FROM pg_temp.incoming i, jsonb_to_recordset(i.emails) AS e (canonical text, verified boolean) WHERE e.verified
    )
    DELETE FROM pg_temp.incoming WHERE line IN (
        SELECT w.line FROM wanted w JOIN gatepost.emails e ON e.canonical = w.canonical AND e.verified_at IS NOT NULL
            JOIN gatepost.users u ON u.id = e.user_id WHERE u.canonical <> w.username
        UNION ALL
        SELECT w.line FROM wanted w JOIN wanted o ON o.canonical = w.canonical AND o.line < w.line
        UNION ALL
        SELECT w.line FROM wanted w JOIN pg_temp.claimed c USING (canonical)
    ) RETURNING line
"""
_CLAIM = """
    INSERT INTO pg_temp.claimed
    SELECT e.canonical, i.canonical
    FROM pg_temp.incoming i, jsonb_to_recordset(i.emails) AS e (canonical text, verified boolean) WHERE e.verified
    ON CONFLICT DO NOTHING
"""
# A user, the password, the addresses and the event are one statement. What was there before is left alone; its lines
# are returned. No two lines may have one id: they would be one user, with the password of either.
_ADD = """
    WITH account AS (
        INSERT INTO gatepost.users (id, username, canonical, roles, profile, created_at, disabled_at)
        SELECT id, username, canonical, roles, profile, coalesce(created, clock_timestamp()), disabled
        FROM pg_temp.incoming ORDER BY line ON CONFLICT DO NOTHING RETURNING id
    ), password AS (
        INSERT INTO gatepost.passwords (user_id, setting, digest, norm, pepper)
        SELECT id, setting, digest, norm, pepper FROM pg_temp.incoming JOIN account USING (id)
        WHERE setting IS NOT NULL
    ), email AS (
        INSERT INTO gatepost.emails (user_id, address, canonical, verified_at, is_primary)
        SELECT i.id, e.address, e.canonical, CASE WHEN e.verified THEN clock_timestamp() END,
            e.verified AND e.number = min(e.number) FILTER (WHERE e.verified) OVER (PARTITION BY i.id)
        FROM pg_temp.incoming i JOIN account USING (id), ROWS FROM (
            jsonb_to_recordset(i.emails) AS (address text, canonical text, verified boolean)
        ) WITH ORDINALITY AS e (address, canonical, verified, number)
        WHERE i.emails IS NOT NULL
    ), recorded AS (
        INSERT INTO gatepost.events (kind, user_id, detail)
        SELECT 'user_imported', id, jsonb_build_object('import', CAST(%(run)s AS text)) FROM account
    )
    SELECT line FROM pg_temp.incoming WHERE NOT EXISTS (SELECT FROM account WHERE account.id = incoming.id)
"""
_WHY_NOT = """
    SELECT i.line, u.id IS NULL, u.username = i.username, EXISTS (
        SELECT FROM gatepost.events e WHERE e.user_id = u.id AND e.kind = 'user_imported'
            AND e.detail ->> 'import' = %(run)s)
    FROM pg_temp.incoming i LEFT JOIN gatepost.users u ON u.canonical = i.canonical
    WHERE i.line = ANY (%(lines)s) ORDER BY i.line
"""
_TRY = """
    INSERT INTO pg_temp.seen SELECT canonical, id, line FROM pg_temp.incoming i
        WHERE NOT EXISTS (SELECT FROM gatepost.users u WHERE u.canonical = i.canonical)
            AND NOT EXISTS (SELECT FROM gatepost.users u WHERE u.id = i.id)
        ORDER BY line ON CONFLICT DO NOTHING;
    SELECT i.line, u.id IS NULL, u.username = i.username, s.line IS NOT NULL
    FROM pg_temp.incoming i LEFT JOIN pg_temp.seen s USING (canonical)
        LEFT JOIN gatepost.users u ON u.canonical = i.canonical
    WHERE s.line IS DISTINCT FROM i.line ORDER BY i.line
"""
_EXPORT = """
    SELECT u.id::text, u.username, u.roles, u.profile, u.created_at, u.disabled_at,
        (SELECT jsonb_agg(jsonb_build_object('address', e.address, 'verified', e.verified_at IS NOT NULL,
                'primary', e.is_primary) ORDER BY e.is_primary DESC, e.created_at, e.id)
            FROM gatepost.emails e WHERE e.user_id = u.id),
        p.setting, p.digest, p.norm, p.pepper
    FROM gatepost.users u LEFT JOIN gatepost.passwords p ON p.user_id = u.id ORDER BY u.canonical
"""


class Pooled(Exception):
    """A pooler stands before the database; the message says what to do."""


def prepare(connection: Any) -> None:
    """Make the staging tables, and do not wait for the disk until `finish` (measured: 4 to 10 % of the time).

    Both belong to the session, so it must be our own. Raises Pooled, Gone.
    """
    if is_pooled(connection):
        raise Pooled(
            "a pooler stands before the database: an import needs a session of its own, so import with the "
            "host and the port of Postgres itself (db.host, db.port)"
        )
    with connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        cursor.execute(_STAGE)


def finish(connection: Any) -> None:
    """Drop the staging tables in a commit that waits until it and all before it are on disk. Raises Gone."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL synchronous_commit = on")
        cursor.execute("DROP TABLE pg_temp.incoming, pg_temp.seen, pg_temp.claimed")


class Row(NamedTuple):
    """A user as a line of COPY's text format."""

    line: int
    text: bytes
    has_email: bool


def row(user: ImportedUser) -> Row:
    """A user as `add` takes it."""
    line, id_, username, canonical, roles, profile, created, disabled, emails, setting, digest, norm, pepper, _ = user
    return Row(
        line,
        (
            f"{line}\t{id_}\t{_escaped(username)}\t{_escaped(canonical)}\t{roles}\t"
            f"{_escaped(profile)}\t{created or _NULL}\t{disabled or _NULL}\t"
            f"{_NULL if emails is None else _escaped(emails)}\t"
            f"{setting or _NULL}\t{_NULL if digest is None else _BYTES + digest.hex()}\t{norm or _NULL}\t"
            f"{pepper or _NULL}\n"
        ).encode(),
        emails is not None,
    )


def _escaped(text: str) -> str:
    # Nothing here has a raw control character: names have none, and JSON escapes them.
    return text.replace("\\", "\\\\")


_NULL = "\\N"
_BYTES = "\\\\x"


def add(connection: Any, users: Sequence[Row], run: str, *, dry: bool) -> tuple[int, list[Refusal]]:
    """Add users in one transaction; how many were there already, and which are refused. Raises BadRow, Gone."""
    with connection, connection.cursor() as cursor:
        text = b"".join([user.text for user in users])
        # One write for the whole batch: before each further one this thread would wait for the GIL (5 ms).
        cursor.copy_expert(_COPY, io.BytesIO(text), size=len(text))
        refused = []
        if any(user.has_email for user in users):
            cursor.execute(_OF_ANOTHER)
            refused = [Refusal(line, "email: is another user's verified address") for (line,) in cursor.fetchall()]
            if dry:
                cursor.execute(_CLAIM)
        if dry:
            cursor.execute(_TRY)
            reasons = cursor.fetchall()
        else:
            cursor.execute(_ADD, {"run": run})
            lines = [line for (line,) in cursor.fetchall()]
            if not lines:
                return 0, refused
            cursor.execute(_WHY_NOT, {"run": run, "lines": lines})
            reasons = cursor.fetchall()
    existing = 0
    for line, id_taken, same_name, earlier_line in reasons:
        if earlier_line:
            refused.append(Refusal(line, "username: an earlier line has this name, or one that is compared like it"))
        elif id_taken:
            refused.append(Refusal(line, "id: another user has it"))
        elif same_name:
            existing += 1
        else:
            refused.append(Refusal(line, "username: is taken by a user who writes it otherwise"))
    return existing, refused


def users(connection: Any) -> Iterator[str]:
    """Every user as a line of JSON, of one moment and in bounded memory. Raises Gone."""
    connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
    with connection, connection.cursor("users") as cursor:
        cursor.itersize = 5000
        with connection.cursor() as setting:  # also through a pooler, which may not pass on what `connect` asks for
            setting.execute("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor.execute(_EXPORT)
        for row in cursor:
            yield _line(*row) + "\n"


def _line(
    id_: str, username: str, roles: list[str], profile: Any, created: Any, disabled: Any, emails: Any, *password: Any
) -> str:
    setting, digest, norm, pepper = password
    user: dict[str, Any] = {"id": id_, "username": username}
    if setting is not None:
        with contextlib.suppress(InvalidSetting):  # with such a one nobody signs in either
            user["hash"] = foreign.write(Stored(Setting(setting, pepper, norm), bytes(digest)))
            user["norm"] = norm
    user |= {"emails": emails} if emails else {}
    user |= {"roles": roles, "profile": profile, "created": created.isoformat()}
    user |= {"pepper": pepper} if pepper is not None else {}
    user |= {"disabled": disabled.isoformat()} if disabled is not None else {}
    return strict_json.encode(user)
