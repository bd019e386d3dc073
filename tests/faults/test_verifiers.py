"""Three nodes and two verifiers: nobody whose end was acknowledged is let in, by nodes and strict verifiers at once,
by leased ones after a second at most, whatever becomes of the feed.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from gatepost.feed.feed import LEASE
from gatepost.postgres.connection import Dsn
from gatepost_client import Verifier
from tests.faults.conftest import NewService
from tests.faults.load import VERIFIER
from tests.faults.postgres import Postgres
from tests.faults.service import Service, settings
from tests.faults.test_postgres_stops import frozen
from tests.faults.trial import Bounds, Trial
from tests.gatepost_process import gatepost
from tests.proxy import Proxy, proxy

pytestmark = pytest.mark.fault

# The backends that nodes listen with: the last that each has asked is to notify itself.
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'gatepost' AND query LIKE '%%pg_notify(%%'"


@dataclass
class Stage:
    """Three nodes on a Postgres; the leased verifier reaches its node by way of ``cable``."""

    server: Postgres
    nodes: list[Service]
    cable: Proxy


def listeners(server: Postgres) -> list[int]:
    return [pid for (pid,) in server.sql(LISTENERS)]


@contextlib.asynccontextmanager
async def again_and_again(seconds: float, work: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """As long as the block lasts."""

    async def repeat() -> None:
        while True:
            await work()
            await asyncio.sleep(seconds)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def listeners_ended(stage: Stage) -> AbstractAsyncContextManager[None]:
    """The backends that listen are ended, each time they are back."""
    end = LISTENERS.replace("SELECT pid", "SELECT pg_terminate_backend(pid)")
    return again_and_again(0.7, partial(asyncio.to_thread, stage.server.sql, end))


@contextlib.asynccontextmanager
async def listeners_stopped(stage: Stage) -> AsyncIterator[None]:
    """The backends that listen are stopped with SIGSTOP, and those that take their place."""
    stopped: set[int] = set()

    def stop() -> None:
        for pid in set(listeners(stage.server)) - stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)

    try:
        async with again_and_again(2.5, partial(asyncio.to_thread, stop)):
            yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def cable_stalled(stage: Stage) -> AsyncIterator[None]:
    """Nothing comes through to the leased verifier's node, neither over the feed nor over new connections."""
    stage.cable.silent = stage.cable.stalled = True
    try:
        yield
    finally:
        stage.cable.silent = stage.cable.stalled = False


def feed_cut(stage: Stage) -> AbstractAsyncContextManager[None]:
    """The leased verifier's connections break, all of them."""

    async def cut() -> None:
        stage.cable.reset()

    return again_and_again(0.9, cut)


@contextlib.asynccontextmanager
async def node_killed(stage: Stage) -> AsyncIterator[None]:
    """The leased verifier's node is killed, and started again."""
    await asyncio.to_thread(stage.nodes[0].end, signal.SIGKILL)
    yield
    await asyncio.to_thread(stage.nodes[0].start)


@contextlib.asynccontextmanager
async def node_stopped(stage: Stage) -> AsyncIterator[None]:
    """The leased verifier's node is stopped with SIGSTOP: its connections stay open, and nothing comes."""
    os.kill(stage.nodes[0].pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(stage.nodes[0].pid, signal.SIGCONT)


def postgres_frozen(stage: Stage) -> AbstractAsyncContextManager[None]:
    """Every process of Postgres is stopped with SIGSTOP."""
    return frozen(stage.server)


def service_token(node: Service, server: Postgres, cwd: Path, name: str) -> str:
    done = gatepost("service", "add", name, "--json", cwd=cwd, **settings(server))
    assert done.returncode == 0, done.stderr
    token: str = json.loads(done.stdout)["token"]
    node.secrets.append(token)
    return token


@contextlib.asynccontextmanager
async def staged(server: Postgres, new_service: NewService, cwd: Path) -> AsyncIterator[tuple[Stage, list[Verifier]]]:
    """The stage, and the two verifiers: a strict one of the second node, a leased one of the first."""
    nodes = [new_service(server) for _ in range(3)]
    target = Dsn(hosts=["127.0.0.1"], port=nodes[0].port, user="", password="", database="")
    tokens = [service_token(nodes[0], server, cwd, name) for name in ("strict", "leased")]
    async with (
        proxy(target) as cable,
        Verifier(nodes[1].url, tokens[0], mode="strict") as strict,
        Verifier(f"http://127.0.0.1:{cable.port}", tokens[1], mode="leased") as leased,
    ):
        async with asyncio.timeout(60):
            while not leased.has_lease:
                await asyncio.sleep(0.01)
        yield Stage(server, nodes, cable), [strict, leased]


Fault = Callable[[Stage], AbstractAsyncContextManager[None]]
ANSWER = 2.5
"""Seconds for any answer of a verifier, whose own limit is 2."""
LOST = Bounds(answer=ANSWER, recovery=5.0, unanswered=True, footprint=False)


@pytest.mark.parametrize(
    ("name", "fault", "hold", "bounds"),
    [
        ("listening backends stopped (SIGSTOP)", listeners_stopped, 15.0, LOST),
        ("nothing comes through to the verifier", cable_stalled, 8.0, LOST),
        pytest.param("listening backends ended", listeners_ended, 15.0, LOST, marks=pytest.mark.thorough),
        pytest.param("the feed cut again and again", feed_cut, 15.0, LOST, marks=pytest.mark.thorough),
        pytest.param("its node killed with -9", node_killed, 3.0, LOST, marks=pytest.mark.thorough),
        pytest.param(
            "its node stopped (SIGSTOP)",
            node_stopped,
            8.0,
            replace(LOST, answer=8.0 + ANSWER),  # of those who ask the node itself
            marks=pytest.mark.thorough,
        ),
        pytest.param("Postgres frozen (SIGSTOP)", postgres_frozen, 8.0, LOST, marks=pytest.mark.thorough),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_verifiers_let_nobody_in_whose_end_was_acknowledged(
    trial: Trial,
    server: Postgres,
    new_service: NewService,
    tmp_path: Path,
    name: str,
    fault: Fault,
    hold: float,
    bounds: Bounds,
) -> None:
    async with staged(server, new_service, tmp_path) as (stage, (strict, leased)):
        outcome = await trial(
            f"Verifiers: {name}",
            fault(stage),
            hold=hold,
            services=stage.nodes,
            server=server,
            bounds=bounds,
            verifiers=[(strict, 0.0), (leased, LEASE)],
        )
        async with asyncio.timeout(60):
            while not leased.has_lease:  # it is whole again
                await asyncio.sleep(0.01)
    asked = [r for r in outcome.during if r.code.startswith(VERIFIER)]
    assert max(map(outcome.machine.took, asked)) < ANSWER
    assert {r.status for r in asked} <= {200, 401, 503}
    assert any(r.status == 200 for r in asked if r.stale)
