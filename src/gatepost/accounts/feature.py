"""Registering, changing, taking along and deleting one's own account."""

from gatepost.accounts import export_handlers, handlers
from gatepost.http.feature import Feature

FEATURE = Feature(
    routes=[*handlers.routes, *export_handlers.routes],
    tags={
        "account": "One's own account: register, read, change, export, delete.",
    },
    events={
        "authn_password_change": "with a code, its `reason`: `reset` for an operator's, `recovery` for a mailed one",
        "authn_password_change_fail": "the current password was wrong, also where an account was to be deleted",
        "user_created": "`roles`, if any",
        "user_updated": "`changed`: `username`, `profile`, or both; not their values",
        "user_deleted": "the id remains, no name",
    },
)
