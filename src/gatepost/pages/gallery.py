"""`/gallery`: every page in every state, for designers, and for whoever replaces templates."""

from aiohttp import web

from gatepost.errors import NotFound
from gatepost.http.app import CONFIG
from gatepost.pages.page import PAGES, page, show
from gatepost.pages.states import STATES


def _demand_gallery(request: web.Request) -> None:
    if not request.app[CONFIG].pages.gallery:
        raise NotFound


@page
async def index(request: web.Request) -> web.Response:
    """What there is to see."""
    _demand_gallery(request)
    return show(request, "gallery.html", states=list(STATES))


@page
async def state(request: web.Request) -> web.Response:
    """One page in one state."""
    _demand_gallery(request)
    if request.match_info["state"] not in STATES:
        raise NotFound
    template, values = STATES[request.match_info["state"]]
    return request.app[PAGES].answer(request, template, **values)


routes = [web.get("/gallery", index), web.get("/gallery/{state}", state)]
