"""`/account/recovery` and `/account/password/redeem`: a code from a mail or an operator is worth one new password."""

import asyncio

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gatepost.accounts import policy
from gatepost.breached.checker import BREACHED
from gatepost.errors import FieldError, InvalidBody, InvalidCode, NotFound, Overloaded, TooManyAttempts, Unavailable
from gatepost.http.app import CONFIG, CREDENTIALS, DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.mail.codes import as_typed, hash_given
from gatepost.mail.mailer import MAILER, Mailer
from gatepost.mail.outbox.queries import queue_recovery
from gatepost.recovery import queries
from gatepost.security.identifier import Identifier
from gatepost.security.throttle import take
from gatepost.sessions.session import Done


class Recovery(BaseModel):
    """Who has forgotten the password: a username, or a verified address."""

    model_config = ConfigDict(strict=True, extra="forbid")

    identifier: str


@operation(Done, status=202, body=Recovery, problems=(TooManyAttempts, NotFound))
async def recover(request: web.Request) -> web.Response:
    """Ask for a way back. A code is mailed to the verified address, if there is one.

    The answer is the same in content and time whoever is asked for: it is looked up when the mail is sent.
    """
    mailer = Mailer.demand(request)
    asked, client = await read_body(request, Recovery), Client.of(request)
    identifier = Identifier.of(asked.identifier, addresses=True)
    buckets = request.app[THROTTLE].for_recovery(identifier.subject, client.place)
    async with request.app[REFUNDS].attempt(take, sorted(buckets)):
        await request.app[DATABASE].write(
            queue_recovery, identifier.name, identifier.address, mailer.language(request)
        )
    # The sender is not woken: what it does for a user who is found would delay the next request, and could be timed.
    return json_response(Done(status="success"), status=202)


class Redemption(BaseModel):
    """A code, and the password that its owner chooses.

    ``identifier``: for a code that is typed, what it was asked for with. One from a link, or from an operator, is too
    long to be guessed and needs none.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    code: str = Field(repr=False)
    new: str = Field(repr=False)
    identifier: str | None = None


@operation(
    Done,
    body=Redemption,
    problems=(InvalidCode, TooManyAttempts, Overloaded, Unavailable),
    event="authn_password_change",
)
async def redeem(request: web.Request) -> web.Response:
    """Choose a new password with a code; every session ends."""
    asked = await read_body(request, Redemption)
    client, throttle = Client.of(request), request.app[THROTTLE]
    subject, buckets = "", throttle.for_code(client.place)
    if as_typed(asked.code):
        if asked.identifier is None:
            message = "is required with a code of eight characters"
            raise InvalidBody([FieldError("identifier", "required", message)])
        subject = Identifier.of(asked.identifier, addresses=True).subject
        buckets = sorted(throttle.for_typed_code(subject, client.place))
    async with request.app[REFUNDS].attempt(take, buckets) as (_, taken):
        code_hash = await asyncio.to_thread(hash_given, asked.code, "recovery", subject)
        name = await request.app[DATABASE].read(queries.find_name, code_hash)
        if name is None:
            raise InvalidCode
        passwords = request.app[CONFIG].passwords
        await policy.off_the_loop(policy.judge_password, "new", asked.new, name, passwords)
        await request.app[BREACHED].refuse("new", asked.new)
        new = await client.while_connected(request.app[CREDENTIALS].create(asked.new, client.queue_share))
        await request.app[DATABASE].write(
            queries.redeem,
            code_hash,
            new,
            ip=client.ip,
            user_agent=client.user_agent,
            language=request.app[MAILER].notices(request),
            place=throttle.known_place(client.place),
            taken=taken,
        )
    request.app[MAILER].wake()
    return json_response(Done(status="success"))


routes = [web.post("/account/recovery", recover), web.post("/account/password/redeem", redeem)]
