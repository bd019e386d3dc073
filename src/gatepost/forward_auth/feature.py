"""Answers for proxies."""

from gatepost.forward_auth import handlers
from gatepost.http.feature import Feature

FEATURE = Feature(
    routes=handlers.routes,
    tags={
        "authz": "For proxies that ask whether a request may pass.",
    },
)
