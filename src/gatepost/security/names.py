"""What a username is (RFC 8265, so that one person has one name however it is typed), and what a role is called."""

import re
import unicodedata

from gatepost.security.precis import Profile

MAX_LENGTH = 128

# What a role is called, as other systems call theirs too; nothing in it needs quoting in a header or a list.
ROLE = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$"
MAX_ROLES = 32

_ASCII_REFUSED = re.compile(r"[\x00-\x20\x7f]")

_mapped = Profile("UsernameCaseMapped")
_preserved = Profile("UsernameCasePreserved")


class InvalidName(ValueError):
    """The name cannot be a username; the message says why, without repeating it."""


def canonical(name: str) -> str:
    """The form in which names are compared: UsernameCaseMapped (RFC 8265 §3.3).

    Idempotent, and one to a person: case, width and composition do not tell names apart. Raises InvalidName for
    more than ``MAX_LENGTH`` characters and for what the profile does not allow (spaces, controls, …).
    """
    return _enforce(_mapped, name)


def display(name: str) -> str:
    """The form that is shown: UsernameCasePreserved (RFC 8265 §3.4). Raises InvalidName as `canonical` does."""
    return _enforce(_preserved, name)


def _enforce(profile: Profile, name: str) -> str:
    if not name:
        raise InvalidName("must not be empty")
    if len(name) > MAX_LENGTH:
        raise InvalidName(f"must have at most {MAX_LENGTH} characters")
    if name.isascii():
        # This does all that the profiles do to ASCII, in a 50th of the time; a login tells no impossible name by it.
        if refused := _ASCII_REFUSED.search(name):
            raise InvalidName(_refused(name, refused.start(), "spaces" if refused[0] == " " else "controls"))
        return name.lower() if profile is _mapped else name
    # RFC 8264 §7: applying the rules may need repeating until nothing changes, and is given up after a few times.
    for _ in range(4):
        try:
            enforced = profile.enforce(name)
        except UnicodeEncodeError as error:
            raise InvalidName(_why(error)) from None
        if len(enforced) > MAX_LENGTH:  # some characters come apart
            raise InvalidName(f"must have at most {MAX_LENGTH} characters")
        if enforced == name:
            return name
        name = enforced
    raise InvalidName("has no stable form")


def _why(error: UnicodeEncodeError) -> str:
    reason = error.reason.removeprefix("DISALLOWED/").replace("_", " ")
    if error.start >= len(error.object):
        return f"is not allowed ({reason})"
    return _refused(error.object, error.start, reason)


def _refused(text: str, start: int, reason: str) -> str:
    name = unicodedata.name(text[start], f"U+{ord(text[start]):04X}")
    return f"must not contain {name} at position {start + 1} ({reason})"
