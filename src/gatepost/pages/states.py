"""Each page in each of its states: what `/gallery` shows, and what the operator's templates are tried with."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from gatepost.pages.operator.charts import Chart, chart

State = tuple[str, Mapping[str, Any]]

_WAYS: dict[str, Any] = {"passkeys": True, "registration": True}
_LONG = "Wolfeschlegelsteinhausenbergerdorff-Jean-Jacques-of-the-Hill"


_NOW = "2026-11-28T09:00:00+00:00"
_THEN = "2026-10-03T17:45:12+00:00"
_ID = "00000000-0000-4000-8000-000000000000"


class _Visitor:
    """Whoever is signed in on a page of the gallery."""

    def __init__(self, username: str, *roles: str) -> None:
        self.username = username
        self.roles = roles


_ADA = _Visitor("ada", "editor")
_OPERATOR = _Visitor("grace", "admin")
_SESSION = {"handle": _ID, "user_agent": "a", "ip": "203.0.113.7", "last_seen_at": _NOW, "created_at": _THEN}
_USER = {
    "id": _ID,
    "username": _LONG,
    "roles": ["editor", "staff"],
    "created_at": _THEN,
    "disabled_at": _NOW,
    "has_password": False,
    "emails": [{"address": "ada@example.org", "verified": False, "primary": True}],
}
_FACTORS = {
    "factors": [{"name": "Phone", "created_at": _THEN}],
    "passkeys": [{"name": "Laptop", "created_at": _THEN}],
}
_EVENTS = [
    {
        "at": _NOW,
        "when": "March 3, 2026, 12:00 UTC",
        "kind": "authn_login_fail",
        "where": ", 203.0.113.7, Firefox · Linux",
        "user_id": _ID,
        "detail": {"reason": "wrong_password"},
    },
    {
        "at": _THEN,
        "when": "March 1, 2026, 08:30 UTC",
        "kind": "service_added",
        "where": "",
        "user_id": None,
        "detail": {},
    },
]
_OF_USER = {
    "session": _OPERATOR,
    "path": f"/operator/users/{_ID}",
    "profile_text": '{"theme": "dark"}',
    "devices": {"a": "Firefox · Linux"},
    "events": _EVENTS,
}


def _chart(series: int) -> Chart:
    begin = datetime(2026, 11, 28, tzinfo=UTC)
    step = timedelta(hours=1)
    return chart(
        [{begin + step * hour: hour * (number + 3) % 11 for hour in range(24)} for number in range(series)],
        begin,
        step,
        24,
    )


STATES: dict[str, State] = {
    "sign-in": ("sign_in.html", _WAYS),
    "sign-in-wrong": (
        "sign_in.html",
        {**_WAYS, "form": {"username": "ada"}, "problem": "The username or the password is wrong."},
    ),
    "sign-in-signed-out": ("sign_in.html", {**_WAYS, "notice": "signed_out"}),
    "sign-in-as-another": ("sign_in.html", {**_WAYS, "session": _Visitor(_LONG)}),
    "sign-in-right-to-left": ("sign_in.html", {**_WAYS, "session": _Visitor("عائشة")}),
    "second-factor": (
        "second_factor.html",
        {"methods": ["totp", "passkey", "recovery_code"], "form": {"login": "x"}},
    ),
    "second-factor-wrong": (
        "second_factor.html",
        {
            "methods": ["totp", "recovery_code"],
            "form": {"login": "x"},
            "problem": "This code is wrong, used or too old.",
            "errors": {"totp": "This code is wrong, used or too old."},
        },
    ),
    "sign-up": ("sign_up.html", {}),
    "sign-up-wrong": (
        "sign_up.html",
        {
            "form": {"username": "a b", "email": "nobody"},
            "problem": "Please look at what is marked below.",
            "errors": {
                "username": "Please use 1 to 64 letters, digits and characters such as . _ and -, without spaces.",
                "password": "Please use at least 15 characters.",
            },
        },
    ),
    "recover": ("recover.html", {"by_mail": True}),
    "recover-without-mail": ("recover.html", {"by_mail": False}),
    "new-password": ("new_password.html", {"notice": "code_sent", "form": {"identifier": "ada"}}),
    "undo": ("undo.html", {}),
    "sign-out": ("sign_out.html", {"session": _ADA}),
    "forbidden": ("forbidden.html", {"session": _ADA, "roles": ["staff"]}),
    "forbidden-roles": ("forbidden.html", {"session": _ADA, "roles": ["staff", "owner"]}),
    "problem": ("problem.html", {"problem": "There is no such page."}),
    "account": (
        "account/overview.html",
        {
            "session": _ADA,
            "path": "/me",
            "username": _LONG,
            "name": "Ada Lovelace",
            "profile": {"theme": "dark", "עברית": "שלום"},
            "created_at": _THEN,
            "password_changed_at": _NOW,
        },
    ),
    "password": (
        "account/password.html",
        {"session": _ADA, "path": "/me/password", "notice": "password_breached", "back": "/me"},
    ),
    "emails": (
        "account/emails.html",
        {
            "session": _ADA,
            "path": "/me/emails",
            "emails": [
                {"id": _ID, "address": "ada@example.org", "primary": True, "verified_at": _NOW, "created_at": _NOW},
                {"id": _ID[:-1] + "1", "address": f"{_LONG}@a.example", "primary": False, "verified_at": _NOW},
                {"id": _ID[:-1] + "2", "address": "new@example.org", "primary": False, "verified_at": None},
            ],
        },
    ),
    "emails-none": ("account/emails.html", {"session": _ADA, "path": "/me/emails", "emails": []}),
    "verify-email": (
        "account/verify_email.html",
        {"session": _ADA, "path": "/me/emails", "address": "ada@example.org", "action": f"/me/emails/{_ID}/verify"},
    ),
    "factors": (
        "account/factors.html",
        {
            "session": _ADA,
            "path": "/me/factors",
            "restricted": False,
            "takes_passkeys": True,
            "apps": [{"id": _ID, "name": "Phone", "created_at": _THEN, "last_used_at": _NOW}],
            "passkeys": [
                {"id": _ID, "name": _LONG, "created_at": _THEN, "last_used_at": None, "synced": True},
                {"id": _ID[:-1] + "1", "name": "مفتاح", "created_at": _THEN, "last_used_at": _NOW, "synced": False},
            ],
            "recovery_codes": 9,
        },
    ),
    "factors-none": (
        "account/factors.html",
        {
            "session": _ADA,
            "path": "/me/factors",
            "restricted": True,
            "takes_passkeys": False,
            "apps": [],
            "passkeys": [],
            "recovery_codes": 0,
        },
    ),
    "new-app": (
        "account/new_app.html",
        {
            "session": _ADA,
            "path": "/me/factors/apps",
            "answer": {
                "factor": {"id": _ID},
                "secret": "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ",
                "uri": "otpauth://totp/Gatepost:ada?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Gatepost",
                "qr": '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M1 1h6v6h-6z"/></svg>',
            },
        },
    ),
    "new-app-wrong": (
        "account/new_app.html",
        {
            "session": _ADA,
            "path": f"/me/factors/{_ID}/confirm",
            "problem": "This code is wrong, used or too old.",
            "errors": {"code": "This code is wrong, used or too old."},
        },
    ),
    "recovery-codes": (
        "account/recovery_codes.html",
        {
            "session": _ADA,
            "path": "/me/factors/recovery-codes",
            "answer": {"recovery_codes": [f"ABCD-EFGH-JKM{digit}-NPQR" for digit in range(10)]},
        },
    ),
    "sessions": (
        "account/sessions.html",
        {
            "session": _ADA,
            "path": "/me/sessions",
            "current": _ID,
            "devices": {"a": "Firefox · Linux", "b": "Mobile Safari · iOS"},
            "sessions": [
                {"handle": _ID, "user_agent": "a", "ip": "203.0.113.7", "last_seen_at": _NOW, "created_at": _THEN},
                {
                    "handle": _ID[:-1] + "1",
                    "user_agent": "b",
                    "ip": "2001:db8::7",
                    "last_seen_at": _THEN,
                    "created_at": _THEN,
                },
                {
                    "handle": _ID[:-1] + "2",
                    "user_agent": None,
                    "ip": None,
                    "last_seen_at": _THEN,
                    "created_at": _THEN,
                },
            ],
        },
    ),
    "activity": (
        "account/activity.html",
        {
            "session": _ADA,
            "path": "/me/activity",
            "is_first": False,
            "before": "x",
            "events": [
                {
                    "said": "Signed in",
                    "at": _NOW,
                    "ip": "203.0.113.7",
                    "device": "Firefox · Linux",
                    "by_another": False,
                },
                {
                    "said": "Your roles were changed",
                    "at": _THEN,
                    "ip": "2001:db8::1",
                    "device": None,
                    "by_another": True,
                },
            ],
        },
    ),
    "data": ("account/data.html", {"session": _ADA, "path": "/me/data"}),
    "confirm": (
        "confirm.html",
        {
            "session": _ADA,
            "path": "/me/password",
            "action": "/me/password",
            "kept": {"name": "x"},
            "secret": ("current", "new"),
            "methods": ["totp", "passkey", "recovery_code"],
            "problem": "Please confirm that it is still you.",
        },
    ),
    "confirm-by-password": (
        "confirm.html",
        {
            "session": _ADA,
            "path": "/me/username",
            "action": "/me/username",
            "kept": {"username": "bob"},
            "secret": (),
            "methods": ["password"],
            "problem": "The current password is wrong.",
            "errors": {"confirm_password": "The current password is wrong."},
        },
    ),
    "overview": (
        "operator/overview.html",
        {
            "session": _OPERATOR,
            "path": "/operator",
            "wrong": [],
            "numbers": {"live_sessions": 1204, "users": 5310, "hashes": 0, "mails": 2},
            "spans": [
                {
                    "title": title,
                    "logins": _chart(2),
                    "throttled": _chart(1),
                    "new": _chart(1),
                    "sessions": _chart(1),
                    "hashes": _chart(1),
                }
                for title in ("The last hour", "The last day", "The last month")
            ],
        },
    ),
    "overview-wrong": (
        "operator/overview.html",
        {
            "session": _OPERATOR,
            "path": "/operator",
            "wrong": ["Mail has been waiting for more than ten minutes."],
            "numbers": {"live_sessions": 0, "users": 0, "hashes": 100, "mails": 4000},
            "spans": [],
        },
    ),
    "users": (
        "operator/users.html",
        {"session": _OPERATOR, "path": "/operator/users", "asked": {"prefix": "a"}, "next": "x", "users": [_USER]},
    ),
    "users-none": (
        "operator/users.html",
        {"session": _OPERATOR, "path": "/operator/users", "asked": {}, "next": None, "users": []},
    ),
    "new-user": ("operator/new_user.html", {"session": _OPERATOR, "path": "/operator/new-user"}),
    "user": ("operator/user.html", {**_OF_USER, "user": _USER, "factors": _FACTORS, "sessions": [_SESSION]}),
    "user-plain": (
        "operator/user.html",
        {
            **_OF_USER,
            "user": {
                **_USER,
                "username": "عائشة",
                "disabled_at": None,
                "emails": [],
                "roles": [],
                "has_password": True,
            },
            "factors": {"factors": [], "passkeys": []},
            "sessions": [],
            "problem": "Please look at what is marked below.",
            "errors": {"profile": "This cannot be used here."},
        },
    ),
    "user-code": (
        "operator/code.html",
        {
            "session": _OPERATOR,
            "path": f"/operator/users/{_ID}/reset",
            "answer": {"reset": {"code": "0123456789abcdef" * 2, "expires_at": _NOW}},
        },
    ),
    "user-added": (
        "operator/code.html",
        {
            "session": _OPERATOR,
            "path": "/operator/new-user",
            "answer": {"user": _USER, "reset": {"code": "0123456789abcdef" * 2, "expires_at": _NOW}},
        },
    ),
    "events": (
        "operator/events.html",
        {
            "session": _OPERATOR,
            "path": "/operator/events",
            "asked": {"kind": "authn_login_fail"},
            "kinds": ["authn_login_fail", "authn_login_success"],
            "next": "x",
            "events": _EVENTS,
        },
    ),
}
"""Each page with what it may have to show. The operator's templates are tried with them when the service starts."""
