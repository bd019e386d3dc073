"""Guesses at one account through two processes: how many reach the hash, whatever their clocks say. And what is none:
the right password, tried again and again while nothing can be said of it.
"""

import asyncio
import re
import time
from collections import Counter
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from gatepost.config import ThrottleConfig
from tests.faults.clock import HOUR, faketime, set_off
from tests.faults.conftest import NewService
from tests.faults.postgres import Postgres
from tests.faults.service import ADMIN_PASSWORD
from tests.faults.test_busy import Fault, asleep, locked
from tests.faults.trial import QUICK_HOLD, Trial, ready

pytestmark = pytest.mark.fault

HOME = "203.0.113.5"
# Not the addresses of anybody who has signed in, each in a network of its own.
STRANGERS = [f"100.{64 + number // 250}.{number % 250}.9" for number in range(300)]
# What an account has for guesses from one place, and from all together.
LIMITS = {1: ThrottleConfig().place_burst, 300: ThrottleConfig().account_burst}
# The load's own settings have no limits. The tests are the proxy before the nodes: a guess may come from anywhere.
# And they are the program beside it that reads the metrics, which no proxy may.
PROXY, PROGRAM = "127.0.0.1", "127.0.0.2"
VARIABLES = {
    **{f"GATEPOST_THROTTLE__{k.upper()}": str(v) for k, v in ThrottleConfig().model_dump(exclude={"exempt"}).items()},
    "GATEPOST_WEBSERVER__TRUSTED_PROXIES": PROXY,
}


async def log_in(http: aiohttp.ClientSession, url: str, ip: str, password: str, name: str = "admin") -> int:
    body = {"username": name, "password": password}
    async with http.post(url + "/user", json=body, headers={"X-Forwarded-For": ip}) as answer:
        await answer.read()
        return answer.status


async def judged(http: aiohttp.ClientSession, url: str, ip: str, password: str, name: str = "admin") -> int:
    """The same, until it is no 503: on a machine that stands still, the database did not answer in time."""
    async with asyncio.timeout(60):
        while (status := await log_in(http, url, ip, password, name)) == 503:
            await asyncio.sleep(0.1)
    return status


async def hashes(urls: list[str]) -> int:
    """How many the nodes have computed, by their own account."""
    total = 0.0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(PROGRAM, 0))) as http:
        for url in urls:
            async with http.get(url + "/metrics") as answer:
                found = re.search(r"^gatepost_hashes_total (\S+)$", await answer.text(), re.MULTILINE)
            assert found
            total += float(found[1])
    return int(total)


async def guess_everywhere(urls: list[str], places: int) -> tuple[int, Counter[int], list[int]]:
    """300 guesses at once, twice and until they are refused, then the owner. Hashes for guesses; answers to them;
    answers to the owner.
    """
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        assert await log_in(http, urls[0], HOME, ADMIN_PASSWORD) == 200
        before = await hashes(urls)
        answers: Counter[int] = Counter()
        for rounds in range(50):  # on a slow machine most of them find no connection to the database
            if rounds >= 2 and answers[429] > 100:
                break
            guesses = (log_in(http, urls[n % 2], STRANGERS[n % places], f"guess number {n}") for n in range(300))
            answers.update(await asyncio.gather(*guesses))
        computed = await hashes(urls) - before
        owner = [await judged(http, url, HOME, ADMIN_PASSWORD) for url in urls]
        return computed, answers, owner


def assert_limited(computed: int, answers: Counter[int], limit: int) -> None:
    """So many are hashed and judged. Where the machine stood still between a hash and its judgement, that is a 503,
    which tells nothing of the password, and gives the attempt back.
    """
    assert answers.keys() <= {401, 429, 503}
    assert answers[401] == limit or (answers[503] and answers[401] < limit)
    assert computed - answers[401] <= answers[503]


