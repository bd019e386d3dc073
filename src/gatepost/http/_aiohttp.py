"""What is used of aiohttp and asyncio that they do not promise: all of it, and nowhere else.

`PRIVATE` names each part and what would break without it. `require` refuses to start where one is missing, each has a
test in `tests/test_private_parts.py`, and `make compat` tries the newest release. All were there in aiohttp 3.14.4.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

import aiohttp
from aiohttp import http, http_parser, web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gatepost.errors import UnsupportedLibrary

PRIVATE: Mapping[tuple[type, str], str] = {
    (RequestHandler, "_messages"): "the queue of requests: a body would have no deadline",
    (RequestHandler, "_request_count"): "requests so far: headers would have no deadline",
    (RequestHandler, "_current_request"): "the request that is being answered: a body that breaks off would hang",
    (RequestHandler, "_waiter"): "whether the connection waits for a request: idle ones could not make room",
    (RequestHandler, "_manager"): "the server that hears of a connection: one turned away would be counted",
    (RequestHandler, "_loop"): "the event loop: no deadline could be set",
    (RequestHandler, "_next_keepalive_close_time"): "when an idle connection closes: room would be made by chance",
    (RequestHandler, "_keepalive_timeout"): "how long an idle connection is kept: the same",
    (web.AppRunner, "_make_server"): "where the server is made: connections would have no deadlines and no limits",
}


def require() -> None:
    """Raise UnsupportedLibrary unless all that is used is there, and HTTP is parsed by the compiled llhttp.

    The parser in Python is slower, and laxer than the one that is tested here.
    """
    for (owner, name), purpose in PRIVATE.items():
        if not hasattr(owner, name):
            raise UnsupportedLibrary.missing(f"aiohttp {aiohttp.__version__}", f"{owner.__name__}.{name}", purpose)
    if http.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise UnsupportedLibrary(
            "aiohttp runs without its compiled HTTP parser: unset AIOHTTP_NO_EXTENSIONS, or install a wheel of it"
        )


class _Queue(deque[Any]):
    """aiohttp's queue of requests to be answered; ``listener`` is called with each that is put into it."""

    __slots__ = ("_listener",)

    def __init__(self, listener: Callable[[Any, StreamReader], None]) -> None:
        super().__init__()
        self._listener = listener

    def append(self, entry: Any) -> None:
        super().append(entry)
        self._listener(*entry)


class Protocol(RequestHandler):
    """aiohttp's protocol of one connection, with names for the parts that aiohttp keeps to itself.

    aiohttp puts requests into its queue from several places: when bytes arrive, when an answer ends, when reading
    goes on. `on_request` hears of each, wherever it came from.
    """

    __slots__ = ("transport_until_lost",)

    def __init__(self, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._messages = _Queue(self.on_request)
        self.transport_until_lost: asyncio.Transport | None = None
        """aiohttp lets go of its own before it is closed."""

    def on_request(self, message: Any, body: StreamReader) -> None:
        """A request is in the queue, or an error of the parser; the body may still be on its way."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport_until_lost = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def turn_away(self, transport: asyncio.BaseTransport) -> None:
        """Close it without an answer and without having begun: `connection_lost` follows."""
        self._manager = None
        cast("asyncio.Transport", transport).abort()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it runs on."""
        return self._loop

    @property
    def requests_begun(self) -> int:
        """How many requests have come out of the parser."""
        return self._request_count

    @property
    def is_queued(self) -> bool:
        """Whether requests wait to be answered."""
        return bool(self._messages)

    @property
    def is_answered(self) -> bool:
        """Whether everything that was asked has its answer."""
        return self._current_request is None and not self._messages

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request."""
        # aiohttp begins to wait for the first one a turn of the loop after the connection is made.
        return self._request_count == 0 or (self._waiter is not None and not self._waiter.done())

    @property
    def waiting_since(self) -> float:
        """A time that grows with that of its last answer or its beginning, or of the last `delay_waiting`."""
        return self._next_keepalive_close_time

    def delay_waiting(self, seconds: float) -> None:
        """Count as waiting only so many seconds from now on."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout + seconds

    def drop_last(self) -> None:
        """Take the request that came last out of the queue."""
        self._messages.pop()

    def close_behind_last(self) -> None:
        """Let the answer to what has been asked so far be the last of this connection."""
        if not self._messages:
            self.close()
            return
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):  # else its answer closes the connection anyway
            self._messages[-1] = (message._replace(should_close=True), body)

    def answer_with_error(self, status: int, error: Exception) -> None:
        """Put an error into the queue, as the parser does; `handle_error` renders it."""
        self._messages.append((_ErrInfo(status, error, ""), EMPTY_PAYLOAD))
        if self._waiter is not None:
            self._waiter.set_result(None)

    def read_at_most(self, size: int) -> None:
        """Read so many bytes in one turn of the event loop. The attribute is asyncio's, and not documented."""
        self.transport_until_lost.max_size = size  # type: ignore[union-attr]


class Runner(web.AppRunner):
    """aiohttp's runner of an app, on a server that `make_server` makes."""

    def make_server(self, made: web.Server, options: Mapping[str, Any]) -> web.Server:
        """The server in place of aiohttp's. ``options``: what its connections are made with."""
        raise NotImplementedError

    async def _make_server(self) -> web.Server:
        return self.make_server(await super()._make_server(), self._kwargs)
