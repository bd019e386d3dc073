"""`/account/password/redeem`: a code from an operator is worth one new password."""

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gatepost.accounts import policy
from gatepost.errors import InvalidCode, Overloaded, TooManyAttempts, Unavailable
from gatepost.http.app import CONFIG, CREDENTIALS, DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.recovery import queries
from gatepost.sessions.session import Done


class Redemption(BaseModel):
    """A code from an operator, and the password that its owner chooses."""

    model_config = ConfigDict(strict=True, extra="forbid")

    code: str = Field(repr=False)
    new: str = Field(repr=False)


@operation(
    Done,
    body=Redemption,
    problems=(InvalidCode, TooManyAttempts, Overloaded, Unavailable),
    event="authn_password_change",
)
async def redeem(request: web.Request) -> web.Response:
    """Choose a new password with a code; every session ends."""
    asked = await read_body(request, Redemption)
    client, throttle, code_hash = Client.of(request), request.app[THROTTLE], queries.hash_code(asked.code)
    buckets = throttle.for_code(client.place)
    async with request.app[REFUNDS].attempt(queries.find_reset, code_hash, buckets) as (name, taken):
        if name is None:
            raise InvalidCode
        passwords = request.app[CONFIG].passwords
        await policy.off_the_loop(policy.judge_password, "new", asked.new, name, passwords)
        new = await client.while_connected(request.app[CREDENTIALS].create(asked.new, client.queue_share))
        await request.app[DATABASE].write(
            queries.redeem,
            code_hash,
            new,
            ip=client.ip,
            user_agent=client.user_agent,
            place=throttle.known_place(client.place),
            taken=taken,
        )
    return json_response(Done(status="success"))


routes = [web.post("/account/password/redeem", redeem)]
