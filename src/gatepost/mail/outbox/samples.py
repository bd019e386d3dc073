"""The kinds of mail that there are."""

from typing import Any

SAMPLES: dict[str, dict[str, Any]] = {
    "verify_email": {"code": "7KQ2-M9XD"},
    "recovery": {"username": "ada", "code": "7KQ2-M9XD"},
    "invitation": {"username": "ada", "code": "0" * 32},
    "email_changed": {"username": "ada", "code": "0" * 32, "change": "added", "address": "new@example.org"},
    "password_changed": {"username": "ada"},
    "password_recovered": {"username": "ada"},
    "factor_changed": {"username": "ada", "change": "recovery_code", "left": 9},
    "test": {},
}
"""Every kind of mail, with values such as its template is given, beside those of `templating.Templates.render`."""
