"""Open-loop load: `GET /user` at a steady rate, in a process of its own.

Each latency counts from when its request was due, not from when it was sent: a service that stalls is charged for
every request that became due meanwhile (no coordinated omission), and so is this generator for its own delays.
"""

import argparse
import json
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.service import ServiceError
from bench.wrk import http_request

CONNECTIONS = 32
GRACE = 5.0


@dataclass(frozen=True)
class Paced:
    """What a steady load measured. Latencies in milliseconds; ``lateness`` is the generator's own, and included.

    ``unanswered``: how many did not come in time; each counts with the time that it was waited for.
    """

    latencies: list[float]
    lateness: list[float]
    unanswered: int


class Pacer:
    """A steady load beside another one; `result` once that is over."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def result(self, *, all_answered: bool = True) -> Paced:
        """Wait for its end. Raises ServiceError when an answer was not 200, or did not come and should have."""
        out, _ = self._process.communicate(timeout=self._seconds + 2 * GRACE)
        if self._process.returncode != 0:
            raise ServiceError(f"the steady load failed: {out.strip()[-300:]}")
        paced = Paced(**json.loads(out))
        if all_answered and paced.unanswered:
            raise ServiceError(f"the steady load failed: {paced.unanswered} answers did not come")
        return paced


@contextmanager
def pacing(port: int, tokens: Path, *, rate: int, seconds: int) -> Iterator[Pacer]:
    """Run the load from now on; ``tokens``: a file of session tokens, one to a line."""
    arguments = [str(port), str(tokens), str(rate), str(seconds)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.pacer", *arguments],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        if (line := process.stdout.readline()) != "connected\n":
            raise ServiceError(f"the steady load does not start: {line}{process.stdout.read()}")
        yield Pacer(process, seconds)
    finally:
        process.kill()
        process.wait()


def _run(port: int, requests: list[bytes], rate: int, seconds: int) -> Paced:
    selector = selectors.SelectSelector()  # epoll counts in milliseconds, which would delay every request
    free: deque[socket.socket] = deque()
    for _ in range(CONNECTIONS):
        connection = socket.create_connection(("127.0.0.1", port), timeout=GRACE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        free.append(connection)
    print("connected", flush=True)

    total, sent = rate * seconds, 0
    due_of: dict[socket.socket, float] = {}
    latencies: list[float] = []
    lateness: list[float] = []
    began = time.perf_counter()
    while len(latencies) < total and time.perf_counter() <= began + seconds + GRACE:
        now = time.perf_counter()
        while sent < total and free and (due := began + sent / rate) <= now:
            connection = free.popleft()
            connection.sendall(requests[sent % len(requests)])
            due_of[connection] = due
            sent += 1
            lateness.append((time.perf_counter() - due) * 1e3)
        patience = max(began + sent / rate - time.perf_counter(), 0) if sent < total and free else GRACE
        for key, _ in selector.select(patience):
            assert isinstance(key.fileobj, socket.socket)
            connection = key.fileobj
            _receive(connection)
            latencies.append((time.perf_counter() - due_of.pop(connection)) * 1e3)
            free.append(connection)
    end, unanswered = time.perf_counter(), total - len(latencies)
    awaited = [*due_of.values(), *(began + number / rate for number in range(sent, total))]
    return Paced([*latencies, *((end - when) * 1e3 for when in awaited)], lateness, unanswered)


def _receive(connection: socket.socket) -> None:
    """One answer, whole."""
    answer = connection.recv(65536)
    while b"\r\n\r\n" not in answer:
        if not (more := connection.recv(65536)):
            sys.exit("the service closed a connection")
        answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        sys.exit(f"GET /user answered {head[:100]!r}")
    missing = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("rate", type=int)
    parser.add_argument("seconds", type=int)
    given = parser.parse_args()
    tokens = given.tokens.read_text("ascii").split()
    requests = [http_request("GET", "/user", Authorization=token).encode() for token in tokens]
    paced = _run(given.port, requests, given.rate, given.seconds)
    print(json.dumps(vars(paced)))


if __name__ == "__main__":
    _main()
