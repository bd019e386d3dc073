"""The database as the features see it: statements, deadlines, and what the driver's errors mean.

Together with `connection` this is all that knows aiopg.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

import aiopg.sa
import psycopg2
import psycopg2.errors
import psycopg2.extensions
import sqlalchemy as sa
from aiopg.sa.engine import get_dialect

from gatepost.config import DbConfig
from gatepost.errors import DatabaseUnavailable, NotPermitted, Problem
from gatepost.postgres import _aiopg
from gatepost.postgres.connection import ANSWER_TIMEOUT, Dsn
from gatepost.postgres.embedded import EmbeddedPostgres
from gatepost.postgres.pool import ACQUIRE_TIMEOUT, Pool

__all__ = ["Connection", "Database", "Dsn", "Statement", "array", "naming", "reach"]

Connection: TypeAlias = aiopg.sa.SAConnection

# Connections of their own for session checks, so that logins never starve them (sessions/lookup.py).
LOOKUP_CONNECTIONS = 2

P = ParamSpec("P")
T = TypeVar("T")

_DIALECT = get_dialect()


class Statement:
    """An SQL statement, compiled once: aiopg would do it again at each execution (30 % of its time).

    Parameters are the driver's own types (str, bytes, UUID, list …), by name.
    """

    def __init__(self, clause: sa.ClauseElement | str) -> None:
        compiled = (sa.text(clause) if isinstance(clause, str) else clause).compile(dialect=_DIALECT)
        self.sql = str(compiled)
        self._defaults: Mapping[str, Any] = dict(compiled.params)

    async def all(self, connection: Connection, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """Execute in one round trip and return every row."""
        driver: _aiopg.DriverConnection = connection.connection
        return await driver.fetch(self.sql, {**self._defaults, **parameters})

    async def first(self, connection: Connection, /, **parameters: Any) -> tuple[Any, ...] | None:
        """The first row, or None."""
        rows = await self.all(connection, **parameters)
        return rows[0] if rows else None


def array(values: Iterable[bytes | float]) -> str:
    """A parameter that is cast to ``bytea[]`` or an array of numbers: one literal for all of them.

    A list would be quoted by the driver value by value, and parsed so by Postgres: twice the time for both.
    """
    return "{" + ",".join([f'"\\\\x{v.hex()}"' if isinstance(v, bytes) else str(v) for v in values]) + "}"


@contextlib.contextmanager
def naming(problems: Mapping[str, Callable[[], Problem]]) -> Iterator[None]:
    """Raise the violation of a constraint as the problem that stands beside its name.

    Postgres judges; nobody asks first whether a name is taken or an administrator the last.
    """
    try:
        yield
    except psycopg2.IntegrityError as error:
        problem = problems.get(error.diag.constraint_name)
        if problem is None:
            raise
        raise problem() from None


def _translate(error: BaseException) -> None:
    """Raise DatabaseUnavailable for everything that means "the database does not answer", and only for that."""
    if isinstance(error, asyncio.CancelledError):
        # aiopg's own cursors (BEGIN, COMMIT) turn the server's statement_timeout into a CancelledError that nobody
        # asked for, and aiohttp would drop the client's connection. A real cancellation shows in cancelling().
        task = asyncio.current_task()
        if isinstance(error.__context__, psycopg2.errors.QueryCanceled) and task and task.cancelling() == 0:
            raise DatabaseUnavailable from error.__context__
    # InternalError: the server was demoted to a standby, or a transaction was cut short. Neither is the request's
    # fault.
    elif isinstance(
        error, psycopg2.OperationalError | psycopg2.InterfaceError | psycopg2.InternalError | TimeoutError
    ):
        raise DatabaseUnavailable from error
    elif isinstance(error, psycopg2.errors.InsufficientPrivilege):
        raise NotPermitted(f"{error.diag.message_primary}: grant it to the role of db.user") from error


def _without_timeouts(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """aiopg reports each statement_timeout here, with a traceback, beside raising what we translate."""
    if not isinstance(context.get("exception"), psycopg2.errors.QueryCanceled):
        loop.default_exception_handler(context)


class Database:
    """A database behind its engine, with deadlines.

    `read` and `write` run a query function ``async (connection, *args) -> T``; both raise DatabaseUnavailable
    within ``ANSWER_TIMEOUT`` seconds, and let constraint violations through for the caller to name.
    """

    def __init__(self, engine: aiopg.sa.Engine, pool: Pool) -> None:
        self.engine = engine
        self.pool = pool
        self._writes: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, dsn: Dsn, size: int) -> "Database":
        """Connect once, so that a wrong address fails here. Raises DatabaseUnavailable with the reason."""
        _aiopg.require()
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(_without_timeouts)
        pool = Pool(dsn, size)
        pool.give_back(await pool.acquire())
        return cls(aiopg.sa.Engine(_DIALECT, pool, " ".join(dsn.hosts)), pool)

    async def close(self) -> None:
        """Let writes that were begun end, then close all connections."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=ANSWER_TIMEOUT)
        self.pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection for a few statements, each its own transaction, within one deadline."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                driver = await self.pool.acquire()
                try:
                    # As engine.acquire() does, without its shielded close: a task and 20 us for each query.
                    yield Connection(driver, self.engine)
                finally:
                    self.pool.give_back(driver)
        except BaseException as error:
            _translate(error)
            raise

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside BEGIN … COMMIT, for several statements that belong together."""
        async with self.connection() as connection, connection.begin():
            yield connection
            # Postgres answers COMMIT after an error with success, and rolls back.
            status = connection.connection.raw.get_transaction_status()
            if status == psycopg2.extensions.TRANSACTION_STATUS_INERROR:
                raise RuntimeError("an SQL error was swallowed inside a transaction")

    async def read(
        self, query: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query that changes nothing; once more on a new connection if the first was found dead."""
        return await self.read_by(time.monotonic() + ANSWER_TIMEOUT, query, *args, **kwargs)

    async def read_by(
        self,
        deadline: float,
        query: Callable[Concatenate[Connection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """`read`, over by a deadline (`time.monotonic`): for those who have waited already."""
        began = time.monotonic()
        try:
            return await self._run(deadline, query, *args, **kwargs)
        except DatabaseUnavailable as error:
            self.pool.drop_idle()
            lost = isinstance(error.__cause__, psycopg2.OperationalError | psycopg2.InterfaceError)
            if not lost or time.monotonic() - began > ACQUIRE_TIMEOUT:
                raise
        return await self._run(deadline, query, *args, **kwargs)

    async def write(
        self, query: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a query that changes something: never twice, and to its end even if the request is cancelled."""
        task = asyncio.ensure_future(self._run(time.monotonic() + ANSWER_TIMEOUT, query, *args, **kwargs))
        self._writes.add(task)
        task.add_done_callback(self._ended)
        # Not `shield`: since Python 3.14 it logs what a task raises after its caller was cancelled.
        await asyncio.wait([task])
        return task.result()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it: its request may be gone

    async def _run(
        self,
        deadline: float,
        query: Callable[Concatenate[Connection, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        # `connection` inlined: as a context manager it costs each query 10 us more.
        try:
            async with asyncio.timeout_at(deadline):
                driver = await self.pool.acquire()
                try:
                    return await query(Connection(driver, self.engine), *args, **kwargs)
                finally:
                    self.pool.give_back(driver)
        except BaseException as error:
            _translate(error)
            raise


@contextlib.contextmanager
def reach(db: DbConfig) -> Iterator[Dsn]:
    """The database's address, for as long as the block lasts.

    An embedded Postgres that another Gatepost runs is used as it is; one that nobody runs is started, and stopped
    afterwards. Raises EmbeddedError.
    """
    if not db.embedded:
        yield Dsn.of(db)
        return
    if (running := EmbeddedPostgres.attach(db.data_dir)) is not None:
        yield Dsn.of_embedded(running)
        return
    postgres = EmbeddedPostgres(db.data_dir, binaries=db.binaries, run_as=db.run_as)
    try:
        yield Dsn.of_embedded(postgres.start())
    finally:
        postgres.stop()
