"""What a person can do whom a proxy has to turn away: a page, to which the browser is sent with its whole address."""

from urllib.parse import urlencode

from aiohttp import hdrs, web

from gatepost.errors import ConfirmationRequired, FactorRequired, Forbidden, Unauthorized
from gatepost.http.app import CONFIG, wants_a_page
from gatepost.http.tokens import Asked

_PAGES: dict[type[Unauthorized | Forbidden], str] = {
    Unauthorized: "/sign-in",
    Forbidden: "/forbidden",
    FactorRequired: "/me/factors",
    ConfirmationRequired: "/confirm",
}
"""By the refusal itself, not by what it is a kind of: for a foreign page or an ambiguous path there is no way out."""


def way_out(request: web.Request, refusal: Unauthorized | Forbidden, asked: Asked, role: str | None) -> str | None:
    """The page that helps, if it is a browser that has asked for a page; programs keep their answer.

    The address that was asked for goes with it in ``return_to``. Whether it leads back there, the page decides:
    a proxy may pass on what its client says.
    """
    config, page = request.app[CONFIG], _PAGES.get(type(refusal))
    if page is None or config.webserver.public_url is None or not config.pages.enabled:
        return None
    if asked.method not in (hdrs.METH_GET, hdrs.METH_HEAD) or not wants_a_page(request):
        return None
    scheme = request.headers.get("X-Forwarded-Proto", "https")
    path = request.headers.get("X-Forwarded-Uri") or request.headers.get("X-Original-URI") or "/"
    query = {"return_to": f"{scheme}://{asked.host}{path}"}
    if role is not None and page == "/forbidden":
        query["role"] = role
    return f"{config.webserver.public_url}{page}?{urlencode(query, errors='surrogateescape')}"
