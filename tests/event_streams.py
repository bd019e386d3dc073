"""A client of Server-Sent Events, for tests: the lines as they come."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp

from tests.conftest import Client

# Seconds, on a busy machine.
SOON = 60.0


class Event(NamedTuple):
    kind: str
    data: Any
    id: str | None = None


class Stream:
    """A stream that is open. Comments and `retry` are passed over."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self, *, but: str = "heartbeat") -> Event | None:
        """The next event of another kind than ``but``; None at the end."""
        async with asyncio.timeout(SOON):
            while True:
                block = await self._block()
                if block is None:
                    return None
                fields = dict(line.split(": ", 1) for line in block if not line.startswith(":"))
                if "event" in fields and fields["event"] != but:
                    return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))

    async def _block(self) -> list[str] | None:
        lines = list[str]()
        while True:
            line = (await self.answer.content.readline()).decode()
            if not line:
                return None
            if line == "\n":
                return lines
            lines.append(line.removesuffix("\n"))

    async def ended(self) -> None:
        """Wait until the server ends it; what comes until then is passed over."""
        while await self.next() is not None:
            pass


@contextlib.asynccontextmanager
async def stream(client: Client, path: str, token: str, last: str | None = None) -> AsyncIterator[Stream]:
    """Open a stream; its first event is `hello`."""
    headers = {"Authorization": token} | ({"Last-Event-ID": last} if last else {})
    async with client.get(path, headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as answer:
        assert answer.status == 200, await answer.text()
        yield Stream(answer)
