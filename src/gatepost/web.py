"""HTTP, the part that every feature shares: reading a body and a token, and where errors end."""

import json
import logging
import re
import traceback
import uuid
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError
from pydantic import BaseModel, ValidationError

from gatepost import strictjson
from gatepost.config import Config
from gatepost.credentials import Credentials
from gatepost.db import Database
from gatepost.errors import (
    BadRequest,
    BodyTooLarge,
    FieldError,
    ForeignOrigin,
    InvalidBody,
    MethodNotAllowed,
    NotFound,
    Problem,
    Unauthorized,
    UnsupportedMediaType,
)

CONFIG = web.AppKey("config", Config)
DATABASE = web.AppKey("database", Database)
CREDENTIALS = web.AppKey("credentials", Credentials)

MAX_BODY = 8192
MAX_FIELD_ERRORS = 20  # a body of many wrong keys gets no answer many times its size

log = logging.getLogger("gatepost")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Model = TypeVar("Model", bound=BaseModel)

# ---------------------------------------------------------------------------------------------- answers


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer, UTF-8."""
    return web.Response(body=_encode(body).encode(), status=status, headers=headers, content_type="application/json")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _render(problem: Problem) -> web.Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "code": problem.code,
        # What is wrong on our side is for the log; the client is told only what it can do.
        "detail": problem.detail if problem.status < 500 else type(problem).__doc__,
    }
    if problem.fields:
        body["errors"] = [{"field": e.field, "code": e.code, "message": e.message} for e in problem.fields]
    return web.Response(
        body=_encode(body).encode(),
        status=problem.status,
        headers=problem.headers,
        content_type="application/problem+json",
    )


# ------------------------------------------------------------------------------------------- middleware


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Where every error ends: one shape, one place."""
    try:
        if strictjson.BAD_CHARACTER.search(request.path):
            raise NotFound  # nothing has such a name, and Postgres must not be asked
        return await handler(request)
    except Problem as problem:
        if problem.status >= 500:
            log.warning("%s %s: %s: %s", request.method, _path(request), problem.code, problem.detail)
        return _render(problem)
    except web.HTTPException as error:  # aiohttp's own: for a target that is no path, say
        found = NotFound() if error.status == 404 else BadRequest(error.reason)
        found.status = error.status
        return _render(found)
    except Exception as error:  # noqa: BLE001 (the last line of defence: an answer, and a line for the operator)
        # Without the exception's own text: a driver's message may quote what was sent.
        where = "".join(traceback.format_tb(error.__traceback__)[-4:])
        log.error("%s %s: %s\n%s", request.method, _path(request), type(error).__name__, where)  # noqa: TRY400
        return _render(Problem("Something went wrong on our side."))


def _path(request: web.Request) -> str:
    # As it came, percent signs and all: decoded, it could hold a line's end and forge lines of the log.
    return request.rel_url.raw_path


class QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """For aiohttp's own messages: without the traceback, which quotes the bytes that were sent."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log the exception's type in place of it; what a client got wrong is no error of ours."""
        error = kwargs.pop("exc_info", None)
        if isinstance(error, HttpProcessingError):
            level = logging.DEBUG
        if isinstance(error, BaseException):
            msg = f"{msg}: {type(error).__name__}"
        super().log(level, msg, *args, **kwargs)


async def _expect(request: web.Request) -> None:
    """Ask for the body of those who wait to be asked; other expectations may be passed over (RFC 9110 §10.1.1)."""
    if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def mount(app: web.Application, routes: Sequence[web.RouteDef]) -> None:
    """Add the routes, and answers of our own shape for what is no route: 404, 405, OPTIONS."""
    methods: dict[str, set[str]] = {}
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler, expect_handler=_expect)
        methods.setdefault(route.path, set()).add(route.method)
        if route.method == hdrs.METH_GET:
            app.router.add_route(hdrs.METH_HEAD, route.path, route.handler, expect_handler=_expect)
            methods[route.path].add(hdrs.METH_HEAD)
    for path, of_path in methods.items():
        allowed = ", ".join(sorted({*of_path, hdrs.METH_OPTIONS}))
        app.router.add_route("*", path, _other_methods(allowed), expect_handler=_expect)
    app.router.add_route("*", "/{path:.*}", _no_route, expect_handler=_expect)


