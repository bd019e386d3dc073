"""The only module that knows how a password is kept and checked.

What is stored is a *setting* (a PHC string without its last field: algorithm, costs, salt) and a *digest*, apart.
A login reads the setting, computes the digest here, on a thread, and SQL compares it. The plaintext stays here.
"""

import asyncio
import base64
import hmac
import os
import re
import secrets
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from argon2.low_level import Type, hash_secret_raw
from precis_i18n import get_profile

from gatepost.config import PasswordsConfig
from gatepost.db import Connection, Database, Statement
from gatepost.errors import Overloaded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

SALT_BYTES = 16
DIGEST_BYTES = 32
# How the password is prepared: RFC 8265 OpaqueString. Kept with the digest, so that it can change one day.
NORM = "opaque"

_opaque = get_profile("OpaqueString")
_SETTING = re.compile(r"\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,3}),p=(\d{1,3})\$([A-Za-z0-9+/]{11,86})")


class InvalidPassword(ValueError):
    """The text cannot be a password; the message says why, without repeating it."""


class MissingPepper(Exception):
    """Passwords are stored that the configuration cannot check; the message names the pepper."""


def prepare(password: str) -> bytes:
    """The bytes that are hashed: OpaqueString (RFC 8265 §4.2), UTF-8. Raises InvalidPassword."""
    if password.isascii() and password.isprintable() and password:
        return password.encode()  # the profile changes nothing here, and costs 0.3 ms a 1,000 characters
    try:
        return str(_opaque.enforce(password)).encode()
    except UnicodeEncodeError as error:
        reason = error.reason.removeprefix("DISALLOWED/").replace("_", " ")
        raise InvalidPassword(f"has a character that a password cannot have ({reason})") from None


@dataclass(frozen=True, slots=True)
class Setting:
    """How one digest was made: ``phc`` as stored, and the id of its pepper."""

    phc: str
    pepper: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A password as it is kept."""

    setting: Setting
    digest: bytes = field(repr=False)
    norm: str = NORM


@dataclass(frozen=True, slots=True, order=True)
class _Costs:
    memory_kib: int
    iterations: int
    parallelism: int

    @classmethod
    def parse(cls, phc: str) -> tuple[Self, bytes]:
        match = _SETTING.fullmatch(phc)
        if not match:
            raise ValueError("not a setting that Gatepost makes")
        m, t, p, salt = match.groups()
        return cls(int(m), int(t), int(p)), base64.b64decode(salt + "=" * (-len(salt) % 4))

    def phc(self, salt: bytes) -> str:
        text = base64.b64encode(salt).rstrip(b"=").decode()
        return f"$argon2id$v=19$m={self.memory_kib},t={self.iterations},p={self.parallelism}${text}"

    def weaker_than(self, other: Self) -> bool:
        """More of one and less of another is neither: such a hash is left as it is."""
        return (
            self != other
            and self.memory_kib <= other.memory_kib
            and self.iterations <= other.iterations
            and self.parallelism <= other.parallelism
        )


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _nice() -> None:
    # On Linux a thread has a niceness of its own: hashing takes only what sign-ins under way leave over
    # (measured under load: p99 of other requests 9.9 -> 6.5 ms). Elsewhere it would slow the whole process.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


# ON CONFLICT DO NOTHING returns no row, and the snapshot may not hold the row that won: so it is written over itself.
_DEPLOYMENT_KEY = Statement("""
    INSERT INTO gatepost.deployment_keys (name, key) VALUES (:name, :key)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING key
