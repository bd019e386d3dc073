"""How long the service under test waits for its database.

It gives up after a second or two, and a machine may stand still as long: that would be 503 instead of what a test
expects. So it waits longer, but in tests that are about these deadlines: they are marked `deadlines`.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gatepost.http import feature
from gatepost.pages import feature as pages
from gatepost.postgres import connection, database, pool
from gatepost.postgres.embedded import EmbeddedPostgres
from gatepost.sessions import lookup, upkeep

FACTOR = 10


def _longer(limit: re.Match[str]) -> str:
    return f"{limit[1]}={int(limit[2]) * FACTOR}"


_OURS: list[tuple[Any, str, Any]] = [
    *((module, "ANSWER_TIMEOUT", module.ANSWER_TIMEOUT * FACTOR) for module in (connection, database, lookup)),
    *((module, "ACQUIRE_TIMEOUT", module.ACQUIRE_TIMEOUT * FACTOR) for module in (pool, database, lookup)),
    (connection, "CONNECT_TIMEOUT", connection.CONNECT_TIMEOUT * FACTOR),
    (EmbeddedPostgres.start, "__kwdefaults__", {"timeout": 300.0}),
    (connection, "_OPTIONS", re.sub(r"\b(statement_timeout|lock_timeout)=(\d+)", _longer, connection._OPTIONS)),
    # What comes once a minute does not come into a test that takes longer than that.
    (upkeep, "INTERVAL", 3600.0),
    (feature, "SWEEP", 3600.0),
    (pages, "SWEEP", 3600.0),
    (pages, "RECORD", 3600.0),
]
_THEIRS = [(module, name, getattr(module, name)) for module, name, _ in _OURS]


@contextlib.contextmanager
def patience(*, much: bool) -> Iterator[None]:
    """With long deadlines, or with those of the service."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in _OURS if much else _THEIRS:
            patch.setattr(module, name, value)
        yield
