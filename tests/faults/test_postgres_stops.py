"""Postgres restarts, dies, freezes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.faults.postgres import Postgres
from tests.faults.service import Service
from tests.faults.trial import Bounds, Trial

pytestmark = pytest.mark.fault


@contextlib.asynccontextmanager
async def stopped(server: Postgres) -> AsyncIterator[None]:
    """A fast shutdown, and a start."""
    await asyncio.to_thread(server.stop)
    yield
    await asyncio.to_thread(server.start)


@contextlib.asynccontextmanager
async def killed(server: Postgres) -> AsyncIterator[None]:
    """SIGKILL for all its processes, and a start that has to recover."""
    await asyncio.to_thread(server.kill)
    yield
    await asyncio.to_thread(server.start)


@contextlib.asynccontextmanager
async def frozen(server: Postgres) -> AsyncIterator[None]:
    """SIGSTOP for all its processes, and SIGCONT."""
    await asyncio.to_thread(server.freeze)
    try:
        yield
    finally:
        await asyncio.to_thread(server.thaw)


@pytest.mark.thorough
async def test_a_restart_of_postgres_costs_503_while_it_lasts(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Postgres restarted (fast)", stopped(server), hold=1, felt_by=("check",), services=[service], server=server
    )
    assert 503 in outcome.statuses("check")


async def test_a_crash_of_postgres_loses_nothing_that_was_acknowledged(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Postgres killed with -9", killed(server), hold=1, felt_by=("check",), services=[service], server=server
    )
    assert 503 in outcome.statuses("check")
    assert "automatic recovery in progress" in server.log


async def test_while_postgres_is_frozen_every_answer_comes_within_two_seconds(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Postgres frozen (SIGSTOP)",
        frozen(server),
        hold=30,
        felt_by=("check",),
        services=[service],
        server=server,
        bounds=Bounds(answer=2.0, recovery=5.0),
    )
    assert 503 in outcome.statuses("check")
