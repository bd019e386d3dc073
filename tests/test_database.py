"""What the driver does behind one's back, one trap a test, against a real Postgres."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from gatepost.errors import DatabaseUnavailable
from gatepost.postgres import connection, pool
from gatepost.postgres.database import Connection, Database, Dsn, Statement
from gatepost.postgres.pool import Pool
from tests.conftest import (
    PASSWORD,
    Client,
    CountRoundTrips,
    PostgresServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
)
from tests.proxy import proxy

ONE = Statement("SELECT 1")
SLEEP = Statement("SELECT pg_sleep(:seconds)")


async def one(connection: Connection, /) -> int:
    row = await ONE.first(connection)
    assert row is not None
    return int(row[0])


async def sleep(connection: Connection, /, seconds: float) -> None:
    await SLEEP.all(connection, seconds=seconds)


@contextlib.contextmanager
def locked(dsn: Dsn, table: str) -> Iterator[None]:
    """Somebody else's transaction that keeps everyone from a table."""
    connection = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        connection.cursor().execute(f"LOCK gatepost.{table} IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        connection.close()


# --------------------------------------------------------------------------------------------- deadlines


async def nothing() -> None:
    """For what can be done again as it is."""


async def quickest(
    work: Callable[[], Awaitable[None]], seconds: float, again: Callable[[], Awaitable[None]] = nothing
) -> float:
    """Seconds that it takes, at best of five times: no code makes a machine that stands still any quicker.

    ``again``: puts everything as it was before.
    """
    took: list[float] = []
    for _ in range(5):
        if took:
            await again()
        began = time.monotonic()
        await work()
        took.append(time.monotonic() - began)
        if took[-1] < seconds:
            break
    return min(took)


async def answered(client: Client, token: str) -> None:
    """Ask for this session until it is found; it is never said to be none."""
    async with asyncio.timeout(60):
        while (status := await status_of(client, token)) != 200:
            assert status == 503


@pytest.mark.deadlines
async def test_a_statement_that_runs_into_the_servers_timeout_is_503_and_the_connection_lives(
    database: Database,
) -> None:
    async def backend(connection: Connection) -> int:
        return int(connection.connection.raw.get_backend_pid())

    before = await database.read(backend)
    with pytest.raises(DatabaseUnavailable):
        await database.write(sleep, 30)
    assert await database.read(backend) == before


@pytest.mark.deadlines
async def test_a_request_whose_statement_times_out_is_answered(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)

    async def three() -> None:
        check, login, logout = await asyncio.gather(
            client.get("/user", headers={"Authorization": token}),
            client.post("/user", json={"username": "ada", "password": PASSWORD}),
            client.delete("/user", headers={"Authorization": token}),
        )
        assert (check.status, login.status, logout.status) == (503, 503, 503)
        assert (await check.json())["code"] == "database_unavailable"
        assert "Retry-After" in check.headers

    with locked(dsn, "sessions"):
        assert await quickest(three, 3) < 3
    await answered(client, token)


async def test_what_our_role_may_not_do_is_503(dsn: Dsn) -> None:
    role = f"{dsn.database}_role"
    rows(dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA gatepost TO {role}")
    database = await Database.open(replace(dsn, user=role, password="secret"), 1)
    try:
        with pytest.raises(DatabaseUnavailable, match="permission denied for table users: grant it") as error:
            await database.read(Statement("SELECT 1 FROM gatepost.users").all)
        assert error.value.status == 503
    finally:
        await database.close()
        rows(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_text_is_sent_as_utf_8_whatever_the_environment_says(dsn: Dsn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    database = await Database.open(dsn, 1)
    try:
        assert await database.read(Statement("SELECT CAST(:name AS text)").all, name="アダ") == [("アダ",)]
    finally:
        await database.close()


@pytest.mark.deadlines
async def test_a_timeout_is_no_traceback_in_the_log(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DatabaseUnavailable):
        await database.read(sleep, 30)
    assert caplog.records == []


async def test_a_real_cancellation_stays_one(database: Database) -> None:
    task = asyncio.create_task(database.read(sleep, 30))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.deadlines
async def test_a_frozen_server_is_503_within_two_seconds_and_well_again_after(
    client: Client, postgres: PostgresServer
) -> None:
    await register(client, "ada")
    token = await log_in(client)

    async def many() -> None:
        answers = await asyncio.gather(
            *(client.get("/user", headers={"Authorization": token}) for _ in range(20)),
            client.get("/health/ready"),
            client.post("/user", json={"username": "ada", "password": PASSWORD}),
        )
        assert {answer.status for answer in answers} == {503}

    async def again() -> None:
        postgres.thaw()
        await answered(client, token)  # over connections that it does not know to be dead
        postgres.freeze()

    postgres.freeze()
    try:
        assert await quickest(many, 2.5, again) < 2.5
        assert (await client.get("/ping")).status == 200
        assert (await client.get("/health/live")).status == 200
    finally:
        postgres.thaw()
    await answered(client, token)
    assert (await client.get("/health/ready")).status == 200


async def test_cancelling_a_request_ends_its_query_on_the_server(database: Database, dsn: Dsn) -> None:
    async def forever(connection: Connection) -> None:
        await Statement("SET statement_timeout = 0; SELECT pg_sleep(600)").all(connection)

    def running() -> bool:
        found = rows(
            dsn,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%%pg_sleep(600)%%' "
            "AND pid <> pg_backend_pid()",
        )
        return bool(found)

    task = asyncio.create_task(database.read(forever))
    await eventually(running)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await eventually(lambda: not running())


async def test_a_write_goes_on_when_its_request_is_cancelled(database: Database, dsn: Dsn) -> None:
    async def insert(connection: Connection) -> None:
        await Statement("INSERT INTO gatepost.deployment_keys (name, key) VALUES ('k', sha256(''))").all(connection)

    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with locked(dsn, "deployment_keys"):
        task = asyncio.create_task(database.write(insert))
        await eventually(lambda: bool(rows(dsn, waiting)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await eventually(lambda: rows(dsn, "SELECT name FROM gatepost.deployment_keys") == [("k",)])


# ------------------------------------------------------------------------------------------------ the pool


@pytest.mark.deadlines
async def test_more_than_all_connections_waits_half_a_second_then_503(dsn: Dsn) -> None:
    database = await Database.open(dsn, 2)

    async def one_more() -> None:
        with pytest.raises(DatabaseUnavailable, match="all connections to the database are in use"):
            await database.read(one)

    try:
        held = [await database.pool.acquire() for _ in range(2)]
        assert 0.4 < await quickest(one_more, 1) < 1
        for connection in held:
            database.pool.give_back(connection)
        assert await database.read(one) == 1
    finally:
        await database.close()


async def test_waiters_get_the_connection_of_a_cancelled_holder(dsn: Dsn) -> None:
    database = await Database.open(dsn, 1)
    try:
        for _ in range(20):
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(database.read(sleep, 5))]
            tasks += [asyncio.create_task(database.read(one)) for _ in range(4)]
            await asyncio.sleep(0.01)
            tasks[0].cancel()
            tasks[1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(r, asyncio.CancelledError) for r in results] == [True, True, False, False, False]
            assert results[2:] == [1, 1, 1]
    finally:
        await database.close()


async def test_a_connect_that_hangs_does_not_delay_other_connects(dsn: Dsn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 3.0)
    async with proxy(dsn) as network:
        connections = Pool(network.dsn(), 3)
        good = await connections.acquire()
        network.silent = True
        hanging = asyncio.create_task(connections.acquire())
        await eventually(lambda: network.accepted == 2)
        connections.give_back(good)
        assert await connections.acquire() is good
        assert not hanging.done()
        async with asyncio.timeout(30):
            with pytest.raises(DatabaseUnavailable):
                await hanging
        connections.terminate()


async def test_the_hosts_are_tried_in_order_past_dead_and_silent_ones(
    dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT", 3.0)
    async with proxy(dsn) as network, proxy(dsn, address="127.0.0.3", port=network.port) as silent:
        silent.silent = True
        database = await Database.open(network.dsn("127.0.0.2", "127.0.0.3", "localhost"), 1)
        assert await database.read(one) == 1
        assert (silent.accepted, network.accepted) == (1, 1)
        await database.close()


async def test_a_database_that_is_down_is_said_to_be_so_without_its_password(dsn: Dsn) -> None:
    async with proxy(dsn) as network:
        port = network.port
    gone = Dsn(["127.0.0.1"], port, "someone", "a secret password", "somewhere")
    with pytest.raises(DatabaseUnavailable) as failure:
        await Database.open(gone, 1)
    assert f"127.0.0.1:{port}" in str(failure.value)
    assert "secret" not in str(failure.value) + repr(gone)


async def test_an_idle_connection_is_replaced_in_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connection_of(connection: Connection) -> Any:
        return connection.connection

    first = await database.read(connection_of)
    assert await database.read(connection_of) is first
    monkeypatch.setattr(pool, "MAX_IDLE", 0.0)
    assert await database.read(connection_of) is not first
    assert first.closed


async def test_opening_a_connection_sends_no_query(dsn: Dsn, count_round_trips: CountRoundTrips) -> None:
    with count_round_trips() as sent:
        database = await Database.open(dsn, 1)
    await database.close()
    assert sent == []


# ------------------------------------------------------------------------------------- lost connections


def end_backends(dsn: Dsn) -> None:
    rows(
        dsn,
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


async def test_a_read_is_tried_again_when_its_connection_was_dead(database: Database, dsn: Dsn) -> None:
    for _ in range(5):
        await asyncio.gather(*(database.read(sleep, 0.05) for _ in range(4)))
        end_backends(dsn)  # blocks the loop, so the driver has not noticed
        assert await database.read(one) == 1


async def test_a_write_is_never_tried_again(database: Database, dsn: Dsn) -> None:
    calls = 0

    async def insert(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        await ONE.all(connection)
        end_backends(dsn)
        await ONE.all(connection)

    with pytest.raises(DatabaseUnavailable):
        await database.write(insert)
    assert calls == 1
    assert await database.read(one) == 1


async def test_requests_whose_backend_is_ended_are_answered_and_no_401_is_given(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)
    for _ in range(5):
        checks = [asyncio.create_task(status_of(client, token)) for _ in range(30)]
        await asyncio.sleep(0)
        await asyncio.to_thread(end_backends, dsn)
        assert set(await asyncio.gather(*checks)) <= {200, 503}
        assert await status_of(client, token) == 200


async def test_a_broken_network_costs_only_the_requests_in_flight(dsn: Dsn) -> None:
    async with proxy(dsn) as network:
        database = await Database.open(network.dsn(), 2)
        broken = asyncio.create_task(database.write(sleep, 5))
        await asyncio.sleep(0.05)
        network.reset()
        with pytest.raises(DatabaseUnavailable):
            await broken
        assert await database.read(one) == 1
        await database.close()


# --------------------------------------------------------------------------------- sessions and statements


async def test_a_setting_of_one_transaction_does_not_reach_the_next(dsn: Dsn) -> None:
    database = await Database.open(dsn, 1)
    show = Statement("SHOW statement_timeout")
    before = await database.read(show.first)
    async with database.transaction() as connection:
        await Statement("SET LOCAL statement_timeout = '61s'").all(connection)
        assert await show.first(connection) == ("61s",)
    assert await database.read(show.first) == before
    await database.close()


async def test_a_connection_left_in_a_transaction_is_not_handed_on(dsn: Dsn) -> None:
    database = await Database.open(dsn, 1)
    async with database.connection() as connection:
        await Statement("BEGIN").all(connection)
        left = connection.connection
    assert left.closed
    assert await database.read(one) == 1
    await database.close()


async def test_a_transaction_with_a_swallowed_error_does_not_pretend_to_commit(database: Database, dsn: Dsn) -> None:
    with pytest.raises(RuntimeError, match="swallowed"):  # noqa: PT012
        async with database.transaction() as connection:
            await Statement("INSERT INTO gatepost.deployment_keys (name, key) VALUES ('k', sha256(''))").all(
                connection
            )
            with contextlib.suppress(psycopg2.Error):
                await Statement("SELECT 1/0").all(connection)
    assert rows(dsn, "SELECT 1 FROM gatepost.deployment_keys") == []


async def test_a_transaction_commits_all_or_nothing(database: Database, dsn: Dsn) -> None:
    insert = Statement("INSERT INTO gatepost.deployment_keys (name, key) VALUES (:name, sha256(''))")
    async with database.transaction() as connection:
        await insert.all(connection, name="a")
        await insert.all(connection, name="b")
    with pytest.raises(psycopg2.errors.UniqueViolation):  # noqa: PT012
        async with database.transaction() as connection:
            await insert.all(connection, name="c")
            await insert.all(connection, name="a")
    assert rows(dsn, "SELECT name FROM gatepost.deployment_keys ORDER BY 1") == [("a",), ("b",)]


async def test_a_read_only_server_is_503_for_writes_and_answers_reads(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)
    rows(dsn, f"ALTER DATABASE {dsn.database} SET default_transaction_read_only = on")
    end_backends(dsn)
    answer = await client.post("/user", json={"username": "ada", "password": PASSWORD})
    assert answer.status == 503
    assert await status_of(client, token) == 200


async def test_a_statement_is_compiled_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = Statement(sa.select(sa.literal(7) + sa.bindparam("n", type_=sa.Integer)))

    def again(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(sa.sql.elements.ClauseElement, "compile", again)
    assert await database.read(statement.first, n=1) == (8,)
    assert await database.read(statement.first, n=2) == (9,)


async def test_no_password_or_token_is_ever_sent_to_the_database(
    client: Client, count_round_trips: CountRoundTrips, monkeypatch: pytest.MonkeyPatch
) -> None:
    with count_round_trips() as sent:
        await register(client, "ada")
        token = await log_in(client)
        await status_of(client, token)
        await client.delete("/user", headers={"Authorization": token})
    assert len(sent) == 6
    assert not [s for s in sent if PASSWORD in s or token in s or token.replace("-", "") in s]
