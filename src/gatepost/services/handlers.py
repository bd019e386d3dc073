"""`/authz/check`: many checks in one call, for services."""

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.errors import FactorRequired, Forbidden, TooManyAttempts, Unauthorized
from gatepost.http.body import read_body
from gatepost.http.operation import operation
from gatepost.services.guard import demand_verifier
from gatepost.sessions.guard import LAST_SEEN, LOOKUP
from gatepost.sessions.session import WhoAmIAnswer, hash_token

MAX_TOKENS = 500
# As many tokens with their quotes, commas and some space.
MAX_BODY = 24 * 1024


class Tokens(BaseModel):
    """The tokens to check."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tokens: Annotated[list[str], Field(max_length=MAX_TOKENS, repr=False)]


class Checked(TypedDict):
    """What `GET /user` would answer to each token, in their order; null for one that is not a live session's."""

    results: list[WhoAmIAnswer | None]


@operation(Checked, body=Tokens, problems=(Unauthorized, Forbidden, FactorRequired, TooManyAttempts), check=True)
async def check(request: web.Request) -> web.Response:
    """Check up to 500 session tokens: for services, and for users with the role `verifier`.

    A service authenticates with the token that `gatepost service add` has printed.
    """
    await demand_verifier(request)
    asked = await read_body(request, Tokens, most=MAX_BODY)
    hashes = [hash_token(token) if token.isascii() else b"" for token in asked.tokens]
    found = await request.app[LOOKUP].find_all(hashes)
    for token_hash in found:
        request.app[LAST_SEEN].record(token_hash)
    valid = {token_hash: session.document for token_hash, session in found.items() if not session.restricted}
    documents = [valid.get(token_hash, "null") for token_hash in hashes]
    body = '{"results":[' + ",".join(documents) + "]}"
    return web.Response(body=body.encode(), content_type="application/json")


routes = [web.post("/authz/check", check)]
