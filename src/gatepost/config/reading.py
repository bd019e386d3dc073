"""Where the configuration comes from, and what is said of one that cannot be used.

Sources, the first that has a key wins: the environment (``GATEPOST_DB__PASSWORD``), a secrets directory (a file
``db__password`` in ``GATEPOST_SECRETS_DIR``), the JSON file.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NestedSecretsSettingsSource,
    SecretsSettingsSource,
)

DEFAULT_FILE = "config.json"
# Bytes of the file; what pydantic-settings reads of a secrets directory is bounded too (16 MB).
MOST = 1024 * 1024
PREFIX = "GATEPOST_"
# These steer the reading itself, so they cannot be keys of the file.
_OWN_VARIABLES = {"GATEPOST_CONFIG", "GATEPOST_SECRETS_DIR"}

Model = TypeVar("Model", bound=BaseSettings)


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line that names the key and what to do."""


def read(model: type[Model], file: Path | None, given: dict[str, Any]) -> Model:
    """All sources together as ``model``, whose fields are the sections.

    ``file``: the JSON file; None for the one that ``GATEPOST_CONFIG`` names, else ``config.json`` in the working
    directory where there is one, else none. ``given``: sections that go before all else. Raises ConfigError, naming
    the source and the key.
    """
    if file is None and (named := os.environ.get("GATEPOST_CONFIG")):
        file = Path(named)
    if file is None and Path(DEFAULT_FILE).exists():
        file = Path(DEFAULT_FILE)
    _refuse_unknown_variables(os.environ, model)
    values = _read_json(file, model) if file else {}
    try:
        return model(**_merge(values, _secrets(model), EnvSettingsSource(model)(), given))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, values, file) for e in error.errors())) from None
    except (OSError, ValueError) as error:  # a secrets directory that is missing, or it or a file there unreadable
        raise ConfigError(f"environment or secrets directory: {' '.join(str(error).split())}") from None


def _secrets(model: type[BaseSettings]) -> dict[str, Any]:
    secrets_dir = os.environ.get("GATEPOST_SECRETS_DIR")
    if not secrets_dir:
        return {}
    os.scandir(secrets_dir).close()  # pydantic-settings takes a directory that it may not read for an empty one
    return NestedSecretsSettingsSource(
        SecretsSettingsSource(model),
        secrets_dir=secrets_dir,
        secrets_dir_missing="error",
        secrets_prefix="",
        secrets_nested_delimiter="__",
    )()


def _merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Sections merged key by key, a later layer over an earlier one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(below, dict) and isinstance(value, dict):
                value = _merge(below, value)  # noqa: PLW2901
            merged[key] = value
    return merged


def _read_json(file: Path, model: type[BaseSettings]) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST + 1)
        if len(text) > MOST:
            raise ConfigError(f"{file}: is larger than {MOST} bytes, so it is no configuration")
        values = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; create it, or name another with --config") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must be a JSON object with the sections {', '.join(model.model_fields)}")
    return values


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name!r} occurs twice")
        values[name] = value
    return values


def _refuse_unknown_variables(environ: Mapping[str, str], model: type[BaseSettings]) -> None:
    """pydantic-settings passes over a variable whose section it does not know, so a typo would go unseen."""
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in _OWN_VARIABLES:
            section = name[len(PREFIX) :].split("__")[0].lower()
            # The test suite's own variables share the prefix but not the form SECTION__KEY.
            if section.startswith("test_"):
                continue
            if section not in model.model_fields or "__" not in name:
                known = ", ".join(f"{PREFIX}{s.upper()}__…" for s in model.model_fields)
                raise ConfigError(f"environment variable {name}: no such key; known are {known}")


def _explain(error: Any, values: Mapping[str, Any], file: Path | None) -> str:
    """One error of pydantic's as ``source: key: reason``."""
    reason = "there is no such key" if error["type"] == "extra_forbidden" else error["msg"]
    reason = reason.removeprefix("Value error, ")
    location = [str(part) for part in error["loc"]]
    if not location:  # it is about several sections, and names the keys itself
        return f"configuration: {reason}"
    key = ".".join(location)
    section = values.get(location[0])
    in_file = location[0] in values and (
        len(location) < 2 or (isinstance(section, Mapping) and location[1] in section)
    )
    variables = {PREFIX + "__".join(location[:n]).upper() for n in range(2, len(location) + 1)}
    if given := sorted(variables & {name.upper() for name in os.environ}):
        source = f"environment variable {given[-1]}"
    elif file is not None and in_file:
        source = str(file)
    else:
        source = "configuration"
    return f"{source}: {key}: {reason}"
