"""Recovery codes: for those who have lost their second factor. Only their hashes are stored."""

import hashlib
import re
import secrets
from typing import NamedTuple

COUNT = 10
# Crockford's base32: 16 characters are 80 bits.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1"})
_LENGTH = 16


class Codes(NamedTuple):
    """New recovery codes as ``XXXX-XXXX-XXXX-XXXX``, and what is stored of them."""

    written: list[str]
    hashes: list[bytes]


def new() -> Codes:
    """Ten codes."""
    codes = ["".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH)) for _ in range(COUNT)]
    return Codes(["-".join(re.findall("....", code)) for code in codes], [_hash(code) for code in codes])


def hash_given(code: str) -> bytes:
    """The hash of a code that somebody gives: case, spaces and hyphens are passed over, O is read as 0, I and L as
    1.
    """
    return _hash(re.sub(r"[\s-]", "", code[:128]).upper().translate(_READ_AS))


def _hash(code: str) -> bytes:
    # SHA-256: trying 2^80 codes is beyond whoever has read the database.
    return hashlib.sha256(code.encode("utf-8", "replace")).digest()
