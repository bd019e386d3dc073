"""Many checks in one call, for services with a token of their own."""

from gatepost.http.feature import Feature
from gatepost.services import commands, handlers

FEATURE = Feature(
    routes=handlers.routes,
    commands=commands.register,
    events={"service_added": "`name`; `by` is `operator`", "service_revoked": "`name`; `by` is `operator`"},
)
