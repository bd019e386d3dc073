"""Hashes as other systems write them, and ours: read for an import, written for an export."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gatepost.security.credentials.alphabets import (
    CRYPT_ALPHABET,
    from_adapted_base64,
    from_base64,
    from_bcrypt_base64,
    from_crypt_base64,
    to_adapted_base64,
    to_base64,
)
from gatepost.security.credentials.kinds import Bcrypt, Kind, parse, setting_of
from gatepost.security.credentials.legacy_kinds import Crypt, Portable, crypt_text
from gatepost.security.credentials.limits import (
    CRYPT_ROUNDS,
    MAX_DIGEST_BYTES,
    MAX_HASH,
    MAX_SALT_BYTES,
    InvalidHash,
    InvalidSetting,
)
from gatepost.security.credentials.password import RAW, Setting, Stored


@dataclass(frozen=True, slots=True)
class Firebase:
    """The parameters of a Firebase project's modified scrypt, as its console shows them."""

    signer_key: bytes = field(repr=False)
    salt_separator: bytes = field(repr=False)
    rounds: int
    mem_cost: int

    def read(self, text: str, salt: str) -> Stored:
        """A user's ``passwordHash`` and ``salt``. Raises InvalidHash."""
        try:
            whole = _any_base64(text)
            salted = _any_base64(salt) + self.salt_separator
        except ValueError:
            raise InvalidHash("hash and salt must be base64") from None
        if len(whole) != len(self.signer_key):
            raise InvalidHash("the hash has another length than the signer key")
        # See Scrypt.derive: without the signer key, what is left is the key stream. 32 bytes of it are plenty.
        stream = bytes(a ^ b for a, b in zip(whole, self.signer_key, strict=True))[:32]
        try:
            return _stored(f"$firebase-scrypt$ln={self.mem_cost},r={self.rounds},p=1", salted, stream)
        except InvalidSetting as error:
            raise InvalidHash(str(error)) from None


def _any_base64(text: str) -> bytes:
    """With or without padding, in the standard or in the URL alphabet."""
    return from_base64(text.rstrip("=").replace("-", "+").replace("_", "/"))


def read(text: str) -> Stored:
    """A hash in any of the forms that can be imported. Raises InvalidHash.

    The password behind it is compared as its system did: in UTF-8, as it is typed.
    """
    if len(text) > MAX_HASH:
        raise InvalidHash(f"has more than {MAX_HASH} characters")
    head = text.split("$", 2)
    try:
        if text.startswith("{"):
            return _braced(text)
        if head[0]:
            return _named(text, head[0])
        reader = _MODULAR.get(head[1] if len(head) > 1 else "", _phc)
        return reader(text)
    except InvalidHash:
        raise
    except InvalidSetting as error:
        raise InvalidHash(str(error)) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise InvalidHash("is damaged: its fields are not what its beginning announces") from None


def write(stored: Stored) -> str:
    """What `read` makes the same digest of; the norm and the pepper go beside it."""
    kind = parse(stored.setting.phc)
    if isinstance(kind, Crypt | Portable):
        return crypt_text(kind, stored.digest)
    text = type(kind).encode(stored.digest)
    return stored.setting.phc + ("" if isinstance(kind, Bcrypt) and kind.variant == "$2b" else "$") + text


def _stored(scheme: str, salt: bytes, digest: bytes, *, sized: bool = False) -> Stored:
    """``sized``: a kind whose digest's length is a parameter."""
    if not digest or len(digest) > MAX_DIGEST_BYTES:
        raise InvalidHash("the digest has no length that is known")
    if len(salt) > MAX_SALT_BYTES:
        raise InvalidHash(f"the salt has more than {MAX_SALT_BYTES} bytes")
    if sized and len(digest) != 32:
        scheme += f",l={len(digest)}"
    adapted = scheme.startswith("$pbkdf2")
    return _checked(parse(f"{scheme}${(to_adapted_base64 if adapted else to_base64)(salt)}"), digest)


