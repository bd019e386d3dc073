"""Ten times the logins that can be hashed: what those who are signed in notice of it, and what memory it takes."""

import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import processes
from bench.flood import Flooded, flooding
from bench.hashing import hashes_per_second
from bench.measures import Others, others_notes
from bench.pacer import pacing
from bench.report import Figure, Target
from bench.seed import Seed
from bench.service import Service, ServiceError

TIMES = 10
STEADY_RATE = 200
SECONDS = 10
# After this long it is not called normal any more.
PATIENCE = 120.0


@dataclass(frozen=True)
class _Outcome:
    p99: float
    rest: float
    growth: float
    flooded: Flooded
    seconds_to_normal: float


@contextmanager
def _unbounded(service: Service) -> Iterator[tuple[int, int]]:
    """The other server: its port and process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.unbounded", service.environment["GATEPOST_DB__DATA_DIR"]],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise ServiceError("the server to compare with does not start")
        yield int(line), process.pid
    finally:
        process.kill()
        process.wait()


def _log_in(port: int, login: tuple[str, str]) -> float:
    """Seconds until a login is answered 200, however often it takes."""
    began = time.perf_counter()
    while time.perf_counter() - began < PATIENCE:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("POST", "/user", json.dumps({"username": login[0], "password": login[1]}))
            if connection.getresponse().status == 200:
                return time.perf_counter() - began
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    return PATIENCE


def _flood(port: int, pid: int, seed: Seed, tokens: Path, rate: float) -> _Outcome:
    with ThreadPoolExecutor(2 * len(seed.logins)) as clients:
        # All its threads have hashed: what they keep of that is no growth.
        list(clients.map(partial(_log_in, port), seed.logins * 4))
    time.sleep(0.5)
    rest = processes.pss_mb(pid)
    most = rest
    with (
        pacing(port, tokens, rate=STEADY_RATE, seconds=SECONDS + 1) as pacer,
        flooding(port, rate=rate, seconds=SECONDS) as flood,
    ):
        while not flood.is_over():
            most = max(most, processes.pss_mb(pid))
            time.sleep(0.2)
        flooded = flood.result()
        normal = _log_in(port, seed.logins[0])
        steady = pacer.result(all_answered=False)
    return _Outcome(statistics.quantiles(steady.latencies, n=100)[98], rest, most - rest, flooded, normal)


def overload(service: Service, seed: Seed, folder: Path) -> tuple[list[Figure], list[str]]:
    """Gatepost and a server that hashes as many do, in turn, on the same database; also what is worth a note."""
    tokens = folder / "tokens"
    tokens.write_text("\n".join(seed.tokens), "ascii")
    rate = TIMES * hashes_per_second(2)
    meanwhile = Others(service)
    ours = _flood(service.port, service.pid, seed, tokens, rate)
    others = [meanwhile.processors()]
    time.sleep(1)
    with _unbounded(service) as (port, pid):
        theirs = _flood(port, pid, seed, tokens, rate)
    figures = [Figure("flood_rate", f"wrong guesses sent: {TIMES} times what can be hashed", [rate], "/s", 0)]
    for key, who, it in (("", "Gatepost", ours), ("unbounded_", "unbounded executor", theirs)):
        at_most = {
            name: Target(value, at_most=True) for name, value in (("p99", 50.0), ("pss", 20.0), ("normal", 5.0))
        }
        targets = {} if key else at_most
        decided = it.flooded.statuses.get("401", 0)
        figures += [
            Figure(f"flood_{key}check_p99", f"{who}: a check, p99", [it.p99], "ms", 1, targets.get("p99")),
            Figure(f"flood_{key}decided", f"{who}: logins decided", [decided / it.flooded.sent * 100], "%", 1),
            Figure(
                f"flood_{key}refused",
                f"{who}: logins refused with 503",
                [it.flooded.statuses.get("503", 0) / it.flooded.sent * 100],
                "%",
                1,
            ),
            Figure(
                f"flood_{key}normal", f"{who}: then a login", [it.seconds_to_normal], "s", 2, targets.get("normal")
            ),
        ]
        if processes.AVAILABLE:
            figures += [
                Figure(f"flood_{key}rest", f"{who}: PSS at rest, having hashed", [it.rest], "MB", 1),
                Figure(f"flood_{key}pss", f"{who}: PSS above that", [it.growth], "MB", 1, targets.get("pss")),
            ]
    return figures, others_notes("flood, with the load generators", others)
