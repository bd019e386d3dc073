"""The kinds of hashes that are stored. They decide which setting an unknown name gets, and when a failed login is
answered. While every hash is ours and of the current costs, a dummy of that kind costs as much as any stored one, and
no login waits. Imported kinds take other times. A dummy's kind is then chosen by how common the stored kinds are, and
all failed logins are answered as if each had taken as long as the slowest stored kind.
"""

import hmac
import math
import time
from collections.abc import Mapping
from itertools import accumulate

from gatepost.postgres.database import Connection, Statement
from gatepost.security.credentials.hashing import Derived, Hasher
from gatepost.security.credentials.kinds import SALT_BYTES, Kind, with_salt
from gatepost.security.credentials.limits import InvalidSetting

# Seconds after which the stored kinds are looked at again.
MAX_AGE = 300.0
# A margin over the slowest kind as measured: on a busy machine each takes longer.
_MARGIN = 1.25
_MAX_SCHEMES = 200

# The kinds exactly, one index probe for each (passwords_scheme_idx); how they are spread from 200 pages, the same
# ones each time. A few milliseconds however many users there are.
_SCHEMES = Statement("""
    WITH RECURSIVE found (scheme, n) AS (
        SELECT min(substring(setting COLLATE "C", '^(.*)[$]')), 1 FROM gatepost.passwords
        UNION ALL
        SELECT (SELECT min(substring(p.setting COLLATE "C", '^(.*)[$]')) FROM gatepost.passwords p
                WHERE substring(p.setting COLLATE "C", '^(.*)[$]') > f.scheme), n + 1
        FROM found f WHERE f.scheme IS NOT NULL AND n < :most
    ), sample AS (
        SELECT substring(setting COLLATE "C", '^(.*)[$]') AS scheme, count(*) AS users
        FROM gatepost.passwords TABLESAMPLE SYSTEM
            (least(100, 100 * 200 * 8192.0 / greatest(pg_relation_size('gatepost.passwords'), 8192))::real)
            REPEATABLE (1)
        GROUP BY 1
    )
    SELECT f.scheme, coalesce(s.users, 1) FROM found f LEFT JOIN sample s USING (scheme)
    WHERE f.scheme IS NOT NULL ORDER BY f.scheme
""")


async def stored_schemes(connection: Connection) -> dict[str, int]:
    """Settings without their salts, each with how common it is; the rarest are not overlooked."""
    rows = await _SCHEMES.all(connection, most=_MAX_SCHEMES)
    return {str(scheme): int(users) for scheme, users in rows}


class Population:
    """The kinds that are stored, beside the ``current`` one that new passwords get."""

    def __init__(self, key: bytes, current: Kind) -> None:
        self._key = key
        self._current = current
        self._schemes: list[str] = []
        self._heights: list[int] = []
        self._slowest: dict[str, Kind] = {}
        self._seconds: dict[str, tuple[float, float]] = {}  # by scheme: as first measured, and lately
        self._looked = time.monotonic()
        self.memory_kib = current.memory_kib
        """What the stored kind that needs most of it takes, for one hash."""

    @property
    def stale(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._looked > MAX_AGE

    def looked(self) -> None:
        """A look has begun: no other one is needed for a while, even if it fails."""
        self._looked = time.monotonic()

    async def learn(self, schemes: Mapping[str, int], hasher: Hasher) -> None:
        """Take over what is stored; the slowest of each family is measured once. Raises Overloaded."""
        kinds = {}
        for scheme in schemes:
            try:
                kinds[scheme] = with_salt(scheme, bytes(SALT_BYTES))
            except InvalidSetting:
                continue  # a hostile setting: its logins are computed as for an unknown name
        slowest: dict[str, Kind] = {}
        if kinds.keys() - {self._current.scheme}:
            for kind in [self._current, *kinds.values()]:
                if kind.family not in slowest or kind.work > slowest[kind.family].work:
                    slowest[kind.family] = kind
        for kind in slowest.values():
            if kind.scheme not in self._seconds:
                seconds = min([(await hasher.derive(kind, lambda: bytes(SALT_BYTES))).seconds for _ in range(2)])
                self._seconds[kind.scheme] = seconds, seconds
        self._schemes = sorted(kinds)
        self.memory_kib = max(kind.memory_kib for kind in [self._current, *kinds.values()])
        self._heights = list(accumulate(schemes[scheme] for scheme in self._schemes))
        self._slowest = slowest

    def dummy(self, name: str) -> Kind:
        """What an unknown name seems to have stored: the same every time and on every node."""
        salt = hmac.digest(self._key, b"salt\0" + name.encode(), "sha256")[:SALT_BYTES]
        return with_salt(self._scheme_for(name), salt)  # type: ignore[no-any-return]

    def _scheme_for(self, name: str) -> str:
        if not self._schemes:
            return self._current.scheme
        draw = hmac.digest(self._key, b"kind\0" + name.encode(), "sha256")
        height = int.from_bytes(draw[:8], "big") * self._heights[-1] >> 64
        return next(s for s, top in zip(self._schemes, self._heights, strict=True) if height < top)

    def failure_due(self, kind: Kind, derived: Derived) -> float:
        """When a failed login is answered, by ``time.monotonic``."""
        self._heed(kind, derived.seconds)
        period = max((self._seconds[kind.scheme][1] for kind in self._slowest.values()), default=0.0) * _MARGIN
        if not period:
            return 0.0
        # A hash that took longer is answered at the next multiple, not at its own end.
        return derived.began + math.ceil(derived.seconds / period) * period

    def _heed(self, kind: Kind, seconds: float) -> None:
        """Adapt the time to a busy machine: slowly down again, and up to twice the first measurement."""
        if kind.scheme in self._seconds:
            first, lately = self._seconds[kind.scheme]
            self._seconds[kind.scheme] = first, min(2 * first, max(seconds, first, lately * 0.95))
        elif kind.scheme != self._current.scheme and kind.scheme not in self._schemes:
            # A kind that was imported since the last look: it counts from now on, and the next login looks again.
            self._seconds[kind.scheme] = seconds, seconds
            self._slowest[kind.scheme] = kind
            self._looked = -math.inf
