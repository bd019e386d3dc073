"""The wire: how long a client may take, and answers to what is no HTTP.

aiohttp has a deadline for idle connections only. Here each connection has one timer, armed while something is
unfinished and at no other time: a request that arrives whole, as nearly all do, costs two assignments more.
"""

import asyncio
import logging
import math
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from aiohttp import http, http_parser, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gatepost.admission import Admission, admissible, network
from gatepost.config import Config, WebServerConfig
from gatepost.errors import BadRequest, Problem, RequestTimeout
from gatepost.jitter import jitter
from gatepost.web import MAX_BODY, QuietLogger, add_common_headers, render

T = TypeVar("T")

# Bytes read of a connection in one go; asyncio's own 256 KB hold 40,000 chunks of one byte, and are parsed before
# anybody else has a turn: 400 such clients took 6 s and 260 MB.
_READ, _READ_CHUNKED = 4096, 1024
# Bytes of a chunked body with what is around its chunks: six times its data where each has one byte.
MAX_CHUNKED = 10 * MAX_BODY
# Answers that may wait at once for clients to take them: the largest hold 100 KB each (measured).
MAX_UNTAKEN = 256

_NEVER = math.inf
_SPREAD = 0.1  # of a deadline


class PurePythonParser(Exception):
    """aiohttp would parse HTTP in Python: slower, and laxer than the parser that is tested here."""


def require_parser() -> None:
    """Raise PurePythonParser unless aiohttp parses with its compiled llhttp."""
    if http.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise PurePythonParser(
            "aiohttp runs without its compiled HTTP parser: unset AIOHTTP_NO_EXTENSIONS, or install a wheel of it"
        )


class Connection(RequestHandler):
    """One client's connection. Whatever the client has begun must be finished in time."""

    __slots__ = (
        "_chunked_left",
        "_config",
        "_pipe",
        "_receive_by",
        "_receiving",
        "_send_by",
        "_timer",
        "address",
        "waiting",
    )

    def __init__(self, server: "Server", config: WebServerConfig, **options: Any) -> None:
        super().__init__(cast("web.Server", server), **options)
        self._config = config
        self._pipe: asyncio.Transport | None = None  # aiohttp lets go of its own before it is closed
        self._timer: asyncio.TimerHandle | None = None
        self._send_by = self._receive_by = _NEVER
        # What is on its way and not whole: a body, or headers ("").
        self._receiving: StreamReader | str | None = None
        self._chunked_left = _NEVER
        self.address: bytes | None = None
        self.waiting: asyncio.Task[Any] | None = None
        """What is done for this caller alone, and for nobody once it has gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there, or is turned away."""
        self._pipe = cast("asyncio.Transport", transport)
        server = cast("Server", self._manager)
        self.address = network(self._pipe.get_extra_info("peername"), self._config.trusted_proxies)
        if not server.admission.admit(self, self.address, self._loop.time()):
            # At once and without a word: an answer would cost more than the client's attempt did, and a reset would
            # overtake it, since the request is there already and not read.
            self._manager = None
            self._pipe.abort()
            return
        super().connection_made(transport)
        self._read_slowly(False)
        # Tell us whenever something is left unsent, not only 64 KB.
        self._pipe.set_write_buffer_limits(high=0)
        self._allow(self._config.header_timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        if self.waiting is not None:
            self.waiting.cancel()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is under way: the client's turn."""
        return self._waiter is not None and not self._waiter.done()

    @property
    def idle_since(self) -> float:
        """A time that grows with that of its last answer, or of its beginning."""
        return self._next_keepalive_close_time

    # ------------------------------------------------------------------------------------------ deadlines

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and note what is still missing."""
        super().data_received(data)
        if self._messages:
            message, body = self._messages[-1]
            if body.is_eof():
                self._receiving = None
                self._receive_by = _NEVER
            else:
                self._read_slowly(getattr(message, "chunked", False))
                self._expect(body, self._config.body_timeout)
        elif isinstance(self._receiving, StreamReader):
            self._chunked_left -= len(data)
            if self._receiving.is_eof():
                self._receiving = None
                self._receive_by = _NEVER
                self._read_slowly(False)
            elif self._chunked_left < 0:
                self.cut_off()  # answered long ago, and goes on
        elif data and self._receiving is None:
            self._expect("", self._config.header_timeout)

    def _read_slowly(self, chunked: bool) -> None:
        self._chunked_left = MAX_CHUNKED if chunked else _NEVER
        self._pipe.max_size = _READ_CHUNKED if chunked else _READ  # type: ignore[union-attr] # asyncio's, unnamed

    def _expect(self, receiving: StreamReader | str, seconds: float) -> None:
        self._receiving = receiving
        if receiving == "" and self._request_count == 0:
            return  # the time for its first headers began with the connection
        self._allow(seconds)

    def _allow(self, seconds: float) -> None:
        # Those who came together are not given up together: 2,000 answers at once would hold up everybody else.
        self._receive_by = self._loop.time() + jitter(seconds, 1 - _SPREAD, 1)
        self._arm(self._receive_by)

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as we send."""
        super().pause_writing()
        self._send_by = self._loop.time() + self._config.body_timeout
        self._arm(self._send_by)
        if self._manager is not None:
            cast("Server", self._manager).untaken_by(self)

    def resume_writing(self) -> None:
        """It has taken all."""
        super().resume_writing()
        self._send_by = _NEVER
        if self._manager is not None:
            cast("Server", self._manager).untaken.pop(self, None)

    def cut_off(self) -> None:
        """End it, whatever is on its way; `close` would go on waiting for the client."""
        assert self._pipe is not None
        self._pipe.abort()

    def _arm(self, due: float) -> None:
        """Look again when it is due. A timer that finds nothing is cheaper than ending it with each request."""
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._send_by <= now:
            self.cut_off()
        elif self._receive_by <= now:
            self._receive_by = _NEVER
            self._give_up()
        if (due := min(self._send_by, self._receive_by)) < _NEVER and self._pipe is not None and now < due:
            self._arm(due)

    def _give_up(self) -> None:
        """What the client has begun did not come in time."""
        receiving, answered = self._receiving, self._current_request is None and not self._messages
        if isinstance(receiving, StreamReader):
            if not answered:
                receiving.set_exception(RequestTimeout())  # to the handler, which is reading
            self.close()
            receiving.feed_eof()
        elif receiving is None:
            self.force_close()  # nothing came at all: nothing to answer
        elif self.is_waiting:
            self._messages.append((_ErrInfo(RequestTimeout.status, RequestTimeout(), ""), EMPTY_PAYLOAD))
            cast("asyncio.Future[None]", self._waiter).set_result(None)
        else:
            self.close()  # the beginning of another request, behind the one that is being answered

    # -------------------------------------------------------------------------------------------- errors

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 (the problem has its own)
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 (it quotes what was sent)
    ) -> web.StreamResponse:
        """Answer, in our own shape, what never became a request, and close."""
        if isinstance(exc, HttpProcessingError):
            problem: Problem = BadRequest()
        elif isinstance(exc, Problem):
            problem = exc
        else:
            self.log_exception("Error handling request", exc_info=exc)
            problem = Problem("Something went wrong on our side.")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = render(problem)
        add_common_headers(request, response)
        response.force_close()
        return response


