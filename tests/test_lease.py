"""A leased verifier never accepts for longer than L what was revoked, whatever happens in whatever order.

Time is simulated: the verifier's clock, the node's and the database's have different zeros, and every message takes
as long as it likes. The rule is held against a history: when was each session revoked, and when was it accepted.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gatepost.feed.feed import LEASE
from gatepost_client import lease as module
from gatepost_client.identity import SignedIn
from gatepost_client.lease import Asking, Lease

# The zeros of the node's clock and of the database's; the verifier's is 0.
NODE, DATABASE = 7000.0, 3_600.0
SESSIONS = 1
FOREVER = 10_000.0


def signed_in(token: int, expires_at: float = FOREVER) -> SignedIn:
    moment = datetime.fromtimestamp(DATABASE + expires_at, UTC)
    return SignedIn(f"user {token}", "ada", frozenset(), f"session {token}", moment)


class World(RuleBasedStateMachine):
    """Sessions in a database, a node that is notified, a network, and one verifier."""

    lease_class: type[Lease] = Lease

    @initialize()
    def begin(self) -> None:
        self.now = 100.0
        self.lease = self.lease_class(2)
        self.revoked_at: dict[int, float] = {}
        self.notifications: deque[tuple[str, float | int]] = deque()  # in Postgres: not yet at the node
        self.log: list[tuple[str, float | int]] = []  # the node's events, in order
        self.proven = 0.0
        self.position: int | None = None  # how much of the log is sent; None without a stream
        self.stream: deque[tuple[str, Any]] = deque()  # in the network: not yet at the verifier
        self.last = 0  # the last event that the verifier has seen
        self.can_resume = False
        self.connected_at = 0.0
        self.asking: list[tuple[Asking, dict[str, SignedIn | None]]] = []

    # ------------------------------------------------------------------------------ time and the database

    @rule(seconds=st.sampled_from([0.1, 0.9, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(token=st.integers(0, SESSIONS - 1))
    def revoke(self, token: int) -> None:
        self.revoked_at.setdefault(token, self.now)
        self.notifications.append(("session", token))

    # ------------------------------------------------------------------------------------------- the node

    @rule()
    def the_node_sends_itself_a_notification(self) -> None:
        self.notifications.append(("echo", self.now))

    @rule(everything=st.booleans())
    def notifications_arrive(self, everything: bool) -> None:
        for _ in range(len(self.notifications) if everything else min(1, len(self.notifications))):
            kind, what = self.notifications.popleft()
            if kind == "echo":
                self.proven = max(self.proven, float(what))
            else:
                self.log.append((kind, what))

    @rule()
    def the_node_loses_postgres(self) -> None:
        self.notifications.clear()
        self.log.append(("reset", 0))

    @rule()
    def the_node_writes(self) -> None:
        if self.position is None:
            return
        for number in range(self.position, len(self.log)):
            self.stream.append(("event", number))
        self.position = len(self.log)
        self.stream.append(("heartbeat", self.proven))

    @rule(seconds=st.sampled_from([0.0, 1.5]))
    def all_goes_well(self, seconds: float) -> None:
        """Everything arrives at once, and heartbeats go on, for so long."""
        for _ in range(1 + int(seconds / 0.25)):
            self.the_node_sends_itself_a_notification()
            self.notifications_arrive(True)
            self.the_node_writes()
            self.the_stream_brings(True)
            self.nothing_revoked_is_accepted_beyond_the_lease()
            self.now += 0.25 if seconds else 0.0

    # --------------------------------------------------------------------------------------- the verifier

    @rule(delay=st.sampled_from([0.0, 3.0]), resume=st.booleans())
    def connect(self, delay: float, resume: bool) -> None:
        self.cut()
        self.connected_at = self.now
        self.now += delay
        resumed = resume and self.can_resume
        self.position = self.last if resumed else len(self.log)
        hello = {"resumed": resumed, "lease": LEASE, "now": NODE + self.now, "time": DATABASE + self.now}
        self.stream.append(("hello", (hello, self.position)))

    @rule()
    def cut(self) -> None:
        self.position = None
        self.stream.clear()
        self.lease.lose()

    @rule(everything=st.booleans())
    def the_stream_brings(self, everything: bool) -> None:
        self._read()
        while everything and self.stream:
            self._read()

    def _read(self) -> None:
        if not self.stream:
            return
        kind, what = self.stream.popleft()
        if kind == "hello":
            hello, self.last = what
            self.can_resume = True
            self.lease.hello(hello, self.connected_at)
        elif kind == "heartbeat":
            self.lease.prove(NODE + what, self.now)
        else:
            self.last = what + 1
            event, token = self.log[what]
            if event == "reset":
                self.lease.drop_all()
            else:
                self.lease.drop(f"session {token}")

    @rule(tokens=st.sets(st.integers(0, SESSIONS - 1), min_size=1))
    def ask(self, tokens: set[int]) -> None:
        """The query's snapshot is taken at once; the answer arrives whenever it does."""
        asking = self.lease.begin()
        found = {str(t): None if t in self.revoked_at else signed_in(t) for t in tokens}
        self.asking.append((asking, found))

    @rule(token=st.integers(0, SESSIONS - 1))
    def fill(self, token: int) -> None:
        self.ask({token})
        self.an_answer_arrives(len(self.asking) - 1)

    @rule(number=st.integers(0, 1))
    def an_answer_arrives(self, number: int) -> None:
        if number < len(self.asking):
            asking, found = self.asking.pop(number)
            self.lease.end(asking, found, self.now)

    # -------------------------------------------------------------------------------------------- the rule

    @invariant()
    def nothing_revoked_is_accepted_beyond_the_lease(self) -> None:
        for token, moment in getattr(self, "revoked_at", {}).items():
            if self.lease.get(str(token), self.now) is not None:
                assert self.now < moment + LEASE, f"accepted {self.now - moment:.2f} s after it was revoked"

    @invariant()
    def no_more_is_kept_than_allowed(self) -> None:
        if hasattr(self, "lease"):
            assert len(self.lease.entries) <= 2
            assert {key for key, tokens in self.lease._keys.items() if tokens} == {
                key for e in self.lease.entries.values() for key in (e.signed_in.session, e.signed_in.user_id)
            }


