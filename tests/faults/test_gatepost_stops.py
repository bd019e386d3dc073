"""Gatepost itself dies."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator

import pytest

from tests.faults.postgres import Postgres
from tests.faults.service import Service
from tests.faults.trial import Bounds, Trial, ready

pytestmark = pytest.mark.fault


@contextlib.asynccontextmanager
async def killed_and_started(service: Service, times: int) -> AsyncIterator[list[float]]:
    """SIGKILL and a new start, several times; gives the seconds that each took from its start until it was ready."""
    took: list[float] = []
    for _ in range(times):
        await asyncio.sleep(0.5)  # so that logins are under way
        await asyncio.to_thread(service.end, signal.SIGKILL)
        began = time.monotonic()
        starting = asyncio.create_task(asyncio.to_thread(service.start))
        took.append(await ready(service.url) - began)
        await starting
    yield took


async def test_gatepost_killed_in_mid_login_leaves_no_half_a_state_and_is_ready_in_three_seconds(
    trial: Trial, server: Postgres, service: Service
) -> None:
    fault = killed_and_started(service, 2 if trial.quick else 6)
    outcome = await trial(
        "Gatepost killed with -9 and started again",
        fault,
        services=[service],
        server=server,
        bounds=Bounds(answer=2.0, recovery=3.0, unanswered=True, footprint=False),
    )
    assert None in outcome.statuses("login")
    assert max(outcome.measured) <= 3.0
