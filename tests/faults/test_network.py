"""Packets between Gatepost and Postgres vanish: no RST, no FIN, nothing."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gatepost.feed.feed import LEASE
from tests.faults.conftest import NewService
from tests.faults.load import CHECKERS
from tests.faults.postgres import Postgres
from tests.faults.test_verifiers import LOST, staged
from tests.faults.trial import Bounds, Trial

pytestmark = pytest.mark.fault

# RFC 2544 keeps 198.18.0.0/15 for tests between networks: nobody routes it.
_HERE, _THERE, _MASK = "198.18.77.1", "198.18.77.2", "30"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=60)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace, joined to ours by a cable; with REQUIRE_NETNS=1 having none is a failure."""
    name, cable = f"gatepost-{os.getpid()}", f"gp{os.getpid()}"
    try:
        if os.getuid() != 0:
            raise PermissionError("not root")
        if not (shutil.which("iptables") and shutil.which("ip")):
            raise FileNotFoundError("iptables or ip is not there")
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        why = f"no network namespace can be made: {getattr(error, 'stderr', error)}"
        if os.environ.get("REQUIRE_NETNS") == "1":
            pytest.fail(why)
        pytest.skip(why)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "there", "netns", name)
        _ip("addr", "add", f"{_HERE}/{_MASK}", "dev", cable)
        _ip("link", "set", cable, "up")
        _ip("-n", name, "addr", "add", f"{_THERE}/{_MASK}", "dev", "there")
        _ip("-n", name, "link", "set", "there", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        _ip("netns", "delete", name)  # the cables go with it


@pytest.fixture
def distant(prepared: Postgres, faults_folder: Path, namespace: str) -> Iterator[Postgres]:
    """A running server at the other end of the cable."""
    server = prepared.copy(
        faults_folder / "distant", host=_THERE, port=5432, within=["ip", "netns", "exec", namespace]
    )
    try:
        server.start()
        yield server
    finally:
        server.end()


@contextlib.asynccontextmanager
async def silence(namespace: str) -> AsyncIterator[None]:
    """Drop whatever comes and goes over the cable."""

    def rules(action: str) -> None:
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            command = ["ip", "netns", "exec", namespace, "iptables", action, chain, side, "there", "-j", "DROP"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)

    await asyncio.to_thread(rules, "-A")
    try:
        yield
    finally:
        await asyncio.to_thread(rules, "-D")


async def test_while_packets_are_dropped_every_answer_comes_within_two_seconds(
    trial: Trial, namespace: str, distant: Postgres, new_service: NewService
) -> None:
    outcome = await trial(
        "Packets to Postgres dropped",
        silence(namespace),
        hold=70,  # longer than the driver's own 60
        services=[new_service(distant)],
        server=distant,
        bounds=Bounds(answer=2.0, recovery=5.0),
    )
    assert outcome.statuses("check")[503] >= CHECKERS


@pytest.mark.thorough
async def test_while_packets_are_dropped_verifiers_let_nobody_in_whose_end_was_acknowledged(
    trial: Trial, namespace: str, distant: Postgres, new_service: NewService, tmp_path: Path
) -> None:
    async with staged(distant, new_service, tmp_path) as (stage, (strict, leased)):
        outcome = await trial(
            "Verifiers: packets to Postgres dropped",
            silence(namespace),
            hold=8,
            services=stage.nodes,
            server=distant,
            bounds=LOST,
            verifiers=[(strict, 0.0), (leased, LEASE)],
        )
    assert outcome.statuses("check")[503] >= CHECKERS
