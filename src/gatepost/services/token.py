"""The token of a service: long-lived, shown once, and told from a session's by its beginning."""

import re
import secrets

# The beginning is for scanners that look for secrets in repositories; then 256 random bits.
PREFIX = "gps_"
_TOKEN = re.compile(rf"(?:[Bb][Ee][Aa][Rr][Ee][Rr] +)?({PREFIX}[A-Za-z0-9_-]{{43}})")


def new_token() -> str:
    """A token that no service has."""
    return PREFIX + secrets.token_urlsafe(32)


def service_token(authorization: str) -> str | None:
    """The service token in an ``Authorization`` header, raw or after ``Bearer``; None if it has none."""
    match = _TOKEN.fullmatch(authorization)
    return match[1] if match else None
