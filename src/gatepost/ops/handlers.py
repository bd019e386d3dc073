"""`/ping` and `/health`: is it there, is it well; `/openapi.json` and `/docs`: how to talk to it."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from aiohttp import web
from typing_extensions import TypedDict

from gatepost.errors import DatabaseUnavailable
from gatepost.operation import operation
from gatepost.ops import queries
from gatepost.web import DATABASE, json_response

DOCUMENT = web.AppKey("document", str)
"""What `/openapi.json` answers."""


class Pong(TypedDict):
    """What `/ping` has always answered."""

    text: Literal["pong"]
    status: Literal["success"]


class Health(TypedDict):
    """How it is."""

    status: Literal["live", "ready"]


@operation(Pong)
async def ping(_request: web.Request) -> web.Response:
    """Answer, asking nobody."""
    return json_response(Pong(text="pong", status="success"))


@operation(Health)
async def live(_request: web.Request) -> web.Response:
    """The process runs: restart it when this does not answer."""
    return json_response(Health(status="live"))


@operation(Health, problems=(DatabaseUnavailable,))
async def ready(request: web.Request) -> web.Response:
    """The database answers: send traffic only while this is 200 (else 503, within the database's deadline)."""
    await request.app[DATABASE].read(queries.ask)
    return json_response(Health(status="ready"))


@operation(dict[str, Any])
async def describe(request: web.Request) -> web.Response:
    """This interface, as an OpenAPI 3.1 document."""
    return web.Response(text=request.app[DOCUMENT], content_type="application/json")


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
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/openapi.json", describe),
    web.get("/docs", docs),
]
