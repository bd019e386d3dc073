"""A password as bytes: prepared by Gatepost's rule, or by that of the system that an imported hash came from."""

from dataclasses import dataclass, field

from gatepost.security.precis import Profile

# How the password is prepared: RFC 8265 OpaqueString. Kept with the digest, so that it can change one day.
NORM = "opaque"
# Its UTF-8 as it was typed: what every system whose hashes can be imported does.
RAW = "raw"
# A character may be written with up to three code points before it is prepared. More of them than this many times
# the greatest length cannot be a password, and are not worth the time of preparing.
SPREAD = 3

_opaque = Profile("OpaqueString")


class InvalidPassword(ValueError):
    """The text cannot be a password; the message says why, without repeating it."""


def prepare(password: str) -> bytes:
    """The bytes that are hashed: OpaqueString (RFC 8265 §4.2), UTF-8. Raises InvalidPassword."""
    if password.isascii() and password.isprintable() and password:
        return password.encode()  # the profile changes nothing here, and costs 0.3 ms a 1,000 characters
    try:
        return _opaque.enforce(password).encode()
    except UnicodeEncodeError as error:
        reason = error.reason.removeprefix("DISALLOWED/").replace("_", " ")
        raise InvalidPassword(f"has a character that a password cannot have ({reason})") from None


def secret_bytes(password: str, norm: str, max_length: int) -> bytes | None:
    """What is hashed under ``norm``, or None for text that matches no digest. The work is that of both norms."""
    if len(password) > SPREAD * max_length:
        return None
    try:
        # The profile would refuse these too, and take ten times as long as for a password that can be one.
        prepared = None if password.isascii() and not password.isprintable() else prepare(password)
    except InvalidPassword:
        prepared = None
    if norm != RAW:
        return prepared
    # C implementations of bcrypt end at a NUL, others do not: nobody signs in with one. Empty is no password.
    return None if not password or "\0" in password else password.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Setting:
    """How one digest was made: ``phc`` as stored, the id of its pepper, how the password was prepared."""

    phc: str
    pepper: str | None
    norm: str = NORM


@dataclass(frozen=True, slots=True)
class Stored:
    """A password as it is kept."""

    setting: Setting
    digest: bytes = field(repr=False)

    @property
    def norm(self) -> str:
        """How the password was prepared."""
        return self.setting.norm
