"""The application: the keys of its parts, the middleware that renders errors, and mounting routes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Middleware
from pydantic import BaseModel

from gatepost.config import Config
from gatepost.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    Problem,
)
from gatepost.http import strict_json
from gatepost.http.access_log import REQUEST_ID, UNMATCHED, AccessLog, name_request
from gatepost.http.graceful_shutdown import Stopping
from gatepost.postgres.database import Database
from gatepost.security.credentials import Credentials
from gatepost.security.refunds import Refunds
from gatepost.security.throttle import Throttle
from gatepost.telemetry.logs import OneWarning
from gatepost.telemetry.metrics import ABANDONED, Metrics

CONFIG = web.AppKey("config", Config)
DATABASE = web.AppKey("database", Database)
STOPPING = web.AppKey("stopping", Stopping)
CREDENTIALS = web.AppKey("credentials", Credentials)
METRICS = web.AppKey("metrics", Metrics)
THROTTLE = web.AppKey("throttle", Throttle)
REFUNDS = web.AppKey("refunds", Refunds)
UNTRUSTED_PROXY = web.AppKey("untrusted_proxy", OneWarning)
DOCUMENT: web.AppKey[Callable[[], bytes]] = web.AppKey("document")
"""Makes what `/openapi.json` answers."""
FOR_OPERATORS = web.AppKey("for_operators", bool)
"""Whether the address is for operators alone."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=BaseModel)

# ---------------------------------------------------------------------------------------------- answers


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer, UTF-8."""
    return web.Response(
        body=strict_json.encode(body).encode(), status=status, headers=headers, content_type="application/json"
    )


def render(problem: Problem) -> web.Response:
    """The answer that says so (RFC 9457)."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        # The cause of a server error goes into the log; the client is told only what it can do.
        "detail": problem.detail if problem.status < 500 else type(problem).__doc__,
        **problem.members,
    }
    if problem.fields:
        body["errors"] = [{"field": e.field, "code": e.code, "message": e.message} for e in problem.fields]
    return web.Response(
        body=strict_json.encode(body).encode(),
        status=problem.status,
        headers=problem.headers,
        content_type="application/problem+json",
    )


RENDERER: web.RequestKey[Callable[[Problem], web.Response]] = web.RequestKey("renderer")
"""How this request's error is told, where that is not `render`: a page tells it as a page."""

TELL_AS_PAGE: web.AppKey[Callable[[web.Request], None]] = web.AppKey("tell_as_page")
"""Lets a request's errors be told as a page, where there are pages."""


def wants_a_page(request: web.Request) -> bool:
    """Whether a person waits for it in a browser. A script that fetches something says so where browsers tell
    (Fetch Metadata), and is not sent to a page that it could not read.
    """
    accepts = request.headers.get(hdrs.ACCEPT, "")[:1024].lower()
    return "text/html" in accepts and request.headers.get("Sec-Fetch-Mode", "navigate") == "navigate"


# ------------------------------------------------------------------------------------------- middleware


