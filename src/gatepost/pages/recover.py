"""`/recover`, `/undo`: what to do for somebody who has lost the password, or the account to somebody else."""

from aiohttp import web

from gatepost.http.app import CONFIG
from gatepost.http.operation import operation
from gatepost.mail import handlers as mail
from gatepost.pages.forms import ask, read_form
from gatepost.pages.page import go, page, show, show_problems_on
from gatepost.recovery import handlers as recovery


@page
async def show_recover(request: web.Request) -> web.Response:
    """The page on which one asks for a code by mail."""
    return show(request, "recover.html", by_mail=request.app[CONFIG].has_addresses)


@page
async def recover(request: web.Request) -> web.Response:
    """Ask for a code, whoever it is for; the page that takes it follows."""
    form = await read_form(request)
    identifier = form.get("identifier", "").strip()
    show_problems_on(
        request, "recover.html", form={"identifier": identifier}, by_mail=request.app[CONFIG].has_addresses
    )
    await ask(request, recovery.recover, identifier=identifier)
    return show(request, "new_password.html", form={"identifier": identifier}, notice="code_sent")


@page
async def show_new_password(request: web.Request) -> web.Response:
    """The page on which a code is worth a new password. The link of a mail has the code behind its `#`."""
    return show(request, "new_password.html")


@page
@operation(None, event="authn_password_change")
async def choose_new_password(request: web.Request) -> web.Response:
    """Choose a new password with a code."""
    form = await read_form(request)
    identifier, code = form.get("identifier", "").strip(), form.get("code", "").strip()
    shown = {"identifier": identifier, "code": code}
    show_problems_on(request, "new_password.html", about={"invalid_code": "code"}, form=shown)
    given = {"code": code, "new": form.get("new", "")}
    await ask(request, recovery.redeem, **given, **({"identifier": identifier} if identifier else {}))
    return go("/sign-in?done=password_changed")


@page
async def show_undo(request: web.Request) -> web.Response:
    """The page on which a change of addresses is undone, with the code of the mail that told of it."""
    return show(request, "undo.html")


@page
@operation(None, event="email_changes_undone")
async def undo(request: web.Request) -> web.Response:
    """Undo changes of addresses; a code for a new password is mailed."""
    form = await read_form(request)
    code = form.get("code", "").strip()
    show_problems_on(request, "undo.html", about={"invalid_code": "code"}, form={"code": code})
    await ask(request, mail.undo, code=code)
    return show(request, "new_password.html", notice="addresses_undone")


routes = [
    web.get("/recover", show_recover),
    web.post("/recover", recover),
    web.get("/recover/code", show_new_password),
    web.post("/recover/code", choose_new_password),
    web.get("/undo", show_undo),
    web.post("/undo", undo),
]
