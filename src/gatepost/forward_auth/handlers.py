"""`/authz/forward`: may this request pass? nginx (`auth_request`), Traefik and Caddy (`forward_auth`) ask it."""

import re
from typing import Literal
from urllib.parse import quote

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, Field

from gatepost.errors import (
    AmbiguousPath,
    ConfirmationRequired,
    FactorRequired,
    Forbidden,
    ForeignOrigin,
    Unauthorized,
)
from gatepost.forward_auth.people import way_out
from gatepost.http.body import read_query
from gatepost.http.operation import operation
from gatepost.http.tokens import Asked
from gatepost.sessions.guard import caller
from gatepost.sessions.session import Session

# A path that a proxy and the service behind it could read in different ways (RFC 3986 §6.2.2): dot segments, two
# slashes, a backslash, what stands for one of them or for a control character, once encoded or twice.
_AMBIGUOUS = re.compile(
    r"[\\#\x00-\x20\x7f]|//|%(?:2f|5c|7f|[01][0-9a-f])|%25(?:2e|2f|5c)|(?:^|/)(?:\.|%2e){1,2}(?:[/;]|%3b|$)",
    re.IGNORECASE,
)
# A proxy sends one of either header. A client may send 128 of 8 KB, which take 50 ms to look through (measured).
_MAX_PATHS = 4
# Printable ASCII is sent as it is in a header; everything else is percent-encoded UTF-8.
_NAME = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
_ROLE = _NAME.replace(",", "")


class Demand(BaseModel):
    """What the proxy demands besides a session. An empty or misspelt demand must not pass for none."""

    model_config = ConfigDict(extra="forbid")

    role: str | None = Field(
        None,
        pattern=r"^[^\s\x85\ufeff,]{1,64}(,[^\s\x85\ufeff,]{1,64})*$",
        description="A role; of several, separated by commas, any.",
    )
    factors: Literal["1", "2"] = Field("1", description="How many factors the session must have been opened with.")
    fresh: int | None = Field(
        None, ge=1, le=10**9, description="Seconds in which the user must have signed in, or confirmed who it is."
    )
    sign_in: Literal["redirect", "location"] | None = Field(
        None,
        description="Send a browser that asks for a page to the page that helps: `redirect` answers 303; `location` "
        "names it in `Location`, beside the 401 or 403 that nginx needs.",
    )


@operation(
    None,
    query=Demand,
    problems=(Unauthorized, Forbidden, FactorRequired, ConfirmationRequired, AmbiguousPath, ForeignOrigin),
    check=True,
    redirect="With `sign_in=redirect`, for a browser that asks for a page: where its user can do what is missing.",
)
async def forward(request: web.Request) -> web.Response:
    """Say whose session a proxied request carries, in headers for the service behind the proxy.

    They are `Remote-User`, `Remote-User-Id`, `Remote-Roles` and `Remote-Session`. The method and the host that the
    browser asked are taken from `X-Forwarded-Method` or `X-Original-Method`, and from `X-Forwarded-Host`. A path in
    `X-Forwarded-Uri` or `X-Original-URI` that could be read in different ways is refused, whoever asks.
    """
    demand = read_query(request, Demand)
    _refuse_ambiguous_paths(request)
    try:
        session = await _permitted(request, demand)
    except (Unauthorized, Forbidden) as refusal:
        page = way_out(request, refusal, _asked(request), demand.role) if demand.sign_in else None
        if page is None:
            raise
        if demand.sign_in == "redirect":
            return web.Response(status=303, headers={hdrs.LOCATION: page})
        refusal.headers = {**refusal.headers, hdrs.LOCATION: page}
        raise
    return web.Response(
        headers={
            "Remote-User": quote(session.canonical, safe=_NAME),
            "Remote-User-Id": session.user_id,
            # Sent also when there are no roles: a careless proxy would pass on the client's own header instead.
            "Remote-Roles": ",".join(quote(role, safe=_ROLE) for role in session.roles),
            "Remote-Session": session.handle,
        }
    )


async def _permitted(request: web.Request, demand: Demand) -> Session:
    """The session, if it is one that the proxy demands. Raises Unauthorized, Forbidden, DatabaseUnavailable."""
    session = await caller(request, _asked(request))
    if session is None:
        raise Unauthorized  # never 429: to nginx that is an error, to its client 500
    if demand.role is not None and set(session.roles).isdisjoint(demand.role.split(",")):
        raise Forbidden
    if demand.factors == "2" and not session.two_factors:
        raise FactorRequired("This place takes a session of two factors: add a second factor, and sign in with it.")
    if demand.fresh is not None and session.confirmed_ago > demand.fresh:
        raise ConfirmationRequired
    return session


def _refuse_ambiguous_paths(request: web.Request) -> None:
    paths = [*_values(request, "X-Forwarded-Uri"), *_values(request, "X-Original-URI")]
    if len(paths) > _MAX_PATHS or any(_AMBIGUOUS.search(path.partition("?")[0]) for path in paths):
        raise AmbiguousPath


def _asked(request: web.Request) -> Asked:
    """Method and host of the request that the proxy asks about; its question is always a GET.

    The method counts as one that changes something if there is none, or another in each header: whoever holds only
    the browser may not choose it, and a proxy that does not tell is found out by its operator, not by an attacker.
    """
    methods = {*_values(request, "X-Forwarded-Method"), *_values(request, "X-Original-Method")}
    hosts = _values(request, "X-Forwarded-Host") or _values(request, hdrs.HOST)
    return Asked(methods.pop() if len(methods) == 1 else "", ", ".join(hosts))


def _values(request: web.Request, header: str) -> list[str]:
    return request.headers.getall(header, [])


routes = [web.get("/authz/forward", forward)]
