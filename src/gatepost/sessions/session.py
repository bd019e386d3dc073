"""What a session is, and the user it speaks for."""

import hashlib
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypedDict
from uuid import UUID


def hash_token(token: str) -> bytes:
    """SHA-256 of a token: all that is stored of it. 122 random bits need no slow hash."""
    return hashlib.sha256(token.encode("ascii")).digest()


def timestamp(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC, as Postgres writes it in JSON too."""
    return moment.astimezone(UTC).isoformat()


class UserDocument(TypedDict):
    """The ``user`` object of the API."""

    id: str
    username: str
    roles: list[str]
    profile: dict[str, Any]


class SessionDocument(TypedDict):
    """The ``session`` object of the API."""

    handle: str
    created_at: str
    last_seen_at: str
    expires_at: str
    ip: str | None
    user_agent: str | None


class User(NamedTuple):
    """A user as others see them."""

    id: UUID
    username: str
    roles: list[str]
    profile: dict[str, Any]

    def public(self) -> UserDocument:
        """As the API shows it."""
        return {
            "id": str(self.id),
            "username": self.username,
            "roles": self.roles,
            "profile": self.profile,
        }


class Session(NamedTuple):
    """A live session. ``handle`` is its public name; its token is nowhere to be had.

    Identifiers are the text Postgres gives: a check hands them on and computes nothing with them.
    """

    handle: str
    user_id: str
    roles: list[str]
    document: str
    """What `GET /user` answers, as JSON."""
