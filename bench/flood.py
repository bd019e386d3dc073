"""Open-loop logins at a steady rate, whether they are answered or not, in a process of its own.

Each is somebody else's: a name, a connection and a network (127.x.y.0/24) of its own, so that no throttle has a say.
All are wrong guesses, which cost what right ones do.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.service import ServiceError
from bench.wrk import http_request

GRACE = 5.0


@dataclass
class Flooded:
    """How many logins were sent, and how many were answered, by status; the rest were not answered in time."""

    sent: int = 0
    statuses: dict[str, int] = field(default_factory=Counter)


class Flood:
    """A flood under way; `result` once it is over."""

    def __init__(self, process: subprocess.Popen[str], seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def result(self) -> Flooded:
        """Wait for its end."""
        out, _ = self._process.communicate(timeout=self._seconds + 4 * GRACE)
        if self._process.returncode != 0:
            raise ServiceError(f"the flood failed: {out.strip()[-300:]}")
        return Flooded(**json.loads(out))


@contextmanager
def flooding(port: int, *, rate: float, seconds: int) -> Iterator[Flood]:
    """Send so many logins a second from now on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.flood", str(port), str(rate), str(seconds)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Flood(process, seconds)
    finally:
        process.kill()
        process.wait()


async def _attempt(port: int, number: int, until: float, flooded: Flooded) -> None:
    request = http_request("POST", "/user", {"username": f"stranger{number}", "password": "a guess, and a wrong one"})
    source = f"127.{1 + number // 250 % 250}.{number % 250}.1" if sys.platform == "linux" else "127.0.0.1"
    flooded.sent += 1
    try:
        async with asyncio.timeout_at(until):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            try:
                writer.write(request.encode())
                status = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
                flooded.statuses[status] += 1
            finally:
                writer.close()
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        pass  # not answered


async def _run(port: int, rate: float, seconds: int) -> Flooded:
    flooded, loop = Flooded(), asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
            tasks.create_task(_attempt(port, number, began + seconds, flooded))
    return flooded


def _main() -> None:
    port, rate, seconds = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    time.sleep(0.5)  # the steady load beside it has a beginning without it
    print(json.dumps(vars(asyncio.run(_run(port, rate, seconds)))))


if __name__ == "__main__":
    _main()