""")


async def _deployment_key(connection: Connection, name: str, proposal: bytes) -> bytes:
    """The secret of this name that all nodes share; the first node to ask creates it."""
    row = await _DEPLOYMENT_KEY.first(connection, name=name, key=proposal)
    assert row is not None
    return bytes(row[0])


_UNKNOWN_PEPPER = Statement(
    "SELECT pepper FROM gatepost.passwords WHERE pepper <> ALL (CAST(:known AS text[])) LIMIT 1"
)


async def _unknown_pepper(connection: Connection, known: list[str]) -> str | None:
    """The id of a pepper that is needed and not among those known, if there is one."""
    row = await _UNKNOWN_PEPPER.first(connection, known=known)
    return row[0] if row else None


class Credentials:
    """Makes and checks digests, a bounded number at a time, off the event loop.

    ``deployment_key``: 32 secret bytes that all nodes share; what unknown names look like is derived from it.
    """

    def __init__(self, config: PasswordsConfig, deployment_key: bytes) -> None:
        self._costs = _Costs(config.memory_kib, config.iterations, config.parallelism)
        self._peppers: Mapping[str, bytes] = {
            name: secret.get_secret_value().encode() for name, secret in config.peppers.items()
        }
        self._pepper = config.current_pepper
        self._max_length = config.max_length
        self._key = deployment_key
        self.threads = min(config.threads or cores(), cores())
        self._admission = threading.BoundedSemaphore(self.threads + config.queue)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="argon2", initializer=_nice)

    @classmethod
    async def open(cls, config: PasswordsConfig, database: Database) -> Self:
        """Ready to hash for this deployment. Raises MissingPepper when stored digests need one we do not have."""
        key = await database.write(_deployment_key, "unknown names", secrets.token_bytes(32))
        missing = await database.read(_unknown_pepper, list(config.peppers))
        if missing is not None:
            raise MissingPepper(f"passwords are stored with the pepper {missing!r}: add it to passwords.peppers")
        return cls(config, key)

    def close(self) -> None:
        """Stop the threads; what waits for one is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def dummy(self, name: str) -> Setting:
        """What an unknown name seems to have stored: the same every time and on every node."""
        salt = hmac.digest(self._key, b"salt\0" + name.encode(), "sha256")[:SALT_BYTES]
        return Setting(self._costs.phc(salt), self._pepper)

    def is_weaker(self, setting: Setting) -> bool:
        """Whether a password kept like this should be hashed anew, now that it is known."""
        costs, _ = _Costs.parse(setting.phc)
        return setting.pepper != self._pepper or costs.weaker_than(self._costs)

    async def create(self, password: str) -> Stored:
        """Hash a new password. Raises InvalidPassword, Overloaded."""
        setting = Setting(self._costs.phc(secrets.token_bytes(SALT_BYTES)), self._pepper)
        return Stored(setting, await self._hash(setting, prepare(password)))

    async def digest(self, setting: Setting, password: str) -> bytes:
        """The digest that a given password has under a stored setting: 32 bytes.

        Whatever is given, one hash is computed: text that cannot be a password gets a digest that matches nothing.
        Raises Overloaded when more wait than may.
        """
        try:
            secret = prepare(password) if len(password) <= self._max_length else None
        except InvalidPassword:
            secret = None
        digest = await self._hash(setting, secret or b"-")
        return digest if secret is not None else secrets.token_bytes(DIGEST_BYTES)

    async def _hash(self, setting: Setting, secret: bytes) -> bytes:
        costs, salt = _Costs.parse(setting.phc)
        key = None
        if setting.pepper is not None and (key := self._peppers.get(setting.pepper)) is None:
            # Another node has the new pepper already, or this one lost the old: we cannot know, so no 401.
            raise Unavailable("the pepper of this password is not configured on this node")
        if not self._admission.acquire(blocking=False):
            raise Overloaded
        # Released when the work is over, which is not when a cancelled caller stops waiting for it.
        work = self._pool.submit(_argon2id, costs, salt, secret)
        work.add_done_callback(lambda _: self._admission.release())
        raw = await asyncio.wrap_future(work)
        return hmac.digest(key, raw, "sha256") if key else raw


def _argon2id(costs: _Costs, salt: bytes, secret: bytes) -> bytes:
    return hash_secret_raw(
        secret=secret,
        salt=salt,
        time_cost=costs.iterations,
        memory_cost=costs.memory_kib,
        parallelism=costs.parallelism,
        hash_len=DIGEST_BYTES,
        type=Type.ID,
        version=19,
    )
