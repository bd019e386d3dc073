"""Postgres is there and has no time: connections that wait for a lock, statements ended in their midst."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from tests.faults.postgres import Postgres
from tests.faults.service import Service
from tests.faults.trial import Bounds, Trial

pytestmark = pytest.mark.fault

Fault = Callable[[Postgres], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def asleep(server: Postgres) -> AsyncIterator[None]:
    """Every login that finds its user sleeps in Postgres, so that logins hold all connections there are for them."""
    with server.session() as cursor:
        cursor.execute("""
            CREATE FUNCTION gatepost.fault() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_catalog.pg_sleep(60); RETURN NEW; END $$
        """)
        cursor.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON gatepost.events FOR EACH ROW EXECUTE FUNCTION gatepost.fault()"
        )
    try:
        yield
    finally:
        await asyncio.to_thread(server.sql, "DROP FUNCTION gatepost.fault() CASCADE")


@contextlib.asynccontextmanager
async def locked(server: Postgres, table: str = "passwords") -> AsyncIterator[None]:
    """Somebody else's transaction that keeps everyone from a table that logins need."""
    with server.session() as cursor:
        cursor.execute(f"BEGIN; LOCK TABLE gatepost.{table} IN ACCESS EXCLUSIVE MODE")
        yield


@contextlib.asynccontextmanager
async def again_and_again(server: Postgres, statement: str, seconds: float) -> AsyncIterator[None]:
    """A superuser runs this every so often."""
    stop = asyncio.Event()

    async def run() -> None:
        with server.session() as cursor:
            while not stop.is_set():
                await asyncio.to_thread(cursor.execute, statement)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), seconds)

    running = asyncio.create_task(run())
    try:
        yield
    finally:
        stop.set()
        await running


# One of Gatepost's connections, in the middle of a statement if there is one.
END_ONE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost'
    ORDER BY state = 'active' DESC, random() LIMIT 1
"""
# As their statement_timeout would: the same error.
CANCEL_ALL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'gatepost'"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Logins hold every connection (pg_sleep in each)", asleep),
        pytest.param(
            "Logins hold every connection (a table they need is locked)", locked, marks=pytest.mark.thorough
        ),
    ],
)
async def test_logins_that_hold_every_connection_do_not_starve_checks(
    trial: Trial, server: Postgres, service: Service, name: str, fault: Fault
) -> None:
    outcome = await trial(
        name,
        fault(server),
        hold=15,
        felt_by=("login",),
        services=[service],
        server=server,
        bounds=Bounds(answer=2.5, recovery=5.0),  # a login waits for a connection and for its statement, twice
    )
    assert 503 in outcome.statuses("login")
    assert outcome.unserved("check") == []
    assert max(outcome.machine.took(r) for r in outcome.during if r.kind == "check") <= 0.5


@pytest.mark.thorough
async def test_backends_that_are_ended_cost_no_request_its_answer(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Backends ended (pg_terminate_backend), 20 a second",
        again_and_again(server, END_ONE, 0.05),
        hold=15,
        felt_by=("login", "logout", "change", "end_all", "sign_out"),
        services=[service],
        server=server,
        bounds=Bounds(answer=2.0, recovery=2.0),
    )
    assert 503 in outcome.statuses("login", "logout", "change", "end_all", "sign_out")


async def test_statements_that_are_cancelled_cost_no_request_its_answer(
    trial: Trial, server: Postgres, service: Service
) -> None:
    outcome = await trial(
        "Statements cancelled, 100 a second",
        again_and_again(server, CANCEL_ALL, 0.01),
        hold=15,
        felt_by=("check", "login"),
        services=[service],
        server=server,
        bounds=Bounds(answer=2.0, recovery=2.0),
    )
    assert 503 in outcome.statuses("check", "login")
