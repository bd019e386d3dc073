"""Health, metrics and the description of the API."""

import contextlib
from collections.abc import AsyncIterator

from gatepost.http.app import CREDENTIALS
from gatepost.http.feature import Feature, Parts
from gatepost.ops import handlers, instruments
from gatepost.ops.instruments import Census
from gatepost.process.periodic import every
from gatepost.sessions.guard import LOOKUP

# Seconds after which a process that shares its metrics writes down those that it is asked for.
LOOK = 5.0


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    lookup, metrics = parts[LOOKUP], parts.metrics
    parts.share(handlers.CENSUS, Census(metrics, parts.database))
    pools = {"requests": parts.database, "checks": lookup.database}
    instruments.follow(metrics, parts[CREDENTIALS], lookup, pools)

    async def look() -> None:
        metrics.look()

    # Whichever process is scraped shows what the others have written down.
    async with every(LOOK, look) if metrics.shared else contextlib.nullcontext():
        yield


FEATURE = Feature(
    routes=handlers.routes,
    operator_routes=handlers.operator_routes,
    open=_open,
    tags={
        "ping": "Whether the process answers.",
        "openapi.json": "This document.",
        "docs": "This document as a page.",
        "health": "For load balancers and service managers.",
        "metrics": "For Prometheus.",
    },
)
