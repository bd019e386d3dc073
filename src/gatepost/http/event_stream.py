"""Server-Sent Events (WHATWG HTML §9.2): an answer that goes on until its client leaves or the server stops.

Not aiohttp-sse: it formats each event for each listener, and keeps a second task and a timer for each (with 1,000
listeners, the same bytes a thousand times).
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from gatepost.errors import Unavailable
from gatepost.http import strict_json
from gatepost.http.client import Client
from gatepost.process.jitter import jitter

Write = Callable[[bytes], Awaitable[None]]

# Milliseconds after which a client should come back, spread so that those of a node that ends do not come at once.
_RETRY = 1000.0


def event(kind: str, data: object, event_id: str | None = None) -> bytes:
    """One event. JSON has no line breaks, so ``data`` is one line."""
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {kind}\ndata: {strict_json.encode(data)}\n\n".encode()


COMMENT = b":\n\n"
"""Says nothing: a proxy sees that the connection is in use."""


class EventStream(web.StreamResponse):
    """The answer. ``events`` writes them: the stream ends when it returns, and it is cancelled when the client
    leaves.

    They are written after the handler has returned: the log and the metrics tell how long the answer took to begin.
    """

    def __init__(self, request: web.Request, events: Callable[[Write], Awaitable[Any]]) -> None:
        super().__init__()
        self.content_type = "text/event-stream"
        self.headers["X-Accel-Buffering"] = "no"  # nginx would keep events back
        self.force_close()
        self._request = request
        self._events = events

    async def write_eof(self, data: bytes = b"") -> None:
        """Stream, then end."""
        if self._request.method != hdrs.METH_HEAD:
            # Nothing can be answered any more. The client comes back, and is told then.
            with contextlib.suppress(Unavailable):
                await Client.of(self._request).while_connected(self._stream())
        await super().write_eof(data)

    async def _stream(self) -> None:
        # A part of the first event: not every client passes over a block of its own (httpx-sse makes an event of it).
        await self.write(f"retry: {round(jitter(_RETRY, 0.5, 1.5))}\n".encode())
        await self._events(self.write)
