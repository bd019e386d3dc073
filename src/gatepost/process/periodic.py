"""Periodic work in the background."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from gatepost.errors import DatabaseUnavailable, Problem
from gatepost.process.jitter import jitter
from gatepost.telemetry.logs import log


@contextlib.asynccontextmanager
async def every(
    seconds: float, work: Callable[[], Awaitable[None]], *, once_more: bool = False
) -> AsyncIterator[None]:
    """Do ``work`` about every ``seconds`` for as long as the block lasts; with ``once_more``, also at its end.

    A failure is logged and the work tried again at its next turn. Turns are spread by a tenth, so that nodes started
    together do not all come at once.
    """

    name = getattr(work, "__qualname__", "")
    # Asked beside the cancellation, which the work may take for a timeout of its own: then it would go on for ever.
    ended = asyncio.Event()

    async def again_and_again() -> None:
        while not ended.is_set():
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
        ended.set()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if once_more:
            await _at_last(work)


async def _at_last(work: Callable[[], Awaitable[None]]) -> None:
    """Do the work a last time. Without a database it is left undone: the end must not wait."""
    try:
        await work()
    except DatabaseUnavailable:
        pass
    except Exception:  # noqa: BLE001
        log.exception("the last work failed")
