"""The access log: for each request a log line and a count in the metrics."""

import re
import uuid
from bisect import bisect_left
from functools import cache
from typing import Any, NamedTuple

from aiohttp import web

from gatepost.errors import (
    InvalidCode,
    InvalidPasskey,
    Problem,
    SecondFactorRequired,
    TooManyAttempts,
    Unavailable,
)
from gatepost.http.operation import Operation
from gatepost.telemetry.logs import log
from gatepost.telemetry.metrics import BUCKETS, OUTCOMES, Durations, Metrics, Outcome

UNMATCHED = "unmatched"
"""The route, and so the one label, of all paths that are none; also the name of the resource that takes them."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
WAYS_IN = frozenset(
    f"{path}{step}"
    for path, steps in (("/user", ("", "/factor", "/passkey")), ("/sign-in", ("", "/second-factor", "/passkey")))
    for step in steps
)
"""Where somebody signs in, or goes on with it."""
REQUEST_ID = "X-Request-ID"
_SOUND = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def name_request(request: web.BaseRequest, response: web.StreamResponse) -> str:
    """Set ``X-Request-ID`` on the answer, once, and return it. The client's own id is kept where it is printable:
    nothing is decided by it, and it connects our log line with one of the calling service.
    """
    if REQUEST_ID in response.headers:
        return response.headers[REQUEST_ID]
    given = request.headers.get(REQUEST_ID, "")
    name = response.headers[REQUEST_ID] = given if _SOUND.fullmatch(given) else uuid.uuid4().hex
    return name


class _Series(NamedTuple):
    """Requests of one route, method and status. Looked up once, since a look-up costs more than counting."""

    route: str
    method: str
    durations: Durations
    login: bool
    event: str | None
    told: bool


class AccessLog:
    """Logs and counts the requests of one server. ``checks``: whether frequent checks get a log line as well."""

    def __init__(self, metrics: Metrics, *, checks: bool) -> None:
        self._metrics = metrics
        self._checks = checks
        self._durations = cache(metrics.requests)  # several statuses share one series
        self._series: dict[tuple[web.AbstractResource | None, str, int], _Series] = {}

    def record(
        self, request: web.Request, response: web.StreamResponse, seconds: float, problem: Problem | None = None
    ) -> None:
        """Log and count a request that was answered after ``seconds``. ``problem``: why it was refused, if it was."""
        key = (request.match_info.route.resource, request.method, response.status)
        series = self._series.get(key)
        if series is None:
            series = self._new(request, response.status)
            if request.method in _METHODS and key[0] is not None:  # otherwise clients could make any number of series
                self._series[key] = series
        durations = series.durations
        durations.counts[bisect_left(BUCKETS, seconds)] += 1
        durations.total += seconds
        if series.login:
            self._metrics.logins[_outcome(response.status, problem)].inc()
        if isinstance(problem, TooManyAttempts):
            self._metrics.throttled.labels(problem.limit).inc()
        if series.told:
            line = {
                "request_id": name_request(request, response),
                "method": series.method,
                "route": series.route,
                "status": response.status,
                "duration_ms": round(seconds * 1000, 2),
            }
            _tell(line, problem, problem.event if problem else series.event)

    def _new(self, request: web.Request, status: int) -> _Series:
        method = request.method if request.method in _METHODS else "other"
        resource = request.match_info.route.resource
        route = UNMATCHED if resource is None else resource.name or resource.canonical
        note = getattr(request.match_info.handler, "__operation__", Operation(None))
        return _Series(
            route,
            method,
            self._durations(route, method, f"{status // 100}xx"),
            method == "POST" and route in WAYS_IN,
            note.event if status < 400 else None,
            # A refused check is a visitor who has not signed in. Anybody can send 15,000 of them a second.
            told=self._checks or not note.check or status >= 500,
        )


def _outcome(status: int, problem: Problem | None) -> Outcome:
    if isinstance(problem, SecondFactorRequired):
        return "continued"
    if isinstance(problem, InvalidCode | InvalidPasskey):
        return "lost"
    return OUTCOMES.get(status, "malformed")


def _tell(line: dict[str, Any], problem: Problem | None, kind: str | None) -> None:
    if kind:
        line["kind"] = kind
    if problem:
        line["code"] = problem.code
    if isinstance(problem, Unavailable):
        # The cause of a server error goes into the log; the client is told only what it can do.
        log.warning("request", **line, reason=problem.detail)
    elif problem and problem.status >= 500:
        log.error("request", **line, exc_info=problem.__cause__)
    else:
        log.info("request", **line)
