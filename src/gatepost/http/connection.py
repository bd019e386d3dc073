"""One client's connection: how long it may take, and answers to what is no HTTP.

aiohttp has a deadline for idle connections only. Here each connection has one timer more, armed while something is
unfinished. The queue of requests reports whatever comes out of the parser (`_aiohttp.Protocol`).
"""

import asyncio
import math
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gatepost.config import WebServerConfig
from gatepost.errors import BadRequest, Problem, RequestTimeout
from gatepost.http._aiohttp import Protocol
from gatepost.http.app import add_common_headers, render
from gatepost.http.body import MAX_BODY
from gatepost.http.connection_limits import Admission, network
from gatepost.process.jitter import jitter

# Bytes read from a connection in one turn of the event loop. asyncio's default of 256 KB holds 40,000 chunks of one
# byte, which are parsed before another connection has its turn: 400 such clients took 6 s and 260 MB.
_READ, _READ_CHUNKED = 4096, 1024
# Bytes of a chunked body with its framing: six times its data if each chunk has one byte.
MAX_CHUNKED = 10 * MAX_BODY

_NEVER = math.inf
_SPREAD = 0.1  # of a deadline
# Seconds after which a connection that waits for a body may be closed to make room, as an idle one may.
_PATIENCE = 5.0
# The share of the shutdown timeout in which bodies may still arrive. The rest is for their answers.
_STILL_COME = 0.8
_LOOK = 0.05  # seconds between two checks whether bodies have arrived


