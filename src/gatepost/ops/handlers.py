"""`/ping` and `/health`: is it there, is it well."""

from aiohttp import web

from gatepost.ops import queries
from gatepost.web import DATABASE, json_response


async def ping(_request: web.Request) -> web.Response:
    """Answer, asking nobody."""
    return json_response({"text": "pong", "status": "success"})


async def live(_request: web.Request) -> web.Response:
    """The process runs: restart it when this does not answer."""
    return json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """The database answers: send traffic only while this is 200 (else 503, within the database's deadline)."""
    await request.app[DATABASE].read(queries.ask)
    return json_response({"status": "ready"})


routes = [
    web.get("/ping", ping),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
]
