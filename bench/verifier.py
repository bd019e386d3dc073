"""Services behind Gatepost: what a check costs them, and how long a revoked session is still let in."""

import asyncio
import hashlib
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path

import aiohttp
import psycopg2
import psycopg2.extensions

from bench import processes
from bench.pacer import pacing
from bench.report import RESULTS, Figure, Target
from bench.seed import Seed
from bench.service import Service
from gatepost.services.token import new_token
from gatepost_client import Verifier

CALLERS = 256
LISTENERS = 1000
ROOM = {"GATEPOST_WEBSERVER__MAX_CONNECTIONS_PER_ADDRESS": "2000"}
"""The configuration in which all of them have one address."""
_RATE = 200
_SERVICE = new_token()


def verifiers(
    service: Service, seed: Seed, folder: Path, *, rounds: int, seconds: int, listeners: int
) -> tuple[dict[str, list[Figure]], list[str]]:
    """All of it, on a service that runs. ``listeners``: streams of the feed."""
    connection = psycopg2.connect(**service.dsn.parameters(service.dsn.hosts[0]))
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            digest = hashlib.sha256(_SERVICE.encode()).digest()
            cursor.execute("INSERT INTO gatepost.services (name, token_hash) VALUES ('bench', %s)", [digest])
        cost = _cost(service, connection, rounds)  # before anybody listens
        checks = asyncio.run(_checks(service, seed, rounds, seconds))
        revoked, milliseconds = asyncio.run(_revoked(service, seed.tokens[: rounds * 100], connection))
        feed = asyncio.run(_feed(service, seed, folder, listeners, rounds, seconds, connection))
    finally:
        connection.close()
    plot = RESULTS / "revocation.svg"
    plot.parent.mkdir(exist_ok=True)
    plot.write_text(distribution(milliseconds), "ascii")
    groups = {
        f"Checks by a service ({CALLERS} callers)": checks,
        "A log-out is acknowledged, a leased verifier still lets in": revoked,
        f"The feed, with {listeners:,} listeners": feed,
        "A log-out over HTTP, nobody listens": cost,
    }
    return groups, [f"how long a revoked session is let in: {plot}"]


# ---------------------------------------------------------------------------------------------- checks


async def _checks(service: Service, seed: Seed, rounds: int, seconds: int) -> list[Figure]:
    one, strict, peeked, awaited = [], [], list[float](), list[float]()
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CALLERS)) as http,
        Verifier(service.url, _SERVICE) as asking,
        Verifier(service.url, _SERVICE, mode="leased") as leased,
    ):

        async def call(token: str) -> None:
            async with http.get(f"{service.url}/user", headers={"Authorization": token}) as answer:
                assert (await answer.json())["user"]

        async def check(token: str) -> None:
            assert await asking.check(token)

        while not leased.has_lease:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(leased.check(token) for token in seed.tokens))
        for _ in range(rounds):
            one.append(await _rate(call, seed.tokens, seconds))
            strict.append(await _rate(check, seed.tokens, seconds))
            peeked.append(_peek(leased, seed.tokens))
            awaited.append(await _await(leased, seed.tokens))
    ratios = [mine / theirs for mine, theirs in zip(strict, one, strict=True)]
    return [
        Figure("verifier_one", "one HTTP call for each check", one, "/s", 0),
        Figure("verifier_strict", "strict", strict, "/s", 0),
        Figure("verifier_ratio", "strict, against one call for each", ratios, "x", 1, Target(5.0)),
        Figure("verifier_peek", "leased, `peek`", peeked, "/s", 0, Target(1_000_000)),
        Figure("verifier_leased", "leased, `await check`", awaited, "/s", 0, Target(1_000_000)),
    ]


async def _rate(work: Callable[[str], Awaitable[None]], tokens: Sequence[str], seconds: float) -> float:
    """How often ``work`` is done a second by callers that each do one after the other."""
    end, done = time.perf_counter() + seconds, 0

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            number = (number + 7) % len(tokens)
            await work(tokens[number])
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(caller(number * 31) for number in range(CALLERS)))
    return done / (time.perf_counter() - began)


def _peek(verifier: Verifier, tokens: Sequence[str]) -> float:
    began, peek = time.perf_counter(), verifier.peek
    for _ in range(100):
        for token in tokens:
            assert peek(token)
    return 100 * len(tokens) / (time.perf_counter() - began)


