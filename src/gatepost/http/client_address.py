"""Who asks: the address that a request comes from, and what its program calls itself."""

from aiohttp import hdrs, web

from gatepost.http.app import CONFIG, THROTTLE, UNTRUSTED_PROXY
from gatepost.security import addresses


def client_ip(request: web.Request) -> str | None:
    """The client's address: the peer's, or what trusted proxies say of it. None on a Unix socket."""
    address = _address(request)
    return None if address is None else str(address)


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
        # A proxy of our own that is not trusted makes all its clients one, and each of them can shut the others out.
        request.app[UNTRUSTED_PROXY].give(
            "X-Forwarded-For of a private address is not believed: a proxy for webserver.trusted_proxies?"
        )
    return addresses.client(peer, forwarded, trusted)


def hashing_place(request: web.Request) -> str | None:
    """Whose share of the queue of hashes a request takes from; None for nobody's, where that would be everybody's."""
    address = _address(request)
    if address is None or addresses.may_be_many(address, request.app[CONFIG].webserver.trusted_proxies):
        return None
    return request.app[THROTTLE].place_of(str(address))


def user_agent(request: web.Request) -> str | None:
    """The client's own words about itself, cut to 256 characters that Postgres takes."""
    text = request.headers.get(hdrs.USER_AGENT)
    return text[:256].encode("utf-8", "replace").decode().replace("\0", "") if text else None
