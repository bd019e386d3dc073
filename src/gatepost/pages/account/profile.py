"""`/me`: name, profile and password, taking one's data along, and leaving."""

from typing import Any

from aiohttp import web

from gatepost.accounts import export_handlers, queries
from gatepost.accounts import handlers as accounts
from gatepost.errors import Unauthorized
from gatepost.http.app import DATABASE
from gatepost.pages.acting import Act, Page, Shown
from gatepost.pages.forms import Form
from gatepost.pages.page import target_of
from gatepost.sessions.session import Session, timestamp

MAX_SHOWN = 200


async def _account(request: web.Request, session: Session) -> Shown:
    account = await request.app[DATABASE].read(queries.read, session.user_id)
    if account is None:
        raise Unauthorized
    profile = dict(account.user.profile)
    name = profile.pop("name", "")
    changed_at = account.password_changed_at
    return {
        "username": account.user.username,
        "name": name if isinstance(name, str) else "",
        # What applications keep there is theirs to change.
        "profile": {key: str(value)[:MAX_SHOWN] for key, value in profile.items()},
        "created_at": timestamp(account.created_at),
        "password_changed_at": timestamp(changed_at) if changed_at else None,
    }


def _own_name(form: Form) -> dict[str, Any]:
    return {"profile": {"name": form.get("name", "").strip() or None}}


OVERVIEW = Page("/me", "account/overview.html", _account)


async def _back(request: web.Request, _session: Session) -> Shown:
    """Where somebody was going who is asked for another password on the way."""
    return {"back": target_of(request, request.query.get("return_to", ""))}


PASSWORD = Page("/me/password", "account/password.html", _back)
DATA = Page("/me/data", "account/data.html")


routes = [
    OVERVIEW.route(),
    Act(OVERVIEW, "/me/profile", accounts.change, "profile_changed", ("name",), body=_own_name).route(),
    Act(
        OVERVIEW,
        "/me/username",
        accounts.change,
        "username_changed",
        ("username",),
        about={"username_taken": "username"},
    ).route(),
    PASSWORD.route(),
    Act(
        PASSWORD,
        "/me/password",
        accounts.change_password,
        "password_changed",
        secret=("current", "new"),
        to="/me",
        about={"wrong_password": "current"},
    ).route(),
    DATA.route(),
    Act(DATA, "/me/data/export", export_handlers.export, "", download=True).route(),
    Act(
        DATA,
        "/me/data/delete",
        accounts.delete,
        "account_deleted",
        secret=("password",),
        to="/sign-in",
        about={"wrong_password": "password"},
    ).route(),
]
