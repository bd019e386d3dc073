"""Session checks are gathered, and never out of date."""

import asyncio
import hashlib
import random
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gatepost.config import Config
from gatepost.errors import DatabaseUnavailable
from gatepost.postgres import connection, pool
from gatepost.postgres.database import Connection, Database, Dsn
from gatepost.sessions import lookup as lookup_module
from gatepost.sessions import queries
from gatepost.sessions.lookup import Lookup
from gatepost.sessions.session import Session
from tests.conftest import (
    UNLIMITED,
    Client,
    CountRoundTrips,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
)
from tests.test_database import end_backends, locked, quickest

WAITING = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


def seed(dsn: Dsn, count: int) -> list[bytes]:
    """Sessions of one user each, straight into the database."""
    hashes = [hashlib.sha256(str(uuid.uuid4()).encode()).digest() for _ in range(count)]
    rows(
        dsn,
        """
        WITH given AS (SELECT t, row_number() OVER () AS n FROM unnest(%s) AS t),
            people AS (INSERT INTO gatepost.users (username, canonical)
                       SELECT 'u' || n, 'u' || n FROM given RETURNING id, canonical)
        INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at)
        SELECT t, id, 1, now() + interval '1 day' FROM given JOIN people ON canonical = 'u' || n
        """,
        hashes,
    )
    return hashes


@pytest.fixture
async def lookup(dsn: Dsn) -> AsyncIterator[Lookup]:
    database = await Database.open(dsn, 2)
    yield Lookup(database, 86400)
    await database.close()


async def test_a_thousand_checks_started_together_take_a_handful_of_queries(
    lookup: Lookup, dsn: Dsn, count_round_trips: CountRoundTrips
) -> None:
    hashes = seed(dsn, 1000)
    with count_round_trips() as sent:
        found = await asyncio.gather(*(lookup.find(token_hash) for token_hash in hashes))
    assert len(sent) <= 5
    # Each has its own answer, not a neighbour's.
    owners = dict(rows(dsn, "SELECT token_hash::text, user_id::text FROM gatepost.sessions"))
    assert [s.user_id for s in found if s] == ["".join(owners["\\x" + h.hex()]) for h in hashes]


async def test_a_single_check_is_one_query_and_does_not_wait(
    lookup: Lookup, dsn: Dsn, count_round_trips: CountRoundTrips
) -> None:
    (token_hash,) = seed(dsn, 1)
    with count_round_trips() as sent:
        assert await lookup.find(token_hash) is not None
    assert len(sent) == 1


async def test_unknown_tokens_among_known_ones_find_nothing(lookup: Lookup, dsn: Dsn) -> None:
    known = seed(dsn, 3)
    unknown = [bytes([n]) * 32 for n in range(3)]
    found = await asyncio.gather(*(lookup.find(t) for t in [*known, *unknown]))
    assert [session is not None for session in found] == [True] * 3 + [False] * 3


async def test_many_checks_of_one_token_are_asked_once_and_all_answered(lookup: Lookup, dsn: Dsn) -> None:
    (token_hash,) = seed(dsn, 1)
    found = await asyncio.gather(*(lookup.find(token_hash) for _ in range(100)))
    assert all(found)
    assert (lookup.queries, lookup.tokens) == (1, 1)


async def test_a_batch_is_bounded(lookup: Lookup, dsn: Dsn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_module, "MAX_BATCH", 10)
    sizes: list[int] = []
    honest = queries.live_sessions

    async def listen(connection: Connection, hashes: list[bytes], *how: Any) -> dict[bytes, Session]:
        sizes.append(len(hashes))
        return await honest(connection, hashes, *how)

    monkeypatch.setattr(queries, "live_sessions", listen)
    found = await asyncio.gather(*(lookup.find(t) for t in seed(dsn, 35)))
    assert all(found)
    assert max(sizes) == 10
    assert sum(sizes) == 35


async def test_a_revocation_acknowledged_before_a_check_was_sent_is_always_seen(client: Client, dsn: Dsn) -> None:
    """Under a steady crowd of checks, so that a query is always under way when a session ends."""
    await register(client, "ada")
    await register(client, "bob")
    crowd_token = await log_in(client, "bob")
    stop = asyncio.Event()

    async def crowd() -> None:
        while not stop.is_set():
            assert await status_of(client, crowd_token) == 200

    crowds = [asyncio.create_task(crowd()) for _ in range(8)]
    for n in range(25):
        token = await log_in(client)
        assert await status_of(client, token) == 200
        if n % 3 == 0:
            assert (await client.delete("/user", headers={"Authorization": token})).status == 200
        elif n % 3 == 1:
            rows(
                dsn, "DELETE FROM gatepost.sessions s USING gatepost.users u WHERE canonical = 'ada' AND id = user_id"
            )
        else:
            rows(dsn, "UPDATE gatepost.users SET epoch = epoch + 1 WHERE canonical = 'ada'")
        answers = await asyncio.gather(*(status_of(client, token) for _ in range(5)))
        assert answers == [401] * 5
    stop.set()
    await asyncio.gather(*crowds)


