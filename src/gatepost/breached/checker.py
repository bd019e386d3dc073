"""Whether a password was published: asked of an API, or of a file, or of nobody."""

from collections import Counter
from typing import Protocol

from aiohttp import web

from gatepost.breached.elias_fano import BadFile, HashSet
from gatepost.breached.password import key
from gatepost.breached.range_api import RangeApi, RangeFailed
from gatepost.config import ConfigError, PasswordsConfig
from gatepost.errors import BreachedPassword, FieldError
from gatepost.telemetry.logs import log

RESULTS = ("clear", "breached", "failed")


class _Source(Protocol):
    async def is_breached(self, password: str) -> bool: ...

    async def close(self) -> None: ...


class _File:
    def __init__(self, known: HashSet) -> None:
        self._known = known

    async def is_breached(self, password: str) -> bool:
        return key(password) in self._known  # 11 us (measured), or a page of the disk

    async def close(self) -> None:
        self._known.close()


class Breached:
    """Asks as ``passwords.breached`` says; `counts` has how often with which of ``RESULTS``."""

    def __init__(self, source: _Source | None) -> None:
        self._source = source
        self.counts: Counter[str] = Counter()

    @classmethod
    def open(cls, config: PasswordsConfig) -> "Breached":
        """For this configuration. Raises ConfigError when the file cannot be used."""
        if config.breached == "range":
            return cls(RangeApi(config.breached_url))
        if config.breached == "file":
            assert config.breached_file is not None
            try:
                return cls(_File(HashSet(config.breached_file)))
            except (BadFile, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise ConfigError(f"passwords.breached_file: {config.breached_file} {reason}") from None
        return cls(None)

    async def close(self) -> None:
        """Let go of the file or the connections."""
        if self._source:
            await self._source.close()

    async def check(self, password: str) -> bool | None:
        """Whether this password is known from a breach; None when that cannot be found out, within a second."""
        if self._source is None:
            return False
        try:
            breached = await self._source.is_breached(password)
        except RangeFailed as error:
            self.counts["failed"] += 1
            log.warning("whether a password was breached is not known", reason=str(error))
            return None
        self.counts["breached" if breached else "clear"] += 1
        return breached

    async def refuse(self, field: str, password: str) -> None:
        """Raise BreachedPassword, naming ``field``, for a new password that is known from a breach.

        One of which that cannot be found out passes: otherwise nobody could sign up while the API is down.
        """
        if await self.check(password):
            message = "was published in a breach of another service: choose another one"
            raise BreachedPassword([FieldError(field, "password_breached", message)])


BREACHED = web.AppKey("breached", Breached)