def _other_methods(allowed: str) -> Handler:
    async def other_method(request: web.Request) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS:
            return web.Response(status=204, headers={hdrs.ALLOW: allowed})
        raise MethodNotAllowed(allowed)

    return other_method


async def _no_route(_request: web.Request) -> web.StreamResponse:
    raise NotFound


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


async def set_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer (a signal, so that it reaches the ones aiohttp makes too)."""
    given = request.headers.get("X-Request-ID", "")
    headers = response.headers
    headers["X-Request-ID"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    headers["Cache-Control"] = "no-store"
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
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Retry-After, X-Request-ID"
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = response.headers.get(hdrs.ALLOW, "")
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = "Authorization, Content-Type, X-Request-ID"
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"

    return add_headers


# ------------------------------------------------------------------------------------------------- body


async def read_body(request: web.Request, model: type[Model], *, any_content_type: bool = False) -> Model:
    """The request's JSON object as ``model``.

    Raises UnsupportedMediaType (415), BadRequest (400, with a code that says which rule of the decoder),
    InvalidBody (422, naming each field), BodyTooLarge (413) for more than ``MAX_BODY`` bytes.
    """
    if any(coding.lower() != "identity" for coding in request.headers.getall(hdrs.CONTENT_ENCODING, ())):
        raise UnsupportedMediaType
    if not any_content_type and request.content_type != "application/json":
        raise UnsupportedMediaType
    value = strictjson.decode(await _read(request))
    if not isinstance(value, dict):
        raise InvalidBody([FieldError("", "not_an_object", "must be a JSON object")])
    return _validate(model, value)


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(f"The body has more than {MAX_BODY} bytes.") from None
    except ConnectionError:  # nobody is left to read the answer; it is not our error either
        raise BadRequest("The body broke off.", code="body_incomplete") from None


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The request's query string as ``model``. Raises InvalidBody (422) naming each parameter."""
    query = request.query
    strictjson.refuse_bad_characters(dict(query))
    if twice := sorted({name for name in query if len(query.getall(name)) > 1}):
        raise InvalidBody([FieldError(name, "twice", "is given more than once") for name in twice])
    return _validate(model, dict(query))


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def path_id(request: web.Request, name: str) -> str:
    """A UUID in the path. Raises NotFound for anything else: there is nothing of that name."""
    value = request.match_info[name]
    if not _UUID.fullmatch(value):
        raise NotFound
    return value


def _validate(model: type[Model], value: dict[str, Any]) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        fields = error.errors(include_input=False, include_url=False, include_context=False)
        raise InvalidBody([_field_error(e) for e in fields[:MAX_FIELD_ERRORS]]) from None


_CODES = {"missing": "required", "string_type": "not_a_string", "extra_forbidden": "unknown_field"}
_MESSAGES = {
    "required": "is required",
    "not_a_string": "must be a string",
    "unknown_field": "is not known here",
}


def _field_error(error: Any) -> FieldError:
    code = _CODES.get(error["type"], error["type"])
    return FieldError(".".join(map(str, error["loc"])), code, _MESSAGES.get(code, error["msg"]))


# ----------------------------------------------------------------------------------- who is asking, whence

# The canonical form only: uuid.UUID() would also take braces, urn:, capitals and full-width digits, so that one
# session had many names.
_TOKEN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_AUTHORIZATION = re.compile(rf"(?:[Bb][Ee][Aa][Rr][Ee][Rr] +)?({_TOKEN.pattern})")

# The __Host- prefix binds the cookie to this very host over TLS. Without TLS, on the developer's own machine,
# browsers do not take it; there and only there it has a plain name.
_COOKIE = "__Host-session"
_LOCAL_COOKIE = "session"
_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.ASCII)
_SAFE_METHODS = {hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_OPTIONS}
_SEC_FETCH_SITE = "Sec-Fetch-Site"


class Asked(NamedTuple):
    """What the browser asked for. When a proxy asks about it, that is not what the request to us itself says."""

    method: str
    host: str


def session_token(request: web.Request, asked: Asked | None = None) -> str:
    """The session token of a request: from ``Authorization``, raw or after ``Bearer`` (RFC 6750; the scheme in any
    case), else from the session cookie.

    Raises Unauthorized for none or one that is no token, BadRequest for two headers, and ForeignOrigin when the
    cookie of a request that may change something comes with a page of another origin.
    """
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    if len(values) > 1:
        raise BadRequest("There are two Authorization headers.", code="two_authorizations")
    if values:
        match = _AUTHORIZATION.fullmatch(values[0])
        if not match:
            raise Unauthorized
        return match[1]
    method, host = asked or (request.method, _host(request))
    cookie = _session_cookie(request, host)
    if not cookie:
        raise Unauthorized
    if method not in _SAFE_METHODS:
        demand_own_origin(request, host)
    return cookie[1]