async def _await(verifier: Verifier, tokens: Sequence[str]) -> float:
    began, check = time.perf_counter(), verifier.check
    for _ in range(50):
        for token in tokens:
            assert await check(token)
        await asyncio.sleep(0)
    return 50 * len(tokens) / (time.perf_counter() - began)


# --------------------------------------------------------------------------------------------- revoked


async def _revoked(
    service: Service, users: Sequence[str], connection: psycopg2.extensions.connection
) -> tuple[list[Figure], list[float]]:
    """Milliseconds from the answer to `DELETE /user` to the first refusal; 0 for a refusal that was there before."""
    took = []
    tokens = _open(connection, len(users))
    async with (
        aiohttp.ClientSession() as http,
        Verifier(service.url, _SERVICE, mode="leased") as verifier,
    ):
        while not verifier.has_lease:
            await asyncio.sleep(0.01)
        for token in tokens:
            assert await verifier.check(token)
            async with http.delete(f"{service.url}/user", headers={"Authorization": token}) as answer:
                assert answer.status == 200
            acknowledged = time.perf_counter()
            while verifier.peek(token) is not None:
                await asyncio.sleep(0)
            took.append((time.perf_counter() - acknowledged) * 1000)
    took.sort()
    p99 = took[min(len(took) - 1, round(len(took) * 0.99))]
    return [
        Figure("revoked_p50", f"p50 of {len(took)}", [statistics.median(took)], "ms"),
        Figure("revoked_p99", "p99", [p99], "ms", 2, Target(20.0, at_most=True)),
        Figure("revoked_max", "max", [took[-1]], "ms", 2, Target(1000.0, at_most=True)),
    ], took


def _open(connection: psycopg2.extensions.connection, count: int) -> list[str]:
    """Sessions of a holder; their tokens."""
    tokens = [str(uuid.uuid4()) for _ in range(count)]
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at) "
            "SELECT sha256(t::bytea), u.id, u.epoch, now() + interval '1 day' "
            "FROM unnest(%s) t, gatepost.users u WHERE u.canonical = 'holder0'",
            [tokens],
        )
    return tokens


# ------------------------------------------------------------------------------------------------ feed


async def _feed(
    service: Service,
    seed: Seed,
    folder: Path,
    listeners: int,
    rounds: int,
    seconds: int,
    connection: psycopg2.extensions.connection,
) -> list[Figure]:
    path = folder / "tokens"
    path.write_text("\n".join(seed.tokens), "ascii")
    without = [await asyncio.to_thread(_p99, service, path, seconds) for _ in range(rounds)]
    before = processes.pss_mb(service.pid) if processes.AVAILABLE else 0.0
    heard: dict[str, int] = {}
    last: dict[str, float] = {}
    streams = []
    for number in range(listeners):
        streams.append(asyncio.create_task(_listen(service.port, heard, last)))
        while heard.get("hello", 0) < number - 20:
            await asyncio.sleep(0.005)
    while heard.get("hello", 0) < listeners:
        await asyncio.sleep(0.05)
    after = processes.pss_mb(service.pid) if processes.AVAILABLE else 0.0
    spread = []
    async with aiohttp.ClientSession() as http:
        for token in _open(connection, rounds * 10):
            await asyncio.sleep(0.05)
            async with http.get(f"{service.url}/user", headers={"Authorization": token}) as answer:
                handle = (await answer.json())["session"]["handle"]
            async with http.delete(f"{service.url}/user", headers={"Authorization": token}) as answer:
                assert answer.status == 200
            acknowledged = time.perf_counter()
            while heard.get(handle, 0) < sum(not stream.done() for stream in streams):
                await asyncio.sleep(0.001)
            spread.append(max(0.0, last[handle] - acknowledged) * 1000)
    beside = [await asyncio.to_thread(_p99, service, path, seconds) for _ in range(rounds)]
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    ratio = [statistics.median(beside) / statistics.median(without)]
    figures = [
        Figure("feed_all", "a revocation has reached all", spread, "ms", 1, Target(100.0, at_most=True)),
        Figure("feed_without", f"a check, p99, without them ({_RATE}/s)", without, "ms", 1),
        Figure("feed_beside", "a check, p99, beside them", beside, "ms", 1),
        Figure("feed_ratio", "a check, p99, beside them, against without", ratio, "x", 2, Target(1.5, at_most=True)),
    ]
    if processes.AVAILABLE:
        each = (after - before) / listeners * 1024
        figures.append(Figure("feed_memory", "memory of a listener (PSS of the process)", [each], "KB", 1))
    return figures


