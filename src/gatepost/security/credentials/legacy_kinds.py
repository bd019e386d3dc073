"""The kinds of digest that older systems write: crypt's, PHP's, LDAP's. The latter are kept in Argon2id."""

import ctypes
import ctypes.util
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Self

from argon2.low_level import Type, hash_secret_raw

from gatepost.security.credentials.alphabets import (
    CRYPT_ALPHABET,
    from_base64,
    from_crypt_base64,
    to_base64,
    to_crypt_base64,
)
from gatepost.security.credentials.limits import (
    MAX_ARGON2_ITERATIONS,
    MAX_ARGON2_LANES,
    MAX_ARGON2_MEMORY_KIB,
    PORTABLE_LOG2,
    YESCRYPT_COSTS,
    InvalidSetting,
    at_most,
)

# ------------------------------------------------------------------------------------------------- crypt

_DATA_BYTES = 32768  # libxcrypt's struct crypt_data
_CRYPT = {"sha256-crypt": "5", "sha512-crypt": "6", "yescrypt": "y"}


@cache
def _libcrypt() -> Any:
    """The C library's crypt. None where there is none, or only one that is not libxcrypt (musl, macOS)."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("crypt") or "libcrypt.so.1")
        library.crypt_rn.restype = ctypes.c_char_p
        library.crypt_rn.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
    except (OSError, AttributeError):
        return None
    return library


@dataclass(frozen=True, slots=True)
class Crypt:
    """crypt(3)'s ``$5$``, ``$6$`` and yescrypt ``$y$``, computed by the C library, which does not hold the GIL.

    Stored as ``$sha512-crypt$rounds=…$salt``, ``$yescrypt$j9T$salt``, the salt in base64.
    """

    family: ClassVar[str] = "crypt"
    form: ClassVar[re.Pattern[str]] = re.compile(
        r"\$(sha256-crypt|sha512-crypt|yescrypt)\$(rounds=([1-9]\d{3,5})|j[0-9A-Z]{2})\$([A-Za-z0-9+/]{0,86})"
    )
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_base64)
    variant: str
    costs: str
    rounds: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, variant: str, costs: str, rounds: str | None, salt: str) -> Self:
        """From the form's groups."""
        if (variant == "yescrypt") == (rounds is not None):
            raise InvalidSetting("not a kind of crypt that is known")
        if rounds is None and costs not in YESCRYPT_COSTS:
            raise InvalidSetting(f"yescrypt's costs must be one of {', '.join(YESCRYPT_COSTS)}")
        if _libcrypt() is None:
            raise InvalidSetting(f"this system's C library does not know {variant}")
        return cls(variant, costs, int(rounds or 0), from_base64(salt))

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        return f"${self.variant}${self.costs}"

    @property
    def length(self) -> int:
        """Bytes of the digest."""
        return 64 if self.variant == "sha512-crypt" else 32

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family: microseconds, roughly."""
        if self.rounds:
            return self.rounds
        return 4 * self.memory_kib

    @property
    def memory_kib(self) -> int:
        """What computing it takes."""
        if self.rounds:
            return 1
        n, r = (CRYPT_ALPHABET.index(letter) + 1 for letter in self.costs[1:])
        return 128 * r * (1 << n) // 1024

    def derive(self, secret: bytes) -> bytes:
        """The digest; zeros for a password that the C library does not take (more than 512 bytes)."""
        # A dummy's salt is any bytes.
        letters = (chr(b) if chr(b) in CRYPT_ALPHABET else CRYPT_ALPHABET[b & 63] for b in self.salt)
        setting = f"${_CRYPT[self.variant]}${self.costs}${''.join(letters)}"
        data = ctypes.create_string_buffer(_DATA_BYTES)
        found = _libcrypt().crypt_rn(secret, setting.encode(), data, _DATA_BYTES)
        if found is None:
            return bytes(self.length)
        return from_crypt_base64(found.decode().rpartition("$")[2])[: self.length]


# --------------------------------------------------------------------------------------------------- PHP


@dataclass(frozen=True, slots=True)
class Portable:
    """phpass' portable hashes (``$P$``, ``$H$``: MD5) and Drupal 7's (``$S$``: SHA-512, cut off), 2^n times over.

    Stored as ``$phpass$n=…$salt``, ``$drupal$n=…$salt``.
    """

    family: ClassVar[str] = "portable"
    form: ClassVar[re.Pattern[str]] = re.compile(r"\$(phpass|drupal)\$n=([1-9]\d?)\$([A-Za-z0-9+/]{0,86})")
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_base64)
    memory_kib: ClassVar[int] = 1
    variant: str
    log2: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, variant: str, log2: str, salt: str) -> Self:
        """From the form's groups."""
        if int(log2) not in PORTABLE_LOG2:
            raise InvalidSetting(f"{variant}'s rounds must be 2^{PORTABLE_LOG2[0]} to 2^{PORTABLE_LOG2[-1]}")
        return cls(variant, int(log2), from_base64(salt))

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        return f"${self.variant}$n={self.log2}"

    @property
    def length(self) -> int:
        """Bytes of the digest."""
        return 16 if self.variant == "phpass" else 32

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family."""
        return (1 << self.log2) * (1 if self.variant == "phpass" else 2)

    def derive(self, secret: bytes) -> bytes:
        """The digest.

        hashlib does not release the GIL for so little, so other threads are let in every 0.2 ms.
        """
        name = "md5" if self.variant == "phpass" else "sha512"
        digest = hashlib.new(name, self.salt + secret, usedforsecurity=False).digest()
        for n in range(1 << self.log2):
            digest = hashlib.new(name, digest + secret, usedforsecurity=False).digest()
            if n % 256 == 0:
                time.sleep(0)
        return digest[: self.length]


# -------------------------------------------------------------------------------------------------- LDAP


@dataclass(frozen=True, slots=True)
class Wrapped:
    """Argon2id of a digest that is fast to compute: LDAP's ``{SHA}``, ``{SSHA}`` and so on, one round of a hash.

    Whoever steals the database has to break the Argon2id. Stored as ``$ldap-argon2id$h=…,m=…,t=…,p=…$salt``; the salt
    is Argon2id's 16 bytes, and then the inner one.
    """

    family: ClassVar[str] = "argon2"
    form: ClassVar[re.Pattern[str]] = re.compile(
        r"\$ldap-argon2id\$h=(md5|sha1|sha256|sha512),m=([1-9]\d{0,6}),t=([1-9]\d{0,2}),p=([1-9]\d{0,2})"
        r"\$([A-Za-z0-9+/]{22,86})"
    )
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_base64)
    length: ClassVar[int] = 32
    hash_name: str
    memory_kib: int
    iterations: int
    parallelism: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, hash_name: str, m: str, t: str, p: str, salt: str) -> Self:
        """From the form's groups."""
        it = cls(hash_name, int(m), int(t), int(p), from_base64(salt))
        at_most("argon2's m", it.memory_kib, MAX_ARGON2_MEMORY_KIB)
        at_most("argon2's t", it.iterations, MAX_ARGON2_ITERATIONS)
        at_most("argon2's p", it.parallelism, MAX_ARGON2_LANES)
        if it.memory_kib < 8 * it.parallelism:
            raise InvalidSetting("argon2's m must be at least 8 times its p")
        return it

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        return f"$ldap-argon2id$h={self.hash_name},m={self.memory_kib},t={self.iterations},p={self.parallelism}"

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family."""
        return self.memory_kib * self.iterations

    def derive(self, secret: bytes) -> bytes:
        """The digest."""
        return self.wrap(hashlib.new(self.hash_name, secret + self.salt[16:], usedforsecurity=False).digest())

    def wrap(self, inner: bytes) -> bytes:
        """The digest of an inner digest."""
        return hash_secret_raw(
            secret=inner,
            salt=self.salt[:16],
            time_cost=self.iterations,
            memory_cost=self.memory_kib,
            parallelism=self.parallelism,
            hash_len=self.length,
            type=Type.ID,
        )


def crypt_text(kind: Crypt | Portable, digest: bytes) -> str:
    """The hash as its system wrote it (of Drupal's last character, two bits are lost)."""
    salt, encoded = kind.salt.decode(), to_crypt_base64(digest)
    if isinstance(kind, Portable):
        return f"${'P' if kind.variant == 'phpass' else 'S'}${CRYPT_ALPHABET[kind.log2]}{salt}{encoded}"
    return f"${_CRYPT[kind.variant]}${kind.costs}${salt}${encoded}"
