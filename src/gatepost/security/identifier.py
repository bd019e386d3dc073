"""What somebody is found by: a username, or a verified mail address in its place."""

from typing import NamedTuple, Self

from gatepost.security import email
from gatepost.security.names import MAX_LENGTH, InvalidName, canonical


class Identifier(NamedTuple):
    """``name``: as names are compared. ``address``: as addresses are compared, for what can be one. A user of this
    name comes before a user with this address.
    """

    name: str
    address: str | None = None

    @classmethod
    def of(cls, text: str, *, addresses: bool) -> Self:
        """What was typed. ``addresses``: whether users have any."""
        address = email.canonical(text) if addresses else None
        try:
            return cls(canonical(text), address)
        except InvalidName:
            # A name that matches no user, since names contain no space. Not NULL, for which Postgres would do less
            # work.
            return cls(f" {text[:MAX_LENGTH]}", address)

    @property
    def subject(self) -> str:
        """Whose attempts are counted: one mailbox is one subject, however its address is typed."""
        return self.address or self.name
