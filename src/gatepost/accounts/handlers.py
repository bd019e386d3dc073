"""`/account`: having one, changing it, leaving."""

import contextlib
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.accounts import policy, profile, queries
from gatepost.credentials import Setting
from gatepost.errors import (
    ForeignOrigin,
    LastAdmin,
    Overloaded,
    RegistrationClosed,
    Unauthorized,
    Unavailable,
    UsernameTaken,
    WrongPassword,
)
from gatepost.operation import operation
from gatepost.sessions.guard import guarded
from gatepost.sessions.queries import SettingChanged
from gatepost.sessions.session import Done, Session, UserDocument, hash_token, timestamp
from gatepost.tokens import drop_session_cookie, has_session_cookie, set_session_cookie
from gatepost.web import CONFIG, CREDENTIALS, DATABASE, client_ip, json_response, read_body, user_agent

T = TypeVar("T")


class Registration(BaseModel):
    """What a registration sends, and nothing else: ``is_admin`` is refused, not passed over."""

    model_config = ConfigDict(strict=True, extra="forbid")

    username: str
    password: str = Field(repr=False)


class Registered(TypedDict):
    """A new account."""

    user: UserDocument


@operation(
    Registered,
    status=201,
    body=Registration,
    problems=(RegistrationClosed, UsernameTaken, Overloaded, Unavailable),
    event="user_created",
)
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
    return json_response(Registered(user=user.public()), status=201)


class AccountAnswer(TypedDict):
    """An account, as its owner sees it."""

    user: UserDocument
    created_at: str
    password_changed_at: str | None


@operation(AccountAnswer)
@guarded
async def show(request: web.Request, session: Session) -> web.Response:
    """My account."""
    return json_response(await _account(request, session))


async def _account(request: web.Request, session: Session) -> AccountAnswer:
    account = await request.app[DATABASE].read(queries.read, session.user_id)
    if account is None:
        raise Unauthorized
    changed_at = account.password_changed_at
    return AccountAnswer(
        user=account.user.public(),
        created_at=timestamp(account.created_at),
        password_changed_at=timestamp(changed_at) if changed_at else None,
    )


class Change(BaseModel):
    """What of an account its owner may change. Left out means left as it is."""

    model_config = ConfigDict(strict=True, extra="forbid")

    username: str = ""
    profile: dict[str, Any] = {}


@operation(AccountAnswer, body=Change, problems=(UsernameTaken, ForeignOrigin))
@guarded
async def change(request: web.Request, session: Session) -> web.Response:
    """Change my name or my profile (RFC 7396 merge patch)."""
    asked = await read_body(request, Change)
    name = policy.judge_username(asked.username) if "username" in asked.model_fields_set else None
    async with request.app[DATABASE].transaction() as connection:
        current = await queries.lock_profile(connection, session.user_id)
        if current is None:
            raise Unauthorized
        wanted = profile.patched(current, asked.profile) if "profile" in asked.model_fields_set else None
        if name or wanted is not None:
            await queries.update(connection, session.user_id, _origin(request, session), name=name, profile=wanted)
    return json_response(await _account(request, session))


class PasswordChange(BaseModel):
    """The current password and the one to come."""

    model_config = ConfigDict(strict=True, extra="forbid")

    current: str = Field(repr=False)
    new: str = Field(repr=False)


class Renewed(TypedDict):
    """The session goes on under a new token."""

    session_id: str
    expires_at: str


@operation(
    Renewed,
    body=PasswordChange,
    problems=(WrongPassword, Overloaded, Unavailable, ForeignOrigin),
    event="authn_password_change",
)
@guarded
async def change_password(request: web.Request, session: Session) -> web.Response:
    """Change my password; every other session of mine ends."""
    asked = await read_body(request, PasswordChange)
    database, token = request.app[DATABASE], str(uuid.uuid4())

    async def attempt() -> datetime:
        name, current = await _check(request, session, asked.current)
        policy.judge_password("new", asked.new, name, request.app[CONFIG].passwords)
        new = await request.app[CREDENTIALS].create(asked.new)
        return await database.write(
            queries.change_password,
            session.user_id,
            _origin(request, session),
            current=current,
            new=new,
            token_hash=hash_token(token),
        )

    expires_at = await _unless_changed(attempt)
    response = json_response(Renewed(session_id=token, expires_at=timestamp(expires_at)))
    if has_session_cookie(request):
        set_session_cookie(request, response, token)
    return response


class Goodbye(BaseModel):
    """Deleting an account takes its password."""

    model_config = ConfigDict(strict=True, extra="forbid")

    password: str = Field(repr=False)


@operation(
    Done,
    body=Goodbye,
    problems=(WrongPassword, Overloaded, Unavailable, ForeignOrigin, LastAdmin),
    event="user_deleted",
)
@guarded
async def delete(request: web.Request, session: Session) -> web.Response:
    """Delete my account; the name becomes free."""
    asked = await read_body(request, Goodbye)

    async def attempt() -> None:
        _, current = await _check(request, session, asked.password)
        await request.app[DATABASE].write(queries.delete, session.user_id, _origin(request, session), current=current)

    await _unless_changed(attempt)
    response = json_response(Done(status="success"))
    drop_session_cookie(request, response)
    return response


async def _unless_changed(attempt: Callable[[], Awaitable[T]]) -> T:
    """Once more if the password was hashed anew between its reading and its checking."""
    for _ in range(2):
        with contextlib.suppress(SettingChanged):
            return await attempt()
    raise Unavailable("The password was being changed: try again.")


async def _check(request: web.Request, session: Session, password: str) -> tuple[str, tuple[Setting, bytes]]:
    """The user's canonical name, and what SQL needs to decide whether this is the user's password."""
    secret = await request.app[DATABASE].read(queries.find_secret, session.user_id)
    if secret is None:
        raise Unauthorized
    credentials = request.app[CREDENTIALS]
    setting = secret.setting or credentials.dummy(secret.canonical)
    return secret.canonical, (setting, await credentials.digest(setting, password))


@operation(dict[str, Any])
@guarded
async def export(request: web.Request, session: Session) -> web.Response:
    """Everything held about me, as one JSON document."""
    document = await request.app[DATABASE].read(queries.export, session.user_id)
    if document is None:
        raise Unauthorized
    return web.Response(text=document, content_type="application/json")


def _origin(request: web.Request, session: Session) -> queries.Origin:
    return queries.Origin(session.handle, client_ip(request), user_agent(request))


routes = [
    web.post("/account", register),
    web.get("/account", show),
    web.patch("/account", change),
    web.delete("/account", delete),
    web.put("/account/password", change_password),
    web.get("/account/export", export),
]
