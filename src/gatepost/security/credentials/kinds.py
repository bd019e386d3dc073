"""The kinds of digest: ours, and those that users bring along from elsewhere.

Each is read from a *setting*: a hash as its system writes it, without its last field, the digest. A setting whose
costs exceed the limits is refused before anything is computed. Every `derive` releases the GIL.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeAlias

from argon2.low_level import Type, hash_secret_raw

from gatepost.security.credentials.alphabets import (
    from_adapted_base64,
    from_base64,
    from_bcrypt_base64,
    to_adapted_base64,
    to_base64,
    to_bcrypt_base64,
)
from gatepost.security.credentials.legacy_kinds import Crypt, Portable, Wrapped
from gatepost.security.credentials.limits import (
    BCRYPT_ROUNDS,
    MAX_ARGON2_ITERATIONS,
    MAX_ARGON2_LANES,
    MAX_ARGON2_MEMORY_KIB,
    MAX_DIGEST_BYTES,
    MAX_PBKDF2_ITERATIONS,
    MAX_SALT_BYTES,
    MAX_SCRYPT_LN,
    MAX_SCRYPT_P,
    MAX_SCRYPT_R,
    MAX_SMALL_SCRYPT_P,
    MIN_DIGEST_BYTES,
    SMALL_SCRYPT_LN,
    InvalidSetting,
    at_most,
)

SALT_BYTES = 16
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Argon2:
    """PHC ``$argon2id$v=19$m=…,t=…,p=…$salt``; ``,l=`` where the digest has other than 32 bytes.

    libsodium would take half the time (with AVX-512), but maps the memory of each hash anew: under the same flood of
    logins others then waited three times as long, and what all threads hash in came and went (measured).
    """

    family: ClassVar[str] = "argon2"
    form: ClassVar[re.Pattern[str]] = re.compile(
        r"\$(argon2id|argon2i)\$v=(16|19)\$m=([1-9]\d{0,6}),t=([1-9]\d{0,2}),p=([1-9]\d{0,2})(?:,l=(\d{1,3}))?"
        r"\$([A-Za-z0-9+/]{11,86})"
    )
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_base64)
    variant: str
    version: int
    memory_kib: int
    iterations: int
    parallelism: int
    length: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, variant: str, version: str, m: str, t: str, p: str, length: str | None, salt: str) -> Self:
        """From the form's groups."""
        it = cls(variant, int(version), int(m), int(t), int(p), int(length or DIGEST_BYTES), from_base64(salt))
        at_most("argon2's m", it.memory_kib, MAX_ARGON2_MEMORY_KIB)
        at_most("argon2's t", it.iterations, MAX_ARGON2_ITERATIONS)
        at_most("argon2's p", it.parallelism, MAX_ARGON2_LANES)
        if it.memory_kib < 8 * it.parallelism:
            raise InvalidSetting("argon2's m must be at least 8 times its p")
        return it

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        length = "" if self.length == DIGEST_BYTES else f",l={self.length}"
        costs = f"m={self.memory_kib},t={self.iterations},p={self.parallelism}"
        return f"${self.variant}$v={self.version}${costs}{length}"

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family."""
        return self.memory_kib * self.iterations

    def derive(self, secret: bytes) -> bytes:
        """The digest."""
        return hash_secret_raw(
            secret=secret,
            salt=self.salt,
            time_cost=self.iterations,
            memory_cost=self.memory_kib,
            parallelism=self.parallelism,
            hash_len=self.length,
            type=Type.ID if self.variant == "argon2id" else Type.I,
            version=self.version,
        )


# What bcrypt is given: the password, or a digest of it that fits into 72 bytes.
_PREHASH: dict[str, Callable[[bytes, str], bytes]] = {
    "$2b": lambda secret, _: secret,
    "$bcrypt-sha256$v=1,t=2b": lambda secret, _: base64.b64encode(hashlib.sha256(secret).digest()),
    "$bcrypt-sha256$v=2,t=2b": lambda secret, salt: base64.b64encode(hmac.digest(salt.encode(), secret, "sha256")),
    "$django-bcrypt-sha256$t=2b": lambda secret, _: hashlib.sha256(secret).hexdigest().encode(),
    # WordPress 6.8 takes away the same characters when a password is chosen.
    "$wp-bcrypt$t=2b": lambda secret, _: base64.b64encode(
        hmac.digest(b"wp-sha384", secret.strip(b" \t\n\r\0\x0b"), "sha384")
    ),
}


@dataclass(frozen=True, slots=True)
class Bcrypt:
    """``$2b$rounds$salt``; what ``$2a$`` and ``$2y$`` meant is the same. Also of a digest: passlib's, Django's and
    WordPress'.
    """

    family: ClassVar[str] = "bcrypt"
    form: ClassVar[re.Pattern[str]] = re.compile(
        r"(\$2b\$|\$(?:bcrypt-sha256\$v=[12]|(?:django-bcrypt-sha256|wp-bcrypt)\$t=2b),(?:t=2b,)?r=)(\d{1,2})\$([./A-Za-z0-9]{22})"
    )
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_bcrypt_base64)
    length: ClassVar[int] = 23
    memory_kib: ClassVar[int] = 5
    variant: str
    rounds: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, prefix: str, rounds: str, salt: str) -> Self:
        """From the form's groups."""
        it = cls(prefix.removesuffix("$").removesuffix(",r="), int(rounds), from_bcrypt_base64(salt))
        if it.variant not in _PREHASH:
            raise InvalidSetting("not a variant of bcrypt that is known")
        if it.rounds not in BCRYPT_ROUNDS:
            raise InvalidSetting(f"bcrypt's rounds must be {BCRYPT_ROUNDS[0]} to {BCRYPT_ROUNDS[-1]}")
        return it

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        return f"$2b${self.rounds:02}" if self.variant == "$2b" else f"{self.variant},r={self.rounds}"

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family."""
        return 1 << self.rounds

    def derive(self, secret: bytes) -> bytes:
        """The digest. All implementations look at 72 bytes; the package wants them cut by its caller."""
        # Imported here: few deployments need it (0.5 MB). Where such hashes are stored, one is computed before
        # serving begins.
        import bcrypt  # noqa: PLC0415

        salt = to_bcrypt_base64(self.salt)
        given = _PREHASH[self.variant](secret, salt)[:72]
        return from_bcrypt_base64(bcrypt.hashpw(given, f"$2b${self.rounds:02}${salt}".encode())[29:].decode())


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """passlib's ``$pbkdf2-sha256$iterations$salt``; ``$pbkdf2$`` is SHA-1. The digest is one whole block."""

    family: ClassVar[str] = "pbkdf2"
    form: ClassVar[re.Pattern[str]] = re.compile(r"\$pbkdf2(|-sha256|-sha512)\$([1-9]\d{0,9})\$([A-Za-z0-9./]{0,86})")
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_adapted_base64)
    memory_kib: ClassVar[int] = 1
    hash_name: str
    iterations: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, suffix: str, iterations: str, salt: str) -> Self:
        """From the form's groups."""
        it = cls(suffix.removeprefix("-") or "sha1", int(iterations), from_adapted_base64(salt))
        at_most("PBKDF2's iterations", it.iterations, MAX_PBKDF2_ITERATIONS)
        return it

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        return f"$pbkdf2{'' if self.hash_name == 'sha1' else '-' + self.hash_name}${self.iterations}"

    @property
    def length(self) -> int:
        """Bytes of the digest."""
        return {"sha1": 20, "sha256": 32, "sha512": 64}[self.hash_name]

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family."""
        return self.iterations * {"sha1": 2, "sha256": 3, "sha512": 4}[self.hash_name]

    def derive(self, secret: bytes) -> bytes:
        """The digest."""
        return hashlib.pbkdf2_hmac(self.hash_name, secret, self.salt, self.iterations)


@dataclass(frozen=True, slots=True)
class Scrypt:
    """PHC ``$scrypt$ln=…,r=…,p=…$salt``, ``,l=`` as for argon2. Firebase's is scrypt and then AES (see `derive`)."""

    family: ClassVar[str] = "scrypt"
    form: ClassVar[re.Pattern[str]] = re.compile(
        r"\$(scrypt|firebase-scrypt)\$ln=([1-9]\d?),r=([1-9]\d{0,3}),p=([1-9]\d{0,3})(?:,l=(\d{1,3}))?"
        r"\$([A-Za-z0-9+/]{0,86})"
    )
    encode: ClassVar[Callable[[bytes], str]] = staticmethod(to_base64)
    variant: str
    ln: int
    r: int
    p: int
    length: int
    salt: bytes = field(repr=False)

    @classmethod
    def of(cls, variant: str, ln: str, r: str, p: str, length: str | None, salt: str) -> Self:
        """From the form's groups."""
        it = cls(variant, int(ln), int(r), int(p), int(length or DIGEST_BYTES), from_base64(salt))
        if it.ln > MAX_SCRYPT_LN:
            raise InvalidSetting(f"scrypt's N must be at most 2^{MAX_SCRYPT_LN}")
        at_most("scrypt's r", it.r, MAX_SCRYPT_R)
        at_most("scrypt's p", it.p, MAX_SMALL_SCRYPT_P if it.ln <= SMALL_SCRYPT_LN else MAX_SCRYPT_P)
        if it.ln >= 16 * it.r:  # RFC 7914 §6; nothing computes it
            raise InvalidSetting("scrypt's N must be less than 2^(16 r)")
        return it

    @property
    def scheme(self) -> str:
        """The setting without its salt."""
        length = "" if self.length == DIGEST_BYTES else f",l={self.length}"
        return f"${self.variant}$ln={self.ln},r={self.r},p={self.p}{length}"

    @property
    def work(self) -> int:
        """How long it takes, in a measure of its family."""
        return (1 << self.ln) * self.r * self.p

    @property
    def memory_kib(self) -> int:
        """What computing it takes."""
        return 128 * self.r * ((1 << self.ln) + self.p) // 1024

    def derive(self, secret: bytes) -> bytes:
        """The digest.

        Firebase encrypts its signer key by AES-256-CTR under what scrypt gives. The import takes the signer key
        out again (XOR): what is stored is the key stream, and no node needs to know the signer key.
        """
        n, firebase = 1 << self.ln, self.variant == "firebase-scrypt"
        memory = 128 * self.r * (n + self.p + 2) + (1 << 16)
        length = 32 if firebase else self.length
        key = hashlib.scrypt(secret, salt=self.salt, n=n, r=self.r, p=self.p, maxmem=memory, dklen=length)
        return _aes_key_stream(key, self.length) if firebase else key


