"""`/user`, the contract: log in, who am I, log out."""

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gatepost.config import Config, PasswordsConfig, SessionsConfig
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import Checked, Credentials
from tests.conftest import (
    CHEAP,
    PASSWORD,
    UNLIMITED,
    Client,
    CountRoundTrips,
    StartServer,
    log_in,
    register,
    rows,
    status_of,
)

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


async def test_a_login_answers_with_a_token_its_expiry_and_the_user(client: Client, ada: dict[str, Any]) -> None:
    answer = await client.post("/user", json={"username": "ada", "password": PASSWORD})
    assert answer.status == 200
    body = await answer.json()
    assert UUID4.fullmatch(body["session_id"])
    assert body["user"] == {"id": ada["id"], "username": "ada", "roles": [], "profile": {}}
    expires = datetime.fromisoformat(body["expires_at"])
    assert expires.utcoffset() == timedelta(0)
    assert timedelta(days=29) < expires - datetime.now(UTC) < timedelta(days=31)


async def test_who_am_i_answers_with_the_user_and_the_session_but_no_token(
    client: Client, ada: dict[str, Any]
) -> None:
    token = await log_in(client)
    answer = await client.get("/user", headers={"Authorization": token})
    text = await answer.text()
    assert answer.status == 200
    assert token not in text
    body = await answer.json()
    assert body["user"] == ada
    keys = {"handle", "created_at", "last_seen_at", "expires_at", "ip", "user_agent", "amr", "authenticated_at"}
    assert set(body["session"]) == keys
    assert UUID4.fullmatch(body["session"]["handle"])
    assert datetime.fromisoformat(body["session"]["created_at"]).utcoffset() == timedelta(0)
    assert body["session"]["ip"] == "127.0.0.1"


@pytest.mark.parametrize("scheme", ["", "Bearer ", "bearer ", "BEARER   "])
async def test_a_token_is_taken_raw_and_after_bearer(client: Client, ada: dict[str, Any], scheme: str) -> None:
    token = await log_in(client)
    assert await status_of(client, scheme + token) == 200
    answer = await client.delete("/user", headers={"Authorization": scheme + token})
    assert answer.status == 200
    assert await status_of(client, token) == 401


async def test_a_logged_out_session_is_gone_on_every_node_and_the_others_are_not(
    client: Client, config: Config, start_server: StartServer, ada: dict[str, Any]
) -> None:
    other_node = await start_server(config)
    gone, kept = await log_in(client), await log_in(other_node)
    assert (await client.delete("/user", headers={"Authorization": gone})).status == 200
    assert await status_of(other_node, gone) == 401
    assert await status_of(client, kept) == 200
    again = await other_node.delete("/user", headers={"Authorization": gone})
    assert again.status == 401
    assert again.headers["WWW-Authenticate"].startswith("Bearer")


async def test_every_spelling_of_a_name_is_one_user(client: Client, ada: dict[str, Any]) -> None:
    await register(client, "Zoë.Straße")
    for spelling in ("zoë.straße", "ZOE\u0308.Straße", "ｚoë.straße"):
        await log_in(client, spelling)


