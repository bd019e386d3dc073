"""`/admin/users`: the users, for operators. All of it demands the role ``admin``."""

from functools import partial
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from gatepost.accounts import policy, profile
from gatepost.accounts.queries import lock_profile
from gatepost.admin import access_queries, cursor, queries
from gatepost.admin.actor import Actor
from gatepost.admin.user import Managed, Roles, UserRecord, canonical_prefix, new_code
from gatepost.errors import (
    ConfirmationRequired,
    EmailTaken,
    ForeignOrigin,
    LastAdmin,
    NoAddress,
    NotFound,
    UsernameTaken,
)
from gatepost.http.app import CONFIG, DATABASE, THROTTLE, json_response
from gatepost.http.body import path_id, read_body, read_query
from gatepost.http.client import Client
from gatepost.http.operation import operation
from gatepost.mail.mailer import Mailer, parse_field
from gatepost.security import email
from gatepost.sessions.guard import acting_confirmed, guarded_for
from gatepost.sessions.session import Done, Session, timestamp

# Everything that changes demands that the administrator has lately proved who it is.
_acting = partial(acting_confirmed, role="admin")

# Not strict: in a query string, numbers are text.
Limit = Annotated[int, Field(strict=False, ge=1, le=100)]


class Page(BaseModel):
    """Which users to list, in the order of their canonical names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    limit: Limit = 50
    cursor: str | None = None
    prefix: str = Field("", max_length=128)
    disabled: Literal["true", "false"] | None = None
    # Wider than what this API accepts in a change: an import may have stored more.
    role: str | None = Field(None, max_length=64)
    email: str | None = Field(None, max_length=email.MAX_LENGTH)


class UserPage(TypedDict):
    """Some users; ``next`` is the cursor of those that follow, null at the end."""

    users: list[UserRecord]
    next: str | None


@operation(UserPage, query=Page)
@guarded_for("admin")
async def list_users(request: web.Request, _session: Session) -> web.Response:
    """Users, a page at a time."""
    asked = read_query(request, Page)
    disabled = None if asked.disabled is None else asked.disabled == "true"
    address = None if asked.email is None else (email.canonical(asked.email) or "")
    which = queries.Filter(canonical_prefix(asked.prefix), asked.role, disabled, address)
    after = cursor.name(asked.cursor)
    # One row more than asked for tells whether there is a next page.
    found = await request.app[DATABASE].read(queries.page, which, after=after, most=asked.limit + 1)
    shown = found[: asked.limit]
    following = cursor.after_name(shown[-1].canonical) if len(found) > len(shown) else None
    return json_response(UserPage(users=[user.record() for user in shown], next=following))


class NewUser(BaseModel):
    """A user to add. There is no password: its owner chooses one with the code of the answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    username: str
    roles: Roles = []
    profile: dict[str, Any] = {}
    email: str | None = None


class ResetDocument(TypedDict):
    """With ``code``, a user chooses a new password at `POST /account/password/redeem`. It is told only once."""

    code: str
    expires_at: str


class UserAdded(TypedDict):
    """A new user, and the code for a first password."""

    user: UserRecord
    reset: ResetDocument


@operation(
    UserAdded,
    status=201,
    body=NewUser,
    problems=(UsernameTaken, EmailTaken, ConfirmationRequired, ForeignOrigin),
    event="user_created",
)
@guarded_for("admin")
async def add_user(request: web.Request, session: Session) -> web.Response:
    """Add a user. An address counts as verified: you vouch for it."""
    asked = await read_body(request, NewUser)
    username, canonical = policy.judge_username(asked.username)
    policy.refuse_address_as_name(username, request.app[CONFIG])
    address = parse_field("email", asked.email) if asked.email is not None else None
    new = queries.NewUser(username, canonical, asked.roles, profile.patched({}, asked.profile), address)
    reset = _new_reset(request)
    async with _acting(request, session) as connection:
        user, expires_at = await queries.create(connection, new, _actor(request, session), reset=reset)
    assert expires_at is not None
    answer = UserAdded(user=user.record(), reset=ResetDocument(code=reset.code, expires_at=timestamp(expires_at)))
    return json_response(answer, status=201)


class UserAnswer(TypedDict):
    """A user."""

    user: UserRecord


@operation(UserAnswer, problems=(NotFound,))
@guarded_for("admin")
async def show_user(request: web.Request, _session: Session) -> web.Response:
    """One user."""
    return json_response(UserAnswer(user=(await _user(request)).record()))


class Change(BaseModel):
    """What to change of a user. Left out means left as it is; ``profile`` is a merge patch (RFC 7396)."""

    model_config = ConfigDict(strict=True, extra="forbid")

    username: str = ""
    profile: dict[str, Any] = {}
    roles: Roles = []
    disabled: bool = False


