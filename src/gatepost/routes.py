"""The features, and the whole route table. The only module that knows every feature."""

from functools import cache

from gatepost.accounts.feature import FEATURE as ACCOUNTS
from gatepost.admin.feature import FEATURE as ADMIN
from gatepost.breached.feature import FEATURE as BREACHED
from gatepost.config import Config
from gatepost.factors.feature import FEATURE as FACTORS
from gatepost.feed.feature import FEATURE as FEED
from gatepost.forward_auth.feature import FEATURE as FORWARD_AUTH
from gatepost.mail.feature import FEATURE as MAIL
from gatepost.ops import openapi
from gatepost.ops.feature import FEATURE as OPS
from gatepost.pages.feature import FEATURE as PAGES
from gatepost.recovery.feature import FEATURE as RECOVERY
from gatepost.row_level_security.feature import FEATURE as ROW_LEVEL_SECURITY
from gatepost.services.feature import FEATURE as SERVICES
from gatepost.sessions.feature import FEATURE as SESSIONS
from gatepost.transfer.feature import FEATURE as TRANSFER

FEATURES = [
    BREACHED,
    SESSIONS,
    MAIL,
    FACTORS,
    ACCOUNTS,
    RECOVERY,
    FORWARD_AUTH,
    SERVICES,
    FEED,
    ROW_LEVEL_SECURITY,
    OPS,
    ADMIN,
    TRANSFER,
    PAGES,
]
"""In the order in which they open: one may use what those before it have shared."""

PUBLIC_ROUTES = [route for feature in FEATURES for route in feature.routes]
OPERATOR_ROUTES = [route for feature in FEATURES for route in feature.operator_routes]
"""What `webserver.operator_port` moves to an address of its own."""
ROUTES = PUBLIC_ROUTES + OPERATOR_ROUTES
PUBLIC_PAGES = [route for feature in FEATURES for route in feature.pages]
OPERATOR_PAGES = [route for feature in FEATURES for route in feature.operator_pages]
"""What people look at, where `pages.enabled` says so; not part of the API."""
TAGS = {name: text for feature in FEATURES for name, text in feature.tags.items()}
"""What the first part of a path stands for."""

for settings in filter(None, (feature.settings for feature in FEATURES)):
    Config.add_section(settings.name, settings.model)


@cache
def api_document() -> bytes:
    """What `/openapi.json` answers. The routes are always the same, so it is made once: 65 KB for all answers."""
    return openapi.render(ROUTES, TAGS).encode()
