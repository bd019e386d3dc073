"""Connection limits: how many in all and from one address, and how many bytes of unread answers."""

import contextlib
import math
import resource
from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar

from gatepost.config import Config, ConfigError
from gatepost.security.addresses import Network, peer, within
from gatepost.telemetry.logs import log

# On the operators' own address.
OPERATOR_CONNECTIONS = 100
# Open files that are not client connections: the operators' connections, our own files, and connections that were
# just accepted and will be closed (asyncio accepts 128 in one turn of the event loop, and closes them two turns
# later).
SPARE_DESCRIPTORS = 512 + OPERATOR_CONNECTIONS
# Unread answers: how many there may be, and how many bytes, of all clients and of one address.
MAX_UNTAKEN = 256
MAX_UNTAKEN_BYTES = 32 << 20
MAX_UNTAKEN_BYTES_PER_ADDRESS = 4 << 20
# At the limit this share of it is freed at once, so that the search for idle connections costs little for each new
# one.
_ROOM = 16


def admissible(config: Config) -> int:
    """How many connections there may be: ``webserver.max_connections``, if so many files may be open.

    The soft limit is raised as far as that needs. Where the hard one is too low there are fewer connections, and a
    warning: running out of files would keep us from our database too. Raises ConfigError when none is left.
    """
    wanted, others = config.webserver.max_connections, config.db.pool_size + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + others:
        needed = wanted + others if hard == resource.RLIM_INFINITY else min(hard, wanted + others)
        with contextlib.suppress(ValueError, OSError):  # macOS has a further limit, and raises here
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            soft = needed
        if soft < wanted + others:
            if soft <= others:
                raise ConfigError(
                    f"only {soft} files may be open, and {others + 1} are needed at least: see `ulimit -n`"
                )
            log.warning("fewer connections than configured", reason="ulimit -n", open_files=soft, most=soft - others)
            return soft - others
    return wanted


class Member(Protocol):
    """A connection, as far as it matters here."""

    address: bytes | None
    """As `network` has it."""

    @property
    def untaken(self) -> int:
        """Bytes of its answers that the client has not taken."""

    @property
    def is_waiting(self) -> bool:
        """Whether we wait for the client: for a request, or for the rest of one."""

    @property
    def waiting_since(self) -> float:
        """When that began: only the order of these times counts."""

    def force_close(self) -> None:
        """End it."""

    def cut_off(self) -> None:
        """End it, with what is still to be sent."""


T = TypeVar("T", bound=Member)


class _Group(Generic[T]):
    """Connections that share a limit."""

    __slots__ = ("_limit", "_look_again", "members")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._look_again = 0.0
        self.members: set[T] = set()

    def has_room(self, now: float) -> bool:
        """Whether there is room, or can be made by closing those whose clients have kept us waiting longest."""
        if len(self.members) < self._limit:
            return True
        if now < self._look_again:
            return False
        waiting = sorted((m for m in self.members if m.is_waiting), key=lambda m: m.waiting_since)
        for member in waiting[: 1 + self._limit // _ROOM]:
            self.members.discard(member)
            member.force_close()
        if not waiting:
            self._look_again = now + 1
        return bool(waiting)


class Admission(Generic[T]):
    """Counts connections in and out, up to ``most`` in all and ``per_address``."""

    def __init__(self, most: int, per_address: int) -> None:
        self._all: _Group[T] = _Group(most)
        self._of_address: dict[bytes, _Group[T]] = {}
        self._per_address = per_address
        self.refused = 0
        """Connections that were turned away since the start."""
        self._told = -math.inf
        self.untaken: dict[T, None] = {}
        """Whose answer waits to be taken, that which waits longest first."""

    def __len__(self) -> int:
        """How many are in."""
        return len(self._all.members)

    @property
    def members(self) -> frozenset[T]:
        """Those that are in."""
        return frozenset(self._all.members)

    def admit(self, newcomer: T, address: bytes | None, now: float) -> bool:
        """Count a newcomer in, unless too many are here. ``address``: as `network` has it; ``now``: seconds."""
        groups = [self._all]
        if address is not None:
            groups.append(self._of_address.get(address) or _Group(self._per_address))
        if not all(group.has_room(now) for group in reversed(groups)):
            self.refused += 1
            if now - self._told > 60:
                self._told = now
                log.warning("connections refused", so_far=self.refused, key="webserver.max_connections")
            return False
        for group in groups:
            group.members.add(newcomer)
        if address is not None:
            self._of_address[address] = groups[-1]
        return True

    def leave(self, member: T, address: bytes | None) -> None:
        """Count one out."""
        self.go_on(member)
        self._all.members.discard(member)
        if address is not None and (group := self._of_address.get(address)) is not None:
            group.members.discard(member)
            if not group.members:
                del self._of_address[address]

    def wait(self, member: T) -> None:
        """An answer is not read at once. When there are too many, the clients that have had the most time are cut
        off.
        """
        self.untaken[member] = None
        if member.address is not None:
            of_one = [each for each in self.untaken if each.address == member.address]
            self._cut_off(of_one, MAX_UNTAKEN_BYTES_PER_ADDRESS)
        self._cut_off(list(self.untaken), MAX_UNTAKEN_BYTES)

    def _cut_off(self, waiting: Sequence[T], most: int) -> None:
        """End those that wait longest until ``MAX_UNTAKEN`` are left, with ``most`` bytes."""
        total = sum(each.untaken for each in waiting)
        for left, longest in zip(range(len(waiting), 0, -1), waiting, strict=True):
            if left <= MAX_UNTAKEN and total <= most:
                return
            total -= longest.untaken
            del self.untaken[longest]
            longest.cut_off()

    def go_on(self, member: T) -> None:
        """The answer was read."""
        self.untaken.pop(member, None)


def network(peername: object, shared: Collection[Network] = ()) -> bytes | None:
    """What counts as one address: an IPv4 address, or an IPv6 network of 64 bits, which is what one host is given.

    None on a Unix socket and for ``shared`` addresses: a proxy's connections are those of all its clients.
    """
    address = peer(peername)
    return None if address is None or within(address, shared) else address.packed[:8]
