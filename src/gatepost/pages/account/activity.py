"""`/me/activity`: what has happened to one's account, in words."""

from typing import Any

from aiohttp import web

from gatepost.admin import cursor, events_queries
from gatepost.errors import InvalidBody
from gatepost.http.app import DATABASE
from gatepost.pages.account.devices import devices
from gatepost.pages.acting import Page, Shown
from gatepost.pages.wording import N_
from gatepost.sessions.session import Session, timestamp

# Events of one page.
MOST = 25

SAID: dict[str, str] = {
    "authn_login_factor_required": N_("The right password was given, and a second factor asked for"),
    "authn_login_fail": N_("Somebody tried to sign in, and failed"),
    "authn_login_fail_max": N_("Too many tries to sign in: further ones had to wait"),
    "authn_login_success": N_("Signed in"),
    "authn_login_unlock": N_("An operator let you try to sign in again at once"),
    "authn_logout": N_("Signed out"),
    "authn_password_breached": N_("Signed in with a password that was published in a breach of another service"),
    "authn_password_change": N_("The password was changed"),
    "authn_password_change_fail": N_("A wrong current password was given"),
    "authn_password_reset_started": N_("An operator made a code for a new password"),
    "authn_factor_fail": N_("A second factor was wrong"),
    "email_added": N_("A mail address was added"),
    "email_changes_undone": N_("A change of mail addresses was undone"),
    "email_primary_changed": N_("Mail goes to another address"),
    "email_removed": N_("A mail address was removed"),
    "email_verified": N_("A mail address was verified"),
    "factor_added": N_("A second factor was added"),
    "factor_removed": N_("A second factor was removed"),
    "factors_removed": N_("An operator removed all second factors"),
    "mail_given_up": N_("A mail to you could not be delivered"),
    "passkey_counter_fell": N_("A passkey has signed less often than before: there may be a copy of it"),
    "privilege_permissions_changed": N_("Your roles were changed"),
    "recovery_code_used": N_("A recovery code was used"),
    "recovery_codes_created": N_("New recovery codes were made"),
    "session_confirmed": N_("You confirmed that it was you"),
    "session_revoked": N_("A session was ended"),
    "user_created": N_("The account was created"),
    "user_disabled": N_("The account was disabled"),
    "user_enabled": N_("The account was enabled"),
    "user_imported": N_("The account was brought here from another service"),
    "user_updated": N_("The name or the profile was changed"),
}
"""Every kind of event that can be about a user."""


async def _activity(request: web.Request, session: Session) -> Shown:
    try:
        before = cursor.event(request.query.get("before"))
    except InvalidBody:  # a link that was cut off: from the beginning
        before = None
    found = await request.app[DATABASE].read(
        events_queries.page, events_queries.Filter(user=session.user_id), before=before, most=MOST + 1
    )
    shown = found[:MOST]
    names = await devices(event.user_agent for event in shown)
    return {
        "events": [_document(event, names) for event in shown],
        "before": cursor.before_event(shown[-1].at, shown[-1].id) if len(found) > len(shown) else None,
        "is_first": before is None,
    }


def _document(event: events_queries.Event, names: dict[str, str]) -> dict[str, Any]:
    return {
        "said": SAID.get(event.kind, event.kind),
        "at": timestamp(event.at),
        "ip": event.ip,
        "device": names.get(event.user_agent or ""),
        "by_another": event.actor_id is not None and event.actor_id != event.user_id,
    }


routes = [Page("/me/activity", "account/activity.html", _activity).route()]
