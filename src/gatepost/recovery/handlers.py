"""`/account/password/redeem`: a code from an operator is worth one new password."""

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gatepost.accounts import policy
from gatepost.errors import InvalidCode, Overloaded, Unavailable
from gatepost.operation import operation
from gatepost.recovery import queries
from gatepost.sessions.session import Done
from gatepost.web import (
    CONFIG,
    CREDENTIALS,
    DATABASE,
    client_ip,
    json_response,
    read_body,
    user_agent,
)


class Redemption(BaseModel):
    """A code from an operator, and the password that its owner chooses."""

    model_config = ConfigDict(strict=True, extra="forbid")

    code: str = Field(repr=False)
    new: str = Field(repr=False)


@operation(Done, body=Redemption, problems=(InvalidCode, Overloaded, Unavailable), event="authn_password_change")
async def redeem(request: web.Request) -> web.Response:
    """Choose a new password with a code; every session ends."""
    asked = await read_body(request, Redemption)
    database, code_hash = request.app[DATABASE], queries.hash_code(asked.code)
    name = await database.read(queries.find_reset, code_hash)
    if name is None:
        raise InvalidCode
    policy.judge_password("new", asked.new, name, request.app[CONFIG].passwords)
    new = await request.app[CREDENTIALS].create(asked.new)
    await database.write(queries.redeem, code_hash, new, ip=client_ip(request), user_agent=user_agent(request))
    return json_response(Done(status="success"))


routes = [web.post("/account/password/redeem", redeem)]
