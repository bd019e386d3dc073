"""`/forbidden`, `/confirm`: where a proxy sends somebody whose session does not do for what was asked."""

from typing import Any

from aiohttp import web

from gatepost.errors import ConfirmationRequired
from gatepost.pages.confirmation import ask_for_confirmation, confirm
from gatepost.pages.forms import read_form
from gatepost.pages.page import go, show, signed_in, target_of
from gatepost.sessions.session import Session

MAX_ROLES = 200


@signed_in()
async def forbidden(request: web.Request, session: Session) -> web.Response:
    """Say which role is missing, and offer to sign in as somebody else."""
    roles = [role for role in request.query.get("role", "")[:MAX_ROLES].split(",") if role and role.isprintable()]
    form = {"return_to": target_of(request, request.query.get("return_to", ""))}
    return show(
        request,
        "forbidden.html",
        status=403,
        session=session,
        roles=roles,
        form=form,
    )


@signed_in()
async def show_confirm(request: web.Request, session: Session) -> web.Response:
    """Ask for a confirmation that it is still the same person."""
    await ask_for_confirmation(request, session, _again(target_of(request, request.query.get("return_to", ""))))
    raise ConfirmationRequired


@signed_in()
async def take_confirmation(request: web.Request, session: Session) -> web.Response:
    """Confirm it, and go back."""
    form = await read_form(request)
    target = target_of(request, form.get("return_to", ""))
    if await confirm(request, session, form, _again(target)):
        return go(target)
    await ask_for_confirmation(request, session, _again(target))
    raise ConfirmationRequired


def _again(target: str) -> dict[str, Any]:
    return {"action": "/confirm", "kept": {"return_to": target}, "secret": ()}


routes = [
    web.get("/forbidden", forbidden),
    web.get("/confirm", show_confirm),
    web.post("/confirm", take_confirmation),
]
