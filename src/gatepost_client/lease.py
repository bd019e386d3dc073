"""Answers that are kept, and the lease under which they count.

No answer counts longer than ``lease`` seconds after the last moment up to which the feed is proven to have told
everything. All moments are on clocks that only go forward; none depends on what time it is.
"""

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from gatepost_client.identity import SignedIn

# Seconds after which an answer is asked for again, whatever the feed says: a session that is used must not count as
# idle in Gatepost, and one that became idle there must not count here.
MAX_AGE = 60.0
# Two clocks may differ in their rate. NTP corrects by 500 ppm at most (RFC 5905 §11.3).
DRIFT = 0.001

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


clock = partial(time.clock_gettime, _CLOCK)
"""Seconds that only go forward, also while the machine is suspended (Linux)."""


class Entry(NamedTuple):
    """An answer that is kept until a moment of `clock`."""

    signed_in: SignedIn
    until: float


class Asking:
    """A look-up that is under way: what was revoked since it began may not be kept from it."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self.everything = False


class Lease:
    """The answers of a verifier. It neither waits nor asks: it is told what the feed says, and when."""

    def __init__(self, most: int) -> None:
        self.entries: dict[str, Entry] = {}
        self.until = -math.inf
        """Up to which moment of `clock` the entries count."""
        self._most = most
        self._keys: dict[str, set[str]] = {}
        self._asking: set[Asking] = set()
        self._length = self._began = self._their_now = self._their_time = 0.0

    def get(self, token: str, now: float) -> SignedIn | None:
        """The kept answer, if it counts at this moment."""
        entry = self.entries.get(token)
        return entry.signed_in if entry is not None and now < self.until and now < entry.until else None

    # ----------------------------------------------------------------------------------------- the feed

    def hello(self, data: Mapping[str, Any], began: float) -> None:
        """A stream has begun that was asked for at ``began``: their clock was read later than that."""
        self.until = -math.inf
        self._began, self._length = began, float(data["lease"])
        self._their_now, self._their_time = float(data["now"]), float(data["time"])
        if data["resumed"] is not True:
            self.drop_all()

    def prove(self, proven: float, now: float) -> None:
        """Everything that was revoked before ``proven`` of their clock has been told."""
        # Their `now` was read at `began` or later by our clock, so this is no later than the moment was.
        moment = self._began + (proven - self._their_now)
        self.until = moment + self._length - DRIFT * max(now - self._began, 0.0)

    def lose(self) -> None:
        """The stream is gone. The entries stay: they count again if it goes on where it was."""
        self.until = -math.inf

    def drop(self, key: str) -> None:
        """A session (by its handle) or a user (by its id) is no longer what it was."""
        for asking in self._asking:
            asking.revoked.add(key)
        for token in list(self._keys.get(key, ())):
            self._remove(token)

    def drop_all(self) -> None:
        """Anything may have changed."""
        for asking in self._asking:
            asking.everything = True
        self.entries.clear()
        self._keys.clear()

    # -------------------------------------------------------------------------------------- the answers

    def begin(self) -> Asking:
        """A look-up begins. `end` must follow."""
        asking = Asking()
        self._asking.add(asking)
        return asking

    def end(self, asking: Asking, found: Mapping[str, SignedIn | None], now: float) -> None:
        """Keep what it found, but for what was revoked since it began. No session is never kept."""
        self._asking.discard(asking)
        for token, signed_in in found.items():
            if token in self.entries:
                self._remove(token)
            if signed_in is None or asking.everything or asking.revoked & {signed_in.session, signed_in.user_id}:
                continue
            their_time = self._their_time + (now - self._began) * (1 + DRIFT)
            until = now + min(MAX_AGE, signed_in.expires_at.timestamp() - their_time)
            self.entries[token] = Entry(signed_in, until)
            for key in (signed_in.session, signed_in.user_id):
                self._keys.setdefault(key, set()).add(token)
        while len(self.entries) > self._most:
            self._remove(next(iter(self.entries)))

    def _remove(self, token: str) -> None:
        signed_in = self.entries.pop(token).signed_in
        for key in (signed_in.session, signed_in.user_id):
            tokens = self._keys[key]
            tokens.discard(token)
            if not tokens:
                del self._keys[key]
