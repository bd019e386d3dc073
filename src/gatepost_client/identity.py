"""What a check answers: who is signed in, nobody, or that it is not known."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

_TOKEN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_AUTHORIZATION = re.compile(rf"(?:[Bb][Ee][Aa][Rr][Ee][Rr] +)?({_TOKEN.pattern})")


class NotKnown(Exception):
    """Whether the session is live could not be found out: answer 503, never 401, and let nobody in.

    ``retry_after``: seconds to tell the client.
    """

    retry_after = 1


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A user and the live session that speaks for it."""

    user_id: str
    username: str
    roles: frozenset[str]
    session: str
    """The session's handle, worth nothing to a thief."""
    expires_at: datetime
    profile: Mapping[str, Any] = field(default_factory=dict)
    amr: frozenset[str] = frozenset()
    """How the user has proved who it is, in the terms of RFC 8176."""
    authenticated_at: datetime | None = None
    """When last; None of a Gatepost that does not say so."""

    @property
    def two_factors(self) -> bool:
        """Whether by two factors."""
        return "mfa" in self.amr

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Read what `GET /user` answers. Raises KeyError, TypeError, ValueError."""
        user, session = document["user"], document["session"]
        return cls(
            user["id"],
            user["username"],
            frozenset(user["roles"]),
            session["handle"],
            datetime.fromisoformat(session["expires_at"]),
            user["profile"],
            frozenset(session.get("amr", ())),
            datetime.fromisoformat(proved) if (proved := session.get("authenticated_at")) else None,
        )


def is_token(text: str) -> bool:
    """Whether it can be a session's token at all: 36 characters, a version 4 UUID in lower case."""
    return len(text) == 36 and _TOKEN.fullmatch(text) is not None


def bearer(authorization: str | None) -> str | None:
    """The session token in an ``Authorization`` header, raw or after ``Bearer`` (RFC 6750); None if there is none."""
    match = _AUTHORIZATION.fullmatch(authorization or "")
    return match[1] if match else None