def _p99(service: Service, tokens: Path, seconds: int) -> float:
    with pacing(service.port, tokens, rate=_RATE, seconds=seconds) as pacer:
        latencies = sorted(pacer.result().latencies)
    return latencies[round(len(latencies) * 0.99) - 1]


async def _listen(port: int, heard: dict[str, int], last: dict[str, float]) -> None:
    """A listener that does as little as possible: a thousand of them share this process."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /feed HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer " + _SERVICE.encode() + b"\r\n\r\n")
    try:
        assert b" 200 " in await reader.readline()
        while line := await reader.readline():
            if line == b"event: hello\n":
                heard["hello"] = heard.get("hello", 0) + 1
            elif b'"session":' in line:
                handle = line.split(b'"session":')[1].split(b'"id":')[1].split(b'"')[1].decode()
                heard[handle] = heard.get(handle, 0) + 1
                last[handle] = time.perf_counter()
    finally:
        writer.close()


# ------------------------------------------------------------------------------------------------ cost


def _cost(service: Service, connection: psycopg2.extensions.connection, rounds: int) -> list[Figure]:
    """A log-out over HTTP with the trigger and without, in turn."""
    took: dict[bool, list[float]] = {True: [], False: []}
    http = HTTPConnection("127.0.0.1", service.port)
    with connection.cursor() as cursor:
        for number in range(4 * rounds):
            with_trigger = number % 4 in (0, 3)
            switch = "ENABLE" if with_trigger else "DISABLE"
            cursor.execute(f"ALTER TABLE gatepost.sessions {switch} TRIGGER sessions_deleted")
            tokens = _open(connection, 200)
            each = []
            for token in tokens:
                began = time.perf_counter()
                http.request("DELETE", "/user", headers={"Authorization": token})
                answer = http.getresponse()
                answer.read()
                each.append((time.perf_counter() - began) * 1000)
                assert answer.status == 200
            took[with_trigger].append(statistics.median(each))
        cursor.execute("ALTER TABLE gatepost.sessions ENABLE TRIGGER sessions_deleted")
    http.close()
    ratios = [a / b for a, b in zip(took[True], took[False], strict=True)]
    return [
        Figure("logout_without", "without the trigger", took[False], "ms", 3),
        Figure("logout_with", "with the trigger", took[True], "ms", 3),
        Figure("logout_ratio", "with, against without", ratios, "x", 2, Target(1.1, at_most=True)),
    ]


# ------------------------------------------------------------------------------------------------ plot


def distribution(milliseconds: Sequence[float]) -> str:
    """An SVG: which share of revoked sessions is refused after so many milliseconds."""
    took = sorted(milliseconds)
    right = max(5.0, took[-1])
    width, height, left, below = 640, 280, 60, 50

    def x(value: float) -> float:
        return left + value / right * (width - left - 20)

    def y(share: float) -> float:
        return 20 + (1 - share) * (height - 20 - below)

    points = " ".join(f"{x(value):.1f},{y((n + 1) / len(took)):.1f}" for n, value in enumerate(took))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" role="img">',
        f"<title>Refused after a log-out was acknowledged: {len(took)} log-outs</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for share in (0.0, 0.5, 0.99, 1.0):
        if share != 0.99:
            label = f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
            lines.append(label)
        lines.append(f'<path d="M{left} {y(share):.1f}H{width - 20}" stroke="#ddd"/>')
    for number in range(6):
        value = right * number / 5
        lines.append(f'<text x="{x(value):.1f}" y="{height - 30}" text-anchor="middle">{value:.1f}</text>')
    lines += [
        f'<text x="{(left + width) / 2:.0f}" y="{height - 10}" text-anchor="middle">'
        "milliseconds from the answer to DELETE /user to the refusal by a leased verifier</text>",
        f'<polyline points="{x(0):.1f},{y(0):.1f} {points}" fill="none" stroke="#1a5fb4" stroke-width="2"/>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
