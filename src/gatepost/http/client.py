"""Who asks: the request taken apart once, when a handler begins, into one value that is handed on."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from aiohttp import hdrs, web

from gatepost.http.app import CONFIG, THROTTLE, UNTRUSTED_PROXY
from gatepost.http.connection import Connection
from gatepost.security import addresses

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Client:
    """The program at the other end.

    ``ip``: its address, the peer's or what trusted proxies say of it; None on a Unix socket. ``user_agent``: its
    own words about itself, cut to 256 characters that Postgres takes. ``place``: the network that its attempts are
    counted by; None for one that is not counted. ``queue_share``: whose share of the queue of hashes it takes from;
    None for nobody's, where that would be everybody's.
    """

    ip: str | None
    user_agent: str | None
    place: str | None
    queue_share: str | None
    _connection: Connection | None

    @classmethod
    def of(cls, request: web.Request) -> Self:
        """The client of this request."""
        address = _address(request)
        ip = None if address is None else str(address)
        place = request.app[THROTTLE].place_of(ip)
        shared = address is None or addresses.may_be_many(address, request.app[CONFIG].webserver.trusted_proxies)
        connection = request.protocol
        return cls(
            ip,
            user_agent(request),
            place,
            None if shared else place,
            connection if isinstance(connection, Connection) else None,  # else it is somebody else's runner
        )

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` gives. When the client hangs up, it is cancelled, and so is the request.

        A hash that has begun is not: ``work`` gives its digest, and `has_disconnected` tells.
        """
        connection = self._connection
        if connection is None:
            return await work
        task: asyncio.Task[T] = asyncio.create_task(work)
        connection.waiting = task
        if connection.ended:
            task.cancel()
        try:
            return await task
        finally:
            connection.waiting = None

    @property
    def has_disconnected(self) -> bool:
        """Whether the client has hung up."""
        return self._connection is not None and self._connection.ended


def user_agent(request: web.Request) -> str | None:
    """The client's own words about itself, cut to 256 characters that Postgres takes."""
    text = request.headers.get(hdrs.USER_AGENT)
    return text[:256].encode("utf-8", "replace").decode().replace("\0", "") if text else None


def _address(request: web.Request) -> addresses.Address | None:
    peername = request.transport.get_extra_info("peername") if request.transport else None
    peer = addresses.peer(peername)
    if peer is None:
        return None
    forwarded = request.headers.getall(hdrs.X_FORWARDED_FOR, ())
    if not forwarded:
        return peer
    trusted = request.app[CONFIG].webserver.trusted_proxies
    if not trusted and peer.is_private:
        # Behind a proxy that is not trusted all clients share one address, and each can use up the attempts of all
        # others.
        request.app[UNTRUSTED_PROXY].give(
            "X-Forwarded-For of a private address is not believed: a proxy for webserver.trusted_proxies?"
        )
    return addresses.client(peer, forwarded, trusted)
