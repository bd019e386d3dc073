"""What happens, told on stderr: a JSON object a line for machines, or readable in a terminal. Nobody waits for it.

An exception is told by its type and place. Its own text never is: a driver's quotes statements, aiohttp's the bytes
that were sent.
"""

import contextlib
import logging
import os
import queue
import select
import sys
import threading
import traceback
from collections.abc import Iterator, MutableMapping
from typing import Any

from gatepost.config import LogConfig


@contextlib.contextmanager
def _without_rich() -> Iterator[None]:
    """structlog imports rich wherever it is installed; we format no tracebacks, and it is 2.4 MB."""
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["rich"]


with _without_rich():
    import structlog
    from structlog.stdlib import ProcessorFormatter

Event = MutableMapping[str, Any]

# Lines that may wait for stderr: at most 3 MB, more than a second of a flood.
MOST = 10_000
# Seconds for writing the last lines at the end, if stderr blocks.
LAST_WORDS = 2.0
# Loggers whose lines below a warning are shown. Other libraries quote the data that they process.
_TOLD = ("gatepost", "gunicorn", "alembic")

_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    logging.getLogger("gatepost"),
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        _stamp,
        ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
    context_class=dict,
    cache_logger_on_first_use=True,
)
"""Our own logger: ``log.info("what happened", key=value)``. It writes through `logging`, whoever sets that up."""


class OneWarning:
    """A warning that is given once, however often there is cause for it."""

    def __init__(self) -> None:
        self._given = False

    def give(self, what: str) -> None:
        """Log it, the first time."""
        if not self._given:
            self._given = True
            log.warning(what)


@contextlib.contextmanager
def to_stderr(config: LogConfig) -> Iterator[None]:
    """Write this process's lines to stderr for as long as the block lasts; at its end those that wait are written."""
    readable = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    outlet = Outlet(sys.stderr.fileno(), formatter(readable=readable, colours=sys.stderr.isatty()))
    root = logging.getLogger()
    before = {logger: logger.level for logger in (root, *map(logging.getLogger, _TOLD))}
    for logger in before:
        logger.setLevel(max(level, logging.WARNING) if logger is root else level)
    root.addHandler(outlet)
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.removeHandler(outlet)
        for logger, was in before.items():
            logger.setLevel(was)
        outlet.close()


def dropped() -> int:
    """Lines of this process that were left out, since its start."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, Outlet))


def formatter(*, readable: bool, colours: bool = False) -> logging.Formatter:
    """Renders our own lines and those of libraries alike: in JSON, or ``readable``."""
    renderer: list[Any] = (
        [_printable, structlog.dev.ConsoleRenderer(colors=colours, sort_keys=False)]
        if readable
        else [_in_order, structlog.processors.JSONRenderer()]
    )
    return ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _stamp,
            _first_line,
        ],
        processors=[ProcessorFormatter.remove_processors_meta, _without_text, *renderer],
    )


def _first_line(_logger: Any, _method: str, event: Event) -> Event:
    """Of a library's message; in asyncio's, the lines that follow hold reprs of exceptions."""
    event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _without_text(_logger: Any, _method: str, event: Event) -> Event:
    error = event.pop("exc_info", None)
    event.pop("stack_info", None)
    if error is True:
        error = sys.exception()
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
        event["error"] = type(error).__name__
        event["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-4:]]
    return event


def _in_order(_logger: Any, _method: str, event: Event) -> Event:
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**first, **event}


def _printable(_logger: Any, _method: str, event: Event) -> Event:
    """The text without control characters."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else "\ufffd" for c in value)
    return event


class Outlet(logging.Handler):
    """Hands lines to a thread of its own, which writes them to a file descriptor: a write may block for ever.

    At most ``MOST`` wait; what comes then is counted and left out, and a line says so once there is room. The thread
    begins with the first line, so an outlet made before a fork serves after it.
    """

    def __init__(self, fd: int, lines: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(lines)
        self._fd = fd
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.dropped = self._told = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; `logging` lets one thread in at a time."""
        if self._pid != os.getpid():
            self._begin()
        if self._waiting.qsize() >= MOST:
            self.dropped += 1
            return
        self._waiting.put(self._line(record))
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="log", daemon=True)
            self._thread.start()

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:  # noqa: BLE001 (a line is not worth a request; nor may its parts be printed)
            text = f"a line of {record.name} cannot be written: {type(error).__name__}"
        return text.encode("utf-8", "replace") + b"\n"

    def close(self) -> None:
        """Write what waits; give up after ``LAST_WORDS`` seconds."""
        if self._thread is not None and self._pid == os.getpid():
            self._waiting.put(None)
            self._thread.join(LAST_WORDS)
        super().close()

    def _write(self) -> None:
        held = b""
        while (line := held or self._waiting.get()) is not None:
            # Several lines in one write, but no more than a pipe takes in one piece: workers may share it.
            lines, held = line, b""
            with contextlib.suppress(queue.Empty):
                while following := self._waiting.get_nowait():
                    if len(lines) + len(following) > select.PIPE_BUF:
                        held = following
                        break
                    lines += following
                else:
                    self._waiting.put(None)  # the sentinel of `close`, left for the outer loop
            self._put(lines)
            if self.dropped > self._told:
                missing, self._told = self.dropped - self._told, self.dropped
                said = f"{missing} lines were left out: nobody read them in time"
                self._put(self._line(logging.makeLogRecord({"name": "gatepost", "msg": said, **_WARNING})))

    def _put(self, text: bytes) -> None:
        left = memoryview(text)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # another process that shares the descriptor has made it non-blocking
                select.select([], [self._fd], [])
            except OSError:  # the reader has gone
                return


_WARNING = {"levelno": logging.WARNING, "levelname": "WARNING"}
