"""Work that nobody asks for: done again and again beside the requests."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable

from gatepost.errors import Problem

log = logging.getLogger("gatepost")


@contextlib.asynccontextmanager
async def every(seconds: float, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do ``work`` about every ``seconds`` for as long as the block lasts.

    A failure is logged and the work tried again at its next turn. Turns are spread by a tenth, so that nodes started
    together do not all come at once.
    """

    async def again_and_again() -> None:
        while True:
            await asyncio.sleep(seconds * random.uniform(0.9, 1.1))  # noqa: S311 (no secret)
            try:
                await work()
            except Problem as problem:
                log.warning("%s: %s", getattr(work, "__qualname__", "background work"), problem)
            except Exception as error:  # noqa: BLE001 (or it would stop for good)
                # Without the text: a driver's message may quote values.
                log.error("%s: %s", getattr(work, "__qualname__", "background work"), type(error).__name__)  # noqa: TRY400

    task = asyncio.create_task(again_and_again())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
