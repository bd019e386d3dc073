"""Gatepost itself ends: killed, or told to."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.faults.conftest import NewService
from tests.faults.footprint import clients
from tests.faults.postgres import Postgres
from tests.faults.service import Service
from tests.faults.trial import Bounds, Trial, ready

pytestmark = pytest.mark.fault

READY = 3.0
# Whoever was connected to what is killed has no answer; nobody else is to notice.
KILLED = Bounds(answer=2.0, recovery=READY, unanswered=True, footprint=False)
STOPPED = 10.0


def at_most(service: Service) -> float:
    """Seconds that a start may take here: a machine on which one takes longer with nothing to do gets no quicker."""
    return max(READY, 3 * service.usual)


@contextlib.asynccontextmanager
async def killed_and_started(service: Service, times: int) -> AsyncIterator[list[float]]:
    """SIGKILL and a new start, several times; gives the seconds that each took from its start until it was ready."""
    took: list[float] = []
    for _ in range(times):
        await asyncio.sleep(0.5)  # so that logins are under way
        await asyncio.to_thread(service.end, signal.SIGKILL)
        took.append(await started(service))
    yield took


async def started(service: Service) -> float:
    """Start it; seconds until it was ready."""
    began = time.monotonic()
    starting = asyncio.create_task(asyncio.to_thread(service.start))
    took = await ready(service.url) - began
    await starting
    return took


@contextlib.asynccontextmanager
async def workers_killed(service: Service, times: int) -> AsyncIterator[list[float]]:
    """SIGKILL for one worker of two, at least so many times; gives the seconds until another served in its place."""
    took: list[float] = []

    async def kill_one() -> None:
        await asyncio.sleep(0.5)
        first, *others = service.workers
        began = time.monotonic()
        os.kill(first, signal.SIGKILL)
        await replaced(service, {first, *others})
        took.append(time.monotonic() - began)

    async def go_on() -> None:
        while True:
            await kill_one()

    for _ in range(times):
        await kill_one()
    going_on = asyncio.create_task(go_on())  # until one had a request in hand
    try:
        yield took
    finally:
        going_on.cancel()
        await asyncio.wait([going_on])


async def replaced(service: Service, before: set[int]) -> None:
    """Wait until a worker that was not there before has taken a connection in; meanwhile the node is ready."""
    async with asyncio.timeout(120), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        while True:
            async with http.get(service.url + "/health/ready", headers={"Connection": "close"}) as answer:
                assert answer.status == 200
            # A connection that is held, since one that is answered is gone before it can be looked for.
            held = await asyncio.open_connection("127.0.0.1", service.port)
            await asyncio.sleep(0.02)
            found = any(clients(worker, service.port) for worker in set(service.workers) - before)
            held[1].close()
            if found:
                return


@contextlib.asynccontextmanager
async def told_to_stop(service: Service) -> AsyncIterator[list[float]]:
    """SIGTERM, and a new start; gives the exit code and the seconds until it had ended."""
    began = time.monotonic()
    code = await asyncio.to_thread(service.end, signal.SIGTERM)
    took = time.monotonic() - began
    await started(service)
    assert code is not None
    yield [code, took]


async def test_gatepost_killed_in_mid_login_leaves_no_half_a_state_and_is_ready_in_three_seconds(
    trial: Trial, server: Postgres, service: Service
) -> None:
    name = "Gatepost killed with -9 and started again"
    fault = killed_and_started(service, 1 if trial.quick else 6)
    outcome = await trial(name, fault, services=[service], server=server, bounds=KILLED)
    assert None in outcome.statuses("login")
    trial.found(name, f"ready {max(outcome.measured):.1f} s after a start (≤ {READY:g})")
    assert max(outcome.measured) <= at_most(service)


async def test_a_worker_killed_in_mid_login_leaves_no_half_a_state_and_another_serves_in_three_seconds(
    trial: Trial, server: Postgres, new_service: NewService
) -> None:
    name = "One worker of two killed with -9"
    service = new_service(server, GATEPOST_WEBSERVER__WORKERS="2")
    fault = workers_killed(service, 1 if trial.quick else 6)
    felt_by = ("check", "login")
    outcome = await trial(name, fault, services=[service], server=server, bounds=KILLED, felt_by=felt_by)
    assert None in outcome.statuses(*felt_by)
    trial.found(name, f"another serves {max(outcome.measured):.1f} s after that (≤ {READY:g}); the node stays ready")
    assert max(outcome.measured) <= at_most(service)


@pytest.mark.thorough
async def test_the_arbiter_killed_leaves_no_half_a_state_and_a_new_one_is_ready_in_three_seconds(
    trial: Trial, server: Postgres, new_service: NewService
) -> None:
    name = "The arbiter of two workers killed with -9, and started again"
    service = new_service(server, GATEPOST_WEBSERVER__WORKERS="2")
    fault = killed_and_started(service, 3)
    outcome = await trial(name, fault, services=[service], server=server, bounds=KILLED)
    trial.found(name, f"ready {max(outcome.measured):.1f} s after a start (≤ {READY:g})")
    assert max(outcome.measured) <= at_most(service)


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.thorough), "2"])
async def test_sigterm_under_load_leaves_no_accepted_request_unanswered(
    trial: Trial, server: Postgres, new_service: NewService, workers: str
) -> None:
    name = "SIGTERM, " + ("one process" if workers == "1" else "two workers")
    service = new_service(server, GATEPOST_WEBSERVER__WORKERS=workers)
    outcome = await trial(name, told_to_stop(service), services=[service], server=server, bounds=KILLED)
    code, took = outcome.measured
    refused = [r for r in outcome.during if r.status is None]
    unanswered = [r for r in refused if r.code != "ClientConnectorError"]
    trial.found(
        name,
        f"ended after {took:.1f} s (≤ {STOPPED:g}) with {code:g}; {len(unanswered)} requests accepted and not "
        f"answered (0), {len(refused) - len(unanswered)} connections refused",
    )
    assert unanswered == []
    withheld = outcome.machine.withheld(outcome.began, outcome.began + took)
    assert (code, took - withheld < STOPPED) == (0, True)
    assert refused  # or it was not under load
