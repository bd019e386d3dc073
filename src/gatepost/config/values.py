"""Types of values that more than a bound describes, and how one is given as text."""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr, StringConstraints
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

# U+0000, and lone surrogates, which stand for bytes that are not UTF-8.
_UNUSABLE = re.compile("[\\0\ud800-\udfff]")


def refuse_unusable_text(value: Any) -> Any:
    """The value. Raises ValueError for text that no file name and no Postgres value can contain."""
    match value:
        case dict():
            refuse_unusable_text(tuple(value.values()))
        case tuple():
            for item in value:
                refuse_unusable_text(item)
        case SecretStr():
            refuse_unusable_text(value.get_secret_value())
        case _ if _UNUSABLE.search(str(value)):
            raise ValueError("must be UTF-8 without U+0000")
    return value


def _host_name(name: str) -> str:
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError("is no host name") from None
    return name


def _host_names(names: str) -> str:
    hosts = [host.strip() for host in names.split(",") if host.strip()]
    if not hosts:
        raise ValueError("names no host")
    for host in hosts:
        if not host.startswith(("/", "@")):  # a socket's folder
            _host_name(host)
    return names


HostName = Annotated[str, AfterValidator(_host_name)]
HostNames = Annotated[str, AfterValidator(_host_names)]
Origin = Annotated[str, StringConstraints(to_lower=True, pattern=r"^https?://[^/\s*]+$")]
PepperId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,32}$")]
