"""Codes that are mailed: one to type, and one in a link. Only their hashes are stored."""

import hashlib
import re
import secrets
from typing import NamedTuple

from argon2.low_level import Type, hash_secret_raw

# Crockford's base32: without I, L, O and U, so that nothing is mistaken for something else, and no word comes about.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1"})
_TYPED = re.compile(f"[{_ALPHABET}]{{8}}")
_LINK_BYTES = 16


class Code(NamedTuple):
    """A new code in both forms, and what is stored of them. ``typed``: 40 random bits as ``XXXX-XXXX``."""

    typed: str
    link: str
    typed_hash: bytes
    link_hash: bytes


def new(purpose: str, subject: str) -> Code:
    """A code for this purpose. ``subject``: what whoever types it must know too, as given to `hash_given`.

    Takes a millisecond: run it on a thread.
    """
    typed = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    link = secrets.token_hex(_LINK_BYTES)
    return Code(f"{typed[:4]}-{typed[4:]}", link, _hash_typed(typed, purpose, subject), hash_link(link))


def hash_link(code: str) -> bytes:
    """SHA-256 of a code from a link, or from an operator: 128 random bits need no slow hash.

    Case and spaces are ignored: the code may have been read out over a telephone.
    """
    return hashlib.sha256("".join(code.lower().split()).encode()).digest()


def as_typed(code: str) -> str | None:
    """What was typed, in the alphabet's own characters; None for what is no code to type."""
    text = re.sub(r"[\s-]", "", code[:64]).upper().translate(_READ_AS)
    return text if _TYPED.fullmatch(text) else None


def hash_given(code: str, purpose: str, subject: str) -> bytes:
    """The hash of a code that somebody gives, in either form. Takes up to a millisecond: run it on a thread."""
    typed = as_typed(code)
    return hash_link(code) if typed is None else _hash_typed(typed, purpose, subject)


def _hash_typed(typed: str, purpose: str, subject: str) -> bytes:
    # Who has read the database could try all 2^40 codes: at 1 MiB and 1 ms each that takes 35 years of one core,
    # and the code lasts an hour. What the password's hash costs (25 ms) would limit how fast mail is sent.
    salt = hashlib.sha256(f"{purpose}\0{subject}".encode()).digest()[:16]
    return hash_secret_raw(
        typed.encode(), salt, time_cost=1, memory_cost=1024, parallelism=1, hash_len=32, type=Type.ID
    )
