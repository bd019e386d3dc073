"""Postgres that takes no writes, and a standby that takes its primary's place."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import NewService
from tests.faults.postgres import Postgres
from tests.faults.service import Service
from tests.faults.trial import Bounds, Trial

pytestmark = pytest.mark.fault

WRITES = ("login", "logout", "change", "end_all", "sign_out")


@contextlib.asynccontextmanager
async def set_read_only(server: Postgres) -> AsyncIterator[None]:
    """By the setting, for sessions that there are and those to come."""
    with server.session() as cursor:
        cursor.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        cursor.execute("SELECT pg_reload_conf()")
        yield
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute("ALTER SYSTEM RESET default_transaction_read_only")
        cursor.execute("SELECT pg_reload_conf()")


@contextlib.asynccontextmanager
async def demoted(server: Postgres) -> AsyncIterator[list[float]]:
    """Restarted as a standby, and promoted again. Gives when the standby was there."""
    await asyncio.to_thread(server.stop)
    (server.data / "standby.signal").touch()
    yield [await asyncio.to_thread(server.start)]
    await asyncio.to_thread(server.promote)


@contextlib.asynccontextmanager
async def failed_over(
    primary: Postgres, standby: Postgres, leave: Callable[[Postgres], None]
) -> AsyncIterator[list[float]]:
    """The primary gone, for good; its standby promoted. Gives when it was gone, and when the promotion began."""
    await asyncio.to_thread(leave, primary)
    moments = [time.monotonic()]
    yield moments
    moments.append(time.monotonic())
    await asyncio.to_thread(standby.promote)


@pytest.mark.thorough
async def test_a_server_set_read_only_serves_checks_and_refuses_writes_with_503(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Postgres set read-only",
        set_read_only(server),
        hold=10,
        felt_by=WRITES,
        services=[service],
        server=server,
        bounds=Bounds(answer=2.0, recovery=5.0),
    )
    assert outcome.statuses("check")[503] == 0
    assert 503 in outcome.statuses(*WRITES)


async def test_a_demoted_server_serves_checks_and_refuses_writes_with_503(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Postgres demoted to a standby, and promoted again",
        demoted(server),
        hold=10,
        felt_by=WRITES,
        services=[service],
        server=server,
        bounds=Bounds(answer=2.0, recovery=5.0),
    )
    (there,) = outcome.measured
    checks = Counter(r.status for r in outcome.during if r.kind == "check" and r.sent > there)
    assert checks[200] > checks[503]  # of the first moment
    assert 503 in outcome.statuses(*WRITES)


@pytest.fixture
def pair(server: Postgres, faults_folder: Path) -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and its streaming standby: it has whatever was acknowledged, and shows it ten seconds later."""
    standby = server.standby(faults_folder / "standby", "127.0.0.2")
    standby.settings = {"recovery_min_apply_delay": "10s"}
    try:
        server.stop()
        server.settings = {"synchronous_standby_names": "standby"}
        server.start()
        standby.start()
        yield server, standby
    finally:
        standby.end()


@pytest.mark.parametrize(
    ("name", "leave"),
    [("killed with -9", Postgres.kill), pytest.param("frozen", Postgres.freeze, marks=pytest.mark.thorough)],
)
async def test_a_standby_is_not_asked_until_it_is_the_primary(
    trial: Trial,
    pair: tuple[Postgres, Postgres],
    new_service: NewService,
    name: str,
    leave: Callable[[Postgres], None],
) -> None:
    primary, standby = pair
    nodes = [new_service(*pair), new_service(*pair)]
    outcome = await trial(
        f"Primary {name}, standby promoted; two nodes",
        failed_over(primary, standby, leave),
        hold=5,
        services=nodes,
        server=standby,
        bounds=Bounds(answer=2.0, recovery=10.0),
    )
    # Meanwhile there was a server that could have been asked, and was ten seconds behind.
    gone, promoting = outcome.measured
    alone = [r.status for r in outcome.during if r.kind == "check" and r.sent > gone and r.ended < promoting]
    assert set(alone) == {503}
