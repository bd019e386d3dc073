"""A Gatepost in a process of its own, started as a user would start it."""

import contextlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gatepost import cli

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """Ask until it is true, and return what it was: for what has no event to wait for. Fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def environment(**changes: str) -> dict[str, str]:
    """This environment without the developer's own configuration."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GATEPOST_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **changes}


# Each command is a process of its own, forked by one that has imported Gatepost: to import it takes longer than what
# most commands do. Tests that call `sys.executable` start one as a user does.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["gatepost.cli", __name__])


def gatepost(
    *arguments: str, cwd: Path, stdin: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    if not all(name.startswith("GATEPOST_") for name in variables):  # one may be for the interpreter or a library
        return subprocess.run(
            [sys.executable, "-m", "gatepost", *arguments],
            cwd=cwd,
            env=environment(**variables),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        for stream in streams:
            stream.write_text(stdin or "" if stream.name == "stdin" else "")
        command = _forks.Process(target=_command, args=(arguments, cwd, environment(**variables), streams))
        command.start()
        command.join(180)
        if command.exitcode is None:
            command.kill()
            raise subprocess.TimeoutExpired(["gatepost", *arguments], 180)
        done = subprocess.CompletedProcess(
            ["gatepost", *arguments], command.exitcode, *(stream.read_text() for stream in streams[1:])
        )
        command.close()
        return done


def _command(arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], streams: Sequence[Path]) -> None:
    """Become `python -m gatepost` with these arguments, in this folder and environment."""
    for number, stream in enumerate(streams):
        opened = os.open(stream, os.O_RDONLY if number == 0 else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 (open to the end)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *arguments]
    cli.main()


class Process:
    """`gatepost run` in a folder, once it serves."""

    stdin = subprocess.DEVNULL  # as a service has it

    def __init__(self, cwd: Path, *arguments: str, **variables: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "gatepost", "run", *arguments],
            cwd=cwd,
            env=environment(**{"GATEPOST_WEBSERVER__PORT": "0", **variables}),
            stdin=self.stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.banner = ""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.banner += line
            if line.startswith("Log out:"):
                break
        else:
            raise AssertionError(f"gatepost ended with {self.popen.wait()}: {self.banner}")
        # What it says later must not fill the pipe: it would stand still.
        self._rest: list[str] = []
        self._reader = threading.Thread(target=self._rest.extend, args=[self.popen.stdout])
        self._reader.start()
        found = re.search(r"listens on (\S+)", self.banner)
        assert found
        self.url = found[1]

    @property
    def workers(self) -> list[int]:
        """The processes that serve, below the first; its other child is the watcher of the embedded Postgres."""
        columns = ["ps", "-o", "pid=,stat=,comm=", "--ppid", str(self.popen.pid)]
        found = subprocess.run(columns, capture_output=True, text=True, check=False).stdout
        rows = [line.split(maxsplit=2) for line in found.splitlines()]
        return sorted(int(pid) for pid, state, name in rows if name != "sh" and not state.startswith("Z"))

    def replaced(self, pid: int) -> bool:
        """Whether another worker of two serves in this one's place."""
        workers = self.workers  # once: between two looks it may have ended, and nobody have taken its place
        return len(workers) == 2 and pid not in workers

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self.banner + "".join(self._rest)

    def request(self, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
        """Status and JSON of the answer."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": token} if token else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def end(self, signal_: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit code."""
        self.popen.send_signal(signal_)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end, return the exit code."""
        code = self.popen.wait(60)
        self._reader.join(60)
        assert self.popen.stdout is not None
        self.popen.stdout.close()
        return code


@contextlib.contextmanager
def running(cwd: Path, *arguments: str, **variables: str) -> Iterator[Process]:
    """A process that is gone afterwards, however the test went."""
    process = Process(cwd, *arguments, **variables)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.end(signal.SIGTERM)
        process.wait()
