"""`/account`: having one."""

from typing import TypedDict

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gatepost.accounts import policy, queries
from gatepost.errors import Overloaded, RegistrationClosed, UsernameTaken
from gatepost.operation import operation
from gatepost.sessions.session import UserDocument
from gatepost.web import (
    CONFIG,
    CREDENTIALS,
    DATABASE,
    client_ip,
    json_response,
    read_body,
    user_agent,
)


class Registration(BaseModel):
    """What a registration sends, and nothing else: ``is_admin`` is refused, not passed over."""

    model_config = ConfigDict(strict=True, extra="forbid")

    username: str
    password: str = Field(repr=False)


class AccountAnswer(TypedDict):
    """An account."""

    user: UserDocument


@operation(AccountAnswer, status=201, body=Registration, problems=(RegistrationClosed, UsernameTaken, Overloaded))
async def register(request: web.Request) -> web.Response:
    """Create an account."""
    config = request.app[CONFIG]
    if config.accounts.registration == "closed":
        raise RegistrationClosed
    asked = await read_body(request, Registration)
    username, canonical = policy.judge(asked.username, asked.password, config.passwords)
    password = await request.app[CREDENTIALS].create(asked.password)
    user = await request.app[DATABASE].write(
        queries.create, username, canonical, password, ip=client_ip(request), user_agent=user_agent(request)
    )
    return json_response(AccountAnswer(user=user.public()), status=201)


routes = [web.post("/account", register)]
