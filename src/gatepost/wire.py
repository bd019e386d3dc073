"""The wire: how long a client may take, how many connections there may be, and answers to what is no HTTP.

aiohttp has a deadline for idle connections only. Here each connection has one timer, armed while something is
unfinished and at no other time: a request that arrives whole, as nearly all do, costs two assignments more.
"""

import asyncio
import contextlib
import math
import resource
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from aiohttp import http, http_parser, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gatepost.config import Config, ConfigError, WebServerConfig
from gatepost.errors import BadRequest, Problem, RequestTimeout
from gatepost.web import QuietLogger, add_common_headers, render

T = TypeVar("T")

# Open files that are no client's connection: ours, and those just accepted and about to be closed (asyncio takes 128
# in one go, and closes them two turns of its loop later).
SPARE_DESCRIPTORS = 512
# At the limit, this part of it is freed at once, so that looking for who is idle costs little for each newcomer.
_ROOM = 16
_NEVER = math.inf


class PurePythonParser(Exception):
    """aiohttp would parse HTTP in Python: slower, and laxer than the parser that is tested here."""


def require_parser() -> None:
    """Raise PurePythonParser unless aiohttp parses with its compiled llhttp."""
    if http.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise PurePythonParser(
            "aiohttp runs without its compiled HTTP parser: unset AIOHTTP_NO_EXTENSIONS, or install a wheel of it"
        )


def admissible(config: Config) -> int:
    """How many connections there may be: ``webserver.max_connections``, if so many files may be open.

    The soft limit is raised as far as that needs. Where the hard one is too low there are fewer connections, and a
    warning: running out of files would keep us from our database too. Raises ConfigError when none is left.
    """
    wanted, others = config.webserver.max_connections, config.db.pool_size + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + others:
        needed = wanted + others if hard == resource.RLIM_INFINITY else min(hard, wanted + others)
        with contextlib.suppress(ValueError, OSError):  # macOS has one more limit, and says so here
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            soft = needed
        if soft < wanted + others:
            if soft <= others:
                raise ConfigError(
                    f"only {soft} files may be open, and {others + 1} are needed at least: see `ulimit -n`"
                )
            log.warning(
                "webserver.max_connections is %d, but only %d files may be open (ulimit -n): serving at most %d",
                *(wanted, soft, soft - others),
            )
            return soft - others
    return wanted