def problems(access_log: AccessLog) -> Middleware:
    """The middleware that turns every error into a problem document and tells ``access_log`` of every request."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.perf_counter()
        try:
            if strict_json.BAD_CHARACTER.search(request.path):
                raise NotFound  # no resource has such a path, and Postgres cannot take the character
            response = await handler(request)
        # The client has gone. The request is logged all the same: it may have cost an attempt at a password.
        except (asyncio.CancelledError, ConnectionError):
            access_log.record(request, web.Response(status=ABANDONED), time.perf_counter() - began)
            raise
        except Exception as error:  # noqa: BLE001 (the last line of defence: an answer, and a line for the operator)
            return refuse(request, error, began)
        access_log.record(request, response, time.perf_counter() - began)
        return response

    # A function of its own: a frame of the traceback that names the error would be a reference cycle.
    def refuse(request: web.Request, error: Exception, began: float) -> web.Response:
        problem, response = _tell(request, _problem(error))
        access_log.record(request, response, time.perf_counter() - began, problem)
        if request.writer.output_size > 0:  # a streamed answer can only be broken off
            raise ConnectionError("an answer has begun already")
        return response

    return middleware


def _tell(request: web.Request, problem: Problem) -> tuple[Problem, web.Response]:
    """The problem and its answer. A page that cannot be rendered is a problem itself."""
    renderer = request.get(RENDERER)
    if renderer is not None:
        try:
            return problem, renderer(problem)
        except Exception as error:  # noqa: BLE001 (a template of the operator may do anything)
            problem = _problem(error)
    return problem, render(problem)


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, web.HTTPException):  # aiohttp's own, for example for a target that is not a path
        found = NotFound() if error.status == 404 else BadRequest(error.reason)
        found.status = error.status
        return found
    fault = Problem("Something went wrong on our side.")
    fault.__cause__ = error
    return fault


class QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """For aiohttp's own messages: without the traceback, which quotes the bytes that were sent."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log the type of an exception instead of the exception. A client's mistake is logged as debug."""
        error = kwargs.pop("exc_info", None)
        if isinstance(error, HttpProcessingError):
            level = logging.DEBUG
        if isinstance(error, BaseException):
            msg = f"{msg}: {type(error).__name__}"
        super().log(level, msg, *args, **kwargs)


async def _expect(request: web.Request) -> None:
    """Ask for the body of those who wait to be asked; other expectations may be passed over, and all of HTTP/1.0
    must be (RFC 9110 §10.1.1).
    """
    asked = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.version >= HttpVersion11
    if asked and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def mount(app: web.Application, routes: Sequence[web.RouteDef], pages: Sequence[web.RouteDef]) -> None:
    """Add the routes of the API and those for people, and answers of our own shape for what is no route: 404, 405,
    OPTIONS.
    """
    methods: dict[str, set[str]] = {}
    for route in (*routes, *pages):
        app.router.add_route(route.method, route.path, route.handler, expect_handler=_expect)
        methods.setdefault(route.path, set()).add(route.method)
        if route.method == hdrs.METH_GET:
            app.router.add_route(hdrs.METH_HEAD, route.path, route.handler, expect_handler=_expect)
            methods[route.path].add(hdrs.METH_HEAD)
    for_people = {page.path for page in pages}
    for path, of_path in methods.items():
        allowed = ", ".join(sorted({*of_path, hdrs.METH_OPTIONS}))
        handler = _other_methods(allowed, for_people=path in for_people)
        app.router.add_route("*", path, handler, expect_handler=_expect)
    app.router.add_resource("/{path:.*}", name=UNMATCHED).add_route("*", _no_route, expect_handler=_expect)


def _other_methods(allowed: str, *, for_people: bool) -> Handler:
    async def other_method(request: web.Request) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers={hdrs.ALLOW: allowed})
        if for_people:
            _tell_people(request)
        raise MethodNotAllowed(allowed)

    return other_method


async def _no_route(request: web.Request) -> web.StreamResponse:
    _tell_people(request)
    raise NotFound


def _tell_people(request: web.Request) -> None:
    """Who follows an old link, or reloads the address of a form, is told by a page."""
    tell_as_page = request.app.get(TELL_AS_PAGE)
    if tell_as_page and request.method in (hdrs.METH_GET, hdrs.METH_HEAD) and wants_a_page(request):
        tell_as_page(request)


async def set_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer (a signal, so that it reaches the ones aiohttp makes too)."""
    add_common_headers(request, response)


def add_common_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """What every answer has, also to what never became a request."""
    name_request(request, response)
    headers = response.headers
    headers.setdefault("Cache-Control", "no-store")  # only what never changes under its name says otherwise
    headers["Server"] = "gatepost"
    headers["X-Content-Type-Options"] = "nosniff"


def cors(origins: Sequence[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """A signal that lets pages of these origins read our answers (the Fetch standard's CORS protocol).

    The preflight is the OPTIONS answer that every resource gives anyway.
    """
    allowed = frozenset(origins)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN, "")
        if origin.lower() not in allowed:
            return
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = (
            f"RateLimit, RateLimit-Policy, Retry-After, {REQUEST_ID}"
        )
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = response.headers.get(hdrs.ALLOW, "")
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = f"Authorization, Content-Type, {REQUEST_ID}"
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"

    return add_headers
