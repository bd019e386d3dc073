"""Attempts that nobody judged: given back, once, as soon as the database can be reached."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import psycopg2
import pytest

from gatepost.config import Config
from gatepost.errors import DatabaseUnavailable, InvalidBody, Overloaded, Problem, WrongPassword
from gatepost.http.app import REFUNDS
from gatepost.postgres.database import Connection, Database, Dsn
from gatepost.security import throttle
from gatepost.security.refunds import Refunds
from gatepost.security.throttle import Taken
from gatepost.server import WebServer
from tests.conftest import rows
from tests.test_throttle import DAY, HOUR, bucket, later

# Seconds that a test may take itself; an attempt is an hour.
SOON = 300


@pytest.fixture
def refunds(database: Database) -> Refunds:
    return Refunds(database)


async def take(database: Database, *names: str) -> Taken:
    return (await database.read(throttle.take, sorted(map(bucket, names))))[1]


async def end(refunds: Refunds, taken: Taken, outcome: BaseException) -> None:
    with pytest.raises(type(outcome)):
        async with refunds._unless_judged(taken):
            raise outcome


def ahead(dsn: Dsn) -> list[float]:
    """The seconds until each bucket is full, by their keys."""
    return [
        float(s) for (s,) in rows(dsn, "SELECT extract(epoch FROM due - now()) FROM gatepost.throttles ORDER BY key")
    ]


@contextlib.asynccontextmanager
async def no_connection_free(database: Database) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as held:
        for _ in range(database.pool.maxsize):
            driver = await database.pool.acquire()
            held.callback(database.pool.give_back, driver)
        yield


@pytest.mark.parametrize(
    ("outcome", "at_once", "in_the_end"),
    [
        (Overloaded(), True, True),
        (InvalidBody([]), True, True),
        (WrongPassword(), False, False),
        (DatabaseUnavailable(), False, True),  # nobody waits for it
    ],
)
async def test_an_attempt_that_was_not_judged_is_given_back(
    database: Database, refunds: Refunds, dsn: Dsn, outcome: Problem, at_once: bool, in_the_end: bool
) -> None:
    await end(refunds, await take(database, "a"), outcome)
    assert (ahead(dsn)[0] < SOON) is at_once
    await refunds.write()
    assert (ahead(dsn)[0] < SOON) is in_the_end


@pytest.mark.deadlines
@pytest.mark.parametrize("outcome", [Overloaded(), DatabaseUnavailable()])
async def test_while_no_connection_is_free_attempts_are_held_and_given_back_afterwards_once(
    database: Database, refunds: Refunds, dsn: Dsn, outcome: Problem
) -> None:
    for _ in range(2):
        taken = await take(database, "a", "b")
        async with no_connection_free(database):
            await end(refunds, taken, outcome)
            with pytest.raises(DatabaseUnavailable):
                await refunds.write()
    await take(database, "a")
    for _ in range(2):
        await refunds.write()
        used_a, used_b = sorted(ahead(dsn), reverse=True)
        assert abs(used_a - HOUR.every) < SOON
        assert used_b < SOON


@pytest.mark.deadlines
async def test_a_locked_bucket_is_given_back_to_once_its_lock_is_free(
    database: Database, refunds: Refunds, dsn: Dsn
) -> None:
    first, second = await take(database, "a"), await take(database, "a")
    await end(refunds, first, DatabaseUnavailable())
    with contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as holder:
        holder.cursor().execute("SELECT FROM gatepost.throttles FOR UPDATE")
        writing = asyncio.create_task(refunds.write())
        await asyncio.sleep(0)  # it is on its way
        await end(refunds, second, DatabaseUnavailable())
        with pytest.raises(DatabaseUnavailable):
            await writing
    await refunds.write()
    assert ahead(dsn)[0] < SOON


async def test_a_write_with_an_unknown_commit_outcome_is_not_tried_again(
    database: Database, refunds: Refunds, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = throttle.give_back

    async def and_the_server_goes(connection: Connection, seconds: Mapping[bytes, float]) -> None:
        await honest(connection, seconds)
        rows(dsn, "SELECT pg_terminate_backend(%s, 60000)", connection.connection.raw.get_backend_pid())

    monkeypatch.setattr(throttle, "give_back", and_the_server_goes)
    await end(refunds, await take(database, "a"), DatabaseUnavailable())
    with pytest.raises(DatabaseUnavailable):
        await refunds.write()
    assert refunds._held == {}


async def test_what_has_come_back_by_itself_does_not_come_back_again(
    database: Database, refunds: Refunds, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or guesses that were made since would be forgotten."""
    for name in ("a", "b"):
        await end(refunds, await take(database, name), DatabaseUnavailable())
    now = refunds._held[bucket("a").key][1]
    monkeypatch.setattr("gatepost.security.refunds.time.monotonic", lambda: now + 3000)
    later(dsn, 3000)
    await refunds.write()
    assert all(abs(seconds) < SOON for seconds in ahead(dsn))
    await end(refunds, await take(database, "a", "b"), DatabaseUnavailable())
    monkeypatch.setattr("gatepost.security.refunds.time.monotonic", lambda: now + DAY)
    before = ahead(dsn)
    await refunds.write()
    assert [abs(a - b) < SOON for a, b in zip(before, ahead(dsn), strict=True)] == [True, True]
    assert refunds._held == {}


async def test_what_is_held_takes_bounded_memory(refunds: Refunds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatepost.security.refunds.MOST", 5)
    for number in range(20):
        await end(refunds, Taken([bucket(str(number)), bucket("a", HOUR)]), DatabaseUnavailable())
    assert len(refunds._held) == 5
    assert refunds._held[bucket("a").key][0] == 20 * HOUR.every


async def test_attempts_are_given_back_in_batches_and_none_that_arrives_meanwhile_is_lost(
    database: Database, refunds: Refunds, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatepost.security.refunds.BATCH", 2)
    for name in "abcde":
        await end(refunds, await take(database, name), DatabaseUnavailable())
    taken = await take(database, "a")
    writing = asyncio.create_task(refunds.write())
    await asyncio.sleep(0)  # the first batch is on its way
    await end(refunds, taken, DatabaseUnavailable())
    await writing
    assert len(ahead(dsn)) == 5
    assert max(ahead(dsn)) < SOON


async def test_a_server_that_stops_gives_held_attempts_back(config: Config, dsn: Dsn) -> None:
    server = WebServer(config)
    app = await server.initializer()
    database = await Database.open(dsn, 1)
    await end(app[REFUNDS], await take(database, "a"), DatabaseUnavailable())
    app.freeze()
    await app.cleanup()
    assert ahead(dsn)[0] < SOON
    await database.close()
