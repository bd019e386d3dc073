"""Serves an app with the deadlines of `connection` and the limits of `connection_limits`."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, cast

from aiohttp import web

from gatepost.config import Config, WebServerConfig
from gatepost.http import _aiohttp
from gatepost.http.app import QuietLogger
from gatepost.http.connection import Connection
from gatepost.http.connection_limits import Admission, admissible
from gatepost.telemetry.metrics import Metrics


class Server(web.Server):
    """Makes connections."""

    def __init__(
        self,
        config: WebServerConfig,
        admission: Admission[Connection],
        options: Mapping[str, Any],
        handler: Any,
        **factory: Any,
    ) -> None:
        super().__init__(handler, **factory)
        self._config = config
        self._options = options
        self.admission = admission

    def pre_shutdown(self) -> None:
        """Close idle connections, and let others close with their answer. A connection that receives a body may
        finish it.
        """
        for connection in cast("list[Connection]", self.connections):
            if not connection.is_receiving:
                connection.close()

    def __call__(self) -> Connection:
        """A connection, for asyncio."""
        return Connection(self, self.admission, self._config, loop=asyncio.get_running_loop(), **self._options)


class Runner(_aiohttp.Runner):
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
            auto_decompress=False,  # a compressed body is refused unread
            logger=QuietLogger(logging.getLogger("gatepost"), {}),
            keepalive_timeout=self._config.keepalive_timeout,
            shutdown_timeout=self._config.shutdown_timeout if shutdown_timeout is None else shutdown_timeout,
        )

    def follow(self, metrics: Metrics) -> None:
        """Count the clients' connections."""
        admission = self.admission
        metrics.follow("gatepost_connections", "Connections of clients.", lambda: len(admission))
        metrics.follow(
            "gatepost_connections_refused_total",
            "Connections closed at once for being too many.",
            lambda: admission.refused,
        )

    def make_server(self, made: web.Server, options: Mapping[str, Any]) -> Server:
        """One whose connections have deadlines and limits."""
        return Server(
            self._config, self.admission, options, made.request_handler, request_factory=made.request_factory
        )
