"""What a session is, and the user it speaks for."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, NamedTuple, NotRequired
from uuid import UUID

from typing_extensions import TypedDict


def hash_token(token: str) -> bytes:
    """SHA-256 of a token: all that is stored of it. 122 random bits need no slow hash."""
    return hashlib.sha256(token.encode("ascii")).digest()


def timestamp(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC, as Postgres writes it in JSON too."""
    return moment.astimezone(UTC).isoformat()


class Done(TypedDict):
    """It is done."""

    status: Literal["success"]


class UserDocument(TypedDict):
    """The ``user`` object of the API."""

    id: str
    username: str
    roles: list[str]
    profile: dict[str, Any]


class LoginAnswer(TypedDict):
    """A new session; its token is told here and never again.

    ``password_breached``: the password is known from a breach of another service, so its user should choose another.
    """

    session_id: str
    expires_at: str
    user: UserDocument
    password_breached: NotRequired[Literal[True]]


class SessionDocument(TypedDict):
    """The ``session`` object of the API.

    ``amr``: how its user has proved who it is, in the terms of RFC 8176; ``authenticated_at``: when last.
    """

    handle: str
    created_at: str
    last_seen_at: str
    expires_at: str
    ip: str | None
    user_agent: str | None
    amr: list[str]
    authenticated_at: str


class WhoAmIAnswer(TypedDict):
    """A user and the session that speaks for it."""

    user: UserDocument
    session: SessionDocument


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


@dataclass(frozen=True)
class Session:
    """A live session.

    ``document`` is what `GET /user` answers, as Postgres wrote it; it is read only when somebody asks for a part.
    """

    token_hash: bytes
    canonical: str
    """The user's name as names are compared."""
    document: str
    confirmed_ago: float
    """Seconds since its user has last proved who it is, by the database's clock."""
    two_factors: bool
    """Whether by two factors."""
    restricted: bool
    """Whether a role of its user demands two factors and it has been one: all it may do is add another."""

    @cached_property
    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = json.loads(self.document)
        return parts

    @property
    def handle(self) -> str:
        """Its public name; worth nothing to a thief."""
        handle: str = self._parts["session"]["handle"]
        return handle

    @property
    def user_id(self) -> str:
        """Whose it is."""
        user_id: str = self._parts["user"]["id"]
        return user_id

    @property
    def username(self) -> str:
        """The user's name as it is shown."""
        username: str = self._parts["user"]["username"]
        return username

    @property
    def roles(self) -> list[str]:
        """The user's roles."""
        roles: list[str] = self._parts["user"]["roles"]
        return roles
