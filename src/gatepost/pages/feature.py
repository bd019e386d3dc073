"""Pages for people."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from gatepost.http.feature import Feature, Parts
from gatepost.pages import account, assets, gallery, recover, sign_in, sign_up, turned_away
from gatepost.pages.assets import ASSETS
from gatepost.pages.page import PAGES, Pages
from gatepost.pages.states import STATES


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    if parts.config.pages.enabled:
        pages = await Pages.open(parts.config)
        if parts.config.pages.templates:
            await asyncio.to_thread(pages.try_templates, parts.config.pages.templates, STATES)
        parts.share(PAGES, pages)
        parts.share(ASSETS, pages.assets)
    yield


FEATURE = Feature(
    pages=[
        *sign_in.routes,
        *sign_up.routes,
        *recover.routes,
        *turned_away.routes,
        *account.routes,
        *gallery.routes,
        web.get("/assets/{name}", assets.asset),
    ],
    open=_open,
)
