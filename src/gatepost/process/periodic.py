"""Work that nobody asks for: done again and again beside the requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from gatepost.errors import Problem
from gatepost.process.jitter import jitter
from gatepost.telemetry.logs import log

# Rows in one statement: a lock held for milliseconds.
BATCH = 1000


@contextlib.asynccontextmanager
async def every(seconds: float, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do ``work`` about every ``seconds`` for as long as the block lasts.

    A failure is logged and the work tried again at its next turn. Turns are spread by a tenth, so that nodes started
    together do not all come at once.
    """

    name = getattr(work, "__qualname__", "")

    async def again_and_again() -> None:
        while True:
            await asyncio.sleep(jitter(seconds, 0.9, 1.1))
            try:
                await work()
            except Problem as problem:
                log.warning("background work failed", work=name, reason=str(problem))
            except Exception:  # noqa: BLE001 (or it would stop for good)
                log.exception("background work failed", work=name)

    task = asyncio.create_task(again_and_again())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def in_batches(work: Callable[[int], Awaitable[int]]) -> int:
    """Do ``work(most)``, which deals with up to ``most`` rows and says with how many, until few are left.

    With how many rows in all.
    """
    done, batch = 0, BATCH
    while batch == BATCH:
        batch = await work(BATCH)
        done += batch
    return done
