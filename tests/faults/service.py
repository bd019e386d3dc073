"""Gatepost as a process of its own, on a Postgres of the tests'."""

import signal
import time
from pathlib import Path

from tests.conftest import UNLIMITED_VARIABLES
from tests.faults.postgres import PASSWORD, Postgres, free_port
from tests.gatepost_process import Process, gatepost

ADMIN_PASSWORD = "the administrator of the fault tests"
PEPPER = "a pepper of the fault tests"
POOL_SIZE = 10

_SETTINGS = {
    "GATEPOST_ACCOUNTS__REGISTRATION": "open",
    # The least that the configuration admits: these tests are not about the cost of a hash.
    "GATEPOST_PASSWORDS__MEMORY_KIB": "8192",
    "GATEPOST_PASSWORDS__ITERATIONS": "1",
    # A hash has the lowest priority: beside a busy process it takes seconds.
    "GATEPOST_PASSWORDS__QUEUE_TIMEOUT": "60",
    "GATEPOST_PASSWORDS__PEPPERS__1": PEPPER,
    "GATEPOST_SESSIONS__MAX_PER_USER": "1000",
    "GATEPOST_DB__POOL_SIZE": str(POOL_SIZE),
    # The load is a flood of a few users from one place.
    **UNLIMITED_VARIABLES,
}


def settings(*servers: Postgres) -> dict[str, str]:
    """The environment that names these servers, the preferred one first."""
    dsn = servers[0].dsn()
    return {
        **_SETTINGS,
        "GATEPOST_DB__HOST": ",".join(server.host for server in servers),
        "GATEPOST_DB__PORT": str(dsn.port),
        "GATEPOST_DB__USER": dsn.user,
        "GATEPOST_DB__PASSWORD": dsn.password,
        "GATEPOST_DB__DATABASE": dsn.database,
    }


def prepare(server: Postgres, cwd: Path) -> None:
    """Give a new server the role, the database, the schema and an administrator."""
    server.sql(f"CREATE ROLE gatepost LOGIN PASSWORD '{PASSWORD}'", database="postgres")
    server.sql("CREATE DATABASE gatepost OWNER gatepost", database="postgres")
    for arguments, stdin in (
        (["migrate"], ""),
        (["user", "add", "admin", "--role", "admin", "--password-stdin"], ADMIN_PASSWORD + "\n"),
    ):
        done = gatepost(*arguments, cwd=cwd, stdin=stdin, **settings(server))
        assert done.returncode == 0, done.stderr


class Service:
    """One node. It listens on the same port after each start. ``usual``: seconds that the first one took."""

    usual = 0.0

    def __init__(self, cwd: Path, *servers: Postgres, **variables: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.secrets = [PASSWORD, PEPPER]
        self._cwd = cwd
        self._variables = {**settings(*servers), "GATEPOST_WEBSERVER__PORT": str(self.port), **variables}
        self._earlier = ""
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.popen.pid

    @property
    def pids(self) -> list[int]:
        """Its process, if it runs."""
        process = self._process
        return [process.popen.pid] if process else []

    @property
    def workers(self) -> list[int]:
        """The processes that serve below the first."""
        assert self._process is not None
        return self._process.workers

    @property
    def output(self) -> str:
        """All that it has printed, over all its lives."""
        return self._earlier + (self._process.output if self._process else "")

    def start(self) -> None:
        """Start it and wait until it serves."""
        began = time.monotonic()
        self._process = Process(self._cwd, **self._variables)
        self.usual = self.usual or time.monotonic() - began

    def end(self, signal_: signal.Signals = signal.SIGTERM) -> int | None:
        """Send a signal and wait for its end; the exit code, None when it did not run."""
        if self._process is None:
            return None
        code = self._process.end(signal_)
        self._earlier, self._process = self.output, None
        return code
