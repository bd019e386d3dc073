"""Throttles: buckets of attempts in Postgres, shared by all nodes. One function takes from them.

The rule is GCRA (the leaky bucket of ITU-T I.371, as a virtual scheduling algorithm): of a bucket only ``due`` is
kept, the moment at which it will be full again. An attempt moves that on by the bucket's ``every``; it is refused if
``due`` lies so far ahead that all of its ``burst`` are taken. So in any time t at most burst + t / every pass.
The database's clock judges, and a refused attempt changes nothing.
"""

import hmac
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from gatepost.config import ThrottleConfig
from gatepost.errors import TooManyAttempts
from gatepost.postgres.database import Connection, Database, Statement, array
from gatepost.security import addresses
from gatepost.security.deployment_keys import deployment_key

KEY_BYTES = 16


class Limit(NamedTuple):
    """``burst`` attempts at once, and one more every so many seconds. ``name`` is told to clients."""

    name: str
    burst: int
    every: float

    def refusal(self, seconds: float) -> TooManyAttempts:
        """The error for a client that this limit refuses for so many seconds."""
        return TooManyAttempts(self.name, self.burst, math.ceil(self.burst * self.every), math.ceil(seconds))


class Bucket(NamedTuple):
    """One bucket: its ``key`` in the table, and how much it holds."""

    key: bytes
    limit: Limit


# -------------------------------------------------------------------------------------------------- keys


class Throttle:
    """The buckets that attempts are taken from, by who attempts what.

    Keys are HMACs, so the table tells neither names nor addresses. ``key``: 32 secret bytes that all nodes share.
    A place of None (no address, or an exempt one) says nothing about who asks, and is not counted.
    Buckets are listed in the order of their keys, which is how `take` locks them: no two attempts can then wait for
    each other.
    """

    def __init__(self, config: ThrottleConfig, key: bytes) -> None:
        self._key = key
        self._exempt = config.exempt
        self.account = Limit("account", config.account_burst, config.account_every)
        self.place = Limit("place", config.place_burst, config.place_every)
        self.network = Limit("network", config.network_burst, config.network_every)
        self.registration = Limit("registration", config.registration_burst, config.registration_every)
        self.rename = Limit("rename", config.rename_burst, config.rename_every)
        self.code = Limit("code", config.code_burst, config.code_every)
        self.typed_code = Limit("typed_code", config.typed_code_burst, config.typed_code_every)
        self.factor = Limit("factor", config.factor_burst, config.factor_every)
        self.mail = Limit("mail", config.mail_burst, config.mail_every)
        self.recovery = Limit("recovery", config.recovery_burst, config.recovery_every)
        self.lookup = Limit("lookup", config.lookup_burst, config.lookup_every)
        self.activity = Limit("activity", config.activity_burst, config.activity_every)
        self.password = self.account._replace(name="password")

    @classmethod
    async def open(cls, config: ThrottleConfig, database: Database) -> Self:
        """For this deployment. Raises DatabaseUnavailable."""
        return cls(config, await deployment_key(database, "throttles"))

    def place_of(self, ip: str | None) -> str | None:
        """The network that this address is counted by; None for one that is not counted."""
        address = addresses.parse(ip) if ip else None
        return None if address is None or addresses.within(address, self._exempt) else addresses.place(address)

    def known_place(self, place: str | None) -> bytes | None:
        """The key under which a place is stored from which a user has signed in."""
        return self._hash("known", place)[:KEY_BYTES] if place else None

    def for_login(self, name: str, place: str | None) -> list[Bucket]:
        """Those of a login; the first is the account's own. ``name``: as it is looked up."""
        account = self._hash("account", name)
        buckets = [Bucket(b"a" + account[: KEY_BYTES - 1], self.account)]
        if place:
            buckets += [
                self._bucket(b"n", self.network, place),
                # What belongs to one account lies together: `of_account` finds it without knowing the places.
                Bucket(b"p" + account[:7] + self._hash("place", name, place)[:8], self.place),
            ]
        return buckets

    def of_account(self, subjects: Sequence[str], user_id: str) -> list[tuple[bytes, bytes]]:
        """The buckets of one user as ranges of keys, each with its first and last key.

        ``subjects``: what attempts are counted for, the canonical name and the verified addresses.
        """
        of_user = (*self.for_password(user_id), *self.for_rename(user_id), self.for_factor(user_id))
        keys = [bucket.key for bucket in of_user]
        ranges = []
        for subject in subjects:
            account = self._hash("account", subject)
            of_subject = [
                self.for_activity(subject),
                self.for_claim(subject),
                self.for_recovery_mail(subject),
                *self.for_typed_code(subject, None),
                *self.for_recovery(subject, None),
            ]
            keys += [b"a" + account[: KEY_BYTES - 1], *(bucket.key for bucket in of_subject)]
            places = b"p" + account[:7]
            ranges.append((places.ljust(KEY_BYTES, b"\0"), places.ljust(KEY_BYTES, b"\xff")))
        return [*((key, key) for key in keys), *ranges]

    def for_password(self, user_id: str) -> list[Bucket]:
        """That of the current password, asked of somebody who has a session."""
        return [self._bucket(b"s", self.password, user_id)]

    def for_registration(self, place: str | None) -> list[Bucket]:
        """That of new accounts."""
        return [self._bucket(b"r", self.registration, place)] if place else []

    def for_rename(self, user_id: str) -> list[Bucket]:
        """That of new names for an account: each brings its own attempts at the password, and tells who is taken."""
        return [self._bucket(b"m", self.rename, user_id)]

    def for_activity(self, name: str) -> Bucket:
        """That of what a user may do, right passwords included: each leaves an event. ``name``: canonical."""
        return self._bucket(b"u", self.activity, name)

    def for_code(self, place: str | None) -> list[Bucket]:
        """That of codes that are redeemed."""
        return [self._bucket(b"c", self.code, place)] if place else []

    def for_typed_code(self, subject: str, place: str | None) -> list[Bucket]:
        """Those of a code that somebody types. ``subject``: what it was mailed for."""
        return [*self.for_code(place), self._bucket(b"g", self.typed_code, subject)]

    def for_factor(self, user_id: str) -> Bucket:
        """That of codes of a second factor."""
        return self._bucket(b"f", self.factor, user_id)

    def for_claim(self, address: str) -> Bucket:
        """That of mail to an address that somebody claims, in canonical form."""
        return self._bucket(b"e", self.mail, address)

    def for_recovery_mail(self, address: str) -> Bucket:
        """That of mail with a code for a new password. Claims, which anybody makes, have another: or they would use
        it up.
        """
        return self._bucket(b"e", self.mail, f"recovery {address}")

    def for_recovery(self, subject: str, place: str | None) -> list[Bucket]:
        """Those of asking for a way back. ``subject``: as `Identifier` has it."""
        of_place = [self._bucket(b"y", self.recovery, place)] if place else []
        return [self._bucket(b"i", self.mail, f" {subject}"), *of_place]

    def for_lookup(self, place: str) -> Bucket:
        """That of tokens that are none."""
        return self._bucket(b"t", self.lookup, place)

    def _bucket(self, kind: bytes, limit: Limit, subject: str) -> Bucket:
        return Bucket(kind + self._hash(limit.name, subject)[: KEY_BYTES - 1], limit)

    def _hash(self, kind: str, *subject: str) -> bytes:
        # None of them contains U+0000: the decoder refuses it.
        return hmac.digest(self._key, "\0".join((kind, *subject)).encode(), "sha256")


