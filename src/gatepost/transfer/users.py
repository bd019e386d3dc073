"""A record judged: a user as it goes into the database."""

import os
import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from gatepost.accounts.profile import MAX_BYTES, size
from gatepost.http import strict_json
from gatepost.mail.queries import MOST
from gatepost.security import email
from gatepost.security.credentials import NORM, RAW, foreign, ldap
from gatepost.security.credentials.foreign import Firebase
from gatepost.security.credentials.limits import InvalidHash
from gatepost.security.names import MAX_ROLES, ROLE, InvalidName, canonical, display
from gatepost.transfer.lines import Record, Refusal

# It must fit into a header and into a list separated by commas.
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# Whose password a login of an unknown name looks up (`gatepost.find_setting`).
_NOBODY = "00000000-0000-0000-0000-000000000000"


class ImportedUser(NamedTuple):
    """A user as it is copied into the database: text or None, in the order of the staging table's columns.

    ``fast``: a hash that is to be wrapped first, which takes as long as a login; `wrapped` has the result.
    """

    line: int
    id: str
    username: str
    canonical: str
    roles: str
    profile: str
    created: str | None
    disabled: str | None
    emails: str | None
    setting: str | None
    digest: bytes | None
    norm: str | None
    pepper: str | None
    fast: ldap.Fast | None = None

    def wrapped(self, memory_kib: int, iterations: int, parallelism: int) -> "ImportedUser":
        """The same with its hash within Argon2id of these costs."""
        assert self.fast is not None
        stored = self.fast.wrap(memory_kib, iterations, parallelism)
        return self._replace(setting=stored.setting.phc, digest=stored.digest, norm=stored.norm, fast=None)


class _Wrong(ValueError):
    pass


class Judge:
    """What every user of one import must be. ``peppers``: the ids of those that are configured."""

    def __init__(self, peppers: Collection[str] = (), firebase: Firebase | None = None) -> None:
        self._peppers = peppers
        self._firebase = firebase

    def __call__(self, record: Record) -> ImportedUser | Refusal:
        """The user, or why there is none."""
        fields = record.fields
        try:
            username = _text(fields, "username") or ""
            return ImportedUser(
                record.line,
                _id(fields),
                display(username),
                canonical(username),
                _roles(fields.get("roles")),
                _profile(fields.get("profile")),
                _time(fields, "created"),
                _time(fields, "disabled"),
                _emails(fields),
                *self._password(fields),
            )
        except InvalidName as error:
            return Refusal(record.line, f"username: {error}")
        except InvalidHash as error:
            return Refusal(record.line, f"hash: {error}")
        except _Wrong as error:
            return Refusal(record.line, str(error))

    def _password(
        self, fields: Mapping[str, Any]
    ) -> tuple[str | None, bytes | None, str | None, str | None, ldap.Fast | None]:
        text, salt = _text(fields, "hash"), _text(fields, "salt")
        norm, pepper = _text(fields, "norm"), _text(fields, "pepper")
        # Django writes "!" and random text for an unusable password.
        if text is None or text.startswith("!"):
            return None, None, None, None, None
        if norm not in {None, NORM, RAW}:
            raise _Wrong(f"norm: must be {NORM} or {RAW}")
        if pepper is not None and pepper not in self._peppers:
            raise _Wrong("pepper: is not among the configured ones (passwords.peppers)")
        if salt is None and (fast := ldap.read(text)):
            return None, None, None, None, fast
        if salt is None:
            stored = foreign.read(text)
        elif self._firebase is None:
            raise _Wrong("salt: is Firebase's; give its parameters (--firebase-signer-key-file)")
        else:
            stored = self._firebase.read(text, salt)
        return stored.setting.phc, stored.digest, norm or RAW, pepper, None


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Wrong(f"{name}: must be a string")
    return value or None


