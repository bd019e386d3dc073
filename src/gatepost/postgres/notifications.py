"""LISTEN and NOTIFY over a connection of one's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import psycopg2

from gatepost.errors import DatabaseUnavailable
from gatepost.postgres._aiopg import DriverConnection
from gatepost.postgres.connection import ANSWER_TIMEOUT, Dsn, connect


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (psycopg2.Error, TimeoutError) as error:
        raise DatabaseUnavailable(" ".join(str(error).split()) or "no answer in time") from error


class Notifications:
    """A connection that listens."""

    def __init__(self, connection: DriverConnection) -> None:
        self._connection = connection

    async def next(self) -> tuple[str, str]:
        """The next notification: its channel and its payload. Raises DatabaseUnavailable when the connection ends."""
        with _unavailable():
            notification = await self._connection.notifies.get()
            return notification.channel, notification.payload

    async def notify(self, channel: str, payload: str, seconds: float) -> float:
        """Notify a channel, and give the database's clock (Unix time). Raises DatabaseUnavailable, also after so many
        seconds.
        """
        with _unavailable():
            async with asyncio.timeout(seconds):
                rows = await self._connection.fetch(
                    "SELECT extract(epoch FROM clock_timestamp())::float8, pg_notify(%(channel)s, %(payload)s)",
                    {"channel": channel, "payload": payload},
                )
        now: float = rows[0][0]
        return now


@contextlib.asynccontextmanager
async def listen(dsn: Dsn, *channels: str) -> AsyncIterator[Notifications]:
    """Listen to these channels, as long as the block lasts. Raises DatabaseUnavailable."""
    connection = await connect(dsn)
    try:
        with _unavailable():
            async with asyncio.timeout(ANSWER_TIMEOUT):
                # A pooler's clients share sessions: others would get what we listen to (see `is_pooled`).
                pid = (await connection.fetch("SELECT pg_backend_pid()", {}))[0][0]
                if pid != connection.raw.info.backend_pid:
                    raise DatabaseUnavailable("a pooler stands before this database, and LISTEN needs a session")
                for channel in channels:
                    await connection.fetch(f'LISTEN "{channel}"', {})
        yield Notifications(connection)
    finally:
        connection.close()
