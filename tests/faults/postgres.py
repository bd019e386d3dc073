"""A Postgres of the tests' own, to be stopped, killed, frozen, demoted and filled up."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg2
from bench.processes import descendants

from gatepost.postgres.connection import Dsn
from gatepost.postgres.embedded.binaries import copy_for_others, find_binaries

PASSWORD = "a-secret-of-the-fault-tests"
START_TIMEOUT = 300.0

# The server must not run as root.
_USER: dict[str, Any] = {}
if os.getuid() == 0:
    _nobody = pwd.getpwnam("nobody")
    _USER = {"user": _nobody.pw_uid, "group": _nobody.pw_gid, "extra_groups": []}

_HBA = "host all all all scram-sha-256\nhost replication all all scram-sha-256\n"


def binaries() -> Path:
    """Where the programs are, the embedded ones first."""
    found = next(find_binaries(None))
    return copy_for_others(found) if _USER else found


def run(*command: str | Path) -> None:
    """Run a program as the server's user."""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "PGPASSWORD": PASSWORD, "HOME": "/"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=600,
        check=False,
        **_USER,
    )
    assert done.returncode == 0, done.stdout


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


class Postgres:
    """A server on TCP with its data in ``folder/data`` and its log in ``folder/log``.

    ``within``: a command that runs another somewhere, a network namespace say. All methods block.
    """

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0, within: Sequence[str] = ()) -> None:
        self.folder, self.host, self.port = folder, host, port or free_port()
        self.data = folder / "data"
        self.settings: dict[str, str] = {}
        self._within = list(within)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(cls, folder: Path) -> "Postgres":
        """A new one, with the role and the database that Gatepost is to use; not running."""
        it = cls(folder)
        give(folder)
        (folder / "password").write_text(PASSWORD)
        run(
            *(binaries() / "initdb", "-D", it.data, "--username=postgres", f"--pwfile={folder / 'password'}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions", "--no-sync"),
        )
        (it.data / "pg_hba.conf").write_text(_HBA)
        return it

    def copy(self, folder: Path, **where: Any) -> "Postgres":
        """Another with the same data, once this one is stopped."""
        give(folder)
        run("cp", "-a", self.data, folder / "data")
        return Postgres(folder, **where)

    def dsn(self, user: str = "gatepost", database: str = "gatepost") -> Dsn:
        return Dsn([self.host], self.port, user, PASSWORD, database)

    def sql(self, statement: str, *parameters: object, database: str = "gatepost") -> list[tuple[Any, ...]]:
        """What one statement of the superuser's returns."""
        with self.session(database) as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def session(self, database: str = "gatepost") -> Iterator[Any]:
        """A cursor of the superuser's own session, each statement its own transaction."""
        dsn = self.dsn("postgres", database)
        connection = psycopg2.connect(
            connect_timeout=60, **{**dsn.parameters(self.host), "application_name": "fault"}
        )
        try:
            connection.autocommit = True
            yield connection.cursor()
        finally:
            connection.close()

    # -- its life

    def start(self) -> float:
        """Start it; return the time (monotonic) at which it takes connections."""
        assert not self.running
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "shared_buffers": "32MB",
            "max_connections": "60",
            "jit": "off",
            **self.settings,
        }
        command = [*self._within, str(binaries() / "postgres"), "-D", str(self.data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        how: dict[str, Any] = _USER
        if self._within and _USER:  # root is needed there
            command[len(self._within) : len(self._within)] = [
                *("setpriv", f"--reuid={_USER['user']}", f"--regid={_USER['group']}", "--clear-groups")
            ]
            how = {}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **how,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self.accepts:
            assert self.running, f"Postgres has ended: {self.log[-2000:]}"
            assert time.monotonic() < deadline, self.log[-2000:]
            time.sleep(0.01)
        return time.monotonic()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pids(self) -> list[int]:
        """Its first process, if it runs."""
        return [self._process.pid] if self._process is not None and self.running else []

    @property
    def accepts(self) -> bool:
        """Whether it runs and takes connections, by its own account."""
        if self._process is None or self._process.poll() is not None:
            return False
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        own = bool(lines) and lines[0] == str(self._process.pid)
        return own and len(lines) > 7 and lines[7].strip() in {"ready", "standby"}

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def stop(self) -> None:
        """A fast shutdown: SIGINT."""
        self._signal_postmaster(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL for the postmaster and all its children: as a power cut, but for what the kernel still holds."""
        processes = self._signal_all(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(300)
        while any(_alive(pid) for pid in processes):
            time.sleep(0.01)

    def freeze(self) -> None:
        """SIGSTOP for all of its processes: it holds its connections and says nothing."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def standby(self, folder: Path, host: str) -> "Postgres":
        """A streaming standby of this server on the same port of another address; not running yet."""
        give(folder)
        it = Postgres(folder, host=host, port=self.port)
        connection = f"host={self.host} port={self.port} user=postgres password={PASSWORD} application_name=standby"
        run(binaries() / "pg_basebackup", "-d", connection, "-D", it.data, "-R", "--checkpoint=fast", "-X", "stream")
        return it

    def promote(self) -> None:
        """Make a standby the primary."""
        run(binaries() / "pg_ctl", "promote", "-D", self.data, "-w", "-t", "300")

    def end(self) -> None:
        """Whatever state it is in: it is gone afterwards, and so is its folder."""
        if self.running:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal_postmaster(self, signal_: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signal_)
        self._process.wait(300)

    def _signal_all(self, signal_: signal.Signals) -> list[int]:
        """The postmaster stands still while its children are listed: it could fork another that no one signals."""
        assert self._process is not None
        postmaster = self._process.pid
        os.kill(postmaster, signal.SIGSTOP)
        while _state(postmaster) not in "TZ":
            time.sleep(0.001)
        processes = [*descendants(postmaster), postmaster]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_)
        return processes


def give(folder: Path) -> None:
    """Make a folder for the server's user."""
    folder.mkdir(0o700, exist_ok=True)
    if _USER:
        os.chown(folder, _USER["user"], _USER["group"])


def _alive(pid: int) -> bool:
    return _state(pid) != "Z"


def _state(pid: int) -> str:
    """The letter that `ps` shows; Z, as for one that nobody has waited for, when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
