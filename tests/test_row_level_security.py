"""Sessions inside Postgres: who a transaction speaks for, and that nothing but a live token decides it."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from gatepost.config import Config
from gatepost.postgres.database import Database, Dsn
from gatepost.row_level_security import queries
from tests.conftest import (
    Client,
    PostgresServer,
    StartServer,
    db_config,
    log_in,
    register,
    rows,
    status_of,
)
from tests.event_streams import stream

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "row-level-security.md").read_text("utf-8"), re.DOTALL)
NO_SESSION = "28000"


class Application:
    """A connection of the application's role."""

    def __init__(self, dsn: Dsn) -> None:
        # A statement that waits for a lock fails: the test itself may hold it.
        limit = "-c statement_timeout=60000"
        self.connection = psycopg2.connect(**dsn.parameters(dsn.hosts[0]), options=limit)
        self.role = dsn.user

    def __call__(self, sql: str, *parameters: object) -> Any:
        """The first column of what a statement answers, in the transaction under way; the value if it is one row."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            if not cursor.description:
                return None
            found = [row[0] for row in cursor.fetchall()]
            return found[0] if len(found) == 1 else found

    def sign_in(self, token: str) -> str:
        """Begin a transaction as the holder of this token."""
        self.connection.rollback()
        found: str = self("SELECT gatepost.sign_in_as(%s)::text", token)
        return found

    def texts(self) -> list[str]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT text FROM notes ORDER BY text")
            return [row[0] for row in cursor.fetchall()]

    def commit(self) -> None:
        self.connection.commit()

    def end(self) -> None:
        self.connection.rollback()


@pytest.fixture
def role(client: Client, dsn: Dsn, postgres: PostgresServer) -> Iterator[Dsn]:
    """The role of docs/row-level-security.md, and its table. A node has started on the database."""
    name, password = f"notes_{secrets.token_hex(4)}", secrets.token_hex(8)
    for sql in BLOCKS[:2]:
        rows(dsn, sql.replace("notes_app", name).replace("change me", password))
    yield replace(dsn, user=name, password=password)
    rows(dsn, f"DROP OWNED BY {name}")
    postgres.admin(f"DROP ROLE {name}")


@pytest.fixture
def application(role: Dsn) -> Iterator[Application]:
    opened = Application(role)
    yield opened
    opened.connection.close()


@pytest.fixture
async def ada_token(client: Client) -> str:
    await register(client, "ada")
    return await log_in(client, "ada")


@pytest.fixture
async def bob_token(client: Client) -> str:
    await register(client, "bob")
    return await log_in(client, "bob")


@contextlib.contextmanager
def refused(sqlstate: str) -> Iterator[None]:
    with pytest.raises(psycopg2.Error) as caught:
        yield
    assert caught.value.pgcode == sqlstate, caught.value


def test_the_transaction_of_the_documentation_runs(application: Application, ada_token: str) -> None:
    begin, sign_in, select, commit = BLOCKS[2].strip().split("\n")
    assert application(begin) is None
    assert application(sign_in.replace("$1", "%s"), ada_token)
    assert application(select) == []
    assert application(commit) is None


async def test_two_users_see_and_change_their_own_rows(
    client: Client, application: Application, ada_token: str, bob_token: str
) -> None:
    for token, name in [(ada_token, "ada"), (bob_token, "bob")]:
        async with client.get("/user", headers={"Authorization": token}) as answer:
            who = (await answer.json())["user"]["id"]
        assert application.sign_in(token) == who == application("SELECT gatepost.user_id()::text")
        application("INSERT INTO notes (text) VALUES (%s)", f"{name}'s")
        application.commit()
    ada = application.sign_in(ada_token)
    assert application.texts() == ["ada's"]
    application.sign_in(bob_token)
    assert application.texts() == ["bob's"]
    assert application("UPDATE notes SET text = 'gone' WHERE text = 'ada''s' RETURNING 1") == []
    assert application("DELETE FROM notes WHERE text = 'ada''s' RETURNING 1") == []
    with refused("42501"):
        application("INSERT INTO notes (owner, text) VALUES (%s, 'not mine')", ada)
    application.sign_in(ada_token)
    assert application.texts() == ["ada's"]


def test_without_a_token_there_is_nobody_and_nothing(application: Application, ada_token: str) -> None:
    application.sign_in(ada_token)
    application("INSERT INTO notes (text) VALUES ('a')")
    application.commit()
    assert application("SELECT gatepost.user_id()") is None
    assert application("SELECT gatepost.has_role('moderator')") is False
    assert application.texts() == []


async def test_a_role_counts_from_the_next_statement_on(
    application: Application, dsn: Dsn, ada_token: str, bob_token: str
) -> None:
    application.sign_in(bob_token)
    application("INSERT INTO notes (text) VALUES ('bob''s')")
    application.commit()
    application.sign_in(ada_token)
    assert application.texts() == []
    rows(dsn, "UPDATE gatepost.users SET roles = '{moderator}' WHERE canonical = 'ada'")
    assert application.texts() == ["bob's"]
    assert application("SELECT gatepost.has_role('admin')") is False
    rows(dsn, "UPDATE gatepost.users SET roles = '{}' WHERE canonical = 'ada'")
    assert application.texts() == []


ENDED = {
    "logged out": "DELETE FROM gatepost.sessions",
    "all sessions ended": "UPDATE gatepost.users SET epoch = epoch + 1",
    "disabled": "UPDATE gatepost.users SET disabled_at = now()",
    "deleted": "DELETE FROM gatepost.users",
    "expired": "UPDATE gatepost.sessions SET created_at = '2020-01-01', expires_at = '2020-01-02'",
    "idle": "UPDATE gatepost.sessions SET last_seen_at = now() - interval '14 days'",
}


@pytest.mark.parametrize("sql", ENDED.values(), ids=ENDED.keys())
async def test_a_session_that_ended_is_refused_by_the_next_transaction(
    client: Client, application: Application, dsn: Dsn, ada_token: str, sql: str
) -> None:
    application.sign_in(ada_token)
    application("INSERT INTO notes (text) VALUES ('a')")
    assert application.texts() == ["a"]
    rows(dsn, sql)
    assert application.texts() == ["a"]
    application.commit()
    assert await status_of(client, ada_token) == 401
    with refused(NO_SESSION):
        application.sign_in(ada_token)
    application.end()
    assert application.texts() == []


async def test_what_is_no_token_is_refused(application: Application, dsn: Dsn, ada_token: str) -> None:
    for token in [None, "", "x" * 36, ada_token.upper(), f" {ada_token}", f"{ada_token}\n", "é" * 18, "y" * 10**6]:
        with refused(NO_SESSION):
            application.sign_in(token)  # type: ignore[arg-type]
    hashed = rows(dsn, "SELECT encode(token_hash, 'hex') FROM gatepost.sessions")[0][0]
    with refused(NO_SESSION):
        application.sign_in(hashed)


async def test_the_message_of_a_refusal_does_not_hold_the_token(application: Application, ada_token: str) -> None:
    wrong = ada_token[:-1] + ("0" if ada_token[-1] != "0" else "1")
    with pytest.raises(psycopg2.Error) as caught:
        application.sign_in(wrong)
    assert wrong not in f"{caught.value} {caught.value.diag.message_detail} {caught.value.diag.context}"


# ------------------------------------------------------------------------------------------------- tricks


def _ticket(application: Application, token: str) -> str:
    application.sign_in(token)
    found: str = application("SELECT current_setting('gatepost.signed_in')")
    return found


def test_a_value_kept_from_an_earlier_transaction_is_worth_nothing(application: Application, ada_token: str) -> None:
    ticket = _ticket(application, ada_token)
    application("INSERT INTO notes (text) VALUES ('a')")
    application.commit()
    for put in (
        "SET gatepost.signed_in = %s",
        "SET LOCAL gatepost.signed_in = %s",
        "SELECT set_config('gatepost.signed_in', %s, false)",
    ):
        application(put, ticket)
        assert application("SELECT gatepost.user_id()") is None
        assert application.texts() == []
        application.commit()
    application("SET SESSION gatepost.signed_in = %s", ticket)
    application.commit()
    application.sign_in(ada_token)
    assert application.texts() == ["a"]


def test_the_seal_of_one_user_does_not_name_another(application: Application, ada_token: str, bob_token: str) -> None:
    ada = application.sign_in(ada_token).replace("-", "")
    bob = _ticket(application, bob_token)
    assert bob[:32] != ada
    for forged in (
        ada + bob[32:],
        ada + "0" * 64,
        ada,
        "",
        "x" * 96,
        bob.upper(),
        bob[:-1],
        bob + "00",
        "é" * 48,
        bob[:94] + "\n0",
    ):
        application("SELECT set_config('gatepost.signed_in', %s, true)", forged)
        assert application("SELECT gatepost.user_id()") is None, forged
    application("SELECT set_config('gatepost.signed_in', %s, true)", bob)
    assert application("SELECT gatepost.user_id()::text") == application.sign_in(bob_token)


def test_another_transaction_at_the_same_time_cannot_use_it(
    role: Dsn, application: Application, ada_token: str
) -> None:
    other = Application(role)
    ticket = _ticket(application, ada_token)
    other("SELECT set_config('gatepost.signed_in', %s, true)", ticket)
    assert other("SELECT gatepost.user_id()") is None
    other.connection.close()


def test_a_transaction_that_a_procedure_begins_has_nobody(application: Application, ada_token: str) -> None:
    application.connection.autocommit = True
    application("CREATE TEMP TABLE seen (id text)")
    application(f"""
        DO $$
        DECLARE ticket text;
        BEGIN
            INSERT INTO seen SELECT gatepost.sign_in_as('{ada_token}');
            ticket := current_setting('gatepost.signed_in');
            COMMIT;
            PERFORM set_config('gatepost.signed_in', ticket, true);
            INSERT INTO seen SELECT coalesce(gatepost.user_id()::text, 'nobody');
        END $$
    """)
    seen = application("SELECT id FROM seen")
    assert len(seen) == 2
    assert seen[1] == "nobody"


def test_a_savepoint_takes_a_sign_in_back(application: Application, ada_token: str, bob_token: str) -> None:
    ada = application.sign_in(ada_token)
    application("SAVEPOINT s")
    assert application("SELECT gatepost.sign_in_as(%s)::text", bob_token) != ada
    application("ROLLBACK TO s")
    assert application("SELECT gatepost.user_id()::text") == ada
    with refused(NO_SESSION):
        application("SELECT gatepost.sign_in_as('nobody')")
    application("ROLLBACK TO s")
    assert application("SELECT gatepost.user_id()::text") == ada


FORBIDDEN = {
    "the key": "SELECT key FROM gatepost.deployment_keys",
    "sessions": "SELECT token_hash FROM gatepost.sessions",
    "passwords": "SELECT digest FROM gatepost.passwords",
    "users": "SELECT username FROM gatepost.users",
    "settings": "UPDATE gatepost.settings SET value = 31622400",
    "uses": "INSERT INTO gatepost.session_uses (handle) VALUES (gen_random_uuid())",
    "the seal": "SELECT gatepost.sign_in_seal(gen_random_uuid())",
    "a look-up": "SELECT * FROM gatepost.live_sessions_2(ARRAY[sha256('')], 300)",
    "another function": "CREATE OR REPLACE FUNCTION gatepost.user_id() RETURNS uuid LANGUAGE sql AS 'SELECT NULL'",
    "a function beside": "CREATE FUNCTION gatepost.user_id(text) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'",
    "the policies": "ALTER TABLE notes DISABLE ROW LEVEL SECURITY",
    "a parameter of the role": "ALTER FUNCTION gatepost.user_id() SET search_path = public",
}


@pytest.mark.parametrize("sql", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_the_role_may_do_only_that(application: Application, ada_token: str, sql: str) -> None:
    application.sign_in(ada_token)
    with refused("42501"):
        application(sql)


def test_changing_the_role_gains_nothing(
    application: Application, dsn: Dsn, postgres: PostgresServer, ada_token: str
) -> None:
    other = f"other_{secrets.token_hex(4)}"
    rows(dsn, f"CREATE ROLE {other}; GRANT {other} TO {application.role}; GRANT SELECT ON public.notes TO {other}")
    try:
        application.sign_in(ada_token)
        application("INSERT INTO notes (text) VALUES ('a')")
        application(f"SET LOCAL ROLE {other}")
        with refused("42501"):  # a policy's functions are asked for whoever asks
            application.texts()
        application.end()
        application(f"SET ROLE {other}")
        with refused("42501"):
            application("SELECT gatepost.sign_in_as(%s)", ada_token)
        application.end()
        with refused("42501"):
            application(f"SET ROLE {dsn.user}")
        application.end()
        with refused("42501"):
            application(f"SET SESSION AUTHORIZATION {dsn.user}")
    finally:
        application.connection.close()
        rows(dsn, f"DROP OWNED BY {other}")
        postgres.admin(f"DROP ROLE {other}")


def test_functions_and_types_of_ones_own_are_not_found(
    application: Application, dsn: Dsn, ada_token: str, bob_token: str
) -> None:
    bob = application.sign_in(bob_token)
    application.end()
    rows(dsn, f"CREATE SCHEMA mine AUTHORIZATION {application.role}")
    application("CREATE FUNCTION mine.sha256(bytea) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$SELECT ''::bytea$$")
    application(
        "CREATE FUNCTION mine.equal(bytea, bytea) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true';"
        "CREATE OPERATOR mine.= (LEFTARG = bytea, RIGHTARG = bytea, FUNCTION = mine.equal)"
    )
    application("CREATE FUNCTION mine.transaction_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'")
    application.commit()
    application("CREATE TEMP TABLE deployment_keys AS SELECT 'sign_in_as' AS name, ''::bytea AS key")
    application("CREATE TEMP TABLE users AS SELECT %s::uuid AS id, '{moderator}'::text[] AS roles", bob)
    application("SET search_path = mine, pg_temp, pg_catalog, public")
    application.commit()
    application("SELECT set_config('gatepost.signed_in', %s, true)", bob.replace("-", "") + "0" * 64)
    assert application("SELECT gatepost.user_id()") is None
    application.sign_in(ada_token)
    assert application("SELECT gatepost.has_role('moderator')") is False
    assert application("SELECT gatepost.user_id()::text") != bob


async def test_nobody_can_prove_for_another_that_nothing_is_missing(
    client: Client, application: Application, dsn: Dsn, ada_token: str
) -> None:
    async with stream(client, "/user/events", ada_token) as events:
        assert await events.next() is not None
        seen = "SELECT query FROM pg_stat_activity WHERE application_name = 'gatepost'"
        assert any("gatepost_echo_" in query for (query,) in rows(dsn, seen))
        application.end()
        assert not any("gatepost_echo_" in query for query in application(seen))
        assert application("SELECT pg_listening_channels()") == []


# --------------------------------------------------------------------------------------------- its plans


def _fill(dsn: Dsn, owner: str) -> None:
    rows(dsn, "INSERT INTO public.notes (owner, text) SELECT gen_random_uuid(), 'x' FROM generate_series(1, 5000)")
    rows(dsn, "INSERT INTO public.notes (owner, text) VALUES (%s, 'a'), (%s, 'b')", owner, owner)
    rows(dsn, "ANALYZE public.notes")


@pytest.mark.parametrize("asked", ["gatepost.user_id()", "(SELECT gatepost.user_id())"])
def test_a_policy_uses_the_index(application: Application, dsn: Dsn, ada_token: str, asked: str) -> None:
    rows(dsn, f"DROP POLICY moderators ON public.notes; ALTER POLICY own ON public.notes USING (owner = {asked})")
    _fill(dsn, application.sign_in(ada_token))
    application.sign_in(ada_token)
    assert application.texts() == ["a", "b"]
    plan = "\n".join(application("EXPLAIN (COSTS OFF) SELECT text FROM notes"))
    assert re.search(r"Index Cond: \(owner = ", plan), plan


@pytest.mark.parametrize("asked", ["gatepost.user_id()", "(SELECT gatepost.user_id())"])
def test_parallel_workers_know_who_is_signed_in(
    application: Application, dsn: Dsn, ada_token: str, asked: str
) -> None:
    rows(dsn, f"DROP POLICY moderators ON public.notes; ALTER POLICY own ON public.notes USING (owner = {asked})")
    rows(dsn, "DROP INDEX public.notes_owner_idx")
    _fill(dsn, application.sign_in(ada_token))
    application.sign_in(ada_token)
    application("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
    application("SET parallel_leader_participation = off")
    plan = "\n".join(application("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT text FROM notes"))
    assert re.search(r"Workers Launched: [1-9]", plan), plan
    assert application.texts() == ["a", "b"]


# ------------------------------------------------------------------------------------- the nodes' part of it


async def test_a_log_out_does_not_wait_for_an_applications_transaction(
    client: Client, application: Application, dsn: Dsn, ada_token: str
) -> None:
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '3 days'")
    application.sign_in(ada_token)
    application("INSERT INTO notes (text) VALUES ('a')")
    async with client.delete("/user", headers={"Authorization": ada_token}) as answer:
        assert answer.status == 200
    assert application.texts() == ["a"]
    application.commit()


def last_seen(dsn: Dsn) -> float:
    """Seconds since the session was seen."""
    return float(
        rows(dsn, "SELECT extract(epoch FROM clock_timestamp() - last_seen_at) FROM gatepost.sessions")[0][0]
    )


async def test_a_session_that_only_the_database_sees_does_not_end_as_idle(
    application: Application, dsn: Dsn, database: Database, ada_token: str
) -> None:
    application.sign_in(ada_token)
    application.commit()
    assert rows(dsn, "SELECT * FROM gatepost.session_uses") == []
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '3 days'")
    for _ in range(3):
        application.sign_in(ada_token)
        application.commit()
    application.sign_in(ada_token)
    application.end()
    assert await database.write(queries.touch_used, 1000) == 1
    assert last_seen(dsn) < 3600
    application.sign_in(ada_token)
    application.commit()
    assert rows(dsn, "SELECT * FROM gatepost.session_uses") == []


async def test_uses_are_touched_in_batches_and_by_each_node_its_own(
    application: Application, dsn: Dsn, database: Database, ada_token: str
) -> None:
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '3 days'")
    rows(
        dsn, "INSERT INTO gatepost.session_uses (handle) SELECT handle FROM gatepost.sessions, generate_series(1, 5)"
    )
    assert await asyncio.gather(*(database.write(queries.touch_used, 3) for _ in range(2))) in (
        [3, 2],
        [2, 3],
        [3, 0],
    )
    await database.write(queries.touch_used, 3)
    assert rows(dsn, "SELECT * FROM gatepost.session_uses") == []
    assert last_seen(dsn) < 3600


async def test_transactions_of_one_session_do_not_wait_for_each_other(
    role: Dsn, application: Application, dsn: Dsn, ada_token: str
) -> None:
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '3 days'")
    other = Application(role)
    assert application.sign_in(ada_token) == other.sign_in(ada_token)
    other.commit()
    application.commit()
    application.sign_in(ada_token)
    application.commit()
    assert rows(dsn, "SELECT count(*) FROM gatepost.session_uses") == [(2,)]
    other.connection.close()


async def test_a_session_that_was_seen_later_is_not_set_back(
    application: Application, dsn: Dsn, database: Database, ada_token: str
) -> None:
    rows(dsn, "INSERT INTO gatepost.session_uses SELECT handle, now() - interval '1 day' FROM gatepost.sessions")
    assert await database.write(queries.touch_used, 1000) == 1
    assert last_seen(dsn) < 3600


async def test_a_read_only_transaction_signs_in_and_writes_nothing(
    application: Application, dsn: Dsn, ada_token: str
) -> None:
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '3 days'")
    application("SET TRANSACTION READ ONLY")
    assert application("SELECT gatepost.sign_in_as(%s)", ada_token)
    application.commit()
    assert rows(dsn, "SELECT * FROM gatepost.session_uses") == []


async def test_the_idle_timeout_is_that_of_the_node_that_started_last(
    config: Config, start_server: StartServer, application: Application, dsn: Dsn, ada_token: str
) -> None:
    assert rows(dsn, "SELECT name, value FROM gatepost.settings") == [("idle_timeout", 14 * 86400)]
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '301 s'")
    assert application.sign_in(ada_token)
    sessions = config.sessions.model_copy(update={"idle_timeout": 300})
    client = await start_server(config.model_copy(update={"sessions": sessions}))
    assert await status_of(client, ada_token) == 401
    with refused(NO_SESSION):
        application.sign_in(ada_token)


def test_before_a_node_has_started_nothing_is_known(application: Application, dsn: Dsn, ada_token: str) -> None:
    rows(dsn, "DELETE FROM gatepost.settings")
    with refused("55000"):
        application.sign_in(ada_token)


async def test_a_node_whose_role_may_not_say_so_serves_and_warns(
    config: Config, start_server: StartServer, dsn: Dsn, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    name, password = f"app_{secrets.token_hex(4)}", secrets.token_hex(8)
    sql = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "least-privilege.md").read_text("utf-8"), re.DOTALL)[0]
    before = sql.replace("gatepost.settings, gatepost.session_uses", "gatepost.alembic_version")
    rows(dsn, before.replace("gatepost_app", name).replace("change me", password))
    try:
        client = await start_server(
            config.model_copy(update={"db": db_config(replace(dsn, user=name, password=password))})
        )
        await register(client, "ada")
        assert await status_of(client, await log_in(client)) == 200
        assert "gatepost.sign_in_as does not work" in caplog.text
        await client.close()
    finally:
        rows(dsn, f"DROP OWNED BY {name}")
        postgres.admin(f"DROP ROLE {name}")
