"""What is used of aiopg that it does not promise: all of it, and nowhere else.

`PRIVATE` names each part and what would break without it. `require` refuses to start where one is missing, and each
has a test in `tests/test_private_parts.py`. All were there in aiopg 1.5.0a1. `aiopg.sa.Engine` is used with a pool of
ours (`pool`), which has the members of `aiopg.Pool` that the engine uses: `POOL`.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import aiopg
import aiopg.sa
import psycopg2.extensions

from gatepost.errors import UnsupportedLibrary

PRIVATE: Mapping[str, str] = {
    "_conn": "psycopg2's connection: no statement could be sent",
    "_loop": "the event loop that it belongs to: the age of an idle connection would be unknown",
    "_last_usage": "when it was used last: the same",
    "_create_waiter": "the future that the socket wakes: no answer could be waited for",
    "_waiter": "the same future",
    "_ready": "what is called when the socket can be read: no answer would arrive",
    "_weakref": "what `_ready` is called with",
    "_close": "closing in the middle of a statement: its answer would go to the next one",
}
POOL = (
    "minsize",
    "maxsize",
    "size",
    "freesize",
    "timeout",
    "acquire",
    "release",
    "close",
    "closed",
    "terminate",
    "wait_closed",
)


def require() -> None:
    """Raise UnsupportedLibrary unless all that is used is there."""
    attributes = {*dir(aiopg.Connection), *aiopg.Connection.__init__.__code__.co_names}
    for name, purpose in PRIVATE.items():
        if name not in attributes:
            raise UnsupportedLibrary.missing(f"aiopg {aiopg.__version__}", f"Connection.{name}", purpose)


class DriverConnection(aiopg.Connection):  # type: ignore[misc]
    """aiopg's connection with `fetch`: a statement and its rows, without aiopg's cursor.

    aiopg's cursor sets a timer of its own for each statement and turns the server's statement_timeout into a
    CancelledError; the deadline is the caller's. (Measured: 20 of 60 us for a query that finds 16 sessions.)
    """

    async def fetch(self, sql: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Execute in one round trip and return every row. Raises psycopg2's errors as they are.

        A caller that is cancelled meanwhile leaves the connection closed.
        """
        self._last_usage = self._loop.time()
        answer = self._create_waiter("fetch")
        try:
            cursor = self._conn.cursor()
            cursor.execute(sql, parameters)
            self._ready(self._weakref)
            await answer
        except asyncio.CancelledError:
            self._close()
            raise
        finally:
            self._waiter = None
        rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        return rows

    @property
    def is_idle(self) -> bool:
        """Whether it is outside of any transaction."""
        return self._conn.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_IDLE  # type: ignore[no-any-return]
