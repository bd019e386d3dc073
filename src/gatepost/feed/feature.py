"""Streams of what has been revoked: for services, and for people's own pages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from gatepost.feed import handlers
from gatepost.feed.feed import Feed
from gatepost.feed.handlers import FEED, LISTENER
from gatepost.feed.listener import Listener
from gatepost.http.app import STOPPING
from gatepost.http.feature import Feature, Parts


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    feed = Feed()
    listener = Listener(parts.dsn, feed)
    parts.share(FEED, feed)
    parts.share(LISTENER, listener)
    parts.metrics.follow("gatepost_feed_listeners", "Streams of `/feed` that are open.", lambda: feed.listeners)

    async def end_streams() -> None:
        await parts[STOPPING].wait()
        feed.close()

    ending = asyncio.create_task(end_streams())
    try:
        yield
    finally:
        ending.cancel()
        feed.close()
        await listener.close()


FEATURE = Feature(
    routes=handlers.routes,
    open=_open,
    tags={"feed": "What has been revoked, as it happens: for services."},
)
