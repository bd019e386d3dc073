"""`/ping` and `/health`: is it there, is it well."""

from typing import Literal

from aiohttp import web
from typing_extensions import TypedDict

from gatepost.operation import operation
from gatepost.ops import queries
from gatepost.web import DATABASE, json_response


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


@operation(Health)
async def ready(request: web.Request) -> web.Response:
    """The database answers: send traffic only while this is 200 (else 503, within the database's deadline)."""
    await request.app[DATABASE].read(queries.ask)
    return json_response(Health(status="ready"))


routes = [
    web.get("/ping", ping),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
]