class Connection(Protocol):
    """One client's connection. Whatever the client has begun must be finished in time."""

    __slots__ = (
        "_admission",
        "_body",
        "_body_by",
        "_chunked_left",
        "_config",
        "_headers_by",
        "_headers_of",
        "_send_by",
        "_silent",
        "_streams",
        "_timer",
        "address",
        "ended",
        "waiting",
    )

    def __init__(
        self, server: web.Server, admission: "Admission[Connection]", config: WebServerConfig, **options: Any
    ) -> None:
        super().__init__(server, **options)
        self._admission = admission
        self._config = config
        self._timer: asyncio.TimerHandle | None = None
        self._send_by = _NEVER
        # The body of the last request. It is the only body that may still be arriving, and then has a deadline.
        self._body: StreamReader = EMPTY_PAYLOAD
        self._body_by = _NEVER
        # The deadline of headers, and the number of requests before them: when it has grown, the headers are
        # complete.
        self._headers_by, self._headers_of = _NEVER, 0
        self._silent = True  # no byte has arrived yet
        self._streams = False
        self._chunked_left = _NEVER
        self.address: bytes | None = None
        self.waiting: asyncio.Task[Any] | None = None
        """What is done for this caller alone, and for nobody once it has gone."""
        self.ended = False
        """Whether the client sends no more: it has gone, or it has only said all it had to say."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there, or is turned away."""
        self.address = network(transport.get_extra_info("peername"), self._config.trusted_proxies)
        if not self._admission.admit(self, self.address, self.loop.time()):
            # Closed at once, without an answer. An answer would cost more than the attempt did, and the reset that
            # follows from the unread request would overtake it.
            self.turn_away(transport)
            return
        super().connection_made(transport)
        self._read_slowly(False)
        assert self.transport is not None
        # `pause_writing` is called for any unsent byte, not only for 64 KB.
        self.transport.set_write_buffer_limits(high=0)
        self._headers_by = self._allow(self._config.header_timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client has gone."""
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._admission.leave(self, self.address)
        super().connection_lost(exc)
        if self.waiting is not None:
            self.waiting.cancel()

    @property
    def is_waiting(self) -> bool:
        """Whether we wait for the client: for a request, or for the rest of one. Or it waits for news."""
        return self._streams or self.is_idle or not (self._body.is_eof() or self.is_queued)

    @property
    def untaken(self) -> int:
        """Bytes of answers that the client has not taken."""
        transport = self.transport_until_lost
        return transport.get_write_buffer_size() if transport is not None else 0

    def let_stream(self) -> None:
        """Answer without an end, to somebody who is not trusted with a connection: at the limit another takes it."""
        self._streams = True
        self.delay_waiting(0)

    # ------------------------------------------------------------------------------------------- stopping

    @property
    def is_receiving(self) -> bool:
        """Whether the body of a request that is not answered yet is on its way."""
        return not self._body.is_eof() and not self.is_answered

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 (aiohttp's)
        """End within ``timeout`` seconds. The rest of a body may still arrive first; aiohttp would stop reading at
        once.
        """
        assert timeout is not None  # our runner always passes it
        began = self.loop.time()
        while self.is_receiving and self.loop.time() < began + _STILL_COME * timeout:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        if not self._body.is_eof():
            self._fail(RequestTimeout())
        await super().shutdown(max(began + timeout - self.loop.time(), 0))

    # ------------------------------------------------------------------------------------------ deadlines

    def on_request(self, message: Any, body: StreamReader) -> None:
        """Give a body that is not complete its deadline."""
        if not self._body.is_eof():
            self.drop_last()  # only a parser error follows an incomplete body; the request's own answer tells it
            self._fail(_broke_off())
            return
        self._body = body
        if body.is_eof():
            return
        self._read_slowly(getattr(message, "chunked", False))
        self.delay_waiting(_PATIENCE)
        self._body_by = self._allow(self._config.body_timeout)
        if self.ended:
            self._fail(_broke_off())

    def data_received(self, data: bytes) -> None:
        """Feed the parser. Bytes outside of a body that do not complete a request begin one, which gets a
        deadline.
        """
        requests, begin = self.requests_begun, self._body.is_eof()
        super().data_received(data)
        if not self._body.is_eof():
            self._chunked_left -= len(data)
            if self._chunked_left < 0:
                self.cut_off()
        elif self._chunked_left < _NEVER:
            self._read_slowly(False)
        if data:
            self._silent = False
            if begin and self.requests_begun == requests != self._headers_of:
                self._headers_of = requests
                self._headers_by = self._allow(self._config.header_timeout)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio's says so, aiohttp's is None
        """The client has sent a FIN. Its requests are answered first: it may still read. It may also have gone, which
        looks the same, so no password is hashed for it.
        """
        self.ended = True
        if self.waiting is not None:
            return False
        if not self._body.is_eof():
            self._fail(_broke_off())
        elif not self.is_idle:
            self.close_behind_last()
        elif self._silent or self._headers_of != self.requests_begun:
            return False
        else:
            self._refuse(BadRequest("The request broke off."))
        return True

    def _read_slowly(self, chunked: bool) -> None:
        self._chunked_left = MAX_CHUNKED if chunked else _NEVER
        self.read_at_most(_READ_CHUNKED if chunked else _READ)

    def _allow(self, seconds: float) -> float:
        """A deadline in ``seconds``, at which `_look` is called."""
        # Deadlines are spread: connections that began together would otherwise end together, and 2,000 answers at
        # once would delay all other requests.
        due = self.loop.time() + jitter(seconds, 1 - _SPREAD, 1)
        self._arm(due)
        return due

    def pause_writing(self) -> None:
        """The client reads its answer more slowly than we send it."""
        super().pause_writing()
        self._send_by = self._allow(self._config.body_timeout)
        self._admission.wait(self)

    def resume_writing(self) -> None:
        """The client has read everything."""
        super().resume_writing()
        self._send_by = _NEVER
        self._admission.go_on(self)

    def cut_off(self) -> None:
        """Close the connection at once; `close` would wait until the client has read what is buffered."""
        assert self.transport_until_lost is not None
        self.transport_until_lost.abort()

    def _arm(self, due: float) -> None:
        """Call `_look` at ``due``. A timer that finds nothing to do is cheaper than cancelling it for each
        request.
        """
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(due, self._look)

    @property
    def _due(self) -> float:
        """The earliest deadline of whatever is unfinished."""
        body_by = _NEVER if self._body.is_eof() else self._body_by
        headers_by = self._headers_by if self._headers_of == self.requests_begun else _NEVER
        return min(self._send_by, body_by, headers_by)

    def _look(self) -> None:
        self._timer = None
        now = self.loop.time()
        if self._send_by <= now:
            self.cut_off()
            return
        if self._due <= now:
            if not self._body.is_eof():
                self._fail(RequestTimeout())
            elif not self.is_idle:  # pipelined headers behind a request that is not answered yet
                self._headers_by = now + self._config.header_timeout
            elif self._silent:
                self._headers_of = -1
                self.force_close()  # nothing to answer
            else:
                self._refuse(RequestTimeout())
        if self._due < _NEVER:
            self._arm(self._due)

    def _fail(self, problem: Problem) -> None:
        """Give a body up: the handler that reads it gets ``problem``."""
        if not self.is_answered:
            self._body.set_exception(problem)
        self.close_behind_last()
        self._body.feed_eof()

    def _refuse(self, problem: Problem) -> None:
        """Give headers up: ``problem`` is the answer."""
        self._headers_of = -1
        self.answer_with_error(problem.status, problem)

    # -------------------------------------------------------------------------------------------- errors

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 (the problem has its own)
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 (it quotes what was sent)
    ) -> web.StreamResponse:
        """Answer what never became a request with a problem document, and close."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("nobody is there, or an answer has begun already")
        if isinstance(exc, HttpProcessingError):
            problem: Problem = BadRequest()
        elif isinstance(exc, Problem):
            problem = exc
        else:
            self.log_exception("Error handling request", exc_info=exc)
            problem = Problem("Something went wrong on our side.")
        response = render(problem)
        add_common_headers(request, response)
        response.force_close()
        return response


def _broke_off() -> BadRequest:
    return BadRequest("The body broke off.", code="body_incomplete")