class Connection(RequestHandler):
    """One client's connection. Whatever the client has begun must be finished in time."""

    __slots__ = ("_config", "_pipe", "_receive_by", "_receiving", "_send_by", "_timer", "address", "waiting")

    def __init__(self, server: "Server", config: WebServerConfig, **options: Any) -> None:
        super().__init__(cast("web.Server", server), **options)
        self._config = config
        self._pipe: asyncio.Transport | None = None  # aiohttp lets go of its own before it is closed
        self._timer: asyncio.TimerHandle | None = None
        self._send_by = self._receive_by = _NEVER
        # What is on its way and not whole: a body, or headers ("").
        self._receiving: StreamReader | str | None = None
        self.address: bytes | None = None
        self.waiting: asyncio.Task[Any] | None = None
        """What is done for this caller alone, and for nobody once it has gone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there, or is turned away."""
        self._pipe = cast("asyncio.Transport", transport)
        server = cast("Server", self._manager)
        self.address = _network(self._pipe.get_extra_info("peername"))
        if not server.admit(self):
            # At once and without a word: an answer would cost more than the client's attempt did, and a reset would
            # overtake it, since the request is there already and not read.
            self._manager = None
            self._pipe.abort()
            return
        super().connection_made(transport)
        # Tell us whenever something is left unsent, not only 64 KB.
        self._pipe.set_write_buffer_limits(high=0)
        self._receive_by = self._loop.time() + self._config.header_timeout
        self._arm(self._receive_by)

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
            body = self._messages[-1][1]
            if body.is_eof():
                self._receiving = None
                self._receive_by = _NEVER
            else:
                self._expect(body, self._config.body_timeout)
        elif isinstance(self._receiving, StreamReader):
            if self._receiving.is_eof():
                self._receiving = None
                self._receive_by = _NEVER
        elif data and self._receiving is None:
            self._expect("", self._config.header_timeout)

    def _expect(self, receiving: StreamReader | str, seconds: float) -> None:
        self._receiving = receiving
        if receiving == "" and self._request_count == 0:
            return  # the time for its first headers began with the connection
        self._receive_by = self._loop.time() + seconds
        self._arm(self._receive_by)

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as we send."""
        super().pause_writing()
        self._send_by = self._loop.time() + self._config.body_timeout
        self._arm(self._send_by)

    def resume_writing(self) -> None:
        """It has taken all."""
        super().resume_writing()
        self._send_by = _NEVER

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
            assert self._pipe is not None
            self._pipe.abort()  # close() would go on waiting for the client
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


class _Group:
    """Connections that share a limit."""

    __slots__ = ("_limit", "_look_again", "members")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._look_again = 0.0
        self.members: set[Connection] = set()

    def has_room(self, now: float) -> bool:
        """Whether there is room, or can be made by closing those that have been idle longest."""
        if len(self.members) < self._limit:
            return True
        if now < self._look_again:
            return False
        idle = sorted((c for c in self.members if c.is_waiting), key=lambda c: c.idle_since)
        for connection in idle[: 1 + self._limit // _ROOM]:
            self.members.discard(connection)
            connection.force_close()
        if not idle:
            self._look_again = now + 1
        return bool(idle)


class Server(web.Server):
    """Makes connections, up to the limits."""

    def __init__(self, config: WebServerConfig, most: int, handler: Any, **options: Any) -> None:
        super().__init__(handler, **options)
        self._config = config
        self._all = _Group(most)
        self._of_address: dict[bytes, _Group] = {}
        self.refused = 0
        """Connections that were turned away since the start."""
        self._told = -_NEVER

    def __call__(self) -> Connection:
        """A connection, for asyncio."""
        return Connection(self, self._config, loop=self._loop, **self._kwargs)

    def admit(self, connection: Connection) -> bool:
        """Count a newcomer in, unless too many are here."""
        now = self._loop.time()
        groups = [self._all]
        if connection.address is not None:
            groups.append(
                self._of_address.get(connection.address) or _Group(self._config.max_connections_per_address)
            )
        if not all(group.has_room(now) for group in reversed(groups)):
            self._tell(now)
            return False
        for group in groups:
            group.members.add(connection)
        if connection.address is not None:
            self._of_address[connection.address] = groups[-1]
        return True

    def _tell(self, now: float) -> None:
        self.refused += 1
        if now - self._told > 60:
            self._told = now
            log.warning(
                "there are too many connections (%d so far refused): see webserver.max_connections", self.refused
            )

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Count it out."""
        super().connection_lost(handler, exc)
        connection = cast("Connection", handler)
        self._all.members.discard(connection)
        address = connection.address
        if address is not None and (group := self._of_address.get(address)) is not None:
            group.members.discard(connection)
            if not group.members:
                del self._of_address[address]


class Runner(web.AppRunner):
    """Serves an app by the rules of this module. For `WebServer.run`, for gunicorn's worker and for tests.

    Raises PurePythonParser, ConfigError.
    """

    def __init__(self, app: web.Application, config: Config, **options: Any) -> None:
        require_parser()
        self._config, self._most = config.webserver, admissible(config)
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # bodies are never decompressed: an encoded one is refused unread
            logger=QuietLogger(log, {}),
            keepalive_timeout=self._config.keepalive_timeout,
            shutdown_timeout=self._config.shutdown_timeout,
            **options,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            self._config, self._most, made.request_handler, request_factory=made.request_factory, **self._kwargs
        )


def _network(peer: object) -> bytes | None:
    """What counts as one address: an IPv4 address, or an IPv6 network of 64 bits, which is what one host is given.

    None on a Unix socket.
    """
    if not isinstance(peer, tuple):
        return None
    host = str(peer[0]).partition("%")[0]
    if ":" not in host:
        return socket.inet_aton(host)
    packed = socket.inet_pton(socket.AF_INET6, host)
    return packed[12:] if packed.startswith(bytes(10) + b"\xff\xff") else packed[:8]


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
