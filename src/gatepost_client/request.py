"""Where a request carries its session's token: in `Authorization`, or in Gatepost's cookie."""

import re
from collections.abc import Callable

from gatepost_client.identity import bearer, is_token

# As Gatepost itself reads them (`gatepost/http/tokens.py`; tests/test_client_request.py holds the two together).
_COOKIE, _LOCAL_COOKIE = "__Host-session", "session"
_COOKIES = re.compile(rf"(?:\A|;)[ \t]*({_COOKIE}|{_LOCAL_COOKIE})(=[^;]*|[ \t]*)(?=;|\Z)")
_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.ASCII)
_MAX_COOKIES = 16 * 1024
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def session_token(method: str, header: Callable[[str], str | None]) -> str | None:
    """The session's token of a request; None if there is none.

    ``header`` gives a header by its name in any case, or None. Browsers send a cookie by themselves: for what may
    change something, or opens a WebSocket, it counts only if a page of the same origin sent it (Fetch Metadata's
    ``Sec-Fetch-Site``, or else ``Origin``).
    """
    authorization = header("Authorization")
    if authorization is not None:
        return bearer(authorization)
    cookies, host, origin = header("Cookie") or "", header("Host") or "", header("Origin")
    token = _in_cookie(cookies, local=_is_local(host, origin)) if len(cookies) <= _MAX_COOKIES else None
    if token is not None and (method not in _SAFE_METHODS or header("Upgrade") is not None):
        site = header("Sec-Fetch-Site")
        same_host = (origin or "").lower().partition("://")[2] == host.lower() != ""
        if not (site == "same-origin" if site is not None else same_host):
            return None
    return token


def _in_cookie(cookies: str, *, local: bool) -> str | None:
    given: dict[str, set[str]] = {}
    for name, value in _COOKIES.findall(cookies):
        given.setdefault(name, set()).add(value[1:].rstrip(" \t"))
    for name in (_COOKIE, _LOCAL_COOKIE) if local else (_COOKIE,):
        if values := given.get(name):
            # Two of one name with different values are none: a browser sends one.
            value = values.pop()
            return value if not values and is_token(value) else None
    return None


def _is_local(host: str, origin: str | None) -> bool:
    return bool(_LOCAL_HOST.fullmatch(host) and _LOCAL_HOST.fullmatch((origin or "").partition("://")[2] or host))