# -------------------------------------------------------------------------------------------------- taking

# A function in the database (migration 0007), whose plans Postgres keeps: 0.1 ms instead of 0.8 ms as SQL from here,
# nearly all of which was planning (measured).
TAKE = "gatepost.take_2(CAST(:keys AS bytea[]), CAST(:bursts AS integer[]), CAST(:everys AS float8[]))"
"""For a statement that takes, with `parameters`; `judge` reads its columns, which come first."""

_TAKE = Statement(f"SELECT * FROM {TAKE}")


class Taken(NamedTuple):
    """``buckets``: those that were taken from, which `given_back` undoes. ``exhausted``: limits that this attempt
    was the last for.
    """

    buckets: Sequence[Bucket] = ()
    exhausted: Sequence[Limit] = ()

    def parameters(self) -> dict[str, Any]:
        """For a statement with `given_back` in it."""
        return {
            "taken": array(bucket.key for bucket in self.buckets),
            "taken_everys": array(bucket.limit.every for bucket in self.buckets),
        }


def parameters(buckets: Sequence[Bucket]) -> dict[str, Any]:
    """For a statement that calls ``gatepost.take_2``."""
    return {
        "keys": array(bucket.key for bucket in buckets),
        "bursts": array(bucket.limit.burst for bucket in buckets),
        "everys": array(bucket.limit.every for bucket in buckets),
    }


def judge(buckets: Sequence[Bucket], row: Sequence[Any]) -> tuple[Taken, Sequence[Any]]:
    """What the row of such a statement says: what was taken, and the columns that follow. Raises TooManyAttempts."""
    refusing, seconds, taken, last, *columns = row
    if refusing is not None:
        raise buckets[refusing - 1].limit.refusal(seconds)
    of = [buckets[number - 1] for number in taken or ()]
    return Taken(of, [buckets[number - 1].limit for number in last or ()]), columns


