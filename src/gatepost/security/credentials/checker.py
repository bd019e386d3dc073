"""Makes and checks digests. Other packages use this folder through `Credentials`."""

import asyncio
import contextlib
import hmac
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

from gatepost.config import PasswordsConfig
from gatepost.errors import MissingSecret, Problem, Unavailable
from gatepost.postgres.database import Connection, Database, Statement
from gatepost.security.credentials.hashing import Derived, Hasher
from gatepost.security.credentials.kinds import (
    DIGEST_BYTES,
    SALT_BYTES,
    Argon2,
    Kind,
    parse,
    setting_of,
)
from gatepost.security.credentials.limits import InvalidSetting
from gatepost.security.credentials.password import NORM, RAW, Setting, Stored, prepare, secret_bytes
from gatepost.security.credentials.population import Population, stored_schemes
from gatepost.security.deployment_keys import deployment_key
from gatepost.telemetry.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


# Timers of the event loop count whole milliseconds from when they are set, so failed logins with a common due time
# still told when their hash was done (by 0.1 ms; AUC 0.57). A random delay hides that.
_SPREAD_NS = 10_000_000


class MissingPepper(MissingSecret):
    """Passwords are stored that the configuration cannot check; the message names the pepper."""


_UNKNOWN_PEPPER = Statement(
    "SELECT pepper FROM gatepost.passwords WHERE pepper <> ALL (CAST(:known AS text[])) LIMIT 1"
)


async def _unknown_pepper(connection: Connection, known: list[str]) -> str | None:
    """The id of a pepper that is needed and not among those known, if there is one."""
    row = await _UNKNOWN_PEPPER.first(connection, known=known)
    return row[0] if row else None


async def refuse_missing_pepper(config: PasswordsConfig, database: Database) -> None:
    """Raise MissingPepper when stored digests need a pepper that we do not have."""
    missing = await database.read(_unknown_pepper, list(config.peppers))
    if missing is not None:
        raise MissingPepper(f"passwords are stored with the pepper {missing!r}: add it to passwords.peppers")


class Checked(NamedTuple):
    """The digest of a given password, and when a failed login is answered, by ``time.monotonic``."""

    digest: bytes
    failure_due: float


class Credentials:
    """Makes and checks digests, a bounded number at a time, off the event loop.

    ``key``: 32 secret bytes that all nodes share; the settings of unknown names are derived from it. ``place``: the
    network for which a hash is computed, which has a share of the queue; None if it has no share.
    """

    def __init__(self, config: PasswordsConfig, key: bytes) -> None:
        self._costs = Argon2(
            "argon2id", 19, config.memory_kib, config.iterations, config.parallelism, DIGEST_BYTES, bytes(SALT_BYTES)
        )
        self._peppers: Mapping[str, bytes] = {
            name: secret.get_secret_value().encode() for name, secret in config.peppers.items()
        }
        self._pepper = config.current_pepper
        self._max_length = config.max_length
        self.hasher = Hasher(config.threads, config.queue, config.queue_timeout)
        self._population = Population(key, self._costs)
        self._database: Database | None = None
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, config: PasswordsConfig, database: Database) -> Self:
        """Ready to hash for this deployment."""
        key = await deployment_key(database, "unknown names")
        it = cls(config, key)
        try:
            it._database = database
            await it._look(database)
        except BaseException:
            it.close()
            raise
        return it

    @property
    def memory_kib(self) -> int:
        """The memory of one hash, of the most expensive stored kind."""
        return self._population.memory_kib

    def demand_room(self, place: str | None = None) -> None:
        """Raise Overloaded if a password would not be hashed now. Asked before any other work."""
        self.hasher.demand_room(place)

    def close(self) -> None:
        """Stop the threads; what waits for one is dropped."""
        if self._looking is not None:
            self._looking.cancel()
        self.hasher.close()

    async def _look(self, database: Database) -> None:
        """See which kinds are stored."""
        self._population.looked()
        await self._population.learn(await database.read(stored_schemes), self.hasher)

    async def _look_again(self, database: Database) -> None:
        with contextlib.suppress(Problem):  # no room for a hash, or no database: the next login looks again
            await self._look(database)

    def dummy(self, name: str) -> Setting:
        """The setting of an unknown name: the same every time and on every node."""
        return self._setting(self._population.dummy(name))

    def _setting(self, kind: Kind) -> Setting:
        ours = kind.scheme == self._costs.scheme
        return Setting(setting_of(kind), self._pepper if ours else None, NORM if ours else RAW)

    def is_weaker(self, setting: Setting) -> bool:
        """Whether a password with this setting should be rehashed, now that it is known: every foreign hash, and one
        of ours with a lower cost and no higher one.
        """
        try:
            kind = parse(setting.phc)
        except InvalidSetting:
            return True
        ours = self._costs
        if setting.pepper != self._pepper or setting.norm != NORM or not isinstance(kind, Argon2):
            return True
        if (kind.variant, kind.version, kind.length) != (ours.variant, ours.version, ours.length):
            return True
        costs = (kind.memory_kib, kind.iterations, kind.parallelism)
        wanted = (ours.memory_kib, ours.iterations, ours.parallelism)
        return costs != wanted and all(has <= wants for has, wants in zip(costs, wanted, strict=True))

    async def create(self, password: str, place: str | None = None) -> Stored:
        """Hash a new password. Raises InvalidPassword, Overloaded."""
        salt = secrets.token_bytes(SALT_BYTES)
        kind = replace(self._costs, salt=salt)
        setting = Setting(setting_of(kind), self._pepper)
        derived = await self._derive(setting, kind, lambda: prepare(password), place)
        return Stored(setting, derived.digest)

    async def digest(self, setting: Setting, password: str, place: str | None = None) -> bytes:
        """The digest that a given password has under a stored setting.

        One hash is computed whatever is given. Text that cannot be a password gets a digest that matches nothing, and
        so does a setting that is refused. Raises Overloaded when the queue is full.
        """
        return (await self.check(setting, password, place)).digest

    async def check(self, setting: Setting, password: str, place: str | None = None) -> Checked:
        """As `digest`, with the time at which a failed login is answered."""
        if self._database is not None and self._population.stale:
            self._population.looked()
            self._looking = asyncio.create_task(self._look_again(self._database))
        usable = True
        try:
            kind = parse(setting.phc)
        except InvalidSetting as error:
            # Neither the import nor the table's CHECK should have let it in. It is not computed; the client is told
            # that the password is wrong.
            log.warning("a stored password has a setting that is refused", reason=str(error))
            setting, usable = self.dummy(setting.phc), False
            kind = parse(setting.phc)

        def secret() -> bytes:
            nonlocal usable
            prepared = secret_bytes(password, setting.norm, self._max_length)
            usable = usable and prepared is not None
            return prepared or b"-"

        derived = await self._derive(setting, kind, secret, place)
        digest = derived.digest if usable else secrets.token_bytes(DIGEST_BYTES)
        due = self._population.failure_due(kind, derived)
        return Checked(digest, due + secrets.randbelow(_SPREAD_NS) / 1e9 if due else 0.0)

    async def _derive(
        self, setting: Setting, kind: Kind, secret: "Callable[[], bytes]", place: str | None
    ) -> Derived:
        key = None
        if setting.pepper is not None and (key := self._peppers.get(setting.pepper)) is None:
            # Another node may have a new pepper, or this one may have lost an old one. The password may be right, so
            # 503 and not 401.
            raise Unavailable("the pepper of this password is not configured on this node")
        derived = await self.hasher.derive(kind, secret, place)
        return derived._replace(digest=hmac.digest(key, derived.digest, "sha256")) if key else derived
