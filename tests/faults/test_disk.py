"""The disk under Postgres is full."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import NewService
from tests.faults.postgres import Postgres
from tests.faults.trial import Bounds, Trial

pytestmark = pytest.mark.fault

SIZE = "160m"


@pytest.fixture
def small_disk(faults_folder: Path) -> Iterator[Path]:
    """A file system of its own, small and in memory; with REQUIRE_NETNS=1, which says that we are root, a must."""
    folder = faults_folder / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "gatepost-faults", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        why = f"no file system can be mounted: {done.stderr.strip()}"
        if os.environ.get("REQUIRE_NETNS") == "1":
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def cramped(prepared: Postgres, small_disk: Path) -> Iterator[Postgres]:
    """A running server on the small disk."""
    server = prepared.copy(small_disk / "server")
    server.settings = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
    try:
        server.start()
        yield server
    finally:
        server.end()


@contextlib.asynccontextmanager
async def filled(server: Postgres, disk: Path) -> AsyncIterator[None]:
    """No block left; then there is space again, and whoever watches over Postgres starts it if it has ended."""
    ballast = disk / "ballast"

    async def keep_full() -> None:
        with ballast.open("ab", buffering=0) as file:
            while True:
                with contextlib.suppress(OSError):
                    while file.write(bytes(1 << 16)):
                        pass
                await asyncio.sleep(0.02)  # Postgres removes files of its own now and then

    filling = asyncio.create_task(keep_full())
    try:
        yield
    finally:
        filling.cancel()
        ballast.unlink()
    if not server.running:
        await asyncio.to_thread(server.start)


async def test_a_full_disk_refuses_writes_and_leaves_no_login_without_its_event(
    trial: Trial, cramped: Postgres, small_disk: Path, new_service: NewService
) -> None:
    outcome = await trial(
        "Disk full under Postgres",
        filled(cramped, small_disk),
        hold=15,
        felt_by=("login", "logout", "change"),
        services=[new_service(cramped)],
        server=cramped,
        bounds=Bounds(answer=2.0, recovery=10.0),
    )
    assert 503 in outcome.statuses("login", "logout", "change")
    assert "No space left on device" in cramped.log
