"""LDAP's hashes of one round (RFC 2307): too fast to guess for being kept as they are."""

import hashlib
import os
from typing import NamedTuple

from gatepost.security.credentials.alphabets import from_base64
from gatepost.security.credentials.kinds import SALT_BYTES, setting_of
from gatepost.security.credentials.legacy_kinds import Wrapped
from gatepost.security.credentials.limits import MAX_HASH, MAX_SALT_BYTES, InvalidHash
from gatepost.security.credentials.password import RAW, Setting, Stored


class Fast(NamedTuple):
    """A hash that takes one round: it is wrapped in Argon2id before it is stored."""

    hash_name: str
    salt: bytes
    digest: bytes

    def wrap(self, memory_kib: int, iterations: int, parallelism: int) -> Stored:
        """What is stored in its place. Takes as long as one of our own hashes."""
        salt = os.urandom(SALT_BYTES) + self.salt
        kind = Wrapped(self.hash_name, memory_kib, iterations, parallelism, salt)
        return Stored(Setting(setting_of(kind), None, RAW), kind.wrap(self.digest))


_LDAP = {"MD5": "md5", "SHA": "sha1", "SHA256": "sha256", "SHA512": "sha512"}
_LDAP |= {"SMD5": "md5"} | {f"S{name}": hash_name for name, hash_name in _LDAP.items() if name != "MD5"}


def read(text: str) -> Fast | None:
    """``{SHA}…``, ``{SSHA256}…`` and their like (RFC 2307); None for another hash. Raises InvalidHash."""
    name, brace, rest = text[:MAX_HASH].partition("}")
    hash_name = _LDAP.get(name[1:].upper()) if brace and name.startswith("{") else None
    if hash_name is None:
        return None
    try:
        whole = from_base64(rest.rstrip("="))
    except ValueError:
        raise InvalidHash("is damaged: what follows the braces is not base64") from None
    size = hashlib.new(hash_name, usedforsecurity=False).digest_size
    salt = whole[size:]
    if (
        len(whole) < size
        or bool(salt) != name[1:].upper().startswith(("SS", "SM"))
        or len(salt) > MAX_SALT_BYTES - SALT_BYTES
    ):
        raise InvalidHash("is damaged: it has not the length that its beginning announces")
    return Fast(hash_name, salt, whole[:size])
