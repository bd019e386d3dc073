"""The service under measurement: `python -m gatepost run` with an embedded Postgres, as an operator starts it."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg2
import psycopg2.extensions

from bench import processes
from gatepost.config import ThrottleConfig
from gatepost.postgres.database import Dsn
from gatepost.postgres.embedded import EmbeddedPostgres, Server

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0


# A few users log in from one place, each many times at once: nobody is to be refused for that.
UNLIMITED = {
    f"GATEPOST_THROTTLE__{key.upper()}": "1000000" if key.endswith("_burst") else "0.001"
    for key in ThrottleConfig.model_fields
    if key != "exempt"
}


class ServiceError(Exception):
    """The service does not do what a measurement needs; the message says what."""


class Service:
    """One run of the service on a data folder, from start to a clean stop.

    ``folder``: where it runs; its data lies in ``folder/data``, and what it prints in ``folder/log``. ``workers``:
    processes that serve; when there are several, one more looks after them. ``variables``: configuration beyond what
    every measurement has.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None, *, workers: int = 1) -> None:
        self.workers = workers
        self._variables = variables or {}
        self.port = _free_port()
        self.seconds_to_ready = 0.0
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that was started: it serves HTTP, or has workers that do."""
        assert self._process is not None
        return self._process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The processes that serve HTTP."""
        if self.workers == 1:
            return [self.pid]
        watcher = processes.ancestors(self.postgres.pid)
        return [pid for pid in processes.children(self.pid) if pid not in watcher]

    @property
    def postgres(self) -> Server:
        """Its database."""
        server = EmbeddedPostgres.attach(self._folder / "data")
        if server is None:
            raise ServiceError("the embedded Postgres is gone")
        return server

    @property
    def dsn(self) -> Dsn:
        """The same, for the driver."""
        return Dsn.of_embedded(self.postgres)

    @contextlib.contextmanager
    def connected(self) -> Iterator[psycopg2.extensions.cursor]:
        """A cursor on its database; each statement is a transaction of its own."""
        connection = psycopg2.connect(**self.dsn.parameters(self.dsn.hosts[0]))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the service is told, and every other command that speaks with its database."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("GATEPOST_")}
        return outside | {
            "GATEPOST_WEBSERVER__PORT": str(self.port),
            "GATEPOST_DB__DATA_DIR": str(self._folder / "data"),
            "GATEPOST_ACCOUNTS__REGISTRATION": "open",
            **UNLIMITED,
            **self._variables,
        }

    def __enter__(self) -> Self:
        """Start, and wait for the first 200 of `/health/ready`."""
        with (self._folder / "log").open("wb") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gatepost", "run", "--workers", str(self.workers)],
                cwd=self._folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            while not self._ready():
                if self._process.poll() is not None or time.perf_counter() - began > START_TIMEOUT:
                    said = (self._folder / "log").read_text("utf-8", "replace").strip()[-500:]
                    raise ServiceError(f"the service does not start: {said or '(it said nothing)'}")
                time.sleep(0.005)
            self.seconds_to_ready = time.perf_counter() - began
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; an unclean stop is an error of its own unless there is one already."""
        code = self._stop()
        if error is None and code != 0:
            raise ServiceError(f"the service ended with exit code {code} on SIGTERM")

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> int:
        process = self._process
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()  # its Postgres stops by itself then
            return process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
