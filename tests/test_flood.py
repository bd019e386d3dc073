"""A flood of logins, ten times what hashing can do: those who are signed in do not notice."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from gatepost.config import Config, ThrottleConfig
from gatepost.http.app import CREDENTIALS
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import Credentials, hashing
from gatepost.security.credentials.hashing import Derived
from gatepost.security.credentials.kinds import Kind
from tests.conftest import (
    CHEAP,
    PASSWORD,
    UNLIMITED,
    Client,
    CountRoundTrips,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
)
from tests.test_addresses import trusting
from tests.test_bad_input import exchange, raw
from tests.test_imported_hashes import put

# Seconds, and programs that try all the time: more than the queue holds.
SECONDS, PROGRAMS = 3.0, 40
WRONG = {"username": "nobody", "password": "not the password"}


@pytest.fixture
async def small(config: Config, start_server: StartServer) -> Client:
    """A server with one thread and a short queue, and hashes of a cost that a real one has."""
    passwords = config.passwords.model_copy(
        update={"threads": 1, "queue": 20, "queue_timeout": 0.5, "memory_kib": 19456, "iterations": 2}
    )
    return await start_server(config.model_copy(update={"passwords": passwords, "throttle": UNLIMITED}))


def hasher_of(client: Client) -> Any:
    return client.server.app[CREDENTIALS].hasher  # type: ignore[attr-defined]


async def test_under_a_flood_of_logins_every_check_is_answered_and_the_queue_stays_short(small: Client) -> None:
    await register(small, "ada")
    token = await log_in(small)
    hasher = hasher_of(small)
    outcomes: Counter[int] = Counter()
    retries: set[int] = set()
    longest = 0
    until = time.monotonic() + SECONDS

    async def try_all_the_time() -> None:
        nonlocal longest
        while time.monotonic() < until or not outcomes[401]:
            answer = await exchange(small, raw("POST", "/user", body=json.dumps(WRONG).encode()))
            outcomes[answer.status] += 1
            if answer.status == 503:
                assert answer.problem()["code"] == "overloaded"
                retries.add(int(answer.headers["Retry-After"]))
            longest = max(longest, hasher.waiting)

    async with asyncio.timeout(120), asyncio.TaskGroup() as flood:
        programs = [flood.create_task(try_all_the_time()) for _ in range(PROGRAMS)]
        checks = 0
        while not all(program.done() for program in programs):
            assert await status_of(small, token) == 200
            checks += 1
    assert checks > 1
    assert outcomes.keys() == {401, 503}
    assert outcomes[503] > outcomes[401] > 0
    assert longest <= 20
    assert 1 <= min(retries) <= max(retries) <= 60  # not a day, whatever else this machine does
    assert [thread.name for thread in hasher._pool._threads] == ["hashing_0"]
    await eventually(lambda: hasher.waiting == 0)
    assert await log_in(small)
    await eventually(lambda: hasher.waiting == 0)


async def test_checks_are_answered_while_logins_hold_every_connection_that_logins_may_have(
    small: Client, dsn: Dsn
) -> None:
    await register(small, "ada")
    token = await log_in(small)
    holder = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        holder.cursor().execute("LOCK gatepost.passwords IN ACCESS EXCLUSIVE MODE")
        logins = [asyncio.create_task(small.post("/user", json=WRONG)) for _ in range(20)]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        await eventually(lambda: rows(dsn, waiting)[0][0] >= 8)
        for _ in range(20):
            assert await status_of(small, token) == 200
            async with small.get("/health/ready") as ready:
                assert ready.status == 200, "or a load balancer would send the flood to the next node"
    finally:
        holder.close()
    assert {answer.status for answer in await asyncio.gather(*logins)} <= {401, 503}


async def test_a_refused_login_costs_the_database_nothing(
    small: Client, count_round_trips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher = hasher_of(small)
    monkeypatch.setattr(hasher, "_admitted", hasher._most)
    with count_round_trips() as sent:
        async with small.post("/user", json={"username": "ada", "password": PASSWORD}) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
    assert sent == []


# ----------------------------------------------------------------------------------- shares of the queue

# A queue of 12 and one thread: a place may have 7 of the 13, since it leaves 6 then.
QUEUE, SHARE = 12, 7


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While this is not set, hashes are begun and not finished."""
    it, honest = threading.Event(), hashing.derive

    def derive(kind: Kind, secret: Callable[[], bytes]) -> Derived:
        assert it.wait(120)
        return honest(kind, secret)

    it.set()
    monkeypatch.setattr(hashing, "derive", derive)
    yield it
    it.set()