async def take(connection: Connection, buckets: Sequence[Bucket]) -> tuple[None, Taken]:
    """Take one from each bucket, which are in the order of their keys, or none at all. Raises TooManyAttempts.

    As every query that takes, it is for `Refunds.attempt` alone, which gives back what is not judged. May run twice
    (`Database.read`): taking twice costs one attempt.
    """
    if not buckets:
        return None, Taken()
    row = await _TAKE.first(connection, **parameters(buckets))
    assert row is not None
    return None, judge(buckets, row)[0]


# -------------------------------------------------------------------------------------------- giving back


def given_back(condition: str) -> str:
    """A common table expression that gives back what was taken, if there is a row in ``condition``.

    The rows are locked in the order in which `take` locks them.
    """
    return f"""
    given_back AS (
        UPDATE gatepost.throttles t SET due = t.due - make_interval(secs => held.every)
        FROM (
            SELECT t.key, w.every
            FROM unnest(CAST(:taken AS bytea[]), CAST(:taken_everys AS float8[])) AS w (key, every)
                JOIN gatepost.throttles t USING (key)
            WHERE EXISTS (SELECT FROM {condition}) ORDER BY t.key FOR NO KEY UPDATE OF t
        ) AS held WHERE t.key = held.key
    )"""


_GIVE_BACK = Statement(
    f"WITH {given_back('(VALUES (1)) AS always')} SELECT set_config('synchronous_commit', 'off', true)"
)


async def give_back(connection: Connection, seconds: Mapping[bytes, float]) -> None:
    """Undo `take`: buckets that were moved on by so many ``seconds``, by key."""
    await _GIVE_BACK.all(connection, taken=array(seconds), taken_everys=array(seconds.values()))


# ----------------------------------------------------------------------------------------- after the fact

_CHARGE = Statement("""
    SELECT set_config('synchronous_commit', 'off', true);

    INSERT INTO gatepost.throttles AS t (key, due)
    SELECT key, now() + make_interval(secs => every * least(count, burst))
    FROM unnest(CAST(:keys AS bytea[]), CAST(:counts AS integer[])) AS w (key, count),
        (VALUES (:burst, CAST(:every AS float8))) AS l (burst, every)
    ORDER BY key
    ON CONFLICT (key) DO UPDATE SET due = least(
        greatest(t.due, now()) + (excluded.due - now()), now() + make_interval(secs => :every * :burst))
    RETURNING key, extract(epoch FROM due - now()) - :every * (:burst - 1)
""")


async def charge(connection: Connection, limit: Limit, counts: Mapping[bytes, int]) -> dict[bytes, float]:
    """Take what has been had already, ``counts`` by key, from buckets of one limit.

    The seconds for which each of them that is now empty stays so.
    """
    rows = await _CHARGE.all(
        connection, keys=array(counts), counts=array(counts.values()), burst=limit.burst, every=limit.every
    )
    return {bytes(key): float(seconds) for key, seconds in rows if seconds > 0}


# ------------------------------------------------------------------------------------------------ the sweep

# Pages of the table in one statement: some 10,000 keys, locked for milliseconds.
PAGES = 100
_LOCK = 0x67617465_7468726F  # "gatethro"

# By pages and not by an index on `due`: without one, an update of `due` touches no index at all (a HOT update).
_SWEEP = Statement("""
    WITH swept AS (
        DELETE FROM gatepost.throttles WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM gatepost.throttles
            WHERE ctid >= CAST(:first AS tid) AND ctid < CAST(:after AS tid) AND due < clock_timestamp()
                AND (SELECT pg_try_advisory_xact_lock(:lock))
            FOR UPDATE SKIP LOCKED))
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM swept),
        pg_relation_size('gatepost.throttles') / current_setting('block_size')::integer
""")


async def _sweep_pages(connection: Connection, first: int) -> tuple[int, int]:
    """Sweep ``PAGES`` pages; how many buckets are gone, and how many pages there are in all."""
    row = await _SWEEP.first(connection, first=f"({first},0)", after=f"({first + PAGES},0)", lock=_LOCK)
    assert row is not None
    return int(row[0]), int(row[1])


async def sweep(database: Database) -> int:
    """Delete buckets that are full again, in small batches, on one node at a time; how many there were.

    Raises DatabaseUnavailable.
    """
    swept, page, pages = 0, 0, 1
    while page < pages:
        gone, pages = await database.write(_sweep_pages, page)
        swept += gone
        page += PAGES
    return swept
