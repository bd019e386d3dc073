"""Closed-loop load by wrk, which takes a fraction of the processor time that a client in Python would."""

import json
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.service import Service, ServiceError

# The requests are made up beforehand and sent in turn, for /ping too: wrk does the same work for each kind.
_SCRIPT = """
local count, last = #requests, 0
function request()
  last = last % count + 1
  return requests[last]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %d, "microseconds": %d, "p50": %f, "p99": %f, "refused": %d, "broken": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


class MissingTool(Exception):
    """A program that the benchmark needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Round:
    """What one round of load measured. Latencies in milliseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    cpu_seconds: float
    """Processor time that wrk itself used."""

    @property
    def per_second(self) -> float:
        """Requests answered per second."""
        return self.requests / self.seconds


def require() -> None:
    """Raise MissingTool unless wrk can be run."""
    if shutil.which("wrk") is None:
        raise MissingTool(
            "wrk, the load generator, is not installed: `apt-get install wrk` (Debian, Ubuntu) or `brew install wrk`"
        )


def http_request(method: str, path: str, body: object = None, **headers: str) -> str:
    """A request as it goes over the wire."""
    content = "" if body is None else json.dumps(body)
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{k}: {v}" for k, v in headers.items())]
    if body is not None:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", content])


class Load:
    """Requests that are sent again and again, in turn, over a number of connections."""

    def __init__(self, service: Service, script: Path, requests: Sequence[str], *, connections: int) -> None:
        """Write ``script``, the Lua file that wrk runs."""
        # json.dumps of ASCII without slashes or controls beyond CR and LF is a Lua string too.
        script.write_text(f"local requests = {{{','.join(map(json.dumps, requests))}}}\n{_SCRIPT}", "ascii")
        self._command = ["wrk", "-t1", f"-c{connections}", "--timeout=5s", f"-s{script}", service.url]

    def run(self, seconds: int) -> Round:
        """One round. Raises ServiceError when an answer was not a success."""
        before = _children_cpu()
        done = subprocess.run(
            [*self._command, f"-d{seconds}s"], capture_output=True, text=True, timeout=seconds + 15, check=False
        )
        used = _children_cpu() - before
        _, found, result = done.stdout.partition("RESULT ")
        if not found:
            raise ServiceError(f"wrk failed: {(done.stdout + done.stderr).strip()[-300:]}")
        values: dict[str, Any] = json.loads(result)
        if values["refused"] or values["broken"] or not values["requests"]:
            raise ServiceError(
                f"of {values['requests']} answers {values['refused']} were errors; "
                f"{values['broken']} connections failed"
            )
        return Round(values["requests"], values["microseconds"] / 1e6, values["p50"] / 1e3, values["p99"] / 1e3, used)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
