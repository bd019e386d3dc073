"""Guesses at one account through two processes: how many reach the hash, whatever their clocks say."""

import asyncio
import re
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from gatepost.config import ThrottleConfig
from tests.faults.clock import HOUR, faketime, set_off
from tests.faults.conftest import NewService
from tests.faults.postgres import Postgres
from tests.faults.service import ADMIN_PASSWORD
from tests.faults.trial import Trial

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


async def log_in(http: aiohttp.ClientSession, url: str, ip: str, password: str) -> int:
    body = {"username": "admin", "password": password}
    async with http.post(url + "/user", json=body, headers={"X-Forwarded-For": ip}) as answer:
        await answer.read()
        return answer.status


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
    """Twice 300 guesses at once, then the owner. Hashes for guesses; answers to them; answers to the owner."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        assert await log_in(http, urls[0], HOME, ADMIN_PASSWORD) == 200
        before = await hashes(urls)
        answers: Counter[int] = Counter()
        for _ in range(2):
            guesses = (log_in(http, urls[n % 2], STRANGERS[n % places], f"guess number {n}") for n in range(300))
            answers.update(await asyncio.gather(*guesses))
        computed = await hashes(urls) - before
        owner = [await log_in(http, url, HOME, ADMIN_PASSWORD) for url in urls]
        return computed, answers, owner


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
    assert computed == answers[401] == LIMITS[places]
    assert answers.keys() <= {401, 429, 503}
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
    assert computed == answers[401] == LIMITS[300]
    assert owner == [200, 200]
