"""What lists of breached passwords have of one: the SHA-1 of its UTF-8."""

import hashlib


def sha1(password: str) -> bytes:
    """20 bytes. SHA-1 protects nothing here: it is how the published lists are written."""
    return hashlib.sha1(password.encode("utf-8", "replace"), usedforsecurity=False).digest()


def key(password: str) -> int:
    """Its first 64 bits, as `elias_fano.HashSet` has them."""
    return int.from_bytes(sha1(password)[:8], "big")