@operation(
    UserAnswer, body=Change, problems=(NotFound, UsernameTaken, LastAdmin, ConfirmationRequired, ForeignOrigin)
)
@guarded_for("admin")
async def change_user(request: web.Request, session: Session) -> web.Response:
    """Change a user; new roles and disabling end every session."""
    user_id, asked = path_id(request, "id"), await read_body(request, Change)
    given = asked.model_fields_set
    name = policy.judge_username(asked.username) if "username" in given else None
    async with _acting(request, session, on=user_id) as connection:
        current = await lock_profile(connection, user_id)
        if current is None:
            raise NotFound
        if name and "@" in name[0] and (before := await queries.read(connection, user_id)):
            policy.refuse_address_as_name(name[0], request.app[CONFIG], before.canonical)
        what = queries.Change(
            name=name,
            profile=profile.patched(current, asked.profile) if "profile" in given else None,
            roles=asked.roles if "roles" in given else None,
            disabled=asked.disabled if "disabled" in given else None,
        )
        user = await queries.change(connection, user_id, what, _actor(request, session))
    assert user is not None
    return json_response(UserAnswer(user=user.record()))


@operation(Done, problems=(NotFound, LastAdmin, ConfirmationRequired, ForeignOrigin), event="user_deleted")
@guarded_for("admin")
async def delete_user(request: web.Request, session: Session) -> web.Response:
    """Delete a user; the name becomes free."""
    user_id = path_id(request, "id")
    async with _acting(request, session, on=user_id) as connection:
        if not await queries.delete(connection, user_id, _actor(request, session)):
            raise NotFound
    return json_response(Done(status="success"))


class ResetAnswer(TypedDict):
    """A started password reset."""

    reset: ResetDocument


@operation(
    ResetAnswer, problems=(NotFound, ConfirmationRequired, ForeignOrigin), event="authn_password_reset_started"
)
@guarded_for("admin")
async def start_reset(request: web.Request, session: Session) -> web.Response:
    """Start a password reset, in place of an earlier one; the password and the sessions stay until it is used."""
    user_id, reset = path_id(request, "id"), _new_reset(request)
    async with _acting(request, session, on=user_id) as connection:
        expires_at = await access_queries.start_reset(connection, user_id, reset, _actor(request, session))
    if expires_at is None:
        raise NotFound
    return json_response(ResetAnswer(reset=ResetDocument(code=reset.code, expires_at=timestamp(expires_at))))


@operation(
    Done,
    status=202,
    problems=(NotFound, NoAddress, ConfirmationRequired, ForeignOrigin),
    event="authn_password_reset_started",
)
@guarded_for("admin")
async def invite(request: web.Request, session: Session) -> web.Response:
    """Mail an invitation: a code to choose a password with, which counts once, for seven days."""
    mailer, user_id = Mailer.demand(request), path_id(request, "id")
    async with _acting(request, session, on=user_id) as connection:
        await access_queries.invite(connection, user_id, mailer.language(request), _actor(request, session))
    mailer.wake()
    return json_response(Done(status="success"), status=202)


@operation(Done, problems=(NotFound, ConfirmationRequired, ForeignOrigin))
@guarded_for("admin")
async def unlock(request: web.Request, session: Session) -> web.Response:
    """Let a user try again at once whose attempts are used up."""
    user = await _user(request)
    ranges = request.app[THROTTLE].of_account(user.subjects, user.id)
    async with _acting(request, session, on=user.id) as connection:
        if not await access_queries.unlock(connection, user.id, ranges, _actor(request, session)):
            raise NotFound
    return json_response(Done(status="success"))


async def _user(request: web.Request) -> Managed:
    user = await request.app[DATABASE].read(queries.read, path_id(request, "id"))
    if user is None:
        raise NotFound
    return user


def _new_reset(request: web.Request) -> access_queries.Reset:
    return access_queries.Reset(new_code(), request.app[CONFIG].accounts.reset_lifetime)


def _actor(request: web.Request, session: Session) -> Actor:
    client = Client.of(request)
    return Actor(session.user_id, client.ip, client.user_agent)


routes = [
    web.get("/admin/users", list_users),
    web.post("/admin/users", add_user),
    web.get("/admin/users/{id}", show_user),
    web.patch("/admin/users/{id}", change_user),
    web.delete("/admin/users/{id}", delete_user),
    web.post("/admin/users/{id}/password-reset", start_reset),
    web.post("/admin/users/{id}/invitation", invite),
    web.delete("/admin/users/{id}/throttle", unlock),
]
