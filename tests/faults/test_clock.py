"""The time of day is wrong where Gatepost runs, and jumps."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import pytest

from tests.faults.clock import HOUR, faketime, set_off
from tests.faults.conftest import NewService
from tests.faults.postgres import Postgres
from tests.faults.service import Service
from tests.faults.trial import Trial

pytestmark = pytest.mark.fault

# Sessions that an hour more would end.
SHORT = {"GATEPOST_SESSIONS__LIFETIME": "1800", "GATEPOST_SESSIONS__IDLE_TIMEOUT": "900"}


async def off(service: Service) -> float:
    """Seconds by which a node's clock is ahead, as its answers tell the time."""
    async with aiohttp.ClientSession() as http, http.get(service.url + "/ping") as answer:
        told = parsedate_to_datetime(answer.headers["Date"])
    return (told - datetime.now(UTC)).total_seconds()


@contextlib.asynccontextmanager
async def wrong(service: Service, file: Path, hold: float) -> AsyncIterator[None]:
    """The clock an hour ahead, then an hour behind, then right."""
    for seconds in (HOUR, -HOUR, 0):
        set_off(file, seconds)
        async with asyncio.timeout(60):
            while abs(await off(service) - seconds) > 60:
                await asyncio.sleep(0.1)
        if seconds:
            await asyncio.sleep(hold)
    yield


async def test_no_decision_changes_when_the_clock_of_a_node_jumps_by_an_hour(
    trial: Trial, server: Postgres, new_service: NewService, tmp_path: Path
) -> None:
    file = tmp_path / "clock"
    odd = new_service(server, **SHORT, **faketime(file))
    name = "The clock of one node of two an hour ahead, an hour behind"
    hold = 1.0 if trial.quick else 10.0
    outcome = await trial(
        name,
        wrong(odd, file, hold),
        services=[odd, new_service(server, **SHORT)],
        server=server,
    )
    assert outcome.unserved() == []
    trial.found(name, "no answer that the rules do not give; none but 200 and 401")
