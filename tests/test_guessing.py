"""Guessing, over HTTP: how much of it reaches the hash, and that nobody is locked out by it."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

from gatepost.config import Config, SessionsConfig, ThrottleConfig
from gatepost.errors import Overloaded
from gatepost.http.app import METRICS
from gatepost.postgres import database, pool
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import Credentials, hashing
from gatepost.security.credentials.hashing import Derived
from gatepost.sessions import failures
from gatepost.sessions.failures import FailedLookups
from gatepost.sessions.guard import FAILED_LOOKUPS
from tests.conftest import (
    PASSWORD,
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
from tests.test_throttle import later

HOME, WORK = "203.0.113.5", "198.51.100.7"
NEW = "a better horse and battery"
# Not the address of anybody who has signed in.
STRANGERS = [f"100.{64 + number // 250}.{number % 250}.9" for number in range(300)]


def limited(config: Config, **limits: Any) -> Config:
    """Behind a proxy, so that a request can come from anywhere."""
    return trusting(config, "127.0.0.0/8").model_copy(update={"throttle": ThrottleConfig.model_validate(limits)})


@pytest.fixture
async def client(config: Config, start_server: StartServer) -> Client:
    return await start_server(limited(config))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every hash that a thread really computes."""
    computed: list[object] = []
    honest = hashing.derive

    def derive(kind: Any, secret: Callable[[], bytes]) -> Derived:
        computed.append(kind)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", derive)
    return computed


@pytest.fixture
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed look-ups are written down when a test says so, and not also in the midst of what it counts."""
    monkeypatch.setattr(failures, "INTERVAL", 3600.0)


async def guess(client: Client, name: str = "ada", ip: str = STRANGERS[0], password: str = "not hers") -> int:
    credentials = {"username": name, "password": password}
    async with client.post("/user", json=credentials, headers={"X-Forwarded-For": ip}) as answer:
        await answer.read()
        return answer.status


async def sign_in(client: Client, name: str = "ada", ip: str = HOME, password: str = PASSWORD) -> str:
    credentials = {"username": name, "password": password}
    async with client.post("/user", json=credentials, headers={"X-Forwarded-For": ip}) as answer:
        body = await answer.json()
        assert answer.status == 200, body
        token: str = body["session_id"]
        return token


# ---------------------------------------------------------------------------------------------- the bound


@pytest.fixture
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 300 at once waits its turn: one that gave up after its hash would be given back, and another hashed."""
    for module, name in ((pool, "ACQUIRE_TIMEOUT"), (database, "ACQUIRE_TIMEOUT"), (database, "ANSWER_TIMEOUT")):
        monkeypatch.setattr(module, name, 600.0)


@pytest.mark.usefixtures("no_haste")
@pytest.mark.parametrize("places", [1, 300])
async def test_of_300_guesses_at_once_through_two_nodes_no_more_than_the_limit_reach_the_hash_and_the_owner_gets_in(
    config: Config, start_server: StartServer, hashed: list[object], places: int
) -> None:
    nodes = [await start_server(limited(config)) for _ in range(2)]
    await register(nodes[0], "ada")
    await sign_in(nodes[0])
    hashed.clear()
    answers = await asyncio.gather(*(guess(nodes[n % 2], ip=STRANGERS[n % places]) for n in range(300)))
    answers += await asyncio.gather(*(guess(nodes[n % 2], ip=STRANGERS[n % places]) for n in range(300)))
    assert len(hashed) == (10 if places == 1 else 20) == answers.count(401)
    assert set(answers) == {401, 429}
    for node in nodes:
        await sign_in(node)
    assert await guess(nodes[1], ip=STRANGERS[0], password=PASSWORD) == 429


async def test_a_name_has_100_guesses_in_a_day_however_many_places_they_come_from(
    client: Client, dsn: Dsn, hashed: list[object]
) -> None:
    await register(client, "ada")
    hashed.clear()
    places = iter(STRANGERS)
    for hour in range(25):
        answers = [await guess(client, ip=next(places)) for _ in range(5 if hour else 25)]
        assert answers[-1] == 429
        later(dsn, 3600)
    assert len(hashed) == 100


