"""A backend on aiohttp (port 8001), which also serves the page."""

import os
from pathlib import Path

from aiohttp import web

from gatepost_client import Verifier
from gatepost_client.aiohttp import SIGNED_IN, gatepost, running, signed_in

# The client for TypeScript, which the page imports: `make npm` builds it.
CLIENT = Path(__file__).parent.parent / "clients" / "typescript" / "dist"

verifier = Verifier(
    os.environ.get("GATEPOST_URL", "http://127.0.0.1:8000"), os.environ["GATEPOST_SERVICE_TOKEN"], mode="leased"
)


async def page(_request: web.Request) -> web.FileResponse:
    """The page, for everybody."""
    return web.FileResponse(Path(__file__).with_name("page.html"))


@signed_in()
async def notes(request: web.Request) -> web.Response:
    """Whose notes these are."""
    who = request[SIGNED_IN]
    assert who is not None
    return web.json_response({"framework": "aiohttp", "notes_of": who.username})


app = web.Application(middlewares=[gatepost(verifier)])
app.cleanup_ctx.append(running(verifier))
app.add_routes([web.get("/", page), web.get("/notes", notes)])
if CLIENT.is_dir():
    app.router.add_static("/gatepost", CLIENT)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8001")))
