"""Addresses to listen on."""

import errno
import socket

BACKLOG = 2048
"""Connections that may wait to be accepted; the kernel cuts it to its own limit (net.core.somaxconn)."""


class StartError(Exception):
    """The server cannot start; the message is one line that says why and what to do."""


def bind(host: str, port: int, key: str) -> socket.socket:
    """Bind an address before anything is started. Clients can connect only once it listens.

    ``key``: of the section ``webserver``, for the StartError that says what to change.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"{host}:{port} is in use: set webserver.{key} to a free one") from None
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return sock


def in_url(host: str) -> str:
    """A configured host, as a URL on this machine has it."""
    if host in {"0.0.0.0", "::"}:  # noqa: S104 (compared only)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
