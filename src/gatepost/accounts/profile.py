"""What a profile is: a small JSON object of the user's own, changed by merge patches."""

import json
from typing import Any

from gatepost.errors import FieldError, InvalidBody
from gatepost.http import strict_json

MAX_BYTES = 4096


def too_large() -> InvalidBody:
    """A profile has more than ``MAX_BYTES``; Postgres, which writes 1e-300 in full, may be the first to see it."""
    return InvalidBody([FieldError("profile", "profile_too_large", f"must have at most {MAX_BYTES} bytes as JSON")])


def size(text: str) -> int:
    """Bytes of a profile's JSON as Postgres returns it: 1e90 comes back as 91 digits."""
    if "e+" in text:
        text = strict_json.encode(json.loads(text, parse_float=_whole))
    return len(text.encode())


def _whole(digits: str) -> float:
    number = float(digits)
    return int(number) if number.is_integer() else number


def patched(profile: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The profile with a JSON merge patch applied (RFC 7396): null removes, objects merge, all else replaces.

    Raises InvalidBody when the result has more than ``MAX_BYTES`` bytes as JSON.
    """
    result: dict[str, Any] = _merge(profile, patch)
    if size(strict_json.encode(result)) > MAX_BYTES:
        raise too_large()
    return result


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result