def _checked(kind: Kind, digest: bytes) -> Stored:
    if len(digest) != kind.length:
        raise InvalidHash(f"the digest has {len(digest)} bytes instead of {kind.length}")
    return Stored(Setting(setting_of(kind), None, RAW), digest)


# --- forms that begin with $


# v= is missing where the hash was made before version 19 existed.
_ARGON2 = re.compile(r"\$(argon2id|argon2i)(?:\$v=(\d+))?\$(m=\d+,t=\d+,p=\d+)(?:,l=\d+)?\$([^$]*)\$([^$]*)")
_SCRYPT = re.compile(r"\$((?:firebase-)?scrypt)\$(ln=\d+,r=\d+,p=\d+)(?:,l=\d+)?\$([^$]*)\$([^$]*)")


def _phc(text: str) -> Stored:
    if match := _ARGON2.fullmatch(text):
        variant, version, costs, salt, digest = match.groups()
        scheme = f"${variant}$v={version or 16}${costs}"
    elif match := _SCRYPT.fullmatch(text):
        variant, costs, salt, digest = match.groups()
        scheme = f"${variant}${costs}"
    else:
        raise InvalidSetting("not a kind of hash that Gatepost knows")
    return _stored(scheme, from_base64(salt), from_base64(digest), sized=True)


def _bcrypt(text: str) -> Stored:
    # 2x marks hashes of a broken implementation, which no correct one can check.
    match = re.fullmatch(r"\$2[aby]?\$(\d\d)\$([./A-Za-z0-9]{22})([./A-Za-z0-9]{31})", text)
    if not match:
        raise InvalidSetting("not a bcrypt hash of the kinds $2a$, $2b$ and $2y$")
    return _checked(parse(f"$2b${match[1]}${match[2]}"), from_bcrypt_base64(match[3]))


def _bcrypt_sha256(text: str) -> Stored:
    match = re.fullmatch(
        r"\$(bcrypt-sha256|django-bcrypt-sha256)\$(?:v=([12]),)?(?:t=)?2[aby],(?:r=)?(\d\d?)"
        r"\$([./A-Za-z0-9]{22})\$([./A-Za-z0-9]{31})",
        text,
    )
    if not match:
        raise InvalidSetting("not a bcrypt-sha256 hash as passlib writes it")
    name, version, rounds, salt, digest = match.groups()
    scheme = f"${name}$" + ("" if name.startswith("django") else f"v={version or 1},") + f"t=2b,r={rounds}"
    return _checked(parse(f"{scheme}${salt}"), from_bcrypt_base64(digest))


def _pbkdf2(text: str) -> Stored:
    _, name, iterations, salt, digest = text.split("$")
    return _stored(f"${name}${_number(iterations)}", from_adapted_base64(salt), from_adapted_base64(digest))


def _wordpress(text: str) -> Stored:
    """``$wp$2y$10$…``."""
    inner = _bcrypt(text.removeprefix("$wp"))
    _, _, rounds, salt = inner.setting.phc.split("$")
    return _checked(parse(f"$wp-bcrypt$t=2b,r={int(rounds)}${salt}"), inner.digest)


def _prefixed_bcrypt(text: str) -> Stored:
    """As `write` has it: ``$wp-bcrypt$t=2b,r=10$salt$digest``."""
    _, name, costs, salt, digest = text.split("$")
    return _checked(parse(f"${name}${costs}${salt}"), from_bcrypt_base64(digest))


def _crypt(text: str) -> Stored:
    """``$5$`` and ``$6$``, with or without ``rounds=…$``."""
    match = re.fullmatch(r"\$([56])\$(?:rounds=(\d{1,9})\$)?([./0-9A-Za-z]{0,16})\$([./0-9A-Za-z]+)", text)
    if not match:
        raise InvalidSetting("not a crypt hash of the kinds $5$ and $6$")
    name, rounds = "sha256-crypt" if match[1] == "5" else "sha512-crypt", int(match[2] or 5000)
    if rounds not in CRYPT_ROUNDS:
        raise InvalidSetting(f"crypt's rounds must be {CRYPT_ROUNDS[0]} to {CRYPT_ROUNDS[-1]}")
    return _of_crypt(f"${name}$rounds={rounds}", match[3], match[4])


