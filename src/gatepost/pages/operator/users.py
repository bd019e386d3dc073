"""`/operator/users`: finding a user, and all that an operator can do to one."""

import json
from typing import Any

from aiohttp import web

from gatepost.admin import events_handlers, factors_handlers, handlers, sessions_handlers
from gatepost.errors import BadRequest, FieldError, InvalidBody
from gatepost.http import strict_json
from gatepost.pages.account.devices import devices
from gatepost.pages.acting import ROWS, Act, Page, Shown
from gatepost.pages.forms import Form, ask
from gatepost.pages.operator.events import shown
from gatepost.pages.page import told
from gatepost.recovery import handlers as recovery
from gatepost.sessions.session import Session

# Events on the page of a user.
LATEST = "5"
_FILTERS = ("prefix", "email", "role", "disabled", "cursor")


async def _users(request: web.Request, _session: Session) -> Shown:
    asked = {name: request.query[name].strip() for name in _FILTERS if request.query.get(name, "").strip()}
    try:
        found = (await ask(request, handlers.list_users, **asked, limit=ROWS)).document
    except InvalidBody as problem:
        return {"users": [], "next": None, "asked": asked, **told(request, problem)}
    return {**found, "asked": asked}


async def _user(request: web.Request, _session: Session) -> Shown:
    user = (await ask(request, handlers.show_user)).document["user"]
    sessions = (await ask(request, sessions_handlers.list_sessions)).document["sessions"]
    found = (await ask(request, events_handlers.list_events, user=user["id"], limit=LATEST)).document["events"]
    return {
        "user": user,
        "events": await shown(request, found),
        "profile_text": json.dumps(user["profile"], ensure_ascii=False, indent=2),
        "sessions": sessions,
        "devices": await devices(each["user_agent"] for each in sessions),
        "factors": (await ask(request, factors_handlers.list_factors)).document,
    }


def _new_user(form: Form) -> dict[str, Any]:
    email = form.get("email", "").strip()
    return {"username": form.get("username", ""), "roles": _words(form), **({"email": email} if email else {})}


def _words(form: Form) -> list[str]:
    """Roles, as people write several."""
    return form.get("roles", "").replace(",", " ").split()


def _profile(form: Form) -> dict[str, Any]:
    """The whole profile: what is no longer in it goes."""
    try:
        wanted, before = (strict_json.decode(form.get(name, "").encode()) for name in ("profile", "before"))
    except BadRequest:
        wanted = before = None
    if not isinstance(wanted, dict) or not isinstance(before, dict):
        raise InvalidBody([FieldError("profile", "invalid_json", "must be a JSON object")])
    return {"profile": {**dict.fromkeys(before.keys() - wanted.keys()), **wanted}}


USERS = Page("/operator/users", "operator/users.html", _users, role="admin")
NEW = Page("/operator/new-user", "operator/new_user.html", role="admin")
USER = Page("/operator/users/{id}", "operator/user.html", _user, role="admin")


def _on(name: str, handler: Any, done: str, **more: Any) -> web.RouteDef:
    """A form on the page of a user."""
    return Act(USER, f"{USER.path}/{name}", handler, done, **more).route()


routes = [
    USERS.route(),
    NEW.route(),
    Act(
        NEW,
        NEW.path,
        handlers.add_user,
        "",
        ("username", "email", "roles"),
        body=_new_user,
        told="reset",
        answer="operator/code.html",
        about={"username_taken": "username", "email_taken": "email"},
    ).route(),
    USER.route(),
    _on("username", handlers.change_user, "user_changed", fields=("username",), about={"username_taken": "username"}),
    _on("roles", handlers.change_user, "user_changed", fields=("roles",), body=lambda form: {"roles": _words(form)}),
    _on("profile", handlers.change_user, "user_changed", fields=("profile", "before"), body=_profile),
    _on("disable", handlers.change_user, "user_disabled", body=lambda _: {"disabled": True}),
    _on("enable", handlers.change_user, "user_enabled", body=lambda _: {"disabled": False}),
    _on("reset", handlers.start_reset, "", told="reset", answer="operator/code.html"),
    _on("invite", handlers.invite, "invited", body=lambda _: {}),
    _on("mail-code", recovery.recover, "code_mailed", fields=("identifier",)),
    _on("unlock", handlers.unlock, "user_unlocked"),
    _on("sessions/end", sessions_handlers.end_sessions, "user_sessions_ended"),
    _on("sessions/{handle}/end", sessions_handlers.end_session, "session_ended"),
    _on("factors/remove", factors_handlers.remove_factors, "factors_removed"),
    _on("delete", handlers.delete_user, "user_deleted", to=USERS.path),
]