def _aes_key_stream(key: bytes, length: int) -> bytes:
    # Imported at its first use: few deployments need it, and it takes 10 MB.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return encryptor.update(bytes(length)) + encryptor.finalize()


Kind: TypeAlias = Argon2 | Bcrypt | Pbkdf2 | Scrypt | Crypt | Portable | Wrapped
_KINDS: tuple[type[Kind], ...] = (Argon2, Bcrypt, Pbkdf2, Scrypt, Crypt, Portable, Wrapped)


def parse(setting: str) -> Kind:
    """The kind, costs and salt of a setting. Raises InvalidSetting, also for costs beyond the limits."""
    for kind in _KINDS:
        if match := kind.form.fullmatch(setting):
            try:
                of: Callable[..., Kind] = kind.of
                it = of(*match.groups())
            except InvalidSetting:
                raise
            except ValueError:
                raise InvalidSetting("the salt is not base64") from None
            if not MIN_DIGEST_BYTES <= it.length <= MAX_DIGEST_BYTES:
                raise InvalidSetting(f"the digest must have {MIN_DIGEST_BYTES} to {MAX_DIGEST_BYTES} bytes")
            if len(it.salt) > MAX_SALT_BYTES:
                raise InvalidSetting(f"the salt must have at most {MAX_SALT_BYTES} bytes")
            return it
    raise InvalidSetting("not a kind of hash that Gatepost knows")


def setting_of(kind: Kind) -> str:
    """What is stored for a kind with its salt; `parse` reads it."""
    return f"{kind.scheme}${type(kind).encode(kind.salt)}"


def with_salt(scheme: str, salt: bytes) -> Any:
    """A kind like those stored under this scheme, with another salt. Raises InvalidSetting."""
    return replace(parse(scheme + "$" + "A" * 22), salt=salt)
