"""Lines on stderr: whole, readable by machines and people, without an exception's text, and in nobody's way."""

import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatepost.config import WebServerConfig
from gatepost.postgres.database import Dsn
from gatepost.telemetry import logs
from tests.gatepost_process import environment, until
from tests.test_server import environment_of

SAY = """
import asyncio, logging, os, sys, warnings
from gatepost.telemetry import logs
from gatepost.config import WebServerConfig
from gatepost.config import LogConfig
logs.LAST_WORDS = 60  # whoever reads them may be slow
with logs.to_stderr(LogConfig(**%s)):
"""


def said(body: str, terminal: bool = False, **config: object) -> str:
    """What a process that does ``body`` says on stderr."""
    script = SAY % repr(config) + "\n".join(f"    {line}" for line in body.splitlines())
    if not terminal:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
        return done.stderr
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", script], stderr=theirs, check=True, timeout=120)
    os.close(theirs)
    try:
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)


def test_a_line_is_an_object_with_a_utc_time_a_level_and_what_happened() -> None:
    line = json.loads(said("logs.log.info('it happened', name='x\\ny')"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {"level": "info", "event": "it happened", "name": "x\ny"}


def test_a_terminal_gets_lines_for_people_unless_json_is_asked_for() -> None:
    body = "logs.log.warning('it happened', name='x')"
    assert "it happened" in said(body, terminal=True)
    assert "\x1b[" in said(body, terminal=True)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(said(body, terminal=True))
    assert json.loads(said(body, terminal=True, format="json"))["name"] == "x"
    plain = said(body, format="console")
    assert "it happened" in plain
    assert "\x1b[" not in plain


def test_a_strangers_text_does_not_steer_the_terminal() -> None:
    body = "logs.log.warning('it happened', name='a\\x1b[2Jb')\nlogging.getLogger('asyncio').error('c\\x1b[2Jd')"
    told = said(body, format="console")
    assert "\x1b" not in told
    assert "a\ufffd[2Jb" in told
    assert "c\ufffd[2Jd" in told


def test_the_log_level_is_respected_and_libraries_log_warnings_only() -> None:
    body = """
for name in ('gatepost', 'alembic', 'sqlalchemy.engine', 'somebody'):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, 'x')
"""

    def told(level: str) -> set[tuple[str, str]]:
        return {(line["logger"], line["level"]) for line in map(json.loads, said(body, level=level).splitlines())}

    libraries = {(name, level) for name in ("sqlalchemy.engine", "somebody") for level in ("warning", "error")}
    ours = {(name, level) for name in ("gatepost", "alembic") for level in ("debug", "info", "warning", "error")}
    assert told("debug") == ours | libraries
    assert told("info") == {one for one in ours if one[1] != "debug"} | libraries
    assert told("error") == {one for one in ours | libraries if one[1] == "error"}


def test_an_exception_is_told_by_type_and_place_and_never_by_its_text() -> None:
    body = """
async def fail():
    raise ValueError('hunter2')
async def main():
    asyncio.ensure_future(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
asyncio.run(main())
import gc; gc.collect()
try:
    raise KeyError('hunter2')
except KeyError as error:
    logging.getLogger('x').exception('first')
    logs.log.exception('second')
    logs.log.error('third', exc_info=error)
warnings.warn('fourth')
"""
    told = said(body)
    assert "hunter2" not in told
    lines = [json.loads(line) for line in told.splitlines()]
    found = [(line["event"].rpartition(": ")[2], line.get("error")) for line in lines]
    assert ("Task exception was never retrieved", "ValueError") in found
    assert found[-4:] == [("first", "KeyError"), ("second", "KeyError"), ("third", "KeyError"), ("fourth", None)]
    assert all(re.search(r"<string>:\d+ ", line["where"][-1]) for line in lines if "error" in line)


def test_every_line_is_written_before_the_end_and_once_also_after_a_fork() -> None:
    body = """
logs.log.info('parent')
if not (child := os.fork()):
    for n in range(3000): logs.log.info('child', n=n)
    sys.exit()
for n in range(3000): logs.log.info('parent', n=n)
os.waitpid(child, 0)
"""
    lines = [json.loads(line) for line in said(body).splitlines()]
    for who, count in (("parent", 3001), ("child", 3000)):
        numbers = [line.get("n") for line in lines if line["event"] == who]
        assert len(numbers) == count
        assert numbers[-3000:] == list(range(3000))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page, which nobody reads."""
    reading, writing = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        with contextlib.suppress(OSError):  # the test has done so
            os.close(fd)


def lines_of(fd: int) -> Iterator[Any]:
    with os.fdopen(fd, "rb") as stream:
        yield from map(json.loads, stream)


def test_lines_beyond_the_bound_are_counted_and_left_out_and_a_line_says_so(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST", 100)
    monkeypatch.setattr(logs, "LAST_WORDS", 60)
    reading, writing = pipe
    outlet = logs.Outlet(writing, logs.formatter(readable=False))
    for n in range(1000):
        outlet.handle(
            logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "%d " + "x" * 100, "args": (n,)})
        )
    assert outlet.dropped >= 1000 - 100 - 4096 // 100 - 1
    assert outlet._waiting.qsize() <= 100
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(lines_of(reading)))
    reader.start()
    outlet.close()
    os.close(writing)
    reader.join(60)
    told = [line for line in found if "left out" in line["event"]]
    assert sum(int(line["event"].split()[0]) for line in told) == outlet.dropped
    assert len(found) - len(told) == 1000 - outlet.dropped
    assert [int(line["event"].split()[0]) for line in found if line not in told] == sorted(
        int(line["event"].split()[0]) for line in found if line not in told
    )


def test_unread_log_lines_do_not_delay_the_end(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LAST_WORDS", 0.1)
    outlet = logs.Outlet(pipe[1], logs.formatter(readable=False))
    for _ in range(200):
        outlet.handle(logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "x" * 100}))
    outlet.close()
    assert outlet._thread is not None
    assert outlet._thread.is_alive()
    os.close(pipe[0])  # EPIPE frees it
    outlet._thread.join(60)
    assert not outlet._thread.is_alive()


def test_a_pipe_that_another_has_made_non_blocking_gets_every_line(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LAST_WORDS", 60)
    reading, writing = pipe
    os.set_blocking(writing, False)
    outlet = logs.Outlet(writing, logs.formatter(readable=False))
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(lines_of(reading)))
    reader.start()
    for n in range(500):
        outlet.handle(logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "x" * 100, "n": n}))
    outlet.close()
    os.close(writing)
    reader.join(60)
    assert len(found) == 500


def test_a_line_that_cannot_be_made_costs_nothing_but_itself(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    outlet = logs.Outlet(writing, logs.formatter(readable=False))
    outlet.handle(
        logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "%d hunter2", "args": ("hunter2",)})
    )
    outlet.close()
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert stream.read() == "a line of x cannot be written: TypeError\n"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def unread(dsn: Dsn, tmp_path: Path, pipe: tuple[int, int]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A Gatepost whose stderr nobody reads, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gatepost", "run"],
        cwd=tmp_path,
        env=environment(GATEPOST_WEBSERVER__PORT="0", **environment_of(dsn)),
        stdout=subprocess.PIPE,
        stderr=pipe[1],
        text=True,
    )
    os.close(pipe[1])
    try:
        assert process.stdout is not None
        found = re.search(r"listens on (\S+)", process.stdout.readline())
        assert found
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def ask_often(url: str, times: int) -> None:
    for _ in range(times):
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(url + "/nowhere", timeout=60)
        with answer.value as error:
            assert error.code == 404


def test_a_full_pipe_for_a_log_does_not_stop_the_service_and_its_lines_come_when_it_is_read(
    unread: tuple[subprocess.Popen[str], str], pipe: tuple[int, int]
) -> None:
    process, url = unread
    ask_often(url, 300)  # 60 KB of lines into a pipe of 4
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(lines_of(pipe[0])))
    reader.start()
    until(lambda: [line.get("route") for line in found].count("unmatched") == 300)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    reader.join(60)
    assert found[-1]["event"] == "stopped"


def test_a_full_pipe_for_a_log_does_not_keep_the_service_from_stopping(
    unread: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = unread
    ask_often(url, 100)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert WebServerConfig().shutdown_timeout > 2 * logs.LAST_WORDS  # which it waited for the reader


def test_a_log_costs_little_memory_and_no_rich() -> None:
    script = "import sys, gatepost.server, gatepost.cli; print([m for m in ('rich', 'pygments') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