@pytest.mark.parametrize("places", [pytest.param(1, marks=pytest.mark.thorough), 300])
async def test_no_more_guesses_than_the_limit_reach_the_hash_and_the_owner_is_not_locked_out(
    trial: Trial, server: Postgres, new_service: NewService, places: int
) -> None:
    urls = [new_service(server, **VARIABLES).url for _ in range(2)]
    computed, answers, owner = await guess_everywhere(urls, places)
    trial.found(
        f"300 guesses at one account at once, twice, through two processes, from {places} network(s)",
        f"{computed} hashed (≤ {LIMITS[places]}), {answers[429]} × 429, {answers[503]} × 503; the owner's logins: "
        + ", ".join(map(str, owner)),
    )
    assert_limited(computed, answers, LIMITS[places])
    assert owner == [200, 200]


@pytest.mark.thorough
async def test_the_limit_is_the_same_for_processes_whose_clocks_are_two_hours_apart(
    server: Postgres, new_service: NewService, tmp_path: Path
) -> None:
    urls = []
    for number, seconds in enumerate((HOUR, -HOUR)):
        file = tmp_path / f"clock{number}"
        variables = faketime(file)
        set_off(file, seconds)
        urls.append(new_service(server, **VARIABLES, **variables).url)
    computed, answers, owner = await guess_everywhere(urls, 300)
    assert_limited(computed, answers, LIMITS[300])
    assert owner == [200, 200]


# Each from a place of its own, with so many programs that try at once: fewer than a place has attempts, and together
# more than there are connections.
USERS, PROGRAMS = [f"user{number}" for number in range(6)], 3
# Seconds after the fault until all is as if there had been none.
FORGOTTEN = 5.0


async def keep_trying(
    http: aiohttp.ClientSession, url: str, number: int, answers: Counter[int], until: float
) -> None:
    """A program with the right password, which takes no no for an answer."""
    while time.monotonic() < until or answers[503] <= LIMITS[1]:
        answers[await log_in(http, url, STRANGERS[number], ADMIN_PASSWORD, USERS[number])] += 1
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pg_sleep in each", asleep),
        pytest.param("a table they need is locked", partial(locked, table="events"), marks=pytest.mark.thorough),
    ],
)
async def test_who_knows_the_password_is_not_locked_out_by_trying_while_the_database_cannot_say_so(
    trial: Trial, server: Postgres, new_service: NewService, name: str, fault: Fault
) -> None:
    url = new_service(server, **VARIABLES).url
    times, hold = (2, QUICK_HOLD) if trial.quick else (3, 8.0)
    answers: list[Counter[int]] = [Counter() for _ in USERS]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        for user in USERS:
            async with http.post(url + "/account", json={"username": user, "password": ADMIN_PASSWORD}) as answer:
                assert answer.status == 201
        for _ in range(times):
            until = time.monotonic() + hold
            async with fault(server), asyncio.TaskGroup() as programs:
                for number in range(PROGRAMS * len(USERS)):
                    which = number % len(USERS)
                    programs.create_task(keep_trying(http, url, which, answers[which], until))
        repaired = await ready(url)

        forgotten = 12 * FORGOTTEN if trial.quick else FORGOTTEN  # nobody looks what the machine is doing meanwhile

        async def get_in(number: int) -> None:
            while await log_in(http, url, STRANGERS[number], ADMIN_PASSWORD, USERS[number]) != 200:
                assert time.monotonic() - repaired < forgotten
                await asyncio.sleep(0.1)

        await asyncio.gather(*map(get_in, range(len(USERS))))
        again = time.monotonic() - repaired
        tries, guesses = 2 * LIMITS[1], []
        for number, user in enumerate(USERS):
            rights = [await judged(http, url, STRANGERS[number], ADMIN_PASSWORD, user) for _ in range(tries)]
            assert rights == [200] * tries
            wrongs = [await judged(http, url, STRANGERS[number], f"guess number {n}", user) for n in range(tries)]
            assert set(wrongs) == {401, 429}
            guesses.append(wrongs.count(401))
    unjudged = [counted[503] for counted in answers]
    trial.found(
        f"Six users try the right password, with the limits that are the default ({name}), {times} times {hold:g} s",
        f"each has {min(unjudged)} to {max(unjudged)} × 503; all are in {again:.1f} s after it (≤ {FORGOTTEN:g}); "
        f"wrong passwords then: {min(guesses)} to {max(guesses)} (≤ {LIMITS[1]})",
    )
    assert min(unjudged) > LIMITS[1]
    assert max(guesses) <= LIMITS[1]
