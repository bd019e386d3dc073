"""The wire: how long a client may take, and answers to what is no HTTP.

aiohttp has a deadline for idle connections only. Here each connection has one timer more, armed while something is
unfinished. A request may come out of the parser when bytes arrive, when an answer ends or when reading goes on, so it
is not looked for in any of these places: the queue that all of them fill says what is put into it.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gatepost.config import WebServerConfig
from gatepost.errors import BadRequest, Problem, RequestTimeout
from gatepost.http.app import MAX_BODY, add_common_headers, render
from gatepost.http.connection_limits import Admission, network
from gatepost.process.jitter import jitter

# Bytes read of a connection in one go; asyncio's own 256 KB hold 40,000 chunks of one byte, and are parsed before
# anybody else has a turn: 400 such clients took 6 s and 260 MB.
_READ, _READ_CHUNKED = 4096, 1024
# Bytes of a chunked body with what is around its chunks: six times its data where each has one byte.
MAX_CHUNKED = 10 * MAX_BODY

_NEVER = math.inf
_SPREAD = 0.1  # of a deadline
# Seconds that a body may take before it is as good a reason to be closed, where there are too many, as to be idle.
_PATIENCE = 5.0
# When stopping, bodies may come for this part of the time that is left: what then remains is for their answers.
_STILL_COME = 0.8
_LOOK = 0.05  # seconds between two looks whether they have


class _Messages(deque[Any]):
    """aiohttp's queue of requests to be answered; ``told`` hears of each that is put into it."""

    __slots__ = ("_told",)

    def __init__(self, told: Callable[[Any, StreamReader], None]) -> None:
        super().__init__()
        self._told = told

    def append(self, entry: Any) -> None:
        super().append(entry)
        self._told(*entry)


