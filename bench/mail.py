"""Mail that leaves through an SMTP server on this machine, and what those who are signed in notice of it."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP

from bench.pacer import pacing
from bench.report import Figure, Target
from bench.seed import Seed
from bench.service import Service, ServiceError

MAILS = 10_000
STEADY_RATE = 200
SECONDS = 10
PATIENCE = 300.0


@contextmanager
def sink() -> Iterator[int]:
    """An SMTP server that accepts everything, in a process of its own; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.mail"], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise ServiceError("the mail server does not start")
        yield int(line)
    finally:
        process.kill()
        process.wait()


def variables(port: int) -> dict[str, str]:
    """What a Gatepost needs to send to it."""
    values = {"HOST": "127.0.0.1", "PORT": port, "SECURITY": "none", "FROM_ADDRESS": "bench@example.org"}
    return {f"GATEPOST_MAIL__{name}": str(value) for name, value in values.items()}


_FILL = {
    "notices": "INSERT INTO gatepost.outbox (kind, user_id, address, language) "
    "SELECT 'password_changed', u.id, u.canonical || n || '@example.org', 'en' "
    "FROM (SELECT * FROM gatepost.users ORDER BY id LIMIT 1) u, generate_series(1, %s) n",
    # Of users who are not found nothing is sent, so each has an address.
    "codes": "WITH e AS (INSERT INTO gatepost.emails (user_id, address, canonical, verified_at) "
    "SELECT u.id, 'm' || n || '@example.org', 'm' || n || '@example.org', now() "
    "FROM (SELECT * FROM gatepost.users ORDER BY id LIMIT 1) u, generate_series(1, %s) n RETURNING canonical) "
    "INSERT INTO gatepost.outbox (kind, language, detail) "
    "SELECT 'recovery', 'en', jsonb_build_object('name', ' ', 'address', canonical) FROM e",
}


def _drain(service: Service, kind: str, count: int) -> float:
    """Mails a second from the first look at them until the outbox is empty."""
    with service.connected() as cursor:
        cursor.execute(_FILL[kind], (count,))
        began = time.perf_counter()
        while time.perf_counter() - began < PATIENCE:
            cursor.execute("SELECT count(*) FROM gatepost.outbox")
            if cursor.fetchone() == (0,):
                return count / (time.perf_counter() - began)
            time.sleep(0.1)
    raise ServiceError("the mail does not leave")


def _p99(service: Service, tokens: Path) -> float:
    with pacing(service.port, tokens, rate=STEADY_RATE, seconds=SECONDS) as pacer:
        return statistics.quantiles(pacer.result().latencies, n=100)[98]


def mail(service: Service, seed: Seed, folder: Path, *, count: int) -> list[Figure]:
    """How fast mail leaves one process, and how long checks take meanwhile."""
    tokens = folder / "tokens"
    tokens.write_text("\n".join(seed.tokens), "ascii")
    rates = {kind: _drain(service, kind, count) for kind in _FILL}
    rest = _p99(service, tokens)
    # As many as leave in that time and more: the outbox is not empty before the load ends.
    with service.connected() as cursor:
        cursor.execute(_FILL["notices"], (int(2 * rates["notices"] * SECONDS),))
    beside = _p99(service, tokens)
    return [
        Figure("mail_notices", "notices sent, from one process", [rates["notices"]], "/s", 0, Target(300.0)),
        Figure("mail_codes", "mails with a code sent", [rates["codes"]], "/s", 0),
        Figure("mail_check_p99_rest", "a check at rest, p99", [rest], "ms", 1),
        Figure("mail_check_p99", "a check while notices are sent, p99", [beside], "ms", 1),
        Figure("mail_check_ratio", "the one to the other", [beside / rest], "x", 2, Target(2.0, at_most=True)),
    ]


class _Accepts:
    async def handle_DATA(self, _server: SMTP, _session: Any, _envelope: Any) -> str:  # noqa: N802
        return "250 OK"


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(_Accepts(), hostname="localhost"), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
