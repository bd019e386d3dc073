"""Serves an app with the deadlines of `connection` and the limits of `connection_limits`."""

import logging
from typing import Any, cast

from aiohttp import http, http_parser, web

from gatepost.config import Config, WebServerConfig
from gatepost.http.app import QuietLogger
from gatepost.http.connection import Connection
from gatepost.http.connection_limits import Admission, admissible


class PurePythonParser(Exception):
    """aiohttp would parse HTTP in Python: slower, and laxer than the parser that is tested here."""


def require_parser() -> None:
    """Raise PurePythonParser unless aiohttp parses with its compiled llhttp."""
    if http.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise PurePythonParser(
            "aiohttp runs without its compiled HTTP parser: unset AIOHTTP_NO_EXTENSIONS, or install a wheel of it"
        )


class Server(web.Server):
    """Makes connections."""

    def __init__(
        self, config: WebServerConfig, admission: Admission[Connection], handler: Any, **options: Any
    ) -> None:
        super().__init__(handler, **options)
        self._config = config
        self.admission = admission

    def pre_shutdown(self) -> None:
        """Close connections, or have them close with their answer. Those on which a body is coming wait for it."""
        for connection in cast("list[Connection]", self.connections):
            if not connection.is_receiving:
                connection.close()

    def __call__(self) -> Connection:
        """A connection, for asyncio."""
        return Connection(self, self.admission, self._config, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an app. For `WebServer.run`, for gunicorn's worker and for tests.

    ``most``: connections at once, and ``shutdown_timeout``: seconds that requests in flight have at the end,
    instead of what the configuration says. Raises ConfigError.
    """

    def __init__(
        self,
        app: web.Application,
        config: Config,
        *,
        most: int | None = None,
        shutdown_timeout: float | None = None,
    ) -> None:
        self._config = config.webserver
        self.admission = Admission[Connection](most or admissible(config), self._config.max_connections_per_address)
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # bodies are never decompressed: an encoded one is refused unread
            logger=QuietLogger(logging.getLogger("gatepost"), {}),
            keepalive_timeout=self._config.keepalive_timeout,
            shutdown_timeout=self._config.shutdown_timeout if shutdown_timeout is None else shutdown_timeout,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            self._config, self.admission, made.request_handler, request_factory=made.request_factory, **self._kwargs
        )
