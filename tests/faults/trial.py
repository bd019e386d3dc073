"""One fault under the load: break, hold, repair, wait until all is well, look at everything again, judge."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from gatepost_client import Verifier
from tests.faults.footprint import Footprint
from tests.faults.history import (
    Record,
    Request,
    Violation,
    judge,
    judge_record,
    late,
    leaks,
    recovery,
    unanswered,
    write,
)
from tests.faults.load import Load
from tests.faults.machine import HASHED, Machine
from tests.faults.postgres import Postgres
from tests.faults.service import ADMIN_PASSWORD, POOL_SIZE, Service

# Seconds of load before the fault, seconds without a failed request after which all is well again, and what holds
# with --quick for both and for how long a fault is held.
WARM, CALM = 2.0, 1.5
QUICK, QUICK_HOLD = 1.0, 3.0
# Seconds after which Postgres has noticed that the other end of a connection is gone.
DEAD_CONNECTIONS = 60.0
# Seconds withheld by the machine that a request may be answered 503 for: the shortest deadline is 0.5 s.
STOOD_STILL = 0.3


@dataclass(frozen=True)
class Bounds:
    """What a row of the table allows. Seconds for any answer; seconds until all is well again; whether a request
    may go without an answer; whether S5 can be asked (not of a process that was started anew). ``kept``: MB that may
    be held besides: closed connections until Python's next full garbage collection, for asyncio's transports are
    cycles; a block that a thread hashes in.
    """

    answer: float = 2.0
    recovery: float = 5.0
    unanswered: bool = False
    footprint: bool = True
    kept: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What was measured. ``during``: requests that were under way between the fault's begin and its repair."""

    name: str
    began: float
    bounds: Bounds
    during: Sequence[Request]
    slowest: float
    recovery: float
    total: int
    machine: Machine
    grown: str = ""
    measured: Sequence[float] = ()
    """What the fault itself gave."""

    def statuses(self, *kinds: str) -> Counter[int | None]:
        """What requests of these kinds were answered meanwhile."""
        return Counter(r.status for r in self.during if r.kind in kinds)

    def unserved(self, *kinds: str) -> list[Request]:
        """Requests of these kinds, or of all, that the service itself let down: no 200 or 401, and no fault of the
        machine.
        """
        return [
            r
            for r in self.during
            if (not kinds or r.kind in kinds) and r.status not in {200, 401} and not self._excused(r)
        ]

    def _excused(self, r: Request) -> bool:
        return r.status == 503 and self.machine.withheld(r.sent, r.ended, hashed=r.kind in HASHED) > STOOD_STILL

    @property
    def row(self) -> list[str]:
        """For the table."""
        served = sum(1 for r in self.during if not r.unavailable)
        failed = Counter("none" if r.status is None else str(r.status) for r in self.during if r.unavailable)
        answers = ", ".join([f"{served} served", *(f"{n} × {status}" for status, n in sorted(failed.items()))])
        return [
            self.name,
            answers,
            f"{self.slowest:.2f} s (≤ {self.bounds.answer:g})",
            f"{self.recovery:.1f} s (≤ {self.bounds.recovery:g})",
            self.grown,
        ]


COLUMNS = ["fault", "requests meanwhile", "slowest answer", "good again after", "left behind"]


