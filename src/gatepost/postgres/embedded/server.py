"""The server: how to reach it, and its processes."""

import contextlib
import hashlib
import os
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from gatepost.postgres.embedded.binaries import Binaries
from gatepost.postgres.embedded.cluster import PORT, settings
from gatepost.postgres.embedded.errors import EmbeddedError, last_lines
from gatepost.postgres.embedded.folder import DataFolder

LOG_BYTES = 8 * 1024 * 1024
SOCKET_PATH_BYTES = 103  # macOS; Linux allows 107

# Parent of the server. Its stdin is a pipe whose other end only Gatepost has: end of file means that Gatepost
# is gone, however it died. Its stdout is the lock. SIGINT is repeated because a server that is only just
# starting ignores it, and followed by SIGQUIT because one that recovers from a crashed backend can hang on it
# (seen with 18.6). The loop must not hold the lock: its `sleep` may outlive the server by a second.
_WATCHER = """
trap '' HUP INT QUIT TERM TSTP
exec 3<&0 4>&1 >&2 </dev/null
"$@" 3<&- &
server=$!
{ exec 4>&- 2>/dev/null
  read -r _ <&3
  seconds=0
  while kill -INT $server; do
    sleep 1
    seconds=$((seconds + 1))
    [ $seconds -lt 5 ] || kill -QUIT $server
  done 2>/dev/null; } &
reader=$!
exec 3<&-
wait $server
status=$?
kill -KILL $reader
wait $reader 2>/dev/null
exit $status
"""


@dataclass(frozen=True)
class Server:
    """How to reach a running server."""

    socket_dir: str  # libpq `host`
    port: int  # libpq `port`; only names the socket
    user: str
    password: str = field(repr=False)
    database: str
    superuser_password: str = field(repr=False)  # of the role `postgres`
    pid: int  # of the postmaster


class ServerProcess:
    """The server of a folder, below its watcher. Making one launches it; it is not ready by then."""

    def __init__(self, folder: DataFolder, binaries: Binaries) -> None:
        """Raise EmbeddedError or OSError; then nothing runs."""
        folder.remove("pgdata/postmaster.pid")  # stale, since we have the lock
        self._folder = folder
        self.socket_dir = _make_socket_dir(folder)
        try:
            self._watcher = self._launch(binaries)
        except BaseException:
            self._remove_socket_dir()
            raise

    def _launch(self, binaries: Binaries) -> subprocess.Popen[bytes]:
        folder = self._folder
        own = self.socket_dir.parent == folder.path
        seen = (f"{folder.seen_as}/run" if own else str(self.socket_dir)).replace('"', '""')
        command = [binaries.program("postgres"), "-D", f"{folder.seen_as}/pgdata"]
        command += settings(unix_socket_directories=f'"{seen}"')
        log = folder.open("postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            if os.fstat(log).st_size > LOG_BYTES:
                os.ftruncate(log, 0)
            return subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", _WATCHER, "gatepost-postgres", *command],
                stdin=subprocess.PIPE,
                stdout=folder.lock_fd,
                stderr=log,
                bufsize=0,
                **folder.child_options(),
            )
        finally:
            os.close(log)

    def wait_ready(self, deadline: float) -> int:
        """Wait until it takes connections; return the postmaster's pid.

        Raises EmbeddedError when it ends instead, or is not ready at the deadline (time.monotonic()).
        """
        while not (postmaster := self._postmaster())[1]:
            ended = self.wait(0.01)
            if ended or time.monotonic() > deadline:
                what = "ended while starting" if ended else "was not ready in time"
                raise EmbeddedError(f"Postgres {what}: {last_lines(self._folder.read('postgres.log'))}")
        return postmaster[0]

    def wait(self, timeout: float | None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) for it to end; whether it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watcher.wait(timeout)
            return True
        return False

    def stop(self, timeout: float) -> None:
        """End it, unless it has ended: a fast shutdown, after `timeout` seconds an immediate one, then SIGKILL."""
        for signum, patience in ((signal.SIGINT, timeout), (signal.SIGQUIT, 6.0), (signal.SIGKILL, None)):
            if self._watcher.poll() is not None:
                break
            pid, _ = self._postmaster()
            with contextlib.suppress(ProcessLookupError):
                if signum == signal.SIGKILL:
                    os.killpg(self._watcher.pid, signum)
                elif pid:
                    os.kill(pid, signum)
                else:  # too young to have told its pid, which the watcher knows
                    self._close_pipe()
            self.wait(patience)
        self._remove_socket_dir()

    def let_go(self, *, in_child: bool = False) -> None:
        """Close our end of the pipe: unless a forked child does, the watcher then ends what still runs."""
        self._close_pipe()
        if in_child:
            self._watcher.returncode = 0  # not ours to wait for

    def _postmaster(self) -> tuple[int, bool]:
        """The postmaster's pid, 0 when it has not told yet, and whether it is ready."""
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            lines = self._folder.read("pgdata/postmaster.pid").splitlines()
            return int(lines[0]), len(lines) > 7 and lines[7].strip() == "ready"
        return 0, False

    def _close_pipe(self) -> None:
        if self._watcher.stdin:
            self._watcher.stdin.close()

    def _remove_socket_dir(self) -> None:
        with contextlib.suppress(OSError):
            self.socket_dir.rmdir()


def _make_socket_dir(folder: DataFolder) -> Path:
    """A folder for the socket that only the server's user can enter, emptied of what a crash left."""
    path = folder.path / "run"
    if len(os.fsencode(path / f".s.PGSQL.{PORT}")) > SOCKET_PATH_BYTES:
        key = hashlib.sha256(os.fsencode(folder.path) + b"\0%d" % folder.uid).hexdigest()[:16]
        path = Path(tempfile.gettempdir(), f"gatepost-{key}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
    info = path.lstat()
    # The name can be foretold, so somebody else may have been there first. The folder is still root's if
    # a start as root was interrupted right here.
    if not stat.S_ISDIR(info.st_mode) or info.st_uid not in {folder.uid, os.getuid()} or info.st_mode & 0o077:
        raise EmbeddedError(f"{path} is not a folder closed to others: remove it")
    if info.st_uid != folder.uid:
        os.chown(path, folder.uid, folder.gid, follow_symlinks=False)
    for leftover in path.glob(".s.PGSQL.*"):
        leftover.unlink()
    return path
