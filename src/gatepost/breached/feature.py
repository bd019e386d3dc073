"""Breached passwords."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from gatepost.breached import commands
from gatepost.breached.checker import BREACHED, RESULTS, Breached
from gatepost.http.feature import Feature, Parts


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    breached = Breached.open(parts.config.passwords)
    for result in RESULTS:
        name, text = "gatepost_breached_checks_total", "Passwords looked up among breached ones, by what came of it."
        parts.metrics.follow(name, text, partial(breached.counts.__getitem__, result), result=result)
    parts.share(BREACHED, breached)
    try:
        yield
    finally:
        await breached.close()


FEATURE = Feature(open=_open, commands=commands.register)