class Server(web.Server):
    """Makes connections."""

    def __init__(
        self, config: WebServerConfig, admission: Admission[Connection], handler: Any, **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self._config = config
        self.admission = admission
        self.untaken: dict[Connection, None] = {}
        """Connections whose answer waits to be taken, that which waits longest first."""

    def untaken_by(self, connection: Connection) -> None:
        """An answer begins to wait; where too many do, the client that has had most time is cut off."""
        self.untaken[connection] = None
        if len(self.untaken) > MAX_UNTAKEN:
            longest = next(iter(self.untaken))
            del self.untaken[longest]
            longest.cut_off()

    def __call__(self) -> Connection:
        """A connection, for asyncio."""
        return Connection(self, self._config, loop=self._loop, **self._kwargs)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count it out."""
        super().connection_lost(handler, exc)
        connection = cast("Connection", handler)
        self.admission.leave(connection, connection.address)
        self.untaken.pop(connection, None)


class Runner(web.AppRunner):
    """Serves an app by the rules of this module. For `WebServer.run`, for gunicorn's worker and for tests.

    ``most``: connections at once, and ``shutdown_timeout``: seconds that requests in flight have at the end,
    instead of what the configuration says. Raises ConfigError.
    """

    def __init__(
        self,
        app: web.Application,
        config: Config,
        *,
        most: int | None = None,
        shutdown_timeout: float | None = None,
    ) -> None:
        self._config = config.webserver
        self.admission = Admission[Connection](most or admissible(config), self._config.max_connections_per_address)
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # bodies are never decompressed: an encoded one is refused unread
            logger=QuietLogger(logging.getLogger("gatepost"), {}),
            keepalive_timeout=self._config.keepalive_timeout,
            shutdown_timeout=self._config.shutdown_timeout if shutdown_timeout is None else shutdown_timeout,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            self._config, self.admission, made.request_handler, request_factory=made.request_factory, **self._kwargs
        )


async def while_connected(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives. When the caller hangs up, it is cancelled, and so is the request."""
    connection = request.protocol
    if not isinstance(connection, Connection):  # somebody else's runner
        return await work
    task: asyncio.Task[T] = asyncio.create_task(work)
    connection.waiting = task
    if connection.transport is None:
        task.cancel()
    try:
        return await task
    finally:
        connection.waiting = None
