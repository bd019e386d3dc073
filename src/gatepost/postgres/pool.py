"""The connection pool. aiopg's own pool loses wake-ups when a holder is cancelled, and connects under its lock, so
that one connect that hangs blocks all other requests. `Pool` replaces it under `aiopg.sa.Engine`.
"""

import asyncio

from gatepost.errors import DatabaseUnavailable
from gatepost.postgres._aiopg import DriverConnection
from gatepost.postgres.connection import Dsn, connect

# Seconds.
ACQUIRE_TIMEOUT = 0.5
# Idle connections are closed after this time: a firewall may have dropped them silently.
MAX_IDLE = 300.0


class Pool:
    """At most ``size`` connections, handed out last in, first out.

    A counting semaphore with a short deadline stands in front; connecting happens in the caller's own task and
    holds nobody else up. It has the members of `aiopg.Pool` that `aiopg.sa.Engine` uses.
    """

    def __init__(self, dsn: Dsn, size: int) -> None:
        self.minsize, self.maxsize, self.timeout = 0, size, ACQUIRE_TIMEOUT
        self._dsn = dsn
        self._slots = asyncio.Semaphore(size)
        self._idle: list[DriverConnection] = []
        self._used: set[DriverConnection] = set()
        self.waiting = 0
        """Those who wait for a connection."""
        self.timeouts = 0
        """Those who have waited in vain."""
        self.closed = False

    @property
    def size(self) -> int:
        """Open connections."""
        return len(self._idle) + len(self._used)

    @property
    def freesize(self) -> int:
        """Open connections that nobody holds."""
        return len(self._idle)

    async def acquire(self) -> DriverConnection:
        """A connection, new or used. Raises DatabaseUnavailable after ``ACQUIRE_TIMEOUT`` seconds."""
        if self.closed:
            raise DatabaseUnavailable("Gatepost is stopping")
        if not self._slots.locked():
            await self._slots.acquire()  # returns at once; setting a deadline would cost more than the acquire
        else:
            await self._wait_for_slot()
        try:
            connection = self._take_idle() or await connect(self._dsn)
        except BaseException:
            self._slots.release()
            raise
        self._used.add(connection)
        return connection

    async def _wait_for_slot(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                await self._slots.acquire()
        except TimeoutError:
            self.timeouts += 1
            raise DatabaseUnavailable("all connections to the database are in use") from None
        finally:
            self.waiting -= 1

    def _take_idle(self) -> DriverConnection | None:
        stale = asyncio.get_running_loop().time() - MAX_IDLE
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.last_usage > stale:
                return connection
            connection.close()
        return None

    def release(self, connection: DriverConnection) -> "asyncio.Future[None]":
        """Take a connection back; one that is in the middle of something is closed instead."""
        self.give_back(connection)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def give_back(self, connection: DriverConnection) -> None:
        """`release` without a future to await."""
        self._used.discard(connection)
        self._slots.release()
        if connection.closed:
            return
        if self.closed or not connection.is_idle:
            connection.close()
        else:
            self._idle.append(connection)

    def drop_idle(self) -> None:
        """Close idle connections: one was found dead, so the others most likely are too."""
        while self._idle:
            self._idle.pop().close()

    def close(self) -> None:
        """Hand out no more connections."""
        self.closed = True
        self.drop_idle()

    def terminate(self) -> None:
        """Close those in use as well."""
        self.close()
        for connection in list(self._used):
            connection.close()

    async def wait_closed(self) -> None:
        """Nothing to wait for: `release` closes what is still out."""
