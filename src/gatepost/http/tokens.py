"""Where a request carries its session's token: in a header, or in a cookie that only pages of ours may use."""

import re
from typing import NamedTuple

from aiohttp import hdrs, web

from gatepost.errors import BadRequest, ForeignOrigin, Unauthorized
from gatepost.http.app import CONFIG

# The canonical form only: uuid.UUID() would also take braces, urn:, capitals and full-width digits, so that one
# session had many names.
_TOKEN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_AUTHORIZATION = re.compile(rf"(?:[Bb][Ee][Aa][Rr][Ee][Rr] +)?({_TOKEN.pattern})")

# The __Host- prefix binds the cookie to this very host over TLS. Without TLS, on the developer's own machine,
# browsers do not take it; there and only there it has a plain name.
_COOKIE = "__Host-session"
# With `cookies.domain`, for every host in it; the prefix still binds it to TLS.
_SHARED_COOKIE = "__Secure-session"
_LOCAL_COOKIE = "session"
_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.ASCII)
# Pairs of these names as RFC 6265 §5.2 splits them. The expression passes over all others: a megabyte of pairs took
# 200 ms to split (measured).
_SESSION_COOKIES = re.compile(rf"(?:\A|;)[ \t]*({_COOKIE}|{_SHARED_COOKIE}|{_LOCAL_COOKIE})(=[^;]*|[ \t]*)(?=;|\Z)")
# Characters of all Cookie headers together: a browser sends one header (RFC 6265 §5.4), which aiohttp bounds at 8 KB;
# a proxy that comes from HTTP/2 may leave several. More than that is read as no cookie.
_MAX_COOKIES = 16 * 1024
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
    """Name and token of the session cookie. Two cookies of one name with different values count as none: a browser
    sends one.

    The header is split here, by RFC 6265: aiohttp's parser also ends a cookie at a space, lets a quote run on over
    the semicolon and strips any Unicode space, so that a cookie which a neighbouring subdomain may set would pose
    as one with the ``__Host-`` that browsers keep from it.
    """
    given: dict[str, set[str]] = {}
    cookies = ";".join(request.headers.getall(hdrs.COOKIE, ()))
    if len(cookies) > _MAX_COOKIES:
        return None
    for name, value in _SESSION_COOKIES.findall(cookies):
        given.setdefault(name, set()).add(value[1:].rstrip(" \t"))
    secure = _SHARED_COOKIE if _domain(request, host) else _COOKIE
    names = (secure, _LOCAL_COOKIE) if _is_local(request, host) else (secure,)
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
    host = _host(request)
    domain = _domain(request, host)
    name = _LOCAL_COOKIE if _is_local(request, host) else _SHARED_COOKIE if domain else _COOKIE
    response.set_cookie(
        name, token, domain=domain, path="/", httponly=True, secure=name != _LOCAL_COOKIE, samesite="Lax"
    )


def has_session_cookie(request: web.Request) -> bool:
    """Whether the browser keeps the token that this request speaks with in its cookie, which so must follow it."""
    cookie = _session_cookie(request, _host(request))
    return cookie is not None and cookie[1] == session_token(request)


def drop_session_cookie(request: web.Request, response: web.Response) -> None:
    """Take the cookie back, if it holds the token that this request speaks with."""
    host = _host(request)
    cookie = _session_cookie(request, host)
    if cookie and cookie[1] == session_token(request):
        name, domain = cookie[0], _domain(request, host)
        response.del_cookie(
            name, domain=domain, path="/", httponly=True, secure=name != _LOCAL_COOKIE, samesite="Lax"
        )


def _host(request: web.Request) -> str:
    return request.headers.get(hdrs.HOST, "")


def _domain(request: web.Request, host: str) -> str | None:
    """The domain whose hosts share the cookie, if there is one and this host is in it."""
    return request.app[CONFIG].cookies.domain_for(host.rpartition(":")[0].lower() if ":" in host else host.lower())


def _is_local(request: web.Request, host: str) -> bool:
    """Whether the browser runs on this machine. A proxy before us that does not pass ``Host`` on makes all requests
    look so; then ``Origin`` tells.
    """
    origin = request.headers.get(hdrs.ORIGIN, "").partition("://")[2] or host
    return bool(_LOCAL_HOST.fullmatch(host) and _LOCAL_HOST.fullmatch(origin))
