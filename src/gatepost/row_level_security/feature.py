"""Sessions inside Postgres: the nodes' part of it."""

import contextlib
from collections.abc import AsyncIterator

from gatepost.errors import NotPermitted
from gatepost.http.feature import Feature, Parts
from gatepost.postgres.batches import in_batches
from gatepost.process.periodic import every
from gatepost.row_level_security import queries
from gatepost.security.deployment_keys import deployment_key
from gatepost.sessions import upkeep
from gatepost.telemetry.logs import log


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    database = parts.database

    async def touch_used() -> None:
        await in_batches(lambda most: database.write(queries.touch_used, most))

    async with contextlib.AsyncExitStack() as background:
        try:
            await deployment_key(database, "sign_in_as")  # makes it; gatepost.sign_in_seal reads it
            await database.write(queries.tell_idle_timeout, parts.config.sessions.idle_timeout)
        except NotPermitted as problem:  # a role made for an earlier release: all else works
            log.warning("gatepost.sign_in_as does not work in the database", reason=str(problem))
        else:
            await background.enter_async_context(every(upkeep.INTERVAL, touch_used))
        yield


FEATURE = Feature(open=_open)