@pytest.mark.parametrize("name", ["ada", "nobody", "gone", "a name with spaces", ""])
async def test_known_unknown_and_disabled_names_are_refused_alike(
    config: Config, start_server: StartServer, dsn: Dsn, hashed: list[object], name: str
) -> None:
    client = await start_server(limited(config))
    await register(client, "ada")
    await register(client, "gone")
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now() WHERE canonical = 'gone'")
    hashed.clear()
    seen, began = [], time.monotonic()
    for number in range(25):
        async with client.post(
            "/user",
            json={"username": name, "password": "not hers"},
            headers={"X-Forwarded-For": STRANGERS[number // 8]},
        ) as answer:
            passing = {"Date", "X-Request-ID", "Retry-After", "RateLimit"}
            headers = sorted((k, v) for k, v in answer.headers.items() if k not in passing)
            seen.append((answer.status, await answer.text(), headers))
            if answer.status == 429:
                seconds = int(answer.headers["Retry-After"])
                assert began - time.monotonic() <= seconds - 1080 <= 0
                assert answer.headers["RateLimit"] == f'"account";r=0;t={seconds}'
    assert [status for status, *_ in seen] == [401] * 20 + [429] * 5
    assert len(hashed) == 20
    refused = seen[20]
    assert seen[20:] == [refused] * 5
    assert ("RateLimit-Policy", '"account";q=20;w=21600') in refused[2]
    assert json.loads(refused[1]) == {
        "type": "about:blank",
        "title": "Too Many Requests",
        "status": 429,
        "code": "too_many_attempts",
        "detail": "Too many attempts: wait before the next one.",
    }


async def test_all_spellings_of_a_name_share_its_guesses(client: Client) -> None:
    await register(client, "Zoë.Straße")
    spellings = ["zoë.straße", "ZOE\u0308.Straße", "ｚoë.straße", "Zoë.Straße"]
    answers = [await guess(client, spellings[n % 4]) for n in range(12)]
    assert answers == [401] * 10 + [429] * 2


async def test_only_wrong_guesses_count(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    for _ in range(25):
        await sign_in(client)
    # But for what a user may do who knows the password.
    ahead = "SELECT substring(key FOR 1) FROM gatepost.throttles WHERE due > now() AND NOT key BETWEEN 'u' AND 'v'"
    # The registration's too comes back, two minutes later.
    assert [bytes(kind) for (kind,) in rows(dsn, ahead)] in ([b"r"], []), "the registration only"
    assert [await guess(client, ip=HOME) for _ in range(11)] == [401] * 10 + [429]


async def test_a_login_that_was_refused_for_overload_costs_no_attempt(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(client, "ada")
    honest = Credentials.check

    async def busy(*_: object) -> None:
        raise Overloaded

    monkeypatch.setattr(Credentials, "check", busy)
    assert [await guess(client) for _ in range(30)] == [503] * 30
    monkeypatch.setattr(Credentials, "check", honest)
    assert [await guess(client) for _ in range(11)] == [401] * 10 + [429]


@pytest.mark.deadlines
async def test_a_login_that_the_database_had_no_time_to_decide_does_not_count(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    holder = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        holder.cursor().execute("LOCK gatepost.sessions IN ACCESS EXCLUSIVE MODE")
        async with asyncio.TaskGroup() as logins:
            answers = [logins.create_task(guess(client, ip=HOME, password=PASSWORD)) for _ in range(5)]
    finally:
        holder.close()
    assert [answer.result() for answer in answers] == [503] * 5
    taken = "SELECT count(*) FROM gatepost.throttles WHERE due > clock_timestamp() AND substring(key FOR 1) <> 'r'"
    await eventually(lambda: rows(dsn, taken) == [(0,)])
    assert [await guess(client, ip=HOME) for _ in range(11)] == [401] * 10 + [429]


async def test_every_failure_is_two_statements_and_a_refusal_is_one(
    client: Client, dsn: Dsn, count_round_trips: CountRoundTrips
) -> None:
    await register(client, "ada")
    await register(client, "gone")
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now() WHERE canonical = 'gone'")
    await sign_in(client)
    for name in ("ada", "nobody", "gone", "a name with spaces"):
        for ip in (HOME, STRANGERS[0]):
            with count_round_trips() as sent:
                assert await guess(client, name, ip) == 401
            assert len(sent) == 2, name
    with count_round_trips() as sent:
        await sign_in(client)
    assert len(sent) == 2
    while await guess(client) == 401:
        pass
    with count_round_trips() as sent:
        assert await guess(client) == 429
    assert len(sent) == 1


async def test_neither_names_nor_addresses_are_in_the_tables(client: Client, dsn: Dsn) -> None:
    await register(client, "lovelace")  # not "ada", three letters that any key may have in hexadecimal
    await sign_in(client, "lovelace")
    await guess(client, "a name of nobody")
    for table in ("throttles", "known_places"):
        (dump,) = rows(dsn, f"SELECT string_agg(t::text, ' ') FROM gatepost.{table} t")[0]
        for text in ("lovelace", "a name of nobody", "203.0.113", "100.64.0"):
            assert text not in dump
            assert text.encode().hex() not in dump


# --------------------------------------------------------------------------------------- nobody locked out


async def test_strangers_cannot_lock_an_owner_out_of_a_place_where_they_have_been(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    await sign_in(client, ip=HOME)
    await sign_in(client, ip=WORK)
    answers = [await guess(client, ip=ip) for ip in STRANGERS[:30]]
    assert answers == [401] * 20 + [429] * 10
    await sign_in(client, ip=HOME)
    await sign_in(client, ip=WORK)
    # Also from a neighbour of the same network, and after as many mistakes as they have there.
    assert [await guess(client, ip="203.0.113.77") for _ in range(11)] == [401] * 10 + [429]
    await sign_in(client, ip=WORK)
    # From nowhere they have been, they wait like everybody else.
    assert await guess(client, ip=STRANGERS[40], password=PASSWORD) == 429
    later(dsn, 1080)
    await sign_in(client, ip=STRANGERS[40])


async def test_an_attacker_at_a_known_place_has_that_places_guesses_and_no_others(client: Client) -> None:
    await register(client, "ada")
    await sign_in(client, ip=HOME)
    assert [await guess(client, ip=HOME) for _ in range(12)] == [401] * 10 + [429] * 2
    assert [await guess(client, ip=ip) for ip in STRANGERS[:21]] == [401] * 20 + [429]


async def test_who_is_refused_for_the_network_takes_nothing_from_an_account(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(limited(config, network_burst=5, network_every=3600))
    await register(client, "ada")
    assert [await guess(client, f"nobody{n}") for n in range(5)] == [401] * 5
    assert [await guess(client, "ada") for _ in range(30)] == [429] * 30
    assert [await guess(client, "ada", ip=STRANGERS[n]) for n in range(1, 22)] == [401] * 20 + [429]


async def test_who_is_refused_for_an_account_takes_nothing_from_the_network(client: Client) -> None:
    """A telephone with an old password does not lock the office out."""
    await register(client, "ada")
    answers = [await guess(client, "bob", ip=HOME) for _ in range(200)]
    assert answers == [401] * 10 + [429] * 190
    assert await guess(client, "eve", ip=HOME) == 401


async def test_ten_places_are_known_and_the_newest_stay(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    ips = STRANGERS[:12]
    for ip in ips:
        await sign_in(client, ip=ip)
        rows(dsn, "UPDATE gatepost.known_places SET seen_at = seen_at - interval '2 hours'")
        await sign_in(client, ip=ips[0])  # where they are every day
    assert rows(dsn, "SELECT count(*) FROM gatepost.known_places") == [(10,)]
    for ip in STRANGERS[100:120]:
        await guess(client, ip=ip)
    at = {ip: await guess(client, ip=ip, password=PASSWORD) for ip in ips}
    assert at == {ip: 429 if ip in ips[1:3] else 200 for ip in ips}
    exported = await client.get("/account/export", headers={"Authorization": await sign_in(client, ip=ips[0])})
    places = (await exported.json())["known_places"]
    assert len(places) == 10
    assert {tuple(place) for place in places} == {("seen_at",)}
    rows(dsn, "DELETE FROM gatepost.users")
    assert rows(dsn, "SELECT count(*) FROM gatepost.known_places") == [(0,)]


async def test_a_known_place_is_written_once_an_hour(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    for _ in range(3):
        await sign_in(client)
        seen = rows(dsn, "SELECT xmin, seen_at FROM gatepost.known_places")
        await sign_in(client)
        assert rows(dsn, "SELECT xmin, seen_at FROM gatepost.known_places") == seen
        rows(dsn, "UPDATE gatepost.known_places SET seen_at = seen_at - interval '61 minutes'")


async def test_after_a_password_change_only_the_place_where_it_was_changed_is_known(
    client: Client, ada: dict[str, Any]
) -> None:
    await sign_in(client, ip=WORK)
    token = await sign_in(client, ip=HOME)
    change = {"current": PASSWORD, "new": NEW}
    headers = {"Authorization": token, "X-Forwarded-For": HOME}
    assert (await client.put("/account/password", json=change, headers=headers)).status == 200
    for ip in STRANGERS[:20]:
        await guess(client, ip=ip)
    assert await guess(client, ip=WORK, password=NEW) == 429
    await sign_in(client, ip=HOME, password=NEW)


async def test_who_has_redeemed_a_code_gets_in_from_there_also_during_an_attack(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    await sign_in(client, ip=WORK)
    for ip in STRANGERS[:20]:
        await guess(client, ip=ip)
    await redeem(client, dsn, ada)
    await sign_in(client, ip=HOME, password=NEW)
    assert await guess(client, ip=WORK, password=NEW) == 429


async def redeem(client: Client, dsn: Dsn, user: dict[str, Any], ip: str = HOME) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at) "
        "VALUES (%s, sha256('code'), now() + interval '1 hour')",
        user["id"],
    )
    body = {"code": "code", "new": NEW}
    answer = await client.post("/account/password/redeem", json=body, headers={"X-Forwarded-For": ip})
    assert answer.status == 200, await answer.text()


async def test_an_operator_can_let_a_user_try_again_at_once(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    await register(client, "grace")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE canonical = 'grace'")
    admin = {"Authorization": await sign_in(client, "grace")}
    token = await sign_in(client, ip=HOME)
    for ip in [*[HOME] * 11, *STRANGERS[:21]]:
        await guess(client, ip=ip)
        await guess(client, "bob", ip=ip)
    assert [await guess(client, ip=ip, password=PASSWORD) for ip in (HOME, STRANGERS[50])] == [429, 429]
    await use_up(client, token)
    path = f"/admin/users/{ada['id']}/throttle"
    assert (await client.delete(path, headers={"Authorization": token})).status == 403
    assert (await client.delete(path, headers=admin)).status == 200
    assert [await guess(client, ip=ip, password=PASSWORD) for ip in (HOME, STRANGERS[50])] == [200, 200]
    assert await wrong_current(client, token) == 403
    assert await guess(client, "bob", ip=STRANGERS[50]) == 429, "nobody else's"
    assert (await client.delete(path.replace(ada["id"], str(uuid.uuid4())), headers=admin)).status == 404
    found = rows(
        dsn, "SELECT user_id::text, actor_id IS NOT NULL FROM gatepost.events WHERE kind = 'authn_login_unlock'"
    )
    assert found == [(ada["id"], True)]


# ------------------------------------------------------------------------------------------------- events


async def test_a_limit_that_is_used_up_leaves_one_event_and_refused_guesses_leave_none(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    for name in ("ada", "nobody"):
        for ip in [*[STRANGERS[0]] * 60, *STRANGERS[1:61]]:
            await guess(client, name, ip)
    counted = rows(
        dsn,
        "SELECT kind, user_id::text, detail->>'limit', (detail->>'max')::int, count(*) FROM gatepost.events "
        "WHERE kind LIKE 'authn%%' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
    )
    expected = []
    for user in (ada["id"], None):
        expected += [
            ("authn_login_fail", user, None, None, 20),
            ("authn_login_fail_max", user, "account", 20, 1),
            ("authn_login_fail_max", user, "place", 10, 1),
        ]
    assert counted == sorted(expected, key=lambda row: (row[0], row[1] is None, row[1] or "", row[2] or ""))


@pytest.mark.usefixtures("no_rounds")
async def test_refused_attempts_are_counted_by_what_stands_in_their_way(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(limited(config, lookup_burst=1, lookup_every=3600))
    for ip in [*[STRANGERS[0]] * 12, *STRANGERS[1:14]]:
        await guess(client, ip=ip)
    for _ in range(3):
        await status_of(client, "00000000-0000-4000-8000-000000000000")
    assert client.app is not None
    text = client.app[METRICS].render().decode()
    counted = dict(re.findall(r'gatepost_throttled_total\{what="(\w+)"\} (\d+)', text))
    assert counted == {"place": "2", "account": "3", "lookup": "2"}
    assert 'gatepost_logins_total{outcome="throttled"} 5' in text


async def test_a_login_that_is_won_with_the_last_guess_leaves_no_such_event(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    for _ in range(9):
        await guess(client, ip=HOME)
    await sign_in(client, ip=HOME)
    await sign_in(client, ip=HOME)
    assert rows(dsn, "SELECT count(*) FROM gatepost.events WHERE kind = 'authn_login_fail_max'") == [(0,)]


# ------------------------------------------------------------------------------------------ other attempts


async def wrong_current(client: Client, token: str) -> int:
    change = {"current": "not hers", "new": NEW}
    return (await client.put("/account/password", json=change, headers={"Authorization": token})).status


async def use_up(client: Client, token: str) -> None:
    while await wrong_current(client, token) != 429:
        pass


async def test_wrong_current_passwords_are_counted_for_the_user_and_guessing_elsewhere_is_not(
    client: Client, ada: dict[str, Any], hashed: list[object]
) -> None:
    token = await sign_in(client)
    for ip in STRANGERS[:25]:
        await guess(client, ip=ip)
    hashed.clear()
    headers = {"Authorization": token}
    statuses = [await wrong_current(client, token) for _ in range(10)]
    statuses += [
        (await client.delete("/account", json={"password": "not hers"}, headers=headers)).status for _ in range(12)
    ]
    assert statuses == [403] * 20 + [429] * 2
    # Each change that is tried hashes the new password too.
    assert len(hashed) == 2 * 10 + 10
    await sign_in(client)


async def test_a_right_current_password_and_an_unacceptable_new_one_cost_no_attempt(
    client: Client, ada: dict[str, Any]
) -> None:
    token = await sign_in(client)
    for number in range(25):
        change = {"current": PASSWORD if not number else f"{NEW} {number - 1}", "new": f"{NEW} {number}"}
        answer = await client.put("/account/password", json=change, headers={"Authorization": token})
        assert answer.status == 200
        token = (await answer.json())["session_id"]
        refused = {"current": "not hers", "new": "too short"}
        answer = await client.put("/account/password", json=refused, headers={"Authorization": token})
        assert answer.status == 422
    assert await wrong_current(client, token) == 403


async def test_the_last_administrators_right_password_costs_nothing_though_the_account_stays(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}'")
    headers = {"Authorization": await sign_in(client)}

    async def leave(password: str) -> int:
        async with client.delete("/account", json={"password": password}, headers=headers) as answer:
            return answer.status

    assert [await leave(PASSWORD) for _ in range(25)] == [409] * 25
    assert [await leave("not hers") for _ in range(21)] == [403] * 20 + [429]
    assert await leave(PASSWORD) == 429


async def test_registrations_are_counted_for_a_place(config: Config, start_server: StartServer, dsn: Dsn) -> None:
    client = await start_server(limited(config, registration_burst=3))

    async def try_to_register(name: str, ip: str, password: str = PASSWORD) -> int:
        body = {"username": name, "password": password}
        return (await client.post("/account", json=body, headers={"X-Forwarded-For": ip})).status

    assert [await try_to_register(f"u{n}", HOME, "too short") for n in range(5)] == [422] * 5
    assert [await try_to_register(name, HOME) for name in ("a", "a", "b", "c")] == [201, 409, 201, 429]
    assert await try_to_register("c", WORK) == 201
    later(dsn, 120)
    assert [await try_to_register(name, HOME) for name in ("d", "e")] == [201, 429]


async def test_wrong_codes_are_counted_for_a_place_and_right_ones_are_not(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(limited(config, code_burst=3, code_every=3600))
    ada = await register(client, "ada")

    async def try_code(code: str, ip: str = HOME, new: str = NEW) -> int:
        body = {"code": code, "new": new}
        return (await client.post("/account/password/redeem", json=body, headers={"X-Forwarded-For": ip})).status

    for _ in range(5):
        await redeem(client, dsn, ada)
    assert [await try_code("wrong") for _ in range(4)] == [403] * 3 + [429]
    assert await try_code("wrong", WORK) == 403


def failed_lookups(client: Client) -> FailedLookups:
    assert client.app is not None
    return client.app[FAILED_LOOKUPS]


@pytest.mark.usefixtures("no_rounds")
async def test_a_valid_token_always_passes_and_failing_ones_are_429_after_a_while(
    config: Config, start_server: StartServer, dsn: Dsn, count_round_trips: CountRoundTrips
) -> None:
    nodes = [await start_server(limited(config, lookup_burst=5, lookup_every=3600)) for _ in range(2)]
    await register(nodes[0], "ada")
    token = await sign_in(nodes[0])

    async def look_up(node: Client, number: int, ip: str = HOME, method: str = "GET") -> int:
        headers = {"Authorization": f"00000000-0000-4000-8000-{number:012}", "X-Forwarded-For": ip}
        return (await node.request(method, "/user", headers=headers)).status

    with count_round_trips() as sent:
        assert [await look_up(nodes[0], n) for n in range(4)] == [401] * 4
        assert await look_up(nodes[0], 5, method="DELETE") == 401
    assert len(sent) == 5, "what is counted is written later"
    with count_round_trips() as sent:
        await failed_lookups(nodes[0]).write()
        await failed_lookups(nodes[0]).write()
    assert len(sent) == 1, "and all of it at once"
    assert [await look_up(nodes[0], 6), await look_up(nodes[0], 7, method="DELETE")] == [429, 429]
    # The other node hears of it with its own first round.
    assert await look_up(nodes[1], 8) == 401
    await failed_lookups(nodes[1]).write()
    assert await look_up(nodes[1], 9) == 429
    for node in nodes:
        answer = await node.get("/user", headers={"Authorization": token, "X-Forwarded-For": HOME})
        assert answer.status == 200
        assert await look_up(node, 10, ip=WORK) == 401
    with count_round_trips() as sent:
        assert await status_of(nodes[0], token) == 200
    assert len(sent) == 1
    answer = await nodes[0].get("/user", headers={"Authorization": "x", "X-Forwarded-For": HOME})
    assert answer.status == 401, "what is no token at all is not looked up"


@pytest.mark.usefixtures("no_rounds")
async def test_a_proxy_is_never_told_429(config: Config, start_server: StartServer) -> None:
    client = await start_server(limited(config, lookup_burst=1, lookup_every=3600))
    headers = {"Authorization": "00000000-0000-4000-8000-000000000000"}
    statuses = [(await client.get("/user", headers=headers)).status for _ in range(2)]
    assert statuses == [401, 429]
    for _ in range(3):
        assert (await client.get("/authz/forward", headers=headers)).status == 401


@pytest.mark.usefixtures("no_rounds")
async def test_failed_look_ups_take_bounded_memory(
    config: Config, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatepost.sessions.failures.MOST", 50)
    client = await start_server(limited(config, lookup_burst=1, lookup_every=3600))
    failed = failed_lookups(client)
    for number in range(200):
        failed.count(f"10.0.{number}.0/24")
    assert len(failed._counts) == 50
    await failed.write()
    assert (len(failed._counts), len(failed._empty_until)) == (0, 50)
    assert failed.count("10.0.3.0/24") > 3000
    monkeypatch.setattr("gatepost.sessions.failures.time.monotonic", lambda: time.perf_counter() + 10**9)
    await failed.write()
    assert not failed._empty_until


async def test_own_backends_are_no_place(config: Config, start_server: StartServer, dsn: Dsn) -> None:
    limits = {"network_burst": 2, "registration_burst": 1, "code_burst": 1, "lookup_burst": 1}
    client = await start_server(limited(config, exempt=["10.0.0.0/8"], **limits))
    headers = {"Authorization": "00000000-0000-4000-8000-000000000000", "X-Forwarded-For": "10.0.0.4"}
    assert {(await client.get("/user", headers=headers)).status for _ in range(5)} == {401}
    assert [await guess(client, f"nobody{n}", "10.0.0.4") for n in range(5)] == [401] * 5
    # For a name, it counts like everywhere else; and it is not remembered.
    await register(client, "ada")
    await sign_in(client, ip="10.0.0.4")
    assert rows(dsn, "SELECT count(*) FROM gatepost.known_places") == [(0,)]
    assert [await guess(client, "ada", "10.0.0.4") for _ in range(21)] == [401] * 20 + [429]


# ---------------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0])
async def test_the_applications_clock_decides_nothing(
    client: Client, ada: dict[str, Any], monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    assert [await guess(client, ip=HOME) for _ in range(9)] == [401] * 9
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + wrong)
    assert [await guess(client, ip=HOME) for _ in range(2)] == [401, 429]
    monkeypatch.setattr(time, "time", honest)
    assert await guess(client, ip=HOME, password=PASSWORD) == 429


async def test_the_sessions_of_a_user_who_signs_in_from_many_devices_at_once_are_not_guesses(
    config: Config, start_server: StartServer
) -> None:
    """As many at once as a place has guesses: while they are under way, each is one."""
    sessions = {"sessions": SessionsConfig(max_per_user=1000)}
    client = await start_server(limited(config).model_copy(update=sessions))
    await register(client, "ada")
    for _ in range(4):
        await asyncio.gather(*(log_in(client) for _ in range(10)))


async def test_renames_are_limited_taken_names_count_and_another_spelling_of_the_own_name_does_not(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(limited(config, rename_burst=3))
    await register(client, "ada")
    await register(client, "bob")
    headers = {"Authorization": await log_in(client, "ada")}

    async def rename(name: str) -> int:
        async with client.patch("/account", json={"username": name}, headers=headers) as answer:
            return answer.status

    assert [await rename(name) for name in ("ADA", "Ada", "ada")] == [200] * 3
    assert [await rename(name) for name in ("bob", "eve", "ada")] == [409, 200, 200]
    assert [await rename(name) for name in ("bob", "eve", "ada")] == [429, 429, 200]
    async with client.patch("/account", json={"profile": {"a": 1}}, headers=headers) as answer:
        assert answer.status == 200
