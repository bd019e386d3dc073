"""The client's address behind proxies, and the network that counts as one place."""

import ipaddress
from collections.abc import Collection, Sequence
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# The longest chain of proxies.
MAX_PROXIES = 32


def parse(text: str) -> Address | None:
    """An address as sockets and ``X-Forwarded-For`` write it: bare, with a port, in brackets. None for all else.

    IPv6 with an IPv4 address in it (``::ffff:192.0.2.1``, what a socket for both sees) is that IPv4 address.
    """
    text = text.strip(" \t")
    if text.startswith("["):
        inner, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in inner or (port and not _is_port(port)):
            return None
        text = inner
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    # An IPv6 zone may be any text, and has a meaning on its own machine only.
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def peer(peername: object) -> Address | None:
    """Who is at the other end of a socket, from its ``peername``. None on a Unix socket."""
    return parse(str(peername[0]).partition("%")[0]) if isinstance(peername, tuple) else None


def _is_port(text: str) -> bool:
    digits = text.removeprefix(":")
    return text.startswith(":") and digits.isascii() and digits.isdigit() and len(digits) <= 5


def client(peer: Address, forwarded: Sequence[str], trusted: Collection[Network]) -> Address:
    """The client of a request that ``peer`` sends with these ``X-Forwarded-For`` headers. Each proxy appends the
    address that it saw, so the list is believed from the right, as long as trusted proxies wrote it. The first
    address that is not a trusted proxy is the client; whatever stands left of it may be invented. The walk ends at an
    entry that is no address, and after ``MAX_PROXIES`` entries.
    """
    believed = peer
    entries = ",".join(forwarded[-MAX_PROXIES:]).rsplit(",", MAX_PROXIES)[-MAX_PROXIES:]
    while entries and within(believed, trusted):
        found = parse(entries.pop())
        if found is None:
            break
        believed = found
    return believed


def within(address: Address, networks: Collection[Network]) -> bool:
    """Whether it lies in one of these."""
    return any(address.version == network.version and address in network for network in networks)


def may_be_many(address: Address, trusted: Collection[Network]) -> bool:
    """Whether this may be the address of a proxy, which all its clients share: a trusted proxy that named no client,
    or, while no proxy is trusted, any private address.
    """
    return within(address, trusted) if trusted else address.is_private


def place(address: Address) -> str:
    """The network that guessing is counted by: IPv4 /24, IPv6 /56.

    A client commonly has all addresses of such a network: RIPE-690 recommends a /56 for a home.
    """
    length = 24 if address.version == 4 else 56
    return str(ipaddress.ip_network((address, length), strict=False))
