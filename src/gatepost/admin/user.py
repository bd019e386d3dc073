"""A user as operators see it, and what they may say of one."""

import secrets
import unicodedata
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from gatepost.security.names import MAX_ROLES, ROLE, InvalidName, canonical
from gatepost.sessions.session import UserDocument, timestamp


def in_order(roles: list[str]) -> list[str]:
    """Each once, sorted: as they are stored."""
    return sorted(set(roles))


Role = Annotated[str, Field(pattern=ROLE)]
Roles = Annotated[list[Role], Field(max_length=MAX_ROLES), AfterValidator(in_order)]


class EmailRecord(TypedDict):
    """A mail address as operators see it."""

    address: str
    verified: bool
    primary: bool


class UserRecord(UserDocument):
    """A user as operators see it. ``has_password``: whether there is one to log in with."""

    has_password: bool
    emails: list[EmailRecord]
    created_at: str
    disabled_at: str | None


class Managed(NamedTuple):
    """A row about a user, for operators."""

    id: str
    username: str
    canonical: str
    roles: list[str]
    profile: dict[str, Any]
    has_password: bool
    emails: list[EmailRecord]
    created_at: datetime
    disabled_at: datetime | None

    @property
    def subjects(self) -> list[str]:
        """What attempts at this account are counted for: the name, and the addresses that are as good."""
        return [self.canonical, *(email["address"].lower() for email in self.emails if email["verified"])]

    def record(self) -> UserRecord:
        """As the API shows it."""
        return {
            "id": self.id,
            "username": self.username,
            "roles": self.roles,
            "profile": self.profile,
            "has_password": self.has_password,
            "emails": self.emails,
            "created_at": timestamp(self.created_at),
            "disabled_at": timestamp(self.disabled_at) if self.disabled_at else None,
        }


def canonical_prefix(text: str) -> str:
    """The canonical form of the beginning of a name. A beginning need not be a valid name: where RFC 8265 does not
    allow it to stand alone, its width, case and composition rules are applied as far as they go.
    """
    try:
        return canonical(text) if text else ""
    except InvalidName:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", readable(text)).lower())


def readable(text: str) -> str:
    """Valid UTF-8: a shell passes on any bytes."""
    return text.encode("utf-8", "replace").decode()


def new_code() -> str:
    """A reset code: 128 random bits, in characters that can be read out over a telephone."""
    return secrets.token_hex(16)