async def test_a_check_does_not_join_a_query_that_began_before_it_not_even_one_for_the_same_token(
    lookup: Lookup, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (token_hash,) = seed(dsn, 1)
    answered, go_on = asyncio.Event(), asyncio.Event()
    honest = queries.live_sessions

    async def hold(connection: Connection, hashes: list[bytes], *how: Any) -> dict[bytes, Session]:
        found = await honest(connection, hashes, *how)
        answered.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(queries, "live_sessions", hold)
    before = asyncio.create_task(lookup.find(token_hash))
    await answered.wait()
    rows(dsn, "DELETE FROM gatepost.sessions")
    after = asyncio.create_task(lookup.find(token_hash))
    await asyncio.sleep(0)
    go_on.set()
    assert await before is not None
    assert await after is None


async def test_a_session_opened_while_a_query_was_under_way_is_found_at_once(lookup: Lookup, dsn: Dsn) -> None:
    old = seed(dsn, 1)[0]
    first = asyncio.create_task(lookup.find(old))
    await asyncio.sleep(0)
    rows(
        dsn,
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at) "
        "SELECT sha256('new'), id, 1, now() + interval '1 day' FROM gatepost.users",
    )
    assert await lookup.find(hashlib.sha256(b"new").digest()) is not None
    assert await first is not None


async def test_one_members_cancellation_does_not_hurt_the_others(lookup: Lookup, dsn: Dsn) -> None:
    hashes = seed(dsn, 40)
    with locked(dsn, "sessions"):
        tasks = [asyncio.create_task(lookup.find(t)) for t in hashes for _ in range(2)]
        await eventually(lambda: bool(rows(dsn, WAITING)))
        cancelled = random.Random(1).sample(tasks, 30)
        for task in cancelled:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for task, result in zip(tasks, results, strict=True):
        assert isinstance(result, asyncio.CancelledError) if task in cancelled else isinstance(result, Session)


@pytest.mark.deadlines
async def test_a_failed_query_is_503_for_the_checks_in_it_only(lookup: Lookup, dsn: Dsn) -> None:
    first, second = seed(dsn, 2)
    with locked(dsn, "sessions"):
        failing = asyncio.create_task(lookup.find(first))
        with pytest.raises(DatabaseUnavailable):
            await failing
    assert await lookup.find(second) is not None
    assert await lookup.find(first) is not None


@pytest.mark.deadlines
async def test_no_check_waits_for_two_hanging_queries_in_a_row(lookup: Lookup, dsn: Dsn) -> None:
    hashes = seed(dsn, 6)

    async def six() -> None:
        first = asyncio.create_task(lookup.find(hashes[0]))
        async with asyncio.timeout(60):
            while not rows(dsn, WAITING) and not first.done():
                await asyncio.sleep(0.01)
        others = [asyncio.create_task(lookup.find(token_hash)) for token_hash in hashes[1:]]
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert {type(result) for result in results} == {DatabaseUnavailable}

    with locked(dsn, "sessions"):
        assert await quickest(six, 3) < 3
    assert all(await asyncio.gather(*(lookup.find(token_hash) for token_hash in hashes)))


@pytest.mark.deadlines
async def test_a_check_behind_a_hanging_query_waits_no_longer_than_that_query(lookup: Lookup, dsn: Dsn) -> None:
    first, second = seed(dsn, 2)
    # Not so long before that one fails as to be given up with it: it has a query of its own, which hangs too.
    ahead = connection.STATEMENT_TIMEOUT - pool.ACQUIRE_TIMEOUT + 0.05

    async def both() -> None:
        hanging = asyncio.create_task(lookup.find(first))
        await asyncio.sleep(ahead)
        with pytest.raises(DatabaseUnavailable):
            await lookup.find(second)
        with pytest.raises(DatabaseUnavailable):
            await hanging

    with locked(dsn, "sessions"):
        most = ahead + connection.ANSWER_TIMEOUT + 0.15
        assert await quickest(both, most) < most


async def test_checks_that_never_stop_arriving_each_have_their_whole_time(
    lookup: Lookup, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_module, "MAX_BATCH", 1)
    monkeypatch.setattr(lookup_module, "ANSWER_TIMEOUT", 4.0)
    honest = queries.live_sessions

    async def slow(connection: Connection, hashes: list[bytes], *how: Any) -> dict[bytes, Session]:
        await asyncio.sleep(0.5)
        return await honest(connection, hashes, *how)

    monkeypatch.setattr(queries, "live_sessions", slow)
    hashes = seed(dsn, 3)

    async def one_after_the_other(token_hash: bytes) -> list[Session | None]:
        return [await lookup.find(token_hash) for _ in range(4)]  # 12 queries of 0.5 s, and always somebody waits

    answers = await asyncio.gather(*map(one_after_the_other, hashes))
    assert all(all(found) for found in answers)


async def test_a_dead_connection_costs_a_retry_and_no_answer(lookup: Lookup, dsn: Dsn) -> None:
    (token_hash,) = seed(dsn, 1)
    for _ in range(5):
        assert await lookup.find(token_hash) is not None
        end_backends(dsn)
        assert await lookup.find(token_hash) is not None


async def test_checks_do_not_wait_for_connections_that_logins_hold(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(config.model_copy(update={"throttle": UNLIMITED}))
    await register(client, "ada")
    token = await log_in(client)
    with locked(dsn, "passwords"):
        logins = [asyncio.create_task(log_in_status(client)) for _ in range(20)]
        await eventually(lambda: len(rows(dsn, WAITING)) >= 8)
        assert await status_of(client, token) == 200
    assert set(await asyncio.gather(*logins)) <= {200, 503}


async def log_in_status(client: Client) -> int:
    async with client.post("/user", json={"username": "ada", "password": "correct horse battery"}) as answer:
        return answer.status
