"""A code is worth one new password."""

from gatepost.http.feature import Feature
from gatepost.recovery import handlers

FEATURE = Feature(routes=handlers.routes)