MANY = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_nothing_that_was_revoked_is_accepted_beyond_the_lease() -> None:
    run_state_machine_as_test(World, settings=MANY)


class WithoutGuard(Lease):
    """Fills whatever it was told, also what was revoked meanwhile."""

    def end(self, asking: Asking, found: Any, now: float) -> None:
        asking.revoked.clear()
        asking.everything = False
        super().end(asking, found, now)


class WithoutLease(Lease):
    """Trusts the feed to tell in time."""

    def get(self, token: str, now: float) -> SignedIn | None:
        entry = self.entries.get(token)
        return entry.signed_in if entry else None


class FromItsArrival(Lease):
    """Counts from when a heartbeat arrives, however long it was under way."""

    def prove(self, proven: float, now: float) -> None:
        self.until = now + self._length


class WithoutStartingOver(Lease):
    """Keeps what it had when a stream does not go on where it was."""

    def hello(self, data: Any, began: float) -> None:
        super().hello({**data, "resumed": True}, began)


def late(world: World) -> None:
    """A heartbeat is under way for half a minute, and the revocation is behind it."""
    world.connect(0.0, resume=False)
    world.all_goes_well(0.0)
    world.fill(0)
    world.the_node_writes()
    world.revoke(0)
    world.time_passes(30.0)
    world.the_stream_brings(everything=True)


def overtaken(world: World) -> None:
    """The revocation arrives before the answer of a look-up that had not seen it."""
    world.connect(0.0, resume=False)
    world.all_goes_well(0.0)
    world.ask({0})
    world.revoke(0)
    world.all_goes_well(1.5)
    world.an_answer_arrives(0)
    world.all_goes_well(1.5)


def cut(world: World) -> None:
    """The stream is cut, and nothing more is heard."""
    world.connect(0.0, resume=False)
    world.all_goes_well(0.0)
    world.fill(0)
    world.cut()
    world.revoke(0)
    world.time_passes(30.0)


def another_node(world: World) -> None:
    """The stream is cut, and another one knows nothing of what was missed."""
    world.connect(0.0, resume=False)
    world.all_goes_well(0.0)
    world.fill(0)
    world.cut()
    world.revoke(0)
    world.all_goes_well(1.5)
    world.connect(0.0, resume=False)
    world.all_goes_well(1.5)


HISTORIES = [
    (WithoutGuard, overtaken),
    (WithoutLease, cut),
    (FromItsArrival, late),
    (WithoutStartingOver, another_node),
]


@pytest.mark.parametrize(("broken", "history"), HISTORIES)
def test_each_part_of_the_lease_is_needed(broken: type[Lease], history: Callable[[World], None]) -> None:
    for kind in (Lease, broken):
        world = World()
        world.lease_class = kind
        world.begin()
        with (
            contextlib.nullcontext() if kind is Lease else pytest.raises(AssertionError, match="after it was revoked")
        ):
            history(world)
            world.nothing_revoked_is_accepted_beyond_the_lease()


def test_the_search_finds_a_verifier_without_a_lease() -> None:
    machine = type("Broken", (World,), {"lease_class": WithoutLease})
    with pytest.raises(AssertionError, match="after it was revoked"):
        run_state_machine_as_test(
            machine, settings=settings(MANY, max_examples=5000, database=None, phases=[Phase.generate])
        )


def test_an_answer_ends_with_its_session_and_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(10)
    lease.hello({"resumed": False, "lease": 1e6, "now": NODE + 100, "time": DATABASE + 100}, 100.0)
    lease.prove(NODE + 100, 100.0)
    lease.end(lease.begin(), {"short": signed_in(0, 110.0), "long": signed_in(1)}, 100.0)
    for seconds, short, long in [(9.9, True, True), (10.1, False, True), (59.9, False, True), (60.1, False, False)]:
        now = 100 + seconds
        assert (lease.get("short", now) is not None, lease.get("long", now) is not None) == (short, long), seconds
    assert module.MAX_AGE == 60.0