def _id(fields: Mapping[str, Any]) -> str:
    given = _text(fields, "id")
    if given is None:
        return _new_id()
    if not _ID.fullmatch(given) or given == _NOBODY:
        raise _Wrong("id: must be a UUID in lower case, and not the nil UUID")
    return given


def _new_id() -> str:
    """A UUID version 7 (RFC 9562 §5.7): milliseconds since 1970, then 74 random bits.

    So the indexes on ids grow at their ends. Random ids cost Postgres half as much again (measured: a million users).
    """
    digits = f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
    return f"{digits[:8]}-{digits[8:12]}-7{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def _roles(value: Any) -> str:
    if not value:
        return "{}"
    if not isinstance(value, list) or not all(isinstance(role, str) for role in value):
        raise _Wrong("roles: must be a list of strings")
    return _array(tuple(value))


@lru_cache(1024)
def _array(value: tuple[str, ...]) -> str:
    if len(value) > MAX_ROLES:
        raise _Wrong(f"roles: must be at most {MAX_ROLES}")
    if not all(re.fullmatch(ROLE, role) for role in value):
        raise _Wrong("roles: each must be 1 to 64 of A-Z a-z 0-9 _ . : - and begin with a letter or a digit")
    return "{" + ",".join(f'"{role}"' for role in dict.fromkeys(value)) + "}"


def _profile(value: Any) -> str:
    if value is None or value == {}:
        return "{}"
    if not isinstance(value, dict):
        raise _Wrong("profile: must be an object")
    text = strict_json.encode(value)
    if size(text) > MAX_BYTES:
        raise _Wrong(f"profile: must have at most {MAX_BYTES} bytes as JSON")
    return text


def _emails(fields: Mapping[str, Any]) -> str | None:
    """``email`` with ``email_verified``, or ``emails`` as an export writes them: as JSON, the primary one first."""
    given = fields.get("emails")
    if given is None:
        address, verified = _text(fields, "email"), fields.get("email_verified", False)
        if address is None:
            return None
        if not isinstance(verified, bool):
            raise _Wrong("email_verified: must be true or false")
        return strict_json.encode([_email("email", address, verified=verified)])
    if _text(fields, "email") is not None:
        raise _Wrong("emails: is given beside email")
    if not isinstance(given, list) or len(given) > MOST:
        raise _Wrong(f"emails: must be a list of at most {MOST}")
    found: dict[str, tuple[bool, int, dict[str, Any]]] = {}
    for one in given:
        if not isinstance(one, dict) or one.keys() - {"address", "verified", "primary"}:
            raise _Wrong("emails: each must be an object with address, verified and primary")
        address, verified, primary = one.get("address"), one.get("verified", False), one.get("primary", False)
        if not isinstance(address, str) or not isinstance(verified, bool) or not isinstance(primary, bool):
            raise _Wrong("emails: address must be a string, verified and primary true or false")
        email = _email("emails", address, verified=verified)
        if email["canonical"] in found:
            raise _Wrong("emails: one address occurs twice")
        found[email["canonical"]] = (not primary, len(found), email)
    return strict_json.encode([email for *_, email in sorted(found.values(), key=lambda e: e[:2])]) if found else None


def _email(field: str, text: str, *, verified: bool) -> dict[str, Any]:
    try:
        address = email.parse(text)
    except email.InvalidAddress as error:
        raise _Wrong(f"{field}: {error}") from None
    return {"address": address.written, "canonical": address.canonical, "verified": verified}


def _time(fields: Mapping[str, Any], name: str) -> str | None:
    text = _text(fields, name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Wrong(f"{name}: must be a time as ISO 8601 has it") from None
    if moment.tzinfo is None:
        raise _Wrong(f"{name}: must say its time zone (Z or +01:00)")
    try:
        return moment.astimezone(UTC).isoformat()
    except OverflowError:  # Postgres would store it and Python could not read it: every list of users would fail
        raise _Wrong(f"{name}: must lie in the years 1 to 9999 of UTC") from None
