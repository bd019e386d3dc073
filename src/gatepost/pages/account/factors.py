"""`/me/factors`: authenticator apps, recovery codes and passkeys."""

from typing import Any

from aiohttp import web

from gatepost.factors import handlers, passkey_handlers, passkey_queries, queries
from gatepost.factors.parts import PASSKEYS
from gatepost.http.app import DATABASE, json_response
from gatepost.pages.acting import Act, Page, Shown
from gatepost.pages.forms import Form, ask, credential
from gatepost.pages.page import signed_in
from gatepost.sessions.session import Session


async def _factors(request: web.Request, session: Session) -> Shown:
    database = request.app[DATABASE]
    found = await database.read(queries.factors_of, session.user_id)
    return {
        "apps": [factor for factor in found.factors if factor["confirmed_at"]],
        "recovery_codes": found.recovery_codes,
        "passkeys": await database.read(passkey_queries.passkeys_of, session.user_id),
        "takes_passkeys": request.app[PASSKEYS].party is not None,
        "restricted": session.restricted,
    }


def _named(form: Form) -> dict[str, Any]:
    """The name, if it has been given one."""
    name = form.get("name", "").strip()
    return {"name": name} if name else {}


def _passkey(form: Form) -> dict[str, Any]:
    return {"credential": credential(form.get("passkey", "")), **_named(form)}


FACTORS = Page("/me/factors", "account/factors.html", _factors)
CONFIRM = Page("/me/factors/{id}/confirm", "account/new_app.html")


@signed_in(back=FACTORS.path)
async def creation_options(request: web.Request, _session: Session) -> web.Response:
    """What the browser's script makes a passkey with."""
    return json_response((await ask(request, passkey_handlers.creation_options)).document)


routes = [
    CONFIRM.route(),
    web.post("/me/factors/passkeys/options", creation_options),
    FACTORS.route(),
    Act(
        FACTORS,
        "/me/factors/apps",
        handlers.add,
        "",
        ("name",),
        body=_named,
        told="qr",
        answer="account/new_app.html",
    ).route(),
    Act(
        CONFIRM,
        CONFIRM.path,
        handlers.confirm,
        "factor_added",
        ("code",),
        to=FACTORS.path,
        told="recovery_codes",
        answer="account/recovery_codes.html",
        about={"invalid_code": "code"},
    ).route(),
    Act(FACTORS, "/me/factors/apps/{id}/remove", handlers.remove, "factor_removed").route(),
    Act(
        FACTORS,
        "/me/factors/recovery-codes",
        handlers.replace_codes,
        "",
        told="recovery_codes",
        answer="account/recovery_codes.html",
    ).route(),
    Act(
        FACTORS,
        "/me/factors/passkeys",
        passkey_handlers.add_passkey,
        "factor_added",
        ("name", "passkey"),
        body=_passkey,
        told="recovery_codes",
        answer="account/recovery_codes.html",
    ).route(),
    Act(
        FACTORS, "/me/factors/passkeys/{id}/name", passkey_handlers.rename_passkey, "passkey_renamed", ("name",)
    ).route(),
    Act(FACTORS, "/me/factors/passkeys/{id}/remove", passkey_handlers.remove_passkey, "factor_removed").route(),
]
