"""A connection to Postgres: where to, and how it is made.

aiopg and psycopg2 have traps, which are dealt with here, in `pool` and in `database`; `tests/test_database.py` has a
test for each.
"""

import asyncio
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg2

from gatepost.config import DbConfig
from gatepost.errors import DatabaseRefuses, DatabaseUnavailable
from gatepost.postgres._aiopg import DriverConnection
from gatepost.postgres.embedded import Server
from gatepost.telemetry.logs import log

# Seconds. A client gets its answer within 2 s also when the database hangs, so the database has less. The server
# gives up a little before we do: after its error the connection stays usable, after ours it has to be closed.
ANSWER_TIMEOUT = 1.8
STATEMENT_TIMEOUT = 1.6
CONNECT_TIMEOUT = 1.0
# Seconds between two attempts to reach a server that is not up.
TRY_AGAIN = 0.25
_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": int(STATEMENT_TIMEOUT * 1000),
        "lock_timeout": int(STATEMENT_TIMEOUT * 1000),
        "idle_in_transaction_session_timeout": 10_000,
        # Cancelling a request does not cancel its query. The server notices the closed connection and stops the
        # query.
        "client_connection_check_interval": 1000,
        # When the network drops the end of our connection too, the server would keep it for minutes or hours.
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 2,
        "tcp_keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "TimeZone": "UTC",
        # Every name in our SQL is qualified; a role's own schema must not come before it.
        "search_path": "pg_catalog",
    }.items()
)


@dataclass(frozen=True, slots=True)
class Dsn:
    """How to reach a database. ``hosts``: names, addresses or socket folders, in the order to try them."""

    hosts: Sequence[str]
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    sslmode: str = "prefer"
    sslrootcert: str | None = None

    @classmethod
    def of(cls, db: DbConfig) -> "Dsn":
        """The configured server. Only for a ``db`` section that names a host."""
        assert db.host is not None
        assert db.user is not None
        assert db.database is not None
        return cls(
            hosts=[h.strip() for h in db.host.split(",") if h.strip()],
            port=db.port,
            user=db.user,
            password=db.password.get_secret_value() if db.password else "",
            database=db.database,
            sslmode=db.sslmode,
            sslrootcert=str(db.sslrootcert) if db.sslrootcert else None,
        )

    @classmethod
    def of_embedded(cls, server: Server) -> "Dsn":
        """The embedded server, once it runs."""
        return cls([server.socket_dir], server.port, server.user, server.password, server.database)

    def parameters(self, host: str) -> dict[str, Any]:
        """libpq's keywords for one of the hosts."""
        parameters: dict[str, Any] = {
            "host": host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
            "application_name": "gatepost",
            "client_encoding": "UTF8",  # whatever PGCLIENTENCODING says
            "sslmode": self.sslmode,
        }
        if self.sslrootcert:
            parameters["sslrootcert"] = self.sslrootcert
        if len(self.hosts) > 1:  # of several servers only the primary can be used
            parameters["target_session_attrs"] = "read-write"
        return parameters


async def _addresses(host: str, port: int) -> list[dict[str, str]]:
    """Every address of a host: libpq would resolve it on the event loop, and try only what it likes."""
    if host.startswith(("/", "@")):
        return [{}]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [{"hostaddr": str(address[4][0])} for address in dict.fromkeys(found)]


async def connect(dsn: Dsn) -> DriverConnection:
    """Connect to the first host and address that lets us in.

    Raises DatabaseUnavailable after ``CONNECT_TIMEOUT`` for each address that does not answer.
    """
    failure: Exception | None = None
    for host in dsn.hosts:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                addresses = await _addresses(host, dsn.port)
        except (OSError, TimeoutError) as error:
            failure = error
            continue
        for address in addresses:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    connection: DriverConnection = await DriverConnection(
                        dsn=None,
                        **dsn.parameters(host),
                        **address,
                        options=_OPTIONS,
                        keepalives_idle=10,
                        tcp_user_timeout=int(ANSWER_TIMEOUT * 1000),
                        timeout=ANSWER_TIMEOUT,
                        enable_hstore=False,  # costs a query per connection
                    )
                    return connection
            except (psycopg2.OperationalError, TimeoutError) as error:
                # A refusal is kept as the reason: it tells more than that the next host is down.
                if failure is None or not _REFUSAL.search(str(failure)):
                    failure = error
    raise cannot_connect(dsn, failure) from failure


def is_pooled(connection: Any) -> bool:
    """Whether a pooler stands between us and Postgres: then the session of psycopg2's ``connection`` is others' too.

    A pooler tells its clients a process id that it made up, since they have no server process for long.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
    connection.rollback()
    return bool(pid != connection.info.backend_pid)


# libpq gives no SQLSTATE for a connection that failed, so the text decides. A server with messages in another
# language than English is waited for like one that is not up; its message is in the error all the same.
_REFUSAL = re.compile(
    r"authentication failed"  # 28P01, 28000
    r"|does not exist|is not currently accepting connections"  # role, database, CA file
    r"|is not permitted to log in|permission denied|pg_hba\.conf"
    r"|unsupported startup parameter"  # a pooler's
    r"|no password supplied|authentication method|SSL was required|does not support SSL|certificate verify failed"
)


def cannot_connect(dsn: Dsn, failure: BaseException | None) -> DatabaseUnavailable:
    """The error with its reason, in one line; the password is in none of libpq's messages.

    DatabaseRefuses when trying again would be of no use.
    """
    text = " ".join(str(failure).split()) or f"no answer within {CONNECT_TIMEOUT:g} s"
    where = f"{','.join(dsn.hosts)}:{dsn.port}"
    if "unsupported startup parameter" in text:
        text += " (a pooler: see its ignore_startup_parameters, and docs/configuration.md)"
    kind = DatabaseRefuses if _REFUSAL.search(text) else DatabaseUnavailable
    return kind(f"cannot connect to Postgres at {where} as {dsn.user}: {text}")


async def wait_for(dsn: Dsn, seconds: float) -> None:
    """Wait up to ``seconds`` until the database accepts a connection.

    Raises DatabaseRefuses at once, and DatabaseUnavailable at the end.
    """
    loop = asyncio.get_running_loop()
    began, waiting = loop.time(), False
    while True:
        try:
            (await connect(dsn)).close()
        except DatabaseRefuses:
            raise
        except DatabaseUnavailable as error:
            left = began + seconds - loop.time()
            if left <= 0:
                waited = f"; waited {seconds:g} s for it (db.start_timeout)" if waiting else ""
                raise DatabaseUnavailable(f"{error}{waited}") from error
            if not waiting:
                log.warning("waiting for the database", seconds=seconds, reason=str(error))
            waiting = True
            await asyncio.sleep(min(TRY_AGAIN, left))
        else:
            if waiting:
                log.warning("the database is up", waited=round(loop.time() - began, 1))
            return
