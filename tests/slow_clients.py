"""Clients that take their time: headers or a body a byte at a time, connections kept for nothing, answers not read.

`python -m tests.slow_clients KIND COUNT PORT` runs a crowd of them in a process of its own and prints, as JSON, how
each ended; see `crowd`.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

HOST = "127.0.0.1"
GET = b"GET /ping HTTP/1.1\r\nHost: gatepost.test\r\n\r\n"
BEGUN = b"GET /ping HTTP/1.1\r\nHost: gatepost.test\r\nX-Slow: "
BODY = b"POST /user HTTP/1.1\r\nHost: gatepost.test\r\nContent-Length: 4000\r\n\r\n"
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: gatepost.test\r\n\r\n"


@dataclass(frozen=True)
class Ended:
    """How it ended for one client: after how many seconds, and with what status of its slow request, if any."""

    seconds: float
    status: int | None
    refused: bool = False
    """Closed before anything was sent or answered, or not let in at all."""


@dataclass
class Manner:
    """How a client behaves: seconds between two bytes, and seconds after which it leaves by itself."""

    port: int
    pause: float = 2.0
    last: float = 120.0


Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Manner], Awaitable[bytes]]


async def _trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> bytes:
    """A byte now and then, until there is an answer or an end."""
    answer = asyncio.ensure_future(reader.read(65536))
    while not answer.done():
        with contextlib.suppress(ConnectionError):
            writer.write(b"x")
        await asyncio.wait([answer], timeout=manner.pause)
    return await answer


async def headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> bytes:
    """Headers that never end."""
    writer.write(BEGUN)
    return await _trickle(reader, writer, manner)


async def body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> bytes:
    """A body that does not come to its end."""
    writer.write(BODY)
    return await _trickle(reader, writer, manner)


async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _manner: Manner) -> bytes:
    """One request, and then nothing."""
    writer.write(GET)
    await reader.readuntil(b"\r\n\r\n")
    while await reader.read(65536):
        pass
    return b""


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter, _manner: Manner) -> bytes:
    """Nothing at all."""
    return await reader.read(65536)


KINDS: dict[str, Client] = {kind.__name__: kind for kind in (headers, body, idle, silent)}


async def deaf(manner: Manner) -> Ended:
    """Requests for a large answer one behind the other, of which nothing is read."""
    began, loop = time.monotonic(), asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await loop.sock_connect(connection, (HOST, manner.port))
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(manner.last):
                while True:
                    await loop.sock_sendall(connection, LARGE * 10)
                    await asyncio.sleep(0.01)
    return Ended(time.monotonic() - began, None)


async def attend(kind: str, manner: Manner, source: str = HOST) -> Ended:
    """One client of a kind, from its connection to its end."""
    began = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(HOST, manner.port, local_addr=(source, 0))
    except OSError:
        return Ended(time.monotonic() - began, None, refused=True)
    began = time.monotonic()
    try:
        async with asyncio.timeout(manner.last):
            answer = await KINDS[kind](reader, writer, manner)
        status = int(answer.split()[1]) if answer.startswith(b"HTTP/") else None
        return Ended(time.monotonic() - began, status)
    except TimeoutError:
        return Ended(time.monotonic() - began, None)
    except (ConnectionError, asyncio.IncompleteReadError):
        # Closed in the midst of what it did: before its first answer, or with bytes still on their way.
        return Ended(
            time.monotonic() - began, None, refused=kind == "idle" or time.monotonic() - began < manner.pause
        )
    finally:
        writer.close()


async def crowd(kind: str, count: int, manner: Manner, *, addresses: int = 1, at_once: int = 200) -> list[Ended]:
    """Many of a kind, ``at_once`` of them connecting at a time, from so many addresses of the loopback."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 200, hard), hard))
    clients = []
    for number in range(count):
        source = f"127.0.{number % addresses // 250}.{1 + number % addresses % 250}"
        clients.append(asyncio.create_task(attend(kind, manner, source)))
        if number % at_once == at_once - 1:
            await asyncio.sleep(0.05)
    return list(await asyncio.gather(*clients))


def main() -> None:
    """Run a crowd; say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("count", type=int)
    parser.add_argument("port", type=int)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two bytes")
    parser.add_argument("--last", type=float, default=120.0, help="seconds after which each leaves by itself")
    parser.add_argument("--addresses", type=int, default=1, help="of the loopback, to come from")
    given = parser.parse_args()
    manner = Manner(given.port, given.pause, given.last)
    ended = asyncio.run(crowd(given.kind, given.count, manner, addresses=given.addresses))
    print(json.dumps([asdict(client) for client in ended]))  # noqa: T201


if __name__ == "__main__":
    main()
