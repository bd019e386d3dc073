"""`/me/emails`: one's own mail addresses."""

from aiohttp import web

from gatepost.http.app import CONFIG, DATABASE
from gatepost.mail import handlers, queries
from gatepost.pages.acting import Act, Page, Shown
from gatepost.sessions.session import Session


async def _emails(request: web.Request, session: Session) -> Shown:
    if not request.app[CONFIG].has_addresses:
        return {"emails": None}
    found = await request.app[DATABASE].read(queries.emails_of, session.user_id)
    return {"emails": [each.document() for each in found]}


async def _one(request: web.Request, session: Session) -> Shown:
    found = (await _emails(request, session))["emails"] or []
    addresses = {each["id"]: each["address"] for each in found}
    return {"address": addresses.get(request.match_info["id"]), "action": request.path}


EMAILS = Page("/me/emails", "account/emails.html", _emails)
VERIFY = Page("/me/emails/{id}/verify", "account/verify_email.html", _one)

routes = [
    EMAILS.route(),
    Act(
        EMAILS,
        "/me/emails",
        handlers.add,
        "email_added",
        ("email",),
        ("password",),
        about={"wrong_password": "password", "email_taken": "email", "too_many_emails": "email"},
    ).route(),
    VERIFY.route(),
    Act(
        VERIFY,
        VERIFY.path,
        handlers.verify,
        "email_verified",
        ("code",),
        to=EMAILS.path,
        about={"invalid_code": "code"},
    ).route(),
    Act(EMAILS, "/me/emails/{id}/primary", handlers.make_primary, "email_primary_changed").route(),
    Act(EMAILS, "/me/emails/{id}/remove", handlers.remove, "email_removed").route(),
]