def _yescrypt(text: str) -> Stored:
    match = re.fullmatch(r"\$y\$([./0-9A-Za-z]{3})\$([./0-9A-Za-z]{1,64})\$([./0-9A-Za-z]{43})", text)
    if not match:
        raise InvalidSetting("not a yescrypt hash of the costs that are known")
    return _of_crypt(f"$yescrypt${match[1]}", match[2], match[3])


def _portable(text: str) -> Stored:
    """phpass' ``$P$`` and ``$H$``, Drupal's ``$S$``: the rounds in one letter, eight letters of salt."""
    match = re.fullmatch(r"\$[PHS]\$([./0-9A-Za-z])([./0-9A-Za-z]{8})([./0-9A-Za-z]+)", text)
    if not match:
        raise InvalidSetting("not a hash of phpass or Drupal 7")
    name = "drupal" if text[1] == "S" else "phpass"
    return _of_crypt(f"${name}$n={CRYPT_ALPHABET.index(match[1])}", match[2], match[3])


def _of_crypt(scheme: str, salt: str, digest: str) -> Stored:
    return _checked(parse(f"{scheme}${to_base64(salt.encode())}"), from_crypt_base64(digest))


def _wrapped(text: str) -> Stored:
    """As `write` has it."""
    _, name, costs, salt, digest = text.split("$")
    return _checked(parse(f"${name}${costs}${salt}"), from_base64(digest))


_MODULAR: dict[str, Callable[[str], Stored]] = {
    "5": _crypt,
    "6": _crypt,
    "y": _yescrypt,
    "P": _portable,
    "H": _portable,
    "S": _portable,
    "wp": _wordpress,
    "wp-bcrypt": _prefixed_bcrypt,
    "ldap-argon2id": _wrapped,
    "2a": _bcrypt,
    "2b": _bcrypt,
    "2y": _bcrypt,
    "bcrypt-sha256": _bcrypt_sha256,
    "django-bcrypt-sha256": _bcrypt_sha256,
    "pbkdf2": _pbkdf2,
    "pbkdf2-sha256": _pbkdf2,
    "pbkdf2-sha512": _pbkdf2,
}


# --- forms that begin with a name: Django's and werkzeug's


def _named(text: str, name: str) -> Stored:
    method, colon, costs = name.partition(":")
    if (reader := (_WERKZEUG.get(method) if colon else None)) is not None:
        return reader(costs, text)
    if (django := _DJANGO.get(name)) is not None:
        return django(text)
    raise InvalidSetting("not a kind of hash that Gatepost knows")


def _django_pbkdf2(text: str) -> Stored:
    """``pbkdf2_sha256$iterations$salt$base64``."""
    name, iterations, salt, digest = text.split("$")
    scheme = f"$pbkdf2{'-sha256' if name.endswith('256') else ''}${_number(iterations)}"
    return _stored(scheme, salt.encode(), base64.b64decode(digest, validate=True))


def _django_scrypt(text: str) -> Stored:
    """``scrypt$N$salt$r$p$base64``."""
    _, n, salt, r, p, digest = text.split("$")
    return _stored(_scrypt(n, r, p), salt.encode(), base64.b64decode(digest, validate=True), sized=True)


def _django_bcrypt_sha256(text: str) -> Stored:
    """``bcrypt_sha256$$2b$12$…``."""
    inner = _bcrypt(text.removeprefix("bcrypt_sha256$"))
    _, _, rounds, salt = inner.setting.phc.split("$")
    return _checked(parse(f"$django-bcrypt-sha256$t=2b,r={int(rounds)}${salt}"), inner.digest)