def _session_cookie(request: web.Request, host: str) -> tuple[str, str] | None:
    """Name and token of the session cookie. Two of one name with different values are none: a browser has one.

    The header is split here, by RFC 6265: aiohttp's parser also ends a cookie at a space, lets a quote run on over
    the semicolon and strips any Unicode space, so that a cookie which a neighbouring subdomain may set would pose
    as one with the ``__Host-`` that browsers keep from it.
    """
    given: dict[str, set[str]] = {}
    for header in request.headers.getall(hdrs.COOKIE, ()):
        for pair in header.split(";"):
            name, _, value = pair.strip(" \t").partition("=")
            given.setdefault(name, set()).add(value)
    names = (_COOKIE, _LOCAL_COOKIE) if _is_local(request, host) else (_COOKIE,)
    for name in names:
        if values := given.get(name):
            value = values.pop()
            return (name, value) if not values and _TOKEN.fullmatch(value) else None
    return None


def demand_own_origin(request: web.Request, host: str | None = None) -> None:
    """Raise ForeignOrigin unless the browser says that a page of ours or of a configured origin sent this.

    ``Sec-Fetch-Site`` is the browser's own word (Fetch Metadata); where it is missing, ``Origin`` is compared with
    ``Host``, or with the ``host`` that the browser asked. The scheme is left out: behind a proxy we do not know
    ours. ``none``, the address bar, is refused as well: what is typed there changes nothing, so it is not how such
    a request comes to be.
    """
    origin = request.headers.get(hdrs.ORIGIN, "").lower()
    if origin in request.app[CONFIG].webserver.cors_origins:
        return
    site = request.headers.get(_SEC_FETCH_SITE)
    own_host = _host(request) if host is None else host
    same_host = origin.partition("://")[2] == own_host.lower() != ""
    if not (site == "same-origin" if site is not None else same_host):
        raise ForeignOrigin


def is_from_a_page(request: web.Request) -> bool:
    """Whether a browser says that a page sent this: `demand_own_origin` can ask which."""
    return hdrs.ORIGIN in request.headers or _SEC_FETCH_SITE in request.headers


def set_session_cookie(request: web.Request, response: web.Response, token: str) -> None:
    """Give the token to a browser, where no script can read it."""
    name = _LOCAL_COOKIE if _is_local(request, _host(request)) else _COOKIE
    response.set_cookie(name, token, path="/", httponly=True, secure=name == _COOKIE, samesite="Lax")


def has_session_cookie(request: web.Request) -> bool:
    """Whether the browser keeps the token that this request speaks with in its cookie, which so must follow it."""
    cookie = _session_cookie(request, _host(request))
    return cookie is not None and cookie[1] == session_token(request)


def drop_session_cookie(request: web.Request, response: web.Response) -> None:
    """Take the cookie back, if it holds the token that this request speaks with."""
    cookie = _session_cookie(request, _host(request))
    if cookie and cookie[1] == session_token(request):
        response.del_cookie(cookie[0], path="/", httponly=True, secure=cookie[0] == _COOKIE, samesite="Lax")


def _host(request: web.Request) -> str:
    return request.headers.get(hdrs.HOST, "")


def _is_local(request: web.Request, host: str) -> bool:
    """Whether the browser runs on this machine. A proxy before us that does not pass ``Host`` on makes all requests
    look so; then ``Origin`` tells.
    """
    origin = request.headers.get(hdrs.ORIGIN, "").partition("://")[2] or host
    return bool(_LOCAL_HOST.fullmatch(host) and _LOCAL_HOST.fullmatch(origin))


def client_ip(request: web.Request) -> str | None:
    """The peer's address, or None on a Unix socket."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return str(peer[0]).split("%")[0] if isinstance(peer, tuple) else None


def user_agent(request: web.Request) -> str | None:
    """The client's own words about itself, cut to 256 characters that Postgres takes."""
    text = request.headers.get(hdrs.USER_AGENT)
    return text[:256].encode("utf-8", "replace").decode().replace("\0", "") if text else None
