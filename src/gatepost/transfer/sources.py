"""Files as other services export them: what their records are called, in the names of ours.

Each is read as it is exported; keys that Gatepost has no place for are passed over. Who has no username gets the
address as one.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from gatepost.errors import Problem
from gatepost.http import strict_json

Fields = dict[str, Any]


def auth0(row: Mapping[str, Any]) -> Fields:
    """A line of Auth0's export of users with their hashes (NDJSON)."""
    return {
        "username": row.get("username") or row.get("email"),
        "email": row.get("email"),
        "email_verified": bool(row.get("email_verified")),
        "hash": row.get("passwordHash"),
        "profile": _object(row.get("user_metadata")) | _profile(name=row.get("name"), nickname=row.get("nickname")),
        "created": _extended(row.get("created_at")),
        "disabled": _now() if row.get("blocked") is True else None,
    }


def supabase(row: Mapping[str, Any]) -> Fields:
    """A row of the table ``auth.users``, as CSV or JSON Lines."""
    return {
        "id": row.get("id"),
        "username": row.get("email") or row.get("phone"),
        "email": row.get("email"),
        "email_verified": bool(row.get("email_confirmed_at") or row.get("confirmed_at")),
        "hash": row.get("encrypted_password"),
        "profile": _object(row.get("raw_user_meta_data")),
        "created": _postgres(row.get("created_at")),
        "disabled": _postgres(row.get("deleted_at")) or (_now() if _is_to_come(row.get("banned_until")) else None),
    }


def firebase(row: Mapping[str, Any]) -> Fields:
    """An element of ``users`` in what `firebase auth:export` writes as JSON."""
    return {
        "username": row.get("email") or row.get("phoneNumber") or row.get("localId"),
        "email": row.get("email"),
        "email_verified": row.get("emailVerified") is True,
        "hash": row.get("passwordHash"),
        "salt": row.get("salt"),
        "profile": _profile(name=row.get("displayName"), picture=row.get("photoUrl")),
        "created": _milliseconds(row.get("createdAt")),
        "disabled": _now() if row.get("disabled") is True else None,
    }


def keycloak(row: Mapping[str, Any]) -> Fields:
    """An element of ``users`` in a realm's export."""
    passwords = [c for c in _list(row.get("credentials")) if isinstance(c, dict) and c.get("type") == "password"]
    return {
        "username": row.get("username") or row.get("email"),
        "email": row.get("email"),
        "email_verified": row.get("emailVerified") is True,
        "hash": json.dumps(passwords[0]) if passwords and "secretData" in passwords[0] else None,
        "roles": [role for role in _list(row.get("realmRoles")) if not str(role).startswith("default-roles-")],
        "profile": _profile(given_name=row.get("firstName"), family_name=row.get("lastName")),
        "created": _milliseconds(row.get("createdTimestamp")),
        "disabled": _now() if row.get("enabled") is False else None,
    }


SOURCES: Mapping[str, Callable[[Mapping[str, Any]], Fields]] = {
    "auth0": auth0,
    "firebase": firebase,
    "keycloak": keycloak,
    "supabase": supabase,
}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _profile(**values: Any) -> Fields:
    return {name: value for name, value in values.items() if value not in (None, "")}


def _object(value: Any) -> Fields:
    """An object, or one as JSON in text; nothing for anything else."""
    if isinstance(value, str):
        try:
            value = strict_json.decode(value.encode())
        except Problem:
            return {}
    return dict(value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _milliseconds(value: Any) -> str | None:
    try:
        return datetime.fromtimestamp(int(value) / 1000, UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _extended(value: Any) -> str | None:
    """A time, or one as MongoDB's extended JSON has it."""
    value = value.get("$date") if isinstance(value, dict) else value
    return value if isinstance(value, str) and value else None


def _postgres(value: Any) -> str | None:
    """A time as Postgres writes it: ``2024-05-01 10:00:00.123456+00``."""
    moment = _moment(value)
    return moment.isoformat() if moment else None


def _is_to_come(value: Any) -> bool:
    moment = _moment(value)
    return moment is not None and moment > datetime.now(UTC)


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
