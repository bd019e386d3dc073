"""A flood of logins, ten times what hashing can do: those who are signed in do not notice."""

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

import psycopg2
import pytest

from gatepost.config import Config
from gatepost.db import Dsn
from gatepost.web import CREDENTIALS
from tests.conftest import PASSWORD, UNLIMITED, Client, StartServer, eventually, log_in, register, rows, status_of
from tests.test_bad_input import exchange, raw

SECONDS = 3.0
WRONG = {"username": "nobody", "password": "not the password"}


@pytest.fixture
async def small(config: Config, start_server: StartServer) -> Client:
    """A server with one thread and a short queue, and hashes of a cost that a real one has."""
    passwords = config.passwords.model_copy(
        update={"threads": 1, "queue": 20, "queue_timeout": 0.5, "memory_kib": 19456, "iterations": 2}
    )
    return await start_server(config.model_copy(update={"passwords": passwords, "throttle": UNLIMITED}))


def hasher_of(client: Client) -> Any:
    return client.server.app[CREDENTIALS].hasher  # type: ignore[attr-defined]


async def test_under_a_flood_of_logins_every_check_is_answered_and_the_queue_stays_short(small: Client) -> None:
    await register(small, "ada")
    token = await log_in(small)
    hasher = hasher_of(small)
    began = time.monotonic()
    for _ in range(5):
        await log_in(small)
    rate = 10 * 5 / (time.monotonic() - began)
    outcomes: Counter[int] = Counter()
    retries: set[int] = set()
    longest = 0

    async def attempt() -> None:
        answer = await exchange(small, raw("POST", "/user", body=json.dumps(WRONG).encode()), seconds=20)
        outcomes[answer.status] += 1
        if answer.status == 503:
            assert answer.problem()["code"] == "overloaded"
            retries.add(int(answer.headers["Retry-After"]))

    checks = []
    async with asyncio.TaskGroup() as flood:
        for number in range(int(rate * SECONDS)):
            flood.create_task(attempt())
            if number % 5 == 0:
                checks.append(flood.create_task(status_of(small, token)))
            longest = max(longest, hasher.waiting)
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
    assert {check.result() for check in checks} == {200}
    assert outcomes.keys() == {401, 503}
    assert outcomes[503] > outcomes[401] > 0
    assert longest <= 20
    assert 1 <= min(retries) <= max(retries) <= 20  # not a day, whatever else this machine does
    assert [t.name for t in threading.enumerate() if t.name.startswith("hashing")] == ["hashing_0"]
    async with asyncio.timeout(5):
        assert await log_in(small)
    await eventually(lambda: hasher.waiting == 0)


async def test_checks_are_answered_while_logins_hold_every_connection_that_logins_may_have(
    small: Client, dsn: Dsn
) -> None:
    await register(small, "ada")
    token = await log_in(small)
    holder = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        holder.cursor().execute("LOCK gatepost.passwords IN ACCESS EXCLUSIVE MODE")
        logins = [asyncio.create_task(small.post("/user", json=WRONG)) for _ in range(20)]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        await eventually(lambda: rows(dsn, waiting)[0][0] >= 8)
        for _ in range(20):
            assert await status_of(small, token) == 200
            async with small.get("/health/ready") as ready:
                assert ready.status == 200, "or a load balancer would send the flood to the next node"
    finally:
        holder.close()
    assert {answer.status for answer in await asyncio.gather(*logins)} <= {401, 503}


async def test_a_refused_login_costs_the_database_nothing(
    small: Client, count_round_trips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher = hasher_of(small)
    monkeypatch.setattr(hasher, "_admitted", hasher._most)
    with count_round_trips() as sent:
        async with small.post("/user", json={"username": "ada", "password": PASSWORD}) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
    assert sent == []