_DJANGO: dict[str, Callable[[str], Stored]] = {
    "pbkdf2_sha256": _django_pbkdf2,
    "pbkdf2_sha1": _django_pbkdf2,
    "scrypt": _django_scrypt,
    "bcrypt_sha256": _django_bcrypt_sha256,
    "bcrypt": lambda text: _bcrypt(text.removeprefix("bcrypt$")),  # bcrypt$$2b$12$…
    "argon2": lambda text: _phc(text.removeprefix("argon2")),  # argon2$argon2id$v=19$…
}


def _werkzeug_pbkdf2(costs: str, text: str) -> Stored:
    """``pbkdf2:sha256:iterations$salt$hex``."""
    hash_name, iterations = costs.split(":")
    suffix = {"sha1": "", "sha256": "-sha256", "sha512": "-sha512"}.get(hash_name)
    if suffix is None:
        raise InvalidSetting("PBKDF2 with another hash than sha1, sha256 and sha512")
    _, salt, digest = text.split("$")
    return _stored(f"$pbkdf2{suffix}${_number(iterations)}", salt.encode(), _hex(digest))


def _werkzeug_scrypt(costs: str, text: str) -> Stored:
    """``scrypt:N:r:p$salt$hex``."""
    n, r, p = costs.split(":")
    _, salt, digest = text.split("$")
    return _stored(_scrypt(n, r, p), salt.encode(), _hex(digest), sized=True)


_WERKZEUG = {"pbkdf2": _werkzeug_pbkdf2, "scrypt": _werkzeug_scrypt}


def _hex(text: str) -> bytes:
    if not text.isalnum():
        raise ValueError  # fromhex() passes over spaces
    return bytes.fromhex(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise ValueError
    return int(text)


def _scrypt(n: str, r: str, p: str) -> str:
    ln = _number(n).bit_length() - 1
    if ln < 1 or 1 << ln != int(n):
        raise InvalidSetting("scrypt's N must be a power of 2")
    return f"$scrypt$ln={ln},r={_number(r)},p={_number(p)}"


# --- forms in braces: LDAP's that are slow to compute (`ldap` has the others), and Keycloak's JSON


def _braced(text: str) -> Stored:
    name, brace, rest = text.partition("}")
    if brace and name.upper() in {"{CRYPT", "{BCRYPT", "{ARGON2"}:
        return read(rest)
    if '"secretData"' in text or '"credentialData"' in text:
        return _keycloak(text)
    raise InvalidSetting("not a kind of hash that Gatepost knows")


def _keycloak(text: str) -> Stored:
    """A credential of a user as Keycloak exports it; both of its parts are JSON in text, too."""
    credential = json.loads(text)
    secret, data = (_object(credential[part]) for part in ("secretData", "credentialData"))
    digest, salt = base64.b64decode(secret["value"]), base64.b64decode(secret["salt"])
    algorithm, iterations = data["algorithm"], int(data["hashIterations"])
    if algorithm == "argon2":
        more = {name: values[0] for name, values in _object(data.get("additionalParameters", {})).items()}
        version = {"1.3": 19, "1.0": 16}[more.get("version", "1.3")]
        variant = {"id": "argon2id", "i": "argon2i"}[more.get("type", "id")]
        costs = f"m={int(more['memory'])},t={iterations},p={int(more['parallelism'])}"
        return _stored(f"${variant}$v={version}${costs}", salt, digest, sized=True)
    suffix = {"pbkdf2": "", "pbkdf2-sha256": "-sha256", "pbkdf2-sha512": "-sha512"}.get(algorithm)
    if suffix is None:
        raise InvalidSetting("Keycloak's hash is of another kind than pbkdf2 and argon2")
    # Keycloak derives 64 bytes of each. PBKDF2's blocks are independent, and the first one says as much as all.
    size = {"": 20, "-sha256": 32, "-sha512": 64}[suffix]
    return _stored(f"$pbkdf2{suffix}${iterations}", salt, digest[:size])


def _object(value: Any) -> Any:
    value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise TypeError
    return value
