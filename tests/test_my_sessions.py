"""`/sessions`: seen and ended by whom they belong to; and what becomes of those nobody uses."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gatepost.config import Config, SessionsConfig
from gatepost.postgres import batches
from gatepost.postgres.database import Database, Dsn
from gatepost.sessions import upkeep
from gatepost.sessions.guard import LAST_SEEN
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows, status_of
from tests.gatepost_process import running
from tests.test_server import environment_of


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": token}


async def listed(client: Client, token: str) -> list[dict[str, Any]]:
    async with client.get("/sessions", headers=bearer(token)) as answer:
        assert answer.status == 200
        body = await answer.json()
        assert set(body) == {"sessions"}
        sessions: list[dict[str, Any]] = body["sessions"]
        return sessions


async def test_i_see_my_sessions_the_newest_first_and_which_one_is_this(client: Client, ada: dict[str, Any]) -> None:
    await register(client, "bob")
    await log_in(client, "bob")
    tokens = [await log_in(client) for _ in range(3)]
    sessions = await listed(client, tokens[1])
    assert [s["current"] for s in sessions] == [False, True, False]
    keys = {"handle", "created_at", "last_seen_at", "expires_at", "ip", "user_agent", "amr", "authenticated_at"}
    assert set(sessions[0]) == keys | {"current"}
    assert [s["created_at"] for s in sessions] == sorted((s["created_at"] for s in sessions), reverse=True)
    assert sessions[1]["ip"] == "127.0.0.1"
    assert not [t for t in tokens if t in repr(sessions)]


async def test_dead_sessions_are_not_listed(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    tokens = [await log_in(client) for _ in range(4)]
    handles = [s["handle"] for s in await listed(client, tokens[0])]
    rows(
        dsn,
        "UPDATE gatepost.sessions SET created_at = now() - interval '2 s', expires_at = now() - interval '1 s' "
        "WHERE handle = %s",
        handles[0],
    )
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '15 days' WHERE handle = %s", handles[1])
    rows(dsn, "UPDATE gatepost.sessions SET epoch = epoch + 1 WHERE handle = %s", handles[2])
    assert [s["handle"] for s in await listed(client, tokens[0])] == [handles[3]]


async def test_a_user_can_end_an_own_session_but_not_another_users(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    await register(client, "bob")
    bob = await log_in(client, "bob")
    here, there = await log_in(client), await log_in(client)
    bobs = (await listed(client, bob))[0]["handle"]
    theirs = (await listed(client, there))[0]["handle"]
    for handle in (bobs, "nonsense", "' OR true --", theirs.upper(), "%00"):
        answer = await client.delete(f"/sessions/{handle}", headers=bearer(here))
        assert answer.status == 404, handle
    assert await status_of(client, bob) == 200
    assert (await client.delete(f"/sessions/{theirs}", headers=bearer(here))).status == 200
    assert [await status_of(client, t) for t in (here, there)] == [200, 401]
    assert (await client.delete(f"/sessions/{theirs}", headers=bearer(here))).status == 404
    assert rows(dsn, "SELECT session_handle::text, detail FROM gatepost.events WHERE kind = 'session_revoked'") == [
        (theirs, {"reason": "user"})
    ]


@pytest.mark.parametrize(("scope", "states"), [("others", [200, 401, 401]), ("all", [401, 401, 401])])
async def test_i_can_end_my_other_sessions_or_all(
    client: Client, ada: dict[str, Any], scope: str, states: list[int]
) -> None:
    await register(client, "bob")
    bob = await log_in(client, "bob")
    tokens = [await log_in(client) for _ in range(3)]
    answer = await client.delete(f"/sessions?scope={scope}", headers=bearer(tokens[0]))
    assert answer.status == 200
    assert [await status_of(client, t) for t in tokens] == states
    assert await status_of(client, bob) == 200


@pytest.mark.parametrize("query", ["", "?scope=", "?scope=mine", "?scope=all&scope=others", "?scope=all&x=1"])
async def test_an_unknown_scope_is_422_and_ends_no_session(client: Client, ada: dict[str, Any], query: str) -> None:
    tokens = [await log_in(client) for _ in range(2)]
    answer = await client.delete(f"/sessions{query}", headers=bearer(tokens[0]))
    assert answer.status == 422
    assert [await status_of(client, t) for t in tokens] == [200, 200]


async def test_an_idle_session_ends_by_the_databases_clock(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(config.model_copy(update={"sessions": SessionsConfig(idle_timeout=300)}))
    await register(client, "ada")
    idle, busy = await log_in(client), await log_in(client)
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '240 s'")
    assert await status_of(client, idle) == 200
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '301 s'")
    assert [await status_of(client, t) for t in (idle, busy)] == [401, 401]
    assert (await client.delete("/user", headers=bearer(idle))).status == 401


async def test_last_seen_is_written_in_one_statement_for_all_and_not_by_checks(
    client: Client, dsn: Dsn, ada: dict[str, Any], count_round_trips: Any
) -> None:
    tokens = [await log_in(client) for _ in range(5)]
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '1 hour'")
    with count_round_trips() as sent:
        assert [await status_of(client, t) for t in tokens[:3] * 10] == [200] * 30
    assert not [s for s in sent if "UPDATE" in s]
    last_seen = client.app[LAST_SEEN]
    with count_round_trips() as sent:
        await last_seen.write()
    assert len(sent) == 1
    recent = "SELECT count(*) FROM gatepost.sessions WHERE last_seen_at > now() - interval '1 minute'"
    assert rows(dsn, recent) == [(3,)]
    with count_round_trips() as sent:
        await last_seen.write()
    assert sent == []


async def test_a_session_that_another_node_has_written_within_a_minute_is_left_alone(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    token = await log_in(client)
    for ago, left in (("50 s", True), ("61 s", False)):
        rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - %s::interval", ago)
        before = rows(dsn, "SELECT last_seen_at FROM gatepost.sessions")
        assert await status_of(client, token) == 200
        await client.app[LAST_SEEN].write()
        assert (rows(dsn, "SELECT last_seen_at FROM gatepost.sessions") == before) is left


async def test_last_seen_survives_a_database_that_does_not_answer_just_then(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    token = await log_in(client)
    rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '1 hour'")
    assert await status_of(client, token) == 200
    rows(dsn, "ALTER TABLE gatepost.sessions RENAME TO elsewhere")
    with pytest.raises(Exception, match="sessions"):
        await client.app[LAST_SEEN].write()
    rows(dsn, "ALTER TABLE gatepost.elsewhere RENAME TO sessions")
    await client.app[LAST_SEEN].write()
    assert rows(dsn, "SELECT last_seen_at > now() - interval '1 minute' FROM gatepost.sessions") == [(True,)]


def test_last_seen_survives_a_clean_stop(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, **environment_of(dsn), GATEPOST_ACCOUNTS__REGISTRATION="open") as process:
        ada = {"username": "ada", "password": PASSWORD}
        process.request("POST", "/account", ada)
        token = process.request("POST", "/user", ada)[1]["session_id"]
        rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = now() - interval '1 hour'")
        assert process.request("GET", "/user", token=token)[0] == 200
        assert process.end() == 0
    assert rows(dsn, "SELECT last_seen_at > now() - interval '1 minute' FROM gatepost.sessions") == [(True,)]


def expired(dsn: Dsn, count: int) -> None:
    rows(
        dsn,
        "WITH u AS (INSERT INTO gatepost.users (username, canonical) VALUES ('x', 'x') RETURNING id) "
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, created_at, expires_at) "
        "SELECT sha256(n::text::bytea), id, 1, now() - interval '2 days', now() - interval '1 day' "
        "FROM u, generate_series(1, %s) n",
        count,
    )


async def test_expired_sessions_are_swept_in_small_batches_and_live_ones_stay(
    client: Client,
    database: Database,
    dsn: Dsn,
    ada: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    count_round_trips: Any,
) -> None:
    token = await log_in(client)
    expired(dsn, 25)
    monkeypatch.setattr(batches, "BATCH", 10)
    with count_round_trips() as sent:
        await upkeep.sweep(database)
    assert len(sent) == 3
    assert rows(dsn, "SELECT count(*) FROM gatepost.sessions") == [(1,)]
    assert await status_of(client, token) == 200


async def test_only_one_node_sweeps_at_a_time(database: Database, dsn: Dsn) -> None:
    expired(dsn, 5)
    async with database.transaction() as connection:
        cursor = await connection.connection.cursor()
        await cursor.execute("SELECT pg_advisory_xact_lock(%s)", [upkeep._SWEEP_LOCK])
        await upkeep.sweep(database)
        assert rows(dsn, "SELECT count(*) FROM gatepost.sessions") == [(5,)]
    await asyncio.gather(*(upkeep.sweep(database) for _ in range(3)))
    assert rows(dsn, "SELECT count(*) FROM gatepost.sessions") == [(0,)]