@pytest.fixture
def hashed_for(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The place of every hash that is asked for."""
    places: list[str | None] = []
    honest = hashing.Hasher.derive

    async def derive(
        self: hashing.Hasher, kind: Kind, secret: Callable[[], bytes], place: str | None = None
    ) -> Derived:
        places.append(place)
        return await honest(self, kind, secret, place)

    monkeypatch.setattr(hashing.Hasher, "derive", derive)
    return places


def shared(config: Config, *trusted: str, **throttle: Any) -> Config:
    passwords = config.passwords.model_copy(
        update={"threads": 1, "queue": QUEUE, "queue_timeout": 60.0, "iterations": 2}
    )
    limits = ThrottleConfig.model_validate({**UNLIMITED.model_dump(), **throttle})
    return trusting(config, *trusted).model_copy(update={"passwords": passwords, "throttle": limits})


def begin_to_wait(client: Client, go_on: threading.Event) -> None:
    """From now on hashes do not end; how long the earlier ones took on this machine does not matter."""
    hasher_of(client)._rates.clear()
    go_on.clear()


async def flood(client: Client, ips: list[str], fit: int) -> list[asyncio.Task[int]]:
    """Ask for more than the queue holds; those that are admitted, when all others have been refused."""

    async def attempt(number: int) -> int:
        headers = {"X-Forwarded-For": ips[number % len(ips)]}
        async with client.post("/user", json=WRONG, headers=headers) as answer:
            if answer.status == 503:
                assert (await answer.json())["code"] == "overloaded"
                assert int(answer.headers["Retry-After"]) >= 1
            return answer.status

    tasks = [asyncio.create_task(attempt(number)) for number in range(QUEUE + 5)]
    await eventually(lambda: sum(task.done() for task in tasks) >= len(tasks) - fit)
    assert {task.result() for task in tasks if task.done()} == {503}
    admitted = [task for task in tasks if not task.done()]
    assert len(admitted) == fit
    return admitted


@pytest.mark.parametrize(
    "ips", [["203.0.113.5", "203.0.113.77"], ["2001:db8:0:aa00::1", "2001:db8:0:aaff::9"]], ids=["IPv4", "IPv6"]
)
async def test_a_place_that_floods_the_queue_is_refused_and_other_places_are_not(
    config: Config,
    start_server: StartServer,
    dsn: Dsn,
    go_on: threading.Event,
    hashed_for: list[str | None],
    count_round_trips: CountRoundTrips,
    ips: list[str],
) -> None:
    weaker = Credentials(CHEAP, b"k" * 32)
    put(dsn, "ivy", await weaker.create(PASSWORD))  # and is hashed anew when she signs in
    weaker.close()
    client = await start_server(shared(config, "127.0.0.0/8"))
    for name in ("ada", "bob", "eve"):
        await register(client, name)
    tokens = {name: await log_in(client, name) for name in ("ada", "bob")}
    rows(
        dsn,
        "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at) "
        "SELECT id, sha256('code'), now() + interval '1 hour' FROM gatepost.users WHERE canonical = 'eve'",
    )
    new = "a better horse and battery"
    asked: dict[str, tuple[str, str, dict[str, str], str, int]] = {
        "log in": ("POST", "/user", {"username": "ivy", "password": PASSWORD}, "", 200),
        "register": ("POST", "/account", {"username": "grace", "password": PASSWORD}, "", 201),
        "new password": ("PUT", "/account/password", {"current": PASSWORD, "new": new}, tokens["ada"], 200),
        "redeem": ("POST", "/account/password/redeem", {"code": "code", "new": new}, "", 200),
        "leave": ("DELETE", "/account", {"password": PASSWORD}, tokens["bob"], 200),
    }

    async def ask(what: str, ip: str) -> int:
        method, path, body, token, _ = asked[what]
        headers = {"X-Forwarded-For": ip} | ({"Authorization": token} if token else {})
        async with client.request(method, path, json=body, headers=headers) as answer:
            return answer.status

    hashed_for.clear()
    begin_to_wait(client, go_on)
    admitted = await flood(client, ips, SHARE)
    with count_round_trips() as sent:
        assert await ask("log in", ips[0]) == 503
    assert sent == []
    for what in asked:
        assert await ask(what, ips[0]) == 503, what
    # Each from a place of its own: five that leave one another room.
    others = {what: asyncio.create_task(ask(what, f"198.51.{n}.7")) for n, what in enumerate(asked)}
    await eventually(lambda: hasher_of(client).waiting == SHARE - 1 + len(others))
    go_on.set()
    assert {what: await task for what, task in others.items()} == {what: of[-1] for what, of in asked.items()}
    assert {await task for task in admitted} == {401}
    assert None not in hashed_for
    assert hashed_for.count("198.51.0.0/24") == hashed_for.count("198.51.2.0/24") == 2, "the old one and the new"
    assert await ask("register", ips[0]) == 409, "it may ask again"
    await eventually(lambda: hasher_of(client)._of_places == {})


@pytest.mark.parametrize(
    ("trusted", "exempt", "ip"),
    [([], [], "203.0.113.5"), (["127.0.0.0/8"], [], ""), (["127.0.0.0/8"], ["203.0.113.0/24"], "203.0.113.5")],
    ids=["a proxy that nobody has named", "a proxy that says nothing", "an own backend"],
)
async def test_who_may_stand_for_everybody_may_have_the_whole_queue(
    config: Config, start_server: StartServer, go_on: threading.Event, trusted: list[str], exempt: list[str], ip: str
) -> None:
    client = await start_server(shared(config, *trusted, exempt=exempt))
    begin_to_wait(client, go_on)
    admitted = await flood(client, [ip], QUEUE + 1)
    go_on.set()
    assert {await task for task in admitted} == {401}
