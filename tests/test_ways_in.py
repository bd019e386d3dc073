"""Every way in which a request comes out of the parser, left unfinished: it ends in time, makes room, and goes with
its client, wherever it came from.
"""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable

from gatepost.http.connection import Connection
from tests.conftest import Client, eventually
from tests.slow_clients import GET
from tests.test_connection import DUE, GRACE, OK, Serve, ask, connected, serve, server_of

__all__ = ["serve"]  # a fixture

BEGUN = b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Le"
BODY = b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
CHUNKED = b"POST /user HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"


def with_headers(*headers: bytes, method: bytes = b"GET", path: bytes = b"/ping", version: bytes = b"1.1") -> bytes:
    return b"%s %s HTTP/%s\r\n%s\r\n\r\n" % (method, path, version, b"\r\n".join((b"Host: x", *headers)))


def upgrade(to: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return with_headers(b"Connection: Upgrade", b"Upgrade: " + to, *headers, method=method)


CONNECT = with_headers(method=b"CONNECT", path=b"example.org:443")

# What a client sends, in packets of their own, and then no more.
WAYS: dict[str, tuple[bytes, ...]] = {
    "headers": (BEGUN,),
    "a body": (BODY,),
    "a chunked body": (CHUNKED,),
    "headers behind a request": (GET + BEGUN,),
    "headers behind a request, later": (GET, BEGUN),
    "a body behind a request": (GET + BODY,),
    "a body behind a request, later": (GET, BODY),
    "a chunked body behind a request": (GET + CHUNKED,),
    "a body behind as many requests as are queued": (31 * GET + BODY,),
    "a body behind more requests than are queued": (100 * GET + BODY,),
    "headers behind more requests than are queued": (100 * GET + BEGUN,),
    "the body of a request that is answered without it": (with_headers(b"Content-Length: 100") + b"{",),
    "the chunked body of a request that is answered without it": (
        with_headers(b"Transfer-Encoding: chunked") + b"1\r\n{\r\n",
    ),
    "a large body of a request that is answered without it": (
        with_headers(b"Content-Length: 10000000") + 600_000 * b"{",
    ),
    "a body that is waited for": (
        with_headers(b"Expect: 100-continue", b"Content-Length: 100", method=b"POST", path=b"/user"),
    ),
    "a body that was waited for": (
        with_headers(b"Expect: 100-continue", b"Content-Length: 100", method=b"POST", path=b"/user"),
        b"{",
    ),
    "HTTP/1.0": (with_headers(b"Content-Length: 100", method=b"POST", path=b"/user", version=b"1.0"),),
    "HTTP/1.0, kept alive": (with_headers(b"Connection: keep-alive", version=b"1.0") + BODY,),
    "a body behind CONNECT": (CONNECT + BODY,),
    "a body behind CONNECT, later": (CONNECT, BODY),
    "headers behind CONNECT": (CONNECT + BEGUN,),
    "a chunk that is none": (CHUNKED + b"hunter2\r\n",),
    "a chunk that is none, later": (CHUNKED, b"hunter2\r\n"),
    "a chunk that is none, of a request that is answered without": (
        with_headers(b"Transfer-Encoding: chunked") + b"1\r\n{\r\n",
        b"hunter2\r\n",
    ),
    "a tail after an error": (b"hunter2\r\n\r\n" + BODY,),
    "an error behind a request": (GET + b"hunter2\r\n\r\n" + BODY,),
}
for name in (b"x", b"websocket", b"tcp", b"h2c"):
    WAYS |= {
        f"a body behind an upgrade to {name.decode()}": (upgrade(name) + BODY,),
        f"a body behind an upgrade to {name.decode()}, later": (upgrade(name), BODY),
        f"a chunked body behind an upgrade to {name.decode()}": (upgrade(name) + CHUNKED,),
        f"headers behind an upgrade to {name.decode()}": (upgrade(name) + BEGUN,),
        f"an error behind an upgrade to {name.decode()}": (upgrade(name) + b"hunter2\r\n\r\n" + BODY,),
        f"a body behind two upgrades to {name.decode()}": (2 * upgrade(name) + BODY,),
        f"a body behind an upgrade to {name.decode()} behind a request": (GET + upgrade(name) + GET + BODY,),
        f"the body of an upgrade to {name.decode()}": (upgrade(name, b"Content-Length: 100") + b"{",),
        f"the body of a POST with an upgrade to {name.decode()}": (
            upgrade(name, b"Content-Length: 100", method=b"POST").replace(b"/ping", b"/user") + b"{",
        ),
    }


async def send(writer: asyncio.StreamWriter, way: tuple[bytes, ...], connection: Connection) -> None:
    """All packets, each when the server has nothing left to do but to wait for this client."""
    for packet in way:
        writer.write(packet)
        await settled(connection)


async def settled(connection: Connection) -> None:
    """What the client has sent has come, and whatever of it could be answered is."""
    pipe = connection.transport_until_lost
    assert pipe is not None
    descriptor = pipe.get_extra_info("socket").fileno()
    await eventually(
        lambda: pipe.is_closing() or (not connection._silent and connection.is_waiting and not unread(descriptor))
    )


def unread(descriptor: int) -> int:
    """Bytes that have come and that nobody has read."""
    count: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]
    return count


