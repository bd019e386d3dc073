"""Confirming that it is still the same person: asked for in place, and then what was asked for goes on."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from gatepost.factors import passkey_queries, proving, queries
from gatepost.http.app import DATABASE
from gatepost.pages.forms import Form, ask, proof
from gatepost.pages.page import show_problems_on
from gatepost.sessions.session import Session


async def confirm(request: web.Request, session: Session, form: Form, again: Mapping[str, Any]) -> bool:
    """Confirm who it is, if the form says how; whether it does. What goes wrong is told where it was asked for."""
    given = proof(form, "confirm_")
    if given:
        about = {"invalid_code": f"confirm_{next(iter(given))}", "wrong_password": "confirm_password"}
        await ask_for_confirmation(request, session, again, about)
        await ask(request, proving.confirm_session, **given)
    return bool(given)


async def ask_for_confirmation(
    request: web.Request, session: Session, again: Mapping[str, Any], about: Mapping[str, str] | None = None
) -> None:
    """Let what goes wrong from here on be told on the page that asks for a confirmation: by the password, or by a
    second factor where there is one.

    ``again``: where its form is sent (``action``), with which fields (``kept``), and which ``secret`` ones are asked
    for again, since they are never shown.
    """
    database = request.app[DATABASE]
    found = await database.read(queries.factors_of, session.user_id)
    passkeys = await database.read(passkey_queries.passkeys_of, session.user_id)
    confirmed = any(factor["confirmed_at"] for factor in found.factors)
    methods = [
        *(["totp"] if confirmed else []),
        *(["passkey"] if passkeys else []),
        *(["recovery_code"] if found.recovery_codes and (confirmed or passkeys) else []),
    ] or ["password"]
    show_problems_on(request, "confirm.html", about=about, session=session, methods=methods, **again)
