"""Types of values that more than a bound describes, and how one is given as text."""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, StringConstraints
from pydantic_settings import NoDecode


def _from_text(value: Any) -> Any:
    """A list or an object given as text, in the environment or a secret: JSON, or a list separated by commas."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return [item.strip() for item in value.split(",")]


# NoDecode: pydantic-settings would parse the text itself, and not name the key when that fails.
FROM_TEXT = (BeforeValidator(_from_text), NoDecode)

Origin = Annotated[str, StringConstraints(to_lower=True, pattern=r"^https?://[^/\s*]+$")]
PepperId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
