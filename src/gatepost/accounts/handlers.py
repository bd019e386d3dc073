"""`/account`: having one, changing it, leaving."""

import uuid
from datetime import datetime
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.accounts import password_queries, policy, profile, queries
from gatepost.breached.checker import BREACHED
from gatepost.errors import (
    ConfirmationRequired,
    ForeignOrigin,
    LastAdmin,
    Overloaded,
    RegistrationClosed,
    TooManyAttempts,
    Unauthorized,
    Unavailable,
    UsernameTaken,
    WrongPassword,
)
from gatepost.http.app import CONFIG, CREDENTIALS, DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.http.tokens import drop_session_cookie, has_session_cookie, set_session_cookie
from gatepost.mail.mailer import MAILER
from gatepost.security.throttle import take
from gatepost.sessions.confirmation import confirming, origin, unless_changed
from gatepost.sessions.guard import acting, acting_confirmed, guarded
from gatepost.sessions.session import Done, Session, UserDocument, hash_token, timestamp


class Registration(BaseModel):
    """What a registration sends, and nothing else: ``is_admin`` is refused, not passed over."""

    model_config = ConfigDict(strict=True, extra="forbid")

    username: str
    password: str = Field(repr=False)
    email: str | None = None


class Registered(TypedDict):
    """A new account."""

    user: UserDocument


@operation(
    Registered,
    status=201,
    body=Registration,
    problems=(RegistrationClosed, UsernameTaken, TooManyAttempts, Overloaded, Unavailable),
    event="user_created",
)
async def register(request: web.Request) -> web.Response:
    """Create an account. A code is mailed to its address, which counts once it is verified."""
    config, mailer, throttle = request.app[CONFIG], request.app[MAILER], request.app[THROTTLE]
    if config.accounts.registration == "closed":
        raise RegistrationClosed
    asked = await read_body(request, Registration)
    address = policy.judge_email(asked.email, config)
    username, compared = await policy.off_the_loop(policy.judge, asked.username, asked.password, config.passwords)
    policy.refuse_address_as_name(username, config)
    client = Client.of(request)
    buckets = throttle.for_registration(client.place) + ([throttle.for_claim(address.canonical)] if address else [])
    async with request.app[REFUNDS].attempt(take, sorted(buckets)):
        await request.app[BREACHED].refuse("password", asked.password)
        password = await client.while_connected(request.app[CREDENTIALS].create(asked.password, client.queue_share))
        user = await request.app[DATABASE].write(
            queries.create,
            username,
            compared,
            password,
            email=(address, mailer.language(request)) if address else None,
            ip=client.ip,
            user_agent=client.user_agent,
        )
    if address:
        mailer.wake()
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


@operation(AccountAnswer, body=Change, problems=(UsernameTaken, ConfirmationRequired, TooManyAttempts, ForeignOrigin))
@guarded
async def change(request: web.Request, session: Session) -> web.Response:
    """Change my name or my profile (RFC 7396 merge patch). Another name takes a fresh session."""
    asked = await read_body(request, Change)
    name = policy.judge_username(asked.username) if "username" in asked.model_fields_set else None
    if name:
        policy.refuse_address_as_name(name[0], request.app[CONFIG], session.canonical)
    buckets = [request.app[THROTTLE].for_activity(session.canonical)]
    renaming = name is not None and name[1] != session.canonical
    if renaming:
        buckets += request.app[THROTTLE].for_rename(session.user_id)
    async with (
        request.app[REFUNDS].attempt(take, sorted(buckets)),
        (acting_confirmed if renaming else acting)(request, session) as connection,
    ):
        current = await queries.lock_profile(connection, session.user_id)
        if current is None:
            raise Unauthorized
        wanted = profile.patched(current, asked.profile) if "profile" in asked.model_fields_set else None
        if name or wanted is not None:
            await queries.update(
                connection, session.user_id, origin(Client.of(request), session), name=name, profile=wanted
            )
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


PASSWORD_PROBLEMS = (WrongPassword, ConfirmationRequired, TooManyAttempts, Overloaded, Unavailable, ForeignOrigin)


@operation(Renewed, body=PasswordChange, problems=PASSWORD_PROBLEMS, event="authn_password_change")
@guarded
async def change_password(request: web.Request, session: Session) -> web.Response:
    """Change my password; every other session of mine ends."""
    asked = await read_body(request, PasswordChange)
    database, throttle, token = request.app[DATABASE], request.app[THROTTLE], str(uuid.uuid4())
    client = Client.of(request)
    # The new password is judged first: a mistake in it must not cost an attempt at the current password.
    passwords = request.app[CONFIG].passwords
    await policy.off_the_loop(policy.judge_password, "new", asked.new, session.canonical, passwords)

    async def attempt() -> datetime:
        async with request.app[REFUNDS].attempt(take, [throttle.for_activity(session.canonical)]):
            await request.app[BREACHED].refuse("new", asked.new)
            async with confirming(request.app, client, session, asked.current) as current:
                return await database.write(
                    password_queries.change_password,
                    session.user_id,
                    origin(client, session),
                    current=current,
                    # This runs also for a client that has hung up since: once its password is hashed, the attempt is
                    # judged.
                    new=await request.app[CREDENTIALS].create(asked.new, client.queue_share),
                    token_hash=hash_token(token),
                    language=request.app[MAILER].notices(request),
                    place=throttle.known_place(client.place),
                )

    expires_at = await unless_changed(attempt)
    request.app[MAILER].wake()
    response = json_response(Renewed(session_id=token, expires_at=timestamp(expires_at)))
    if has_session_cookie(request):
        set_session_cookie(request, response, token)
    return response


class Goodbye(BaseModel):
    """Deleting an account takes its password."""

    model_config = ConfigDict(strict=True, extra="forbid")

    password: str = Field(repr=False)


@operation(Done, body=Goodbye, problems=(*PASSWORD_PROBLEMS, LastAdmin), event="user_deleted")
@guarded
async def delete(request: web.Request, session: Session) -> web.Response:
    """Delete my account; the name becomes free."""
    asked = await read_body(request, Goodbye)
    client = Client.of(request)

    async def attempt() -> None:
        async with confirming(request.app, client, session, asked.password) as current:
            await request.app[DATABASE].write(
                password_queries.delete, session.user_id, origin(client, session), current=current
            )

    await unless_changed(attempt)
    response = json_response(Done(status="success"))
    drop_session_cookie(request, response)
    return response


routes = [
    web.post("/account", register),
    web.get("/account", show),
    web.patch("/account", change),
    web.delete("/account", delete),
    web.put("/account/password", change_password),
]