@contextlib.asynccontextmanager
async def arrived(
    client: Client, way: tuple[bytes, ...]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Connection]]:
    members = server_of(client).admission
    async with connected(client) as (reader, writer):
        ours = writer.get_extra_info("sockname")

        def of_ours() -> list[Connection]:
            return [
                c
                for c in members.members
                if c.transport_until_lost and c.transport_until_lost.get_extra_info("peername") == ours
            ]

        await eventually(lambda: bool(of_ours()))
        (connection,) = of_ours()
        with contextlib.suppress(ConnectionError):
            await send(writer, way, connection)
        yield reader, writer, connection


Then = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Connection], Awaitable[None]]


async def each(client: Client, then: Then) -> list[str]:
    """Which of the ways do not end when the client then does this, all of them at once."""

    async def one(way: tuple[bytes, ...]) -> None:
        async with arrived(client, way) as (reader, writer, connection):
            await then(reader, writer, connection)
            await eventually(lambda: connection not in server_of(client).admission.members)

    outcomes = await asyncio.gather(*(one(way) for way in WAYS.values()), return_exceptions=True)
    return [f"{name}: {outcome!r}" for name, outcome in zip(WAYS, outcomes, strict=True) if outcome is not None]


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def test_whatever_is_unfinished_ends_in_time(serve: Serve) -> None:
    client = await serve(header_timeout=DUE, body_timeout=DUE, keepalive_timeout=DUE)

    async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _of: Connection) -> None:
        await read_to_the_end(reader)

    assert await each(client, wait) == []


async def test_whatever_is_unfinished_ends_when_its_client_says_that_this_was_all(serve: Serve) -> None:
    client = await serve()

    async def finish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _of: Connection) -> None:
        with contextlib.suppress(OSError):  # closed by the server already
            writer.write_eof()
        await read_to_the_end(reader)

    assert await each(client, finish) == []


async def test_whatever_is_unfinished_ends_when_its_client_is_gone(serve: Serve) -> None:
    client = await serve()

    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _of: Connection) -> None:
        writer.transport.abort()

    assert await each(client, reset) == []


async def test_whatever_is_unfinished_makes_room(serve: Serve) -> None:
    client = await serve(max_connections=1)
    unmoved = []
    for name, way in WAYS.items():
        async with arrived(client, way) as (reader, _, _), connected(client) as newcomer:
            if await ask(*newcomer) != OK:
                unmoved.append(name)
            await read_to_the_end(reader)
    assert unmoved == []
    assert server_of(client).admission.refused == 0


async def test_whatever_is_unfinished_ends_with_the_server(serve: Serve) -> None:
    client = await serve(shutdown_timeout=DUE)
    admission = server_of(client).admission
    async with contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(arrived(client, way)) for way in WAYS.values()]
        async with asyncio.timeout(GRACE):
            await client.server.close()
            for reader, _, _ in crowd:
                await read_to_the_end(reader)
    assert not admission.members
