"""`/user`: the contract that frontends rely on."""

import asyncio
import contextlib
import time
import uuid

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gatepost.breached.checker import BREACHED
from gatepost.errors import (
    ForeignOrigin,
    InvalidCredentials,
    Overloaded,
    Problem,
    SecondFactorRequired,
    TooManyAttempts,
    Unauthorized,
    Unavailable,
)
from gatepost.http.app import CONFIG, CREDENTIALS, DATABASE, REFUNDS, THROTTLE, json_response
from gatepost.http.body import read_body
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.http.tokens import (
    demand_own_origin,
    drop_session_cookie,
    is_from_a_page,
    session_token,
    set_session_cookie,
)
from gatepost.security.credentials import InvalidPassword
from gatepost.security.identifier import Identifier
from gatepost.sessions import queries
from gatepost.sessions.guard import guarded, no_session
from gatepost.sessions.session import Done, LoginAnswer, Session, WhoAmIAnswer, hash_token, timestamp


class Login(BaseModel):
    """What a login sends. Other keys are passed over: clients of the contract may send them."""

    model_config = ConfigDict(strict=True)

    username: str
    password: str = Field(repr=False)
    cookie: bool = False


@operation(
    LoginAnswer,
    body=Login,
    problems=(InvalidCredentials, SecondFactorRequired, TooManyAttempts, Overloaded, Unavailable, ForeignOrigin),
    any_content_type=True,
    event="authn_login_success",
)
async def log_in(request: web.Request) -> web.Response:
    """Open a session. For a user with a second factor it takes a further step, at `POST /user/factor`."""
    login = await read_body(request, Login, any_content_type=True)
    client = Client.of(request)
    identifier = Identifier.of(login.username, addresses=request.app[CONFIG].has_addresses)
    if login.cookie and is_from_a_page(request):
        demand_own_origin(request)  # otherwise a foreign page could sign its visitor in as somebody else
    for _ in range(2):
        try:
            token, opened = await _attempt(request.app, client, identifier, login.password)
        except queries.SettingChanged:
            continue
        if opened is None:
            raise InvalidCredentials
        breached = await request.app[BREACHED].check(login.password)
        if breached:
            await request.app[DATABASE].write(queries.note_breached, opened.user.id, client.ip, client.user_agent)
        if opened.methods:
            raise SecondFactorRequired(token, opened.methods, timestamp(opened.expires_at))
        answer = LoginAnswer(session_id=token, expires_at=timestamp(opened.expires_at), user=opened.user.public())
        if breached:
            answer["password_breached"] = True
        response = json_response(answer)
        if login.cookie:
            set_session_cookie(request, response, token)
        return response
    raise Unavailable("The password was being changed: try again.")


async def _attempt(
    app: web.Application, client: Client, identifier: Identifier, password: str
) -> tuple[str, queries.Opened | None]:
    """The two statements with the hash between them, no connection held meanwhile."""
    database, credentials, throttle, limits = app[DATABASE], app[CREDENTIALS], app[THROTTLE], app[CONFIG].sessions
    credentials.demand_room(client.queue_share)  # a flood of logins does not reach the database
    subject = identifier.subject
    entry = queries.Entry(identifier, throttle.known_place(client.place), throttle.for_login(subject, client.place))
    # Computed for every name: its 50 us would tell an unknown name from a known one.
    dummy = credentials.dummy(subject)
    # `attempt` runs it as a read, which may run twice: that does no harm.
    async with app[REFUNDS].attempt(queries.find_setting, entry) as (stored, taken):
        setting = stored or dummy
        digest, failure_due = await client.while_connected(credentials.check(setting, password, client.queue_share))
        token = str(uuid.uuid4())
        attempt = queries.Attempt(
            identifier,
            setting,
            digest,
            hash_token(token),
            throttle.for_activity(subject),
            client.ip,
            client.user_agent,
            entry.place,
            taken,
            abandoned=client.has_disconnected,
        )
        opened = await database.write(
            queries.open_session, attempt, lifetime=limits.lifetime, max_per_user=limits.max_per_user
        )
    if attempt.abandoned:
        raise ConnectionResetError("the caller has gone")
    if opened is None:
        # Kinds of hashes take different times, so failed logins are answered at a common time. Nothing is held until
        # then.
        await asyncio.sleep(failure_due - time.monotonic())
    elif credentials.is_weaker(setting):
        # The session is open already: a rehash that fails is left for the next login.
        with contextlib.suppress(Problem, InvalidPassword):
            stronger = await client.while_connected(credentials.create(password, client.queue_share))
            await database.write(queries.rehash, opened.user.id, digest, stronger)
    return token, opened


@operation(WhoAmIAnswer, check=True)
@guarded
async def who_am_i(_request: web.Request, session: Session) -> web.Response:
    """Whose session this is, and until when."""
    return web.Response(body=session.document.encode(), content_type="application/json")


@operation(Done, problems=(Unauthorized, TooManyAttempts, ForeignOrigin), event="authn_logout")
async def log_out(request: web.Request) -> web.Response:
    """End the session, everywhere and at once."""
    token_hash, client = hash_token(session_token(request)), Client.of(request)
    ended = await request.app[DATABASE].write(
        queries.end_session,
        token_hash,
        request.app[CONFIG].sessions.idle_timeout,
        ip=client.ip,
        user_agent=client.user_agent,
    )
    if not ended:
        raise no_session(request)
    response = json_response(Done(status="success"))
    drop_session_cookie(request, response)
    return response


routes = [
    web.post("/user", log_in),
    web.get("/user", who_am_i),
    web.delete("/user", log_out),
]
