"""Who a request comes from, when proxies stand between; and what of an address is one place."""

import ipaddress
from collections.abc import Collection, Sequence
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Proxies that may stand one behind the other.
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
    # A zone would be any text, and means something on its own machine only.
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
    """Whose request it is that ``peer`` brings with these ``X-Forwarded-For`` headers.

    Each proxy adds on the right the address that it saw, so the list is believed from the right for as long as
    trusted proxies wrote it: the first that is none is the client, and what stands left of it is the client's own
    invention. Something that is no address ends the walk at the last one that was, and so do ``MAX_PROXIES``: a
    client may send a megabyte of inventions.
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
    """Whether it may be a proxy's own, behind which everybody is.

    One of these networks, where a proxy did not say whose request it brings; and while none is trusted, any private
    address: there, proxies stand that nobody has named.
    """
    return within(address, trusted) if trusted else address.is_private


def place(address: Address) -> str:
    """The network that guessing is counted by: IPv4 /24, IPv6 /56.

    Who has one address of such a network commonly has others of it: RIPE-690 has providers give a home a /56.
    """
    length = 24 if address.version == 4 else 56
    return str(ipaddress.ip_network((address, length), strict=False))
