"""`/ping`, `/health` and `/metrics`: is it there, is it well; `/openapi.json` and `/docs`: how to talk to it."""

import asyncio
import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from aiohttp import HttpVersion11, hdrs, web
from typing_extensions import TypedDict

from gatepost.errors import DatabaseUnavailable, NotFound, Stopping
from gatepost.http.app import CONFIG, DOCUMENT, FOR_OPERATORS, METRICS, STOPPING, json_response
from gatepost.http.operation import operation
from gatepost.ops.instruments import Census
from gatepost.security import addresses
from gatepost.sessions.guard import LOOKUP

CENSUS = web.AppKey("census", Census)


class Pong(TypedDict):
    """What `/ping` has always answered."""

    text: Literal["pong"]
    status: Literal["success"]


class Health(TypedDict):
    """How it is."""

    status: Literal["live", "ready"]


@operation(Pong, check=True)
async def ping(_request: web.Request) -> web.Response:
    """Answer, asking nobody."""
    return json_response(Pong(text="pong", status="success"))


@operation(Health, check=True)
async def live(_request: web.Request) -> web.Response:
    """The process runs: restart it when this does not answer."""
    return json_response(Health(status="live"))


@operation(Health, problems=(DatabaseUnavailable, Stopping), check=True)
async def ready(request: web.Request) -> web.Response:
    """The database answers and we stay: send traffic only while this is 200 (else 503, within its deadline)."""
    if request.app[STOPPING].leaving:
        raise Stopping
    # A session check for a token that does not exist: it uses the connections of checks, which a flood of logins
    # cannot take, and their deadline.
    await request.app[LOOKUP].find(b"")
    return json_response(Health(status="ready"))


@operation(str, problems=(NotFound,), media_type="text/plain", check=True)
async def metrics(request: web.Request) -> web.Response:
    """What is counted, as Prometheus reads it.

    Where operators have no address of their own, it is not found by those who ask from another machine or through a
    proxy.
    """
    if not request.app[FOR_OPERATORS] and not _is_from_here(request):
        raise NotFound
    await request.app[CENSUS].take()
    return web.Response(
        body=request.app[METRICS].render(), headers={hdrs.CONTENT_TYPE: request.app[METRICS].content_type}
    )


def _is_from_here(request: web.Request) -> bool:
    """Whether the client is a program on this machine, and no proxy or page that asks for somebody else.

    A proxy is known by its address, where that is configured. The others say so in a header, or pass on the name that
    their client asked for; nginx, told nothing, does neither, and speaks HTTP/1.0 (before 1.29.7). A page whose name
    was made to mean this machine (DNS rebinding) asks for that name.
    """
    peer = addresses.peer(request.transport.get_extra_info("peername") if request.transport else None)
    if peer is None or not peer.is_loopback or addresses.within(peer, request.app[CONFIG].webserver.trusted_proxies):
        return False
    forwarded = not _FORWARDED.isdisjoint(name.lower() for name in request.headers)
    from_elsewhere = not _is_this_machine(request.headers.get(hdrs.HOST, ""))
    return not forwarded and not from_elsewhere and request.version >= HttpVersion11


def _is_this_machine(host: str) -> bool:
    """Whether a ``Host`` names the machine that reads it: ``localhost`` or a loopback address, with a port or not."""
    address = addresses.parse(host)
    return address.is_loopback if address else host.partition(":")[0].lower() == "localhost"


_FORWARDED = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"}


@operation(dict[str, Any])
async def describe(request: web.Request) -> web.Response:
    """This interface, as an OpenAPI 3.1 document."""
    # Made on the first request: 20 ms of work and 0.8 MB, which few deployments ever need.
    document = await asyncio.to_thread(request.app[DOCUMENT])
    return web.Response(body=document, content_type="application/json", charset="utf-8")


@operation(str, media_type="text/html")
async def docs(_request: web.Request) -> web.Response:
    """This interface, for people: a page that shows `/openapi.json`."""
    page, policy = _page()
    return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": policy})


@cache
def _page() -> tuple[str, str]:
    """The page, in one piece, and the policy that lets it run its own script, read from us, and nothing else.

    A page of ours, 10 KB: the renderers that could be shipped begin at 750 KB.
    """
    assets = files("gatepost.ops") / "assets"
    html, css, js = ((assets / f"docs.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; style-src '{_source(css)}'; script-src '{_source(js)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("{css}", css).replace("{js}", js), policy


def _source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


routes = [
    web.get("/ping", ping),
    web.get("/openapi.json", describe),
    web.get("/docs", docs),
]
operator_routes = [
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", metrics),
]
