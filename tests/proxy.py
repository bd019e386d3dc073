"""A TCP proxy before Postgres whose network can be broken on purpose."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from gatepost.postgres.connection import Dsn


class Proxy:
    """Forwards to ``target``. While `silent`, new connections are accepted and never answered; while `stalled`, open
    ones forward nothing.
    """

    _server: asyncio.Server

    def __init__(self, target: Dsn) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self.silent = False
        self.accepted = 0
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def stalled(self) -> bool:
        return not self._flowing.is_set()

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        (self._flowing.clear if stalled else self._flowing.set)()

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def dsn(self, *hosts: str) -> Dsn:
        """The target's database, by way of this proxy."""
        return replace(self._target, hosts=hosts or ("127.0.0.1",), port=self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.silent:
                await asyncio.Event().wait()
            host = self._target.hosts[0]
            if host.startswith("/"):
                there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{self._target.port}")
            else:
                there = await asyncio.open_connection(host, self._target.port)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there[1]))
                group.create_task(self._pump(there[0], writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    def reset(self) -> None:
        """Break every connection that is open."""
        for task in list(self._tasks):
            task.cancel()


@contextlib.asynccontextmanager
async def proxy(target: Dsn, *, address: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Proxy]:
    """A running proxy on ``address``; its port is free unless given."""
    it = Proxy(target)
    it._server = await asyncio.start_server(it._accept, address, port)
    try:
        yield it
    finally:
        it._server.close()
        it.reset()
        await it._server.wait_closed()