@dataclass
class Trial:
    """Puts faults under load and keeps the measured rows. ``folder`` is for the histories of those that fail;
    ``quick``: hold each for a few seconds only.
    """

    folder: Path
    quick: bool
    outcomes: list[Outcome] = field(default_factory=list)
    findings: list[tuple[str, str]] = field(default_factory=list)
    """What a fault has to be measured by besides: its name, and a text."""

    async def __call__(
        self,
        name: str,
        fault: AbstractAsyncContextManager[Sequence[float] | None],
        *,
        services: Sequence[Service],
        server: Postgres,
        hold: float = 0.0,
        bounds: Bounds = Bounds(),
        felt_by: Collection[str] = (),
        strangers: bool = False,
        verifiers: Sequence[tuple[Verifier, float]] = (),
    ) -> Outcome:
        """Run it. ``hold``: seconds between breaking and repairing; good again is counted from the repair's end.
        ``felt_by``: kinds of request of which one must be refused before it is repaired.
        ``strangers``: others log in as well, who send no user agent. ``verifiers``: those of `Load`.

        ``server``: the Postgres that has the data when all is over.
        """
        warm, calm = (QUICK, QUICK) if self.quick else (WARM, CALM)
        hold = min(hold, QUICK_HOLD) if self.quick else hold
        load = Load([service.url for service in services], ADMIN_PASSWORD, verifiers)
        machine = Machine(services, server)
        async with load.running(), machine.watching():
            await asyncio.sleep(warm)
            await load.everything_happened()
            before = await self._footprints(load, services, server) if bounds.footprint else []
            began = time.monotonic()
            async with fault as measured:
                await asyncio.sleep(hold)
                await _felt(load, began, felt_by)
            repaired = time.monotonic()
            await _calm(load, calm, repaired + bounds.recovery + calm)
            await load.stop()
            await load.look_again()
            after = await self._footprints(load, services, server) if bounds.footprint else []
        history = load.history
        during = [r for r in history if r.ended > began and r.sent < repaired]
        outcome = Outcome(
            f"{name}, {hold:g} s" if hold > 1 else name,
            began,
            bounds,
            during,
            max(r.ended - r.sent for r in history if r.ended > began and not r.final),
            recovery(history, repaired),
            len(history),
            machine,
            _difference(before[0], after[0]) if bounds.footprint else "",
            measured or (),
        )
        self.outcomes.append(outcome)
        found = (
            judge(history)
            + judge_record(history, _record(server, strangers=strangers))
            + self._leaks(load, services, server)
        )
        found += late(history, bounds.answer, machine.took)
        if not bounds.unanswered:
            found += unanswered(history)
        if outcome.recovery - machine.withheld(repaired, repaired + outcome.recovery) > bounds.recovery:
            found.append(Violation("bound", f"good again after {outcome.recovery:.1f} s"))
        if bounds.footprint:
            found += [v for b, a in zip(before, after, strict=True) for v in b.grown(a, POOL_SIZE, bounds.kept)]
        self._assert_none(name, found, history)
        return outcome

    def found(self, name: str, text: str) -> None:
        """Note down a measurement of a row's own."""
        self.findings.append((name, text))

    def _assert_none(self, name: str, found: Sequence[Violation], history: Sequence[Request]) -> None:
        if found:
            file = self.folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.jsonl"
            write(history, file)
            lines = [f"{v.rule}: {v.text}\n    {v.request or ''}" for v in found[:20]]
            pytest.fail(f"{len(found)} violations; the history is in {file}\n" + "\n".join(lines), pytrace=False)

    async def _footprints(self, load: Load, services: Sequence[Service], server: Postgres) -> list[Footprint]:
        async with load.quiet():
            await load.burst()
            each = await asyncio.to_thread(_connections, server, POOL_SIZE * len(services)) // len(services)
            return [
                await asyncio.to_thread(Footprint.of, service.pid, service.port, server.port, each)
                for service in services
            ]

    @staticmethod
    def _leaks(load: Load, services: Sequence[Service], server: Postgres) -> list[Violation]:
        digests = [row[0] for row in server.sql("SELECT encode(digest, 'hex') FROM gatepost.passwords")]
        found = [
            v for service in services for v in leaks(service.output, [*service.secrets, *load.secrets, *digests])
        ]
        # Postgres logs the statements that fail, and may know no more than digests.
        return found + leaks(server.log, [*services[0].secrets, *load.secrets])


def _connections(server: Postgres, at_most: int) -> int:
    """How many connections Gatepost has, as Postgres sees it; for a while it may hold dead ones for live."""
    deadline = time.monotonic() + DEAD_CONNECTIONS
    while True:
        counted = server.sql("SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'gatepost'")
        if counted[0][0] <= at_most or time.monotonic() > deadline:
            return int(counted[0][0])
        time.sleep(0.2)


async def _felt(load: Load, began: float, kinds: Collection[str]) -> None:
    """Wait until a request of these kinds, if there are any, is refused or lost: slow machines break slowly too."""
    deadline = time.monotonic() + 120
    while kinds and not any(r.status in {503, None} and r.kind in kinds and r.ended > began for r in load.history):
        if time.monotonic() > deadline:
            answers = Counter((r.kind, r.status, r.code) for r in load.history if r.ended > began)
            pytest.fail(f"no request of {kinds} felt it: {answers}", pytrace=False)
        await asyncio.sleep(0.05)


async def _calm(load: Load, seconds: float, until: float) -> None:
    """Wait until no request has failed for so long; at most until a moment."""
    begin = time.monotonic()
    while (now := time.monotonic()) < until:
        last = max((r.ended for r in load.history[-2000:] if r.unavailable), default=begin)
        if now - max(last, begin) > seconds:
            return
        await asyncio.sleep(0.1)


def _record(server: Postgres, *, strangers: bool) -> Record:
    def number(agent: str | None) -> int:
        return int(agent.removeprefix("faults/")) if agent and agent.startswith("faults/") else 0

    events = server.sql(
        "SELECT kind, user_agent FROM gatepost.events" + (" WHERE user_agent IS NOT NULL" if strangers else "")
    )
    sessions = server.sql("SELECT user_agent FROM gatepost.sessions")
    return Record([(kind, number(agent)) for kind, agent in events], [number(agent) for (agent,) in sessions])


def _difference(before: Footprint, after: Footprint) -> str:
    return (
        f"{after.memory - before.memory:+.1f} MB, {after.descriptors - before.descriptors:+d} files, "
        f"{after.threads - before.threads:+d} threads"
    )


async def ready(url: str, *, seconds: float = 120.0) -> float:
    """Wait for the first 200 of `/health/ready`; return when (monotonic)."""
    deadline = time.monotonic() + seconds
    async with aiohttp.ClientSession() as http:
        while time.monotonic() < deadline:
            try:
                async with http.get(url + "/health/ready") as answer:
                    if answer.status == 200:
                        return time.monotonic()
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)
    raise AssertionError("it is not ready")
