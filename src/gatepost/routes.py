"""The whole route table, and the document that describes it. The only module that knows all features' handlers."""

from functools import cache

from gatepost.accounts import export_handlers as account_export
from gatepost.accounts import handlers as accounts
from gatepost.admin import events_handlers as admin_events
from gatepost.admin import handlers as admin
from gatepost.forward_auth import handlers as forward_auth
from gatepost.ops import handlers as ops
from gatepost.ops import openapi
from gatepost.recovery import handlers as recovery
from gatepost.sessions import handlers as sessions
from gatepost.sessions import own as own_sessions

PUBLIC_ROUTES = [
    *sessions.routes,
    *own_sessions.routes,
    *accounts.routes,
    *account_export.routes,
    *recovery.routes,
    *forward_auth.routes,
    *ops.routes,
]
OPERATOR_ROUTES = [*ops.operator_routes, *admin.routes, *admin_events.routes]
"""What `webserver.operator_port` moves to an address of its own."""
ROUTES = PUBLIC_ROUTES + OPERATOR_ROUTES


@cache
def api_document() -> bytes:
    """What `/openapi.json` answers. The routes are always the same, so it is made once: 65 KB for all answers."""
    return openapi.render(ROUTES).encode()
