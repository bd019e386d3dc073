"""`/sign-up`: having an account."""

import contextlib

from aiohttp import web

from gatepost.accounts import handlers as accounts
from gatepost.errors import NotFound, Problem
from gatepost.http.app import CONFIG
from gatepost.http.operation import operation
from gatepost.pages import return_to
from gatepost.pages.forms import ask, read_form
from gatepost.pages.page import go, page, show, show_problems_on, target_of, visitor
from gatepost.sessions import handlers as sessions


def _demand_open(request: web.Request) -> None:
    if request.app[CONFIG].accounts.registration == "closed":
        raise NotFound


@page
async def show_sign_up(request: web.Request) -> web.Response:
    """The page on which one signs up, where anybody may."""
    _demand_open(request)
    target = target_of(request, request.query.get("return_to", ""))
    return show(request, "sign_up.html", session=await visitor(request), form={"return_to": target})


@page
@operation(None, event="user_created")
async def sign_up(request: web.Request) -> web.Response:
    """Create an account, and sign in to it."""
    _demand_open(request)
    form = await read_form(request)
    target = target_of(request, form.get("return_to", ""))
    username, password, email = form.get("username", ""), form.get("password", ""), form.get("email", "").strip()
    shown = {"username": username, "email": email, "return_to": target}
    show_problems_on(request, "sign_up.html", about={"username_taken": "username"}, form=shown)
    given = {"username": username, "password": password}
    await ask(request, accounts.register, **given, **({"email": email} if email else {}))
    response = go("/sign-in?done=signed_up")
    # The account is there already: if signing in fails, for a throttle or a full queue, it is done by hand.
    with contextlib.suppress(Problem):
        answer = await ask(request, sessions.log_in, **given, cookie=True)
        response = go(target if target != return_to.HOME else "/me?done=signed_up")
        answer.give_cookies(response)
    return response


routes = [web.get("/sign-up", show_sign_up), web.post("/sign-up", sign_up)]
