"""Serving until told to stop, and stopping so that nothing that was accepted goes unanswered.

First `/health/ready` turns false and every answer says ``Connection: close``. Then nobody new is let in. Whoever is
in has a moment for one more request, and is told with its answer that it was the last. Only then are connections
closed: one that is closed without a word may have a request on its way, which nobody would answer (RFC 9112 §9.5).
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
# Seconds that an idle connection is kept open while stopping, at most: a pool that uses it learns that it closes.
LINGER = 1.0
# Turns of the event loop from accepting a connection to telling aiohttp of it: two, and one to spare.
_TURNS = 3
# Seconds for handshakes that are under way.
_HANDSHAKE = 0.02
# Seconds between two looks at whether all have gone.
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
        """Stop; said again, nothing changes."""
        if not self.begun:
            self.leaving, self.delay = leaving, delay
            self._told.set()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do the work; cancel it when told to stop meanwhile, and return None."""
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
        """Until told."""
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
    terminal = os.isatty(0)  # one that is gone is none

    def stop(number: int, _frame: object) -> None:
        if stopping.begun:
            os._exit(128 + number)  # an embedded Postgres ends by itself then
        loop.call_soon_threadsafe(partial(stopping.begin, delay=delay))

    def hang_up(_number: int, _frame: object) -> None:
        if stopping.begun:  # a terminal may say it twice
            return
        if terminal:
            loop.call_soon_threadsafe(partial(stopping.begin, delay=delay))
        else:
            warning = "SIGHUP is passed over: one process cannot read its configuration again, restart it"
            loop.call_soon_threadsafe(log.warning, warning)

    # Not through the loop: it is deaf while it waits for threads at the end.
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
        # asyncio accepts as many in one go as it lets wait; a flood needs more waiting, or attempts of others are
        # dropped and come again a second later (measured: a health check took 2.2 s).
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
    """Have nobody new begin to connect, so that none who has done so comes between our last accept and the end.

    They would be reset, with their first request sent; who knocks in vain knocks again a second later and is refused.
    The socket may be shared: only where all leave. On other systems than Linux, nothing happens.
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
    """Accept whoever has connected: closing the listener would reset them. Nothing runs between this and that."""
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
