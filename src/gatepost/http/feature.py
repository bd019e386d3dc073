"""What a feature adds to the service: its folder says it in `feature.py`, and `routes.FEATURES` lists them all."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import typer
from aiohttp import web

from gatepost.config import Config, Section
from gatepost.postgres.database import Database, Dsn
from gatepost.process.periodic import every
from gatepost.telemetry.metrics import Metrics

T = TypeVar("T")

# Seconds between two sweeps of a table.
SWEEP = 67.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a feature finds when it opens. ``apps``: those that serve, of which every one gets what is shared."""

    config: Config
    metrics: Metrics
    dsn: Dsn
    database: Database
    apps: Sequence[web.Application]

    def share(self, key: web.AppKey[T], value: T) -> None:
        """Let handlers find it as ``request.app[key]``."""
        for app in self.apps:
            app[key] = value

    def __getitem__(self, key: web.AppKey[T]) -> T:
        """What has been shared."""
        return self.apps[0][key]

    @contextlib.asynccontextmanager
    async def connect(self, size: int) -> AsyncIterator[Database]:
        """Up to ``size`` connections of one's own, as long as the block lasts. Raises DatabaseUnavailable."""
        database = await Database.open(self.dsn, size)
        try:
            yield database
        finally:
            await database.close()

    def sweeping(self, table: str, sweep: Callable[[], Awaitable[int]]) -> AbstractAsyncContextManager[None]:
        """Sweep a table about once a minute, as long as the block lasts, and count the rows that went."""
        return every(SWEEP, self.metrics.sweeping(table, sweep))


class Settings(NamedTuple):
    """A section of the configuration, and where handlers find it."""

    name: str
    model: type[Section]
    key: web.AppKey[Any]


@dataclass(frozen=True, slots=True)
class Feature:
    """Whatever it leaves out it does not have.

    - ``operator_routes``: those that `webserver.operator_port` moves to an address of its own.
    - ``pages``, ``operator_pages``: the same for what people look at. They are not part of the API.
    - ``tags``: the first parts of its paths, each with what it stands for in the OpenAPI document.
    - ``open``: opens its parts, which the features after it in the list may use, and closes them.
    - ``settings``: its section of the configuration.
    - ``commands``, ``user_commands``: add to `gatepost` and to `gatepost user`.
    - ``events``: the kinds that it records, each with what its detail says.
    """

    routes: Sequence[web.RouteDef] = ()
    operator_routes: Sequence[web.RouteDef] = ()
    pages: Sequence[web.RouteDef] = ()
    operator_pages: Sequence[web.RouteDef] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    open: Callable[[Parts], AbstractAsyncContextManager[None]] | None = None
    settings: Settings | None = None
    commands: Callable[[typer.Typer], None] | None = None
    user_commands: Callable[[typer.Typer], None] | None = None
    events: Mapping[str, str] = field(default_factory=dict)