async def test_all_failures_of_a_login_are_alike(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    await register(client, "gone")
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now() WHERE canonical = 'gone'")
    attempts = [
        ("ada", "wrong horse battery"),
        ("nobody", PASSWORD),
        ("gone", PASSWORD),
        ("gone", "wrong horse battery"),
        ("a name with spaces", PASSWORD),
        ("x" * 5000, PASSWORD),
        ("ada", "x" * 7000),
        ("", ""),
        ("ada", PASSWORD + " "),
        ("ada", "\u202e\u0007 not a password"),
    ]
    answers = set()
    for username, password in attempts:
        answer = await client.post("/user", json={"username": username, "password": password})
        headers = {k: v for k, v in answer.headers.items() if k not in {"Date", "X-Request-ID"}}
        answers.add((answer.status, await answer.text(), tuple(sorted(headers.items()))))
    assert len(answers) == 1
    assert answers.pop()[0] == 401


async def test_a_name_that_cannot_be_is_looked_up_like_any_other(
    client: Client, count_round_trips: CountRoundTrips
) -> None:
    """For NULL, Postgres would plan no look-up at all: measured, 0.15 ms that tell it from a name that can be."""
    seen = []
    for name in ("nobody", "no body", "", "x" * 5000):
        with count_round_trips() as statements:
            await client.post("/user", json={"username": name, "password": PASSWORD})
        seen.append([re.sub(r"'[^']*'(?:::\w+)?", "?", statement) for statement in statements])
    assert all(statements == seen[0] for statements in seen)


async def test_a_name_over_its_length_costs_a_hash_like_any_other(client: Client, dsn: Dsn) -> None:
    await client.post("/user", json={"username": "x" * 5000, "password": "y" * 2000})
    assert rows(dsn, "SELECT kind, user_id FROM gatepost.events") == [("authn_login_fail", None)]


async def test_each_decided_login_leaves_one_event_that_says_why(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    await log_in(client)
    await client.post("/user", json={"username": "ada", "password": "wrong"})
    await client.post("/user", json={"username": "nobody", "password": "wrong"})
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now()")
    await client.post("/user", json={"username": "ada", "password": PASSWORD})
    found = rows(dsn, "SELECT kind, user_id::text, detail->>'reason', host(ip) FROM gatepost.events ORDER BY id")
    assert found == [
        ("user_created", ada["id"], None, "127.0.0.1"),
        ("authn_login_success", ada["id"], None, "127.0.0.1"),
        ("authn_login_fail", ada["id"], "wrong_password", "127.0.0.1"),
        ("authn_login_fail", None, "unknown_user", "127.0.0.1"),
        ("authn_login_fail", ada["id"], "disabled", "127.0.0.1"),
    ]


async def test_a_login_is_two_round_trips_a_check_and_a_logout_one(
    client: Client, ada: dict[str, Any], count_round_trips: CountRoundTrips
) -> None:
    with count_round_trips() as login:
        token = await log_in(client)
    with count_round_trips() as check:
        await status_of(client, token)
    with count_round_trips() as logout:
        await client.delete("/user", headers={"Authorization": token})
    with count_round_trips() as lost:
        await client.post("/user", json={"username": "nobody", "password": PASSWORD})
    assert (len(login), len(check), len(logout), len(lost)) == (2, 1, 1, 2)


async def test_the_oldest_session_goes_at_one_too_many_even_when_logins_race(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    limits = {"sessions": SessionsConfig(max_per_user=3), "throttle": UNLIMITED}
    client = await start_server(config.model_copy(update=limits))
    await register(client, "ada")
    first = [await log_in(client) for _ in range(4)]
    assert [await status_of(client, token) for token in first] == [401, 200, 200, 200]
    tokens = await asyncio.gather(*(log_in(client) for _ in range(12)))
    states = [await status_of(client, token) for token in [*first, *tokens]]
    assert states.count(200) == 3
    assert states[:4] == [401] * 4
    assert rows(dsn, "SELECT count(*) FROM gatepost.sessions") == [(3,)]
    ended = rows(
        dsn,
        "SELECT count(*) FROM gatepost.events WHERE kind = 'session_revoked' AND detail->>'reason' = 'session_limit'",
    )
    assert ended == [(13,)]


async def test_an_expired_session_is_401_by_the_databases_clock(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    token = await log_in(client)
    rows(
        dsn,
        "UPDATE gatepost.sessions SET created_at = now() - interval '2 s', expires_at = now() - interval '1 s'",
    )
    assert await status_of(client, token) == 401
    assert (await client.delete("/user", headers={"Authorization": token})).status == 401


async def test_a_session_of_an_older_epoch_or_a_disabled_user_is_401(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    token = await log_in(client)
    rows(dsn, "UPDATE gatepost.users SET epoch = epoch + 1")
    assert await status_of(client, token) == 401
    token = await log_in(client)
    assert await status_of(client, token) == 200
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now()")
    assert await status_of(client, token) == 401
    assert (await client.delete("/user", headers={"Authorization": token})).status == 401


async def test_the_database_holds_neither_tokens_nor_passwords(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)
    for table in ("users", "passwords", "sessions", "events", "deployment_keys", "throttles", "known_places"):
        dump = repr(rows(dsn, f"SELECT t::text FROM gatepost.{table} t"))
        assert token not in dump
        assert PASSWORD not in dump


async def test_a_weaker_hash_is_replaced_at_the_next_login(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    before = await start_server(config)
    await register(before, "ada")
    old = await log_in(before)
    after = await start_server(
        config.model_copy(update={"passwords": PasswordsConfig(memory_kib=9000, iterations=2)})
    )
    wrong = await after.post("/user", json={"username": "ada", "password": "not the password"})
    assert wrong.status == 401
    assert "m=8192,t=1" in rows(dsn, "SELECT setting FROM gatepost.passwords")[0][0]
    await log_in(after)
    stored = rows(dsn, "SELECT setting, digest FROM gatepost.passwords")
    assert "m=9000,t=2" in stored[0][0]
    await log_in(after)
    await log_in(before)  # a node that still has the old configuration neither refuses nor weakens it
    assert rows(dsn, "SELECT setting, digest FROM gatepost.passwords") == stored
    assert await status_of(before, old) == 200


async def test_a_pepper_can_be_introduced_and_rotated(config: Config, start_server: StartServer, dsn: Dsn) -> None:
    def peppered(current: str | None, **peppers: str) -> Config:
        passwords = PasswordsConfig.model_validate({**CHEAP.model_dump(), "pepper": current, "peppers": peppers})
        return config.model_copy(update={"passwords": passwords})

    one, two = "first pepper, long enough", "second pepper, long enough"
    plain = await start_server(config)
    await register(plain, "ada")
    first = await start_server(peppered("1", **{"1": one}))
    await log_in(first)
    assert rows(dsn, "SELECT pepper FROM gatepost.passwords") == [("1",)]
    both = await start_server(peppered("2", **{"1": one, "2": two}))
    await log_in(both)
    assert rows(dsn, "SELECT pepper FROM gatepost.passwords") == [("2",)]
    # A node without the new pepper cannot judge: that is 503, not 401.
    answer = await first.post("/user", json={"username": "ada", "password": PASSWORD})
    assert answer.status == 503


async def test_a_password_rehashed_between_the_two_statements_is_tried_again(
    client: Client, dsn: Dsn, ada: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gatepost.security.credentials import Checked, Credentials

    stronger = await Credentials(PasswordsConfig(memory_kib=8200), b"k").create(PASSWORD)
    honest = Credentials.check
    calls = []

    async def interrupted(self: Credentials, *args: Any) -> Checked:
        calls.append(args)
        checked = await honest(self, *args)
        if len(calls) == 1:
            rows(
                dsn,
                "UPDATE gatepost.passwords SET setting = %s, digest = %s",
                stronger.setting.phc,
                stronger.digest,
            )
        return checked

    monkeypatch.setattr(Credentials, "check", interrupted)
    token = await log_in(client)
    assert len(calls) == 2
    assert await status_of(client, token) == 200
    kinds = rows(dsn, "SELECT kind FROM gatepost.events WHERE kind LIKE 'authn%%' ORDER BY id")
    assert kinds == [("authn_login_success",)]


async def test_a_failed_login_is_answered_when_the_slowest_stored_kind_would_be(
    client: Client, ada: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Credentials.check

    async def late(self: Credentials, *args: Any) -> Checked:
        checked = await honest(self, *args)
        return checked._replace(failure_due=time.monotonic() + 1)

    monkeypatch.setattr(Credentials, "check", late)
    for name in ("ada", "nobody"):
        began = time.monotonic()
        async with client.post("/user", json={"username": name, "password": "not the password"}) as answer:
            assert answer.status == 401
        assert time.monotonic() - began >= 1
