"""`/`, `/sign-in`, `/sign-out`: beginning a session in a browser, and ending it."""

from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from gatepost.errors import LoginExpired, SecondFactorRequired, Unauthorized
from gatepost.factors import proving
from gatepost.factors.parts import PASSKEYS
from gatepost.http.app import CONFIG, json_response
from gatepost.http.operation import operation
from gatepost.http.tokens import drop_session_cookie
from gatepost.pages.forms import Answer, Form, ask, credential, proof, read_form
from gatepost.pages.page import go, page, show, show_problems_on, signed_in, target_of, visitor
from gatepost.sessions import handlers as sessions
from gatepost.sessions.session import Session

METHODS = ("totp", "passkey", "recovery_code")


@page
async def home(request: web.Request) -> web.Response:
    """Whoever is signed in goes to the own account, anybody else to sign in."""
    return go("/me" if await visitor(request) else "/sign-in")


@page
async def show_sign_in(request: web.Request) -> web.Response:
    """The page on which one signs in."""
    target = target_of(request, request.query.get("return_to", ""))
    return show(
        request,
        "sign_in.html",
        session=await visitor(request),
        form={"return_to": target},
        notice=request.query.get("done"),
        **_ways(request),
    )


def _ways(request: web.Request) -> dict[str, Any]:
    """What beside the password there is on the page."""
    return {
        "passkeys": request.app[PASSKEYS].party is not None,
        "registration": request.app[CONFIG].accounts.registration == "open",
    }


@page
@operation(None, event="authn_login_success")
async def sign_in(request: web.Request) -> web.Response:
    """Sign in with a password. For a user with a second factor, its page follows."""
    form = await _read(request)
    show_problems_on(request, "sign_in.html", form=_kept(form), **_ways(request))
    try:
        answer = await ask(
            request,
            sessions.log_in,
            username=form.get("username", ""),
            password=form.get("password", ""),
            cookie=True,
        )
    except SecondFactorRequired as needed:
        _show_second_step(request, {"return_to": form["return_to"], "login": needed.ticket}, needed.methods)
        raise
    return _signed_in(form, answer)


@page
@operation(None, event="authn_login_success")
async def give_second_factor(request: web.Request) -> web.Response:
    """The further step: a code of an app, a recovery code, or a passkey."""
    form = await _read(request)
    methods = [method for method in METHODS if method in form.get("methods", "").split()]
    _show_second_step(request, form, methods)
    try:
        answer = await ask(
            request, proving.finish_login, login=form.get("login", ""), cookie=True, **(proof(form) or {"totp": ""})
        )
    except LoginExpired:
        show_problems_on(request, "sign_in.html", form=_kept(form), **_ways(request))
        raise
    return _signed_in(form, answer)


def _show_second_step(request: web.Request, form: Form, methods: list[str]) -> None:
    shown = {"return_to": form["return_to"], "login": form.get("login", "")}
    about = {"invalid_code": "recovery_code" if form.get("recovery_code") else "totp"}
    show_problems_on(request, "second_factor.html", about=about, form=shown, methods=methods)


@page
@operation(None, event="authn_login_success")
async def sign_in_with_passkey(request: web.Request) -> web.Response:
    """Sign in with what the browser's script has had signed."""
    form = await _read(request)
    show_problems_on(request, "sign_in.html", form=_kept(form), **_ways(request))
    answer = await ask(request, proving.sign_in, credential=credential(form.get("passkey", "")), cookie=True)
    return _signed_in(form, answer)


@page
async def passkey_options(request: web.Request) -> web.Response:
    """What the browser's script asks a passkey for."""
    return json_response((await ask(request, proving.request_options)).document)


async def _read(request: web.Request) -> Form:
    form = await read_form(request)
    form["return_to"] = target_of(request, form.get("return_to", ""))
    return form


def _kept(form: Form) -> Form:
    """What is shown again: never a password."""
    return {"return_to": form["return_to"], "username": form.get("username", "")}


def _signed_in(form: Form, answer: Answer) -> web.Response:
    target = form["return_to"]
    if "password_breached" in answer.document:
        target = "/me/password?" + urlencode({"done": "password_breached", "return_to": target})
    response = go(target)
    answer.give_cookies(response)
    return response


@signed_in()
async def show_sign_out(request: web.Request, session: Session) -> web.Response:
    """The page on which one signs out: a link alone must not do it, since any site can have one followed."""
    return show(request, "sign_out.html", session=session)


@page
@operation(None, event="authn_logout")
async def sign_out(request: web.Request) -> web.Response:
    """End the session."""
    response = go("/sign-in?done=signed_out")
    try:
        (await ask(request, sessions.log_out)).give_cookies(response)
    except Unauthorized:  # it has ended already
        drop_session_cookie(request, response)
    return response


routes = [
    web.get("/", home),
    web.get("/sign-in", show_sign_in),
    web.post("/sign-in", sign_in),
    web.post("/sign-in/second-factor", give_second_factor),
    web.post("/sign-in/passkey", sign_in_with_passkey),
    web.post("/sign-in/passkey/options", passkey_options),
    web.get("/sign-out", show_sign_out),
    web.post("/sign-out", sign_out),
]