class Connection(RequestHandler):
    """One client's connection. Whatever the client has begun must be finished in time."""

    __slots__ = (
        "_admission",
        "_body",
        "_body_by",
        "_chunked_left",
        "_config",
        "_headers_by",
        "_headers_of",
        "_pipe",
        "_send_by",
        "_silent",
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
        self._pipe: asyncio.Transport | None = None  # aiohttp lets go of its own before it is closed
        self._timer: asyncio.TimerHandle | None = None
        self._send_by = _NEVER
        self._messages = _Messages(self._queued)
        # The body of the request that came last, the only one that may be on its way: it has a deadline meanwhile.
        self._body: StreamReader = EMPTY_PAYLOAD
        self._body_by = _NEVER
        # When headers must be whole, and how many requests had come before them: once one more has come, they are.
        self._headers_by, self._headers_of = _NEVER, 0
        self._silent = True  # nothing has come at all
        self._chunked_left = _NEVER
        self.address: bytes | None = None
        self.waiting: asyncio.Task[Any] | None = None
        """What is done for this caller alone, and for nobody once it has gone."""
        self.ended = False
        """Whether the client sends no more: it has gone, or it has only said all it had to say."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there, or is turned away."""
        self._pipe = cast("asyncio.Transport", transport)
        self.address = network(self._pipe.get_extra_info("peername"), self._config.trusted_proxies)
        if not self._admission.admit(self, self.address, self._loop.time()):
            # At once and without a word: an answer would cost more than the client's attempt did, and a reset would
            # overtake it, since the request is there already and not read.
            self._manager = None
            self._pipe.abort()
            return
        super().connection_made(transport)
        self._read_slowly(False)
        # Tell us whenever something is left unsent, not only 64 KB.
        self._pipe.set_write_buffer_limits(high=0)
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
        """Whether it is the client's turn: nothing is asked, or not all of it is here."""
        return self._is_idle or not (self._body.is_eof() or self._messages)

    @property
    def untaken(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self._pipe.get_write_buffer_size() if self._pipe is not None else 0

    @property
    def waiting_since(self) -> float:
        """A time that grows with that of its last answer or its beginning; for one that sends a body, with when it
        should have sent it.
        """
        return self._next_keepalive_close_time

    @property
    def _is_idle(self) -> bool:
        # aiohttp begins to wait for the first request a turn of the loop after the connection is made.
        return self._request_count == 0 or (self._waiter is not None and not self._waiter.done())

    # ------------------------------------------------------------------------------------------- stopping

    @property
    def is_receiving(self) -> bool:
        """Whether the body of a request that is not answered yet is on its way."""
        return not self._body.is_eof() and not self._is_answered

    @property
    def _is_answered(self) -> bool:
        return self._current_request is None and not self._messages

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 (aiohttp's)
        """End within ``timeout`` seconds. A body that is on its way may still come: aiohttp would read no more."""
        assert timeout is not None  # ours says it
        began = self._loop.time()
        while self.is_receiving and self._loop.time() < began + _STILL_COME * timeout:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        if not self._body.is_eof():
            self._fail(RequestTimeout())
        await super().shutdown(max(began + timeout - self._loop.time(), 0))

    # ------------------------------------------------------------------------------------------ deadlines

    def _queued(self, message: Any, body: StreamReader) -> None:
        """A request is there, or an error of the parser; the body may still be on its way."""
        if not self._body.is_eof():
            self._messages.pop()  # only an error can follow a body that is not whole, and it is that request's answer
            self._fail(_broke_off())
            return
        self._body = body
        if body.is_eof():
            return
        self._read_slowly(getattr(message, "chunked", False))
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout + _PATIENCE
        self._body_by = self._allow(self._config.body_timeout)
        if self.ended:
            self._fail(_broke_off())

    def data_received(self, data: bytes) -> None:
        """Feed the parser. Bytes of which no request came, and which are of no body, begin one."""
        requests, begin = self._request_count, self._body.is_eof()
        super().data_received(data)
        if not self._body.is_eof():
            self._chunked_left -= len(data)
            if self._chunked_left < 0:
                self.cut_off()
        elif self._chunked_left < _NEVER:
            self._read_slowly(False)
        if data:
            self._silent = False
            if begin and self._request_count == requests != self._headers_of:
                self._headers_of = requests
                self._headers_by = self._allow(self._config.header_timeout)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio's says so, aiohttp's is None
        """The client sends no more. What it has asked is answered first: it may still be there, and read.

        It may also have gone, which looks the same: no password is hashed for it.
        """
        self.ended = True
        if self.waiting is not None:
            return False
        if not self._body.is_eof():
            self._fail(_broke_off())
        elif not self._is_idle:
            self._close_behind()
        elif self._silent or self._headers_of != self._request_count:
            return False
        else:
            self._refuse(BadRequest("The request broke off."))
        return True

    def _close_behind(self) -> None:
        """Let the answer to what has been asked so far be the last."""
        if not self._messages:
            self.close()
            return
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):  # else its answer closes the connection anyway
            self._messages[-1] = (message._replace(should_close=True), body)

    def _read_slowly(self, chunked: bool) -> None:
        self._chunked_left = MAX_CHUNKED if chunked else _NEVER
        self._pipe.max_size = _READ_CHUNKED if chunked else _READ  # type: ignore[union-attr] # asyncio's, unnamed

    def _allow(self, seconds: float) -> float:
        """The time at which so many seconds are over; `_look` is called by then."""
        # Those who came together are not given up together: 2,000 answers at once would hold up everybody else.
        due = self._loop.time() + jitter(seconds, 1 - _SPREAD, 1)
        self._arm(due)
        return due

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as we send."""
        super().pause_writing()
        self._send_by = self._allow(self._config.body_timeout)
        self._admission.wait(self)

    def resume_writing(self) -> None:
        """It has taken all."""
        super().resume_writing()
        self._send_by = _NEVER
        self._admission.go_on(self)

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

    @property
    def _due(self) -> float:
        """When the first of what is unfinished must be finished."""
        body_by = _NEVER if self._body.is_eof() else self._body_by
        headers_by = self._headers_by if self._headers_of == self._request_count else _NEVER
        return min(self._send_by, body_by, headers_by)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._send_by <= now:
            self.cut_off()
            return
        if self._due <= now:
            if not self._body.is_eof():
                self._fail(RequestTimeout())
            elif not self._is_idle:  # the headers are behind a request that we have not answered yet
                self._headers_by = now + self._config.header_timeout
            elif self._silent:
                self._headers_of = -1
                self.force_close()  # nothing to answer
            else:
                self._refuse(RequestTimeout())
        if self._due < _NEVER:
            self._arm(self._due)

    def _fail(self, problem: Problem) -> None:
        """The body of a request does not come; ``problem`` is what its handler is told that reads it."""
        if not self._is_answered:
            self._body.set_exception(problem)
        self._close_behind()
        self._body.feed_eof()

    def _refuse(self, problem: Problem) -> None:
        """The headers of a request do not come; ``problem`` is the answer."""
        self._headers_of = -1
        self._messages.append((_ErrInfo(problem.status, problem, ""), EMPTY_PAYLOAD))
        if self._waiter is not None:
            self._waiter.set_result(None)

    # -------------------------------------------------------------------------------------------- errors

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002 (the problem has its own)
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 (it quotes what was sent)
    ) -> web.StreamResponse:
        """Answer, in our own shape, what never became a request, and close."""
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
