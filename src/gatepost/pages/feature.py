"""Pages for people."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from gatepost.http.app import CREDENTIALS, TELL_AS_PAGE
from gatepost.http.feature import SWEEP, Feature, Parts
from gatepost.pages import account, assets, gallery, operator, recover, sign_in, sign_up, turned_away
from gatepost.pages.assets import ASSETS
from gatepost.pages.operator.queries import count_all, record_all
from gatepost.pages.page import PAGES, Pages, tell_as_page
from gatepost.pages.states import STATES
from gatepost.process.periodic import every

# Seconds between two values of the gauges that the overview draws: each minute has one of every process.
RECORD = 20


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    if not parts.config.pages.enabled:
        yield
        return
    pages = await Pages.open(parts.config)
    if parts.config.pages.templates:
        await asyncio.to_thread(pages.try_templates, parts.config.pages.templates, STATES)
    parts.share(PAGES, pages)
    parts.share(ASSETS, pages.assets)
    parts.share(TELL_AS_PAGE, tell_as_page)
    record = partial(record_all, parts.database, parts[CREDENTIALS].hasher)
    async with every(SWEEP, partial(count_all, parts.database)), every(RECORD, record):
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
    operator_pages=operator.routes,
    open=_open,
)
