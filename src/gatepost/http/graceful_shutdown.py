"""Graceful shutdown: every request on an accepted connection is answered. First `/health/ready` turns 503 and every
answer says ``Connection: close``. Then the listener closes. Open connections have a moment for one more request,
whose answer says that it is the last. Only then are idle connections closed: a client may have sent a request on one
just before, which would stay unanswered (RFC 9112 §9.5).
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from gatepost.process.sockets import BACKLOG
from gatepost.telemetry.logs import log

T = TypeVar("T")

# Connections accepted in one turn of the event loop: aiohttp's default.
ACCEPTS = 128
# Seconds for which an idle connection is kept open while stopping: a client's pool that uses it learns that it
# closes.
LINGER = 1.0
# Turns of the event loop from accepting a connection to telling aiohttp of it: two, and one to spare.
_TURNS = 3
# Seconds for TCP handshakes that have begun.
_HANDSHAKE = 0.02
# Seconds between two checks whether all connections are closed.
_LOOK = 0.02


@dataclass(slots=True)
class Stopping:
    """Whether this process is about to end."""

    leaving: bool = False
    """Nobody takes our place: load balancers are told."""
    delay: float = 0.0
    """Seconds to go on as before but for telling them."""
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def begun(self) -> bool:
        """Whether answers are to be the last ones of their connections."""
        return self._told.is_set()

    def begin(self, *, leaving: bool = True, delay: float = 0.0) -> None:
        """Begin to stop. A second call changes nothing."""
        if not self.begun:
            self.leaving, self.delay = leaving, delay
            self._told.set()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of ``work``. Cancels it and returns None when stopping begins meanwhile."""
        task, told = asyncio.ensure_future(work), asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        return None if task.cancelled() else task.result()

    async def wait(self) -> None:
        """Wait until stopping begins."""
        await self._told.wait()

    async def close_connection(self, _request: web.Request, response: web.StreamResponse) -> None:
        """For ``on_response_prepare``: while stopping, every answer is the last of its connection."""
        if self._told.is_set():
            response.force_close()
            response.headers["Connection"] = "close"


def on_signals(stopping: Stopping, delay: float) -> None:
    """Let SIGINT and SIGTERM begin ``stopping`` (``delay``: seconds); one more of them ends the process at once.

    SIGHUP asks a service to read its configuration again, which one process cannot; a process that it killed would
    count as stopped on purpose (systemd: `Restart=on-failure`). In a terminal it says that the terminal is gone.
    """
    loop = asyncio.get_running_loop()
    terminal = os.isatty(0)  # a terminal that was closed does not count

    def stop(number: int, _frame: object) -> None:
        if stopping.begun:
            os._exit(128 + number)  # its watcher then stops an embedded Postgres
        loop.call_soon_threadsafe(partial(stopping.begin, delay=delay))

    def hang_up(_number: int, _frame: object) -> None:
        if stopping.begun:  # a terminal may send it twice
            return
        if terminal:
            loop.call_soon_threadsafe(partial(stopping.begin, delay=delay))
        else:
            warning = "SIGHUP is passed over: one process cannot read its configuration again, restart it"
            loop.call_soon_threadsafe(log.warning, warning)

    # Not `loop.add_signal_handler`: the event loop runs no callback while it waits for threads at the end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, hang_up)


async def serve(
    runner: web.AppRunner,
    sock: socket.socket,
    stopping: Stopping,
    *,
    linger: float,
    accepts: int = ACCEPTS,
    ready: Callable[[], None],
) -> None:
    """Serve on ``sock``, which is bound and may be shared with other processes, until told to stop.

    ``linger``: seconds that idle connections are kept meanwhile; requests in flight then have the runner's own
    ``shutdown_timeout``. ``accepts``: connections to accept in one turn. ``ready`` is called once it listens.
    """
    await runner.setup()
    try:
        site = web.SockSite(runner, sock, backlog=accepts)
        await site.start()
        # asyncio uses one number for the connections accepted in one turn and for the listen backlog. A flood needs a
        # longer backlog: otherwise the kernel drops other clients' SYNs, which come again a second later (measured: a
        # health check took 2.2 s).
        sock.listen(BACKLOG)
        ready()
        await stopping.wait()
        await asyncio.sleep(stopping.delay)
        asyncio.get_running_loop().remove_reader(sock)
        if stopping.leaving:
            _let_nobody_knock(sock)
            await asyncio.sleep(_HANDSHAKE)
        # A connection that asyncio has accepted, but not yet made a transport of, is lost when the listener closes.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        taken = _take_what_waits(runner, sock)
        await site.stop()
        await asyncio.gather(*taken, return_exceptions=True)
        await _until_all_have_gone(runner, linger)
    finally:
        await runner.cleanup()


# A classic BPF program (Linux' networking/filter.rst) for packets to a socket that listens: those that only ask for a
# connection, flags SYN without ACK in byte 13 of the header (RFC 9293 §3.1), are dropped, all others kept.
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte
        (0x54, 0, 0, 0x12),  # and of it SYN and ACK
        (0x15, 0, 1, 0x02),  # where that is SYN,
        (0x06, 0, 0, 0),  # drop;
        (0x06, 0, 0, 0xFFFFFFFF),  # else keep
    )
)
_SO_ATTACH_FILTER = 26


def _let_nobody_knock(sock: socket.socket) -> None:
    """Drop new SYNs, so that no handshake completes between our last accept and the closing of the listener: such a
    connection would be reset with its first request sent. A client whose SYN is dropped sends it again a second
    later, and is refused. The listener may be shared, so only when all processes stop. Linux only.
    """
    if sys.platform != "linux" or sock.family == socket.AF_UNIX:
        return
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    with contextlib.suppress(OSError):
        sock.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program)),
        )


def _take_what_waits(runner: web.AppRunner, sock: socket.socket) -> list["asyncio.Task[Any]"]:
    """Accept all connections in the backlog: closing the listener would reset them. Nothing else runs in between."""
    loop, server = asyncio.get_running_loop(), runner.server
    assert server is not None
    taken = []
    with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
        while True:
            connection, _ = sock.accept()
            connection.setblocking(False)
            taken.append(loop.create_task(loop.connect_accepted_socket(server, connection)))
    return taken


async def _until_all_have_gone(runner: web.AppRunner, linger: float) -> None:
    loop, server = asyncio.get_running_loop(), runner.server
    assert server is not None
    end = loop.time() + linger
    while server.connections and loop.time() < end:  # noqa: ASYNC110 (aiohttp tells nobody)
        await asyncio.sleep(_LOOK)
