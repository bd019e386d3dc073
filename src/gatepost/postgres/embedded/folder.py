"""The data directory: who has it, whose its files are, and how programs run in it."""

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from gatepost.postgres.embedded.errors import EmbeddedError


class DataFolder:
    """A data directory: ours alone from take() to close(), and only then to be used.

    Its files are opened relative to its descriptor and never through a symlink, and belong to the server's user.
    """

    def __init__(self, path: Path, run_as: str | None) -> None:
        self.path = path
        self.seen_as = ""  # the path that the server sees it by
        self.uid = self.gid = -1  # the server's user
        self.lock_fd = -1  # `lock`: shared with every child, free once all are gone
        self._owner_fd = -1  # the folder, with the lock that no child shares
        self._fd = -1  # the folder once more, for children too
        self._run_as = run_as

    # -- whose it is

    def take(self, deadline: float) -> None:
        """Create or check the folder, give it to the server's user and keep every other Gatepost out.

        deadline: how long (time.monotonic()) to wait for the server of a Gatepost that is gone.
        Raises EmbeddedError or OSError; it must be closed even then.
        """
        self.path.mkdir(0o700, parents=True, exist_ok=True)
        self._open()
        self._check_contents()
        self._give_to_the_servers_user()
        if not _lock(self._owner_fd, time.monotonic() + 0.2):  # has_owner() holds it for a moment
            owner = parse_record(self.read("lock") if self.exists("lock") else "").get("owner", "(unknown)")
            raise EmbeddedError(f"{self.path} is in use by process {owner}: stop that one first")
        self.lock_fd = self.open("lock", os.O_RDWR | os.O_CREAT)
        self.record()
        if not _lock(self.lock_fd, deadline):
            raise EmbeddedError(f"{self.path}: the Postgres of a Gatepost that is gone still runs")

    def close(self, *, in_child: bool = False) -> None:
        """Give the folder up; a forked child does so without a word to the others."""
        if self.lock_fd >= 0 and not in_child:
            os.ftruncate(self.lock_fd, 0)
        for fd in (self.lock_fd, self._fd, self._owner_fd):
            if fd >= 0:
                os.close(fd)
        self.lock_fd = self._fd = self._owner_fd = -1

    def record(self, **facts: object) -> None:
        """Tell other processes who has the folder, and more."""
        line = json.dumps({"owner": os.getpid(), **facts}).encode() + b"\n"
        os.pwrite(self.lock_fd, line, 0)
        os.ftruncate(self.lock_fd, len(line))

    def _open(self) -> None:
        self._owner_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)  # not a dup: that would share the flock
        try:  # from 20 up: out of the way of the descriptors that the watcher's script numbers itself
            self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
        finally:
            os.close(fd)
        by_fd = os.getuid() == 0 and Path("/proc/self/fd").is_dir()
        self.seen_as = f"/proc/self/fd/{self._fd}" if by_fd else str(self.path)

    def _check_contents(self) -> None:
        names = {path.name for path in self.path.iterdir()}
        if "lock" not in names and names - {"lost+found"}:
            # Else a slip such as "data_dir": "/var/lib" would close that folder to everybody.
            raise EmbeddedError(f"{self.path} holds other things: set db.data_dir to a folder of its own")

    def _give_to_the_servers_user(self) -> None:
        owner = os.fstat(self._fd).st_uid
        self.uid, self.gid = _choose_user(self._run_as, owner)
        if owner != self.uid:
            if owner != 0 or os.getuid() != 0:
                raise EmbeddedError(f"{self.path} belongs to uid {owner}: run Postgres as that user")
            os.fchown(self._fd, self.uid, self.gid)
        os.fchmod(self._fd, 0o700)

    # -- its files

    def open(self, name: str, flags: int) -> int:
        """A descriptor of the file."""
        fd = os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=self._fd)
        if flags & os.O_CREAT and os.getuid() == 0:
            os.fchown(fd, self.uid, self.gid)
        return fd

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> str:
        """All of the file."""
        with os.fdopen(self.open(name, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
            return file.read()

    def write(self, name: str, text: str) -> None:
        """Make `text` all of the file, on disk."""
        with os.fdopen(self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, name: str, new: str) -> None:
        """Rename it, on disk."""
        os.rename(name, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def remove(self, name: str) -> None:
        """Remove the file, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def remove_tree(self, name: str) -> None:
        """Remove the folder, if there is one."""
        if self.exists(name):
            shutil.rmtree(name, dir_fd=self._fd)

    # -- programs in it

    def child_options(self) -> dict[str, Any]:
        """How every child runs: in its own session, and without our environment, which may hold secrets."""
        options: dict[str, Any] = {
            "cwd": "/",
            "env": {"PATH": os.defpath, "LC_ALL": "C"},
            "start_new_session": True,
            "umask": 0o077,
            "pass_fds": (self._fd,),
        }
        if os.getuid() == 0:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return options

    def run(self, command: list[str], timeout: float, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program to its end as the server's user. Raises OSError, subprocess.TimeoutExpired."""
        options = self.child_options()
        options["pass_fds"] += (self.lock_fd,)  # if we die now, the next owner waits for this one to end
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


def has_owner(path: Path) -> bool:
    """Whether a live Gatepost has the folder. Raises OSError when there is none or we may not look."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return not _flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def parse_record(record: str) -> dict[str, Any]:
    """What `lock` says; nothing when it is empty or being written."""
    try:
        parsed = json.loads(record)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _choose_user(run_as: str | None, owner: int) -> tuple[int, int]:
    """The server's uid and gid; not root's, which Postgres refuses."""
    if os.getuid() != 0:
        try:
            is_us = not run_as or pwd.getpwnam(run_as).pw_uid == os.getuid()
        except KeyError:
            is_us = False
        if not is_us:
            raise EmbeddedError(f"only root can run Postgres as {run_as}: leave db.run_as out")
        return os.getuid(), os.getgid()
    if owner != 0 and not run_as:
        with contextlib.suppress(KeyError):
            return owner, pwd.getpwuid(owner).pw_gid
        return owner, owner  # as in a container, where the folder's owner need not have a name
    for name in [run_as] if run_as else ["postgres", "nobody"]:
        with contextlib.suppress(KeyError):
            if (entry := pwd.getpwnam(name)).pw_uid != 0:
                return entry.pw_uid, entry.pw_gid
    raise EmbeddedError(f"Postgres cannot run as {run_as or 'nobody'}: set run_as to an ordinary user")


def _lock(fd: int, deadline: float) -> bool:
    """Try to have the flock alone, until the deadline; whether we have it."""
    while not _flock(fd, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _flock(fd: int, kind: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
    return False
