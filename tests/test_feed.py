"""The feed: who listens hears at once what was revoked, whoever's SQL it was, and knows what is not missing."""

import asyncio
import json
import uuid
from typing import Any

import aiohttp
import psycopg2
import pytest

from gatepost.config import Config
from gatepost.feed import feed as module
from gatepost.feed.feed import Feed, Missed, Notice, clock
from gatepost.feed.handlers import FEED
from gatepost.feed.listener import _notices
from gatepost.postgres.database import Dsn
from gatepost.services.token import new_token
from gatepost.sessions.session import hash_token
from gatepost_client import NotKnown, Verifier
from tests.conftest import (
    PASSWORD,
    Client,
    PostgresServer,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
)
from tests.event_streams import SOON, Event, Stream, stream
from tests.test_connection import Serve, serve, server_of

__all__ = ["serve"]


@pytest.fixture
def service(dsn: Dsn) -> str:
    """The token of a service."""
    token = new_token()
    rows(dsn, "INSERT INTO gatepost.services (name, token_hash) VALUES ('billing', %s)", hash_token(token))
    return token


def subject(event: Event | None) -> tuple[str, str | None, str | None]:
    """The kind of an event, and the ids of its user and its session."""
    assert event is not None
    of = event.data.get("sub_id", {})
    return event.kind, of.get("user", {}).get("id"), of.get("session", {}).get("id")


async def who(client: Client, token: str) -> tuple[str, str]:
    """The ids of the user and the session."""
    async with client.get("/user", headers={"Authorization": token}) as answer:
        body = await answer.json()
        return body["user"]["id"], body["session"]["handle"]


async def test_a_log_out_is_told_and_looks_as_caep_has_it(client: Client, ada: Any, service: str) -> None:
    token = await log_in(client)
    user, handle = await who(client, token)
    async with stream(client, "/feed", service) as feed:
        hello = await feed.next()
        assert hello is not None
        assert hello.kind == "hello"
        assert hello.data["resumed"] is False
        await client.delete("/user", headers={"Authorization": token})
        event = await feed.next()
        assert event is not None
        assert event.kind == "session.revoked"
        assert event.data["sub_id"] == {
            "format": "complex",
            "user": {"format": "opaque", "id": user},
            "session": {"format": "opaque", "id": handle},
        }
        assert isinstance(event.data["event_timestamp"], int)


SQL: dict[str, tuple[str, list[str]]] = {
    "a session deleted by hand": ("DELETE FROM gatepost.sessions", ["session.revoked"]),
    "a session made to expire": ("UPDATE gatepost.sessions SET expires_at = now()", ["session.revoked"]),
    "a session made idle": ("UPDATE gatepost.sessions SET last_seen_at = 'epoch'", ["session.revoked"]),
    "an epoch": ("UPDATE gatepost.users SET epoch = epoch + 1", ["user.changed"]),
    "a user disabled": ("UPDATE gatepost.users SET disabled_at = now()", ["user.changed"]),
    "roles": ("UPDATE gatepost.users SET roles = '{staff}'", ["user.changed"]),
    "a profile": ("UPDATE gatepost.users SET profile = '{\"a\": 1}'", ["user.changed"]),
    "a user deleted, with the sessions": ("DELETE FROM gatepost.users", ["session.revoked", "user.changed"]),
    "everything": ("TRUNCATE gatepost.sessions", ["reset"]),
    "a notification that nobody understands": ("NOTIFY gatepost_feed, 'what?'", ["reset"]),
}


@pytest.mark.parametrize("name", SQL)
async def test_anybodys_sql_is_told(name: str, client: Client, ada: Any, service: str, dsn: Dsn) -> None:
    sql, kinds = SQL[name]
    user, handle = await who(client, await log_in(client))
    async with stream(client, "/feed", service) as feed:
        await feed.next()
        rows(dsn, sql)
        told = [subject(await feed.next()) for _ in kinds]
        # The order of the triggers of one statement is Postgres' own.
        assert sorted(told) == sorted(
            (kind, None if kind == "reset" else user, handle if kind == "session.revoked" else None) for kind in kinds
        )
        rows(dsn, "NOTIFY gatepost_feed, 'the end'")
        assert subject(await feed.next()) == ("reset", None, None)


UNTOLD = {
    "a login": "SELECT 1",
    "the last use of a session": "UPDATE gatepost.sessions SET last_seen_at = clock_timestamp()",
    "a session that had expired": "UPDATE gatepost.sessions SET created_at = 'epoch', expires_at = now() - "
    "interval '1 day'",
    "a change that changes nothing": "UPDATE gatepost.users SET epoch = epoch, roles = roles",
    "a transaction that is rolled back": "DELETE FROM gatepost.sessions; ROLLBACK",
}


@pytest.mark.parametrize("name", UNTOLD)
async def test_what_revokes_nothing_is_not_told(name: str, client: Client, ada: Any, service: str, dsn: Dsn) -> None:
    await log_in(client)
    if "expired" in name:
        rows(dsn, UNTOLD[name])
    async with stream(client, "/feed", service) as feed:
        await feed.next()
        await log_in(client)
        rows(dsn, "DELETE FROM gatepost.sessions WHERE expires_at < now()" if "expired" in name else UNTOLD[name])
        rows(dsn, "NOTIFY gatepost_feed, 'the end'")
        assert subject(await feed.next()) == ("reset", None, None)


@pytest.mark.parametrize(("users", "each", "told"), [(1, 50, 50), (1, 51, 1), (100, 1, 100), (101, 1, 1)])
async def test_a_statement_is_one_notification(
    users: int, each: int, told: int, client: Client, service: str, dsn: Dsn
) -> None:
    rows(
        dsn,
        "WITH added AS (INSERT INTO gatepost.users (username, canonical) "
        "SELECT 'u' || n, 'u' || n FROM generate_series(1, %s) n RETURNING id) "
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at) "
        "SELECT sha256((id::text || n)::bytea), id, 1, now() + interval '1 day' FROM added, generate_series(1, %s) n",
        users,
        each,
    )
    listener = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    listener.autocommit = True
    listener.cursor().execute("LISTEN gatepost_feed")
    async with stream(client, "/feed", service) as feed:
        await feed.next()
        rows(dsn, "DELETE FROM gatepost.sessions")
        kinds = {subject(await feed.next())[0] for _ in range(told)}
        expected = "reset" if users > 100 else "session.revoked" if users * each <= 50 else "user.changed"
        assert kinds == {expected}
    await eventually(lambda: listener.poll() or bool(listener.notifies))
    assert len(listener.notifies) == 1
    assert len(listener.notifies[0].payload) < 8000
    listener.close()


async def test_a_heartbeat_proves_that_nothing_before_it_is_missing(client: Client, ada: Any, service: str) -> None:
    async with stream(client, "/feed", service) as feed:
        hello = await feed.next()
        assert hello is not None
        first = await feed.next(but="")
        for _ in range(5):
            token = await log_in(client)
            _, handle = await who(client, token)
            await client.delete("/user", headers={"Authorization": token})
            acknowledged = clock()
            told = set[str | None]()
            while True:
                event = await feed.next(but="")
                assert event is not None
                if event.kind == "heartbeat" and event.data["proven"] >= acknowledged:
                    break
                told.add(subject(event)[2])
            assert handle in told
        assert first is not None
        assert first.data["proven"] >= hello.data["now"] - hello.data["lease"]


async def test_who_comes_back_is_told_what_was_missed(client: Client, ada: Any, service: str) -> None:
    async with stream(client, "/feed", service) as feed:
        hello = await feed.next()
    handles = []
    for _ in range(3):
        token = await log_in(client)
        handles.append((await who(client, token))[1])
        await client.delete("/user", headers={"Authorization": token})
    assert hello is not None
    async with stream(client, "/feed", service, hello.id) as feed:
        again = await feed.next()
        assert again is not None
        assert again.data["resumed"] is True
        events = [await feed.next() for _ in handles]
        assert [subject(event)[2] for event in events] == handles
        assert events[1] is not None
        last = events[1].id
    async with stream(client, "/feed", service, last) as feed:
        await feed.next()
        assert subject(await feed.next())[2] == handles[2]


@pytest.mark.parametrize(
    "last", ["", "x", "-", "-1", "0-0", "{epoch}-", "{epoch}-99", "{epoch}-" + "9" * 30, "{epoch}-²"]
)
async def test_who_names_another_event_starts_over(last: str, client: Client, service: str) -> None:
    epoch = client.app[FEED].id_of(client.app[FEED].end).split("-")[0]
    headers = {"Authorization": service, "Last-Event-ID": last.format(epoch=epoch).encode().decode("latin-1")}
    async with client.get("/feed", headers=headers) as answer:
        hello = await Stream(answer).next()
        assert hello is not None
        assert hello.data["resumed"] is False


async def test_the_window_has_bounded_bytes_and_who_fell_behind_starts_over() -> None:
    feed = Feed()
    start = feed.end
    for _ in range(5000):
        feed.publish(Notice(session=str(uuid.uuid4()), user=str(uuid.uuid4())))
    assert sum(len(data) for _, data in feed._window) <= module.WINDOW
    with pytest.raises(Missed):
        feed.since(start)
    assert feed.resume(feed.id_of(start)) is None
    assert feed.resume(feed.id_of(feed.end)) is not None


async def test_everybody_who_waits_is_woken_also_by_what_comes_meanwhile() -> None:
    feed, told = Feed(), [0] * 100

    async def listener(number: int) -> None:
        position = feed.end
        while told[number] < 300:
            data, position = feed.since(position)
            told[number] += data.count(b"event: session.revoked")
            if not data:
                await feed.changed()

    tasks = [asyncio.create_task(listener(number)) for number in range(100)]
    await asyncio.sleep(0)
    tasks[7].cancel()
    for number in range(300):
        feed.publish(Notice(session=str(number), user="u"))
        if number % 3 == 0:
            await asyncio.sleep(0)
    async with asyncio.timeout(SOON):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [n for n in range(100) if told[n] != 300] == [7]


REFUSED: list[tuple[str, int]] = [("", 401), ("gps_" + "x" * 43, 401), (str(uuid.uuid4()), 401)]


@pytest.mark.parametrize(("token", "status"), REFUSED, ids=["none", "an unknown service", "an unknown session"])
async def test_strangers_get_no_stream(token: str, status: int, client: Client) -> None:
    for path in ("/feed", "/user/events"):
        async with client.get(path, headers={"Authorization": token} if token else {}) as answer:
            assert answer.status == status


async def test_an_ordinary_user_may_not_follow_everybody(client: Client, ada: Any) -> None:
    async with client.get("/feed", headers={"Authorization": await log_in(client)}) as answer:
        assert answer.status == 403


async def test_head_says_what_get_would_and_ends(client: Client, service: str) -> None:
    async with client.head("/feed", headers={"Authorization": service}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")


async def test_the_feed_of_a_revoked_service_ends(client: Client, service: str, dsn: Dsn) -> None:
    async with stream(client, "/feed", service) as feed:
        await feed.next()
        rows(dsn, "DELETE FROM gatepost.services")
        await feed.ended()
    async with client.get("/feed", headers={"Authorization": service}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize("sql", ["UPDATE gatepost.users SET roles = '{}'", "DELETE FROM gatepost.sessions"])
async def test_the_feed_of_a_user_ends_with_the_role_and_with_the_session(
    sql: str, client: Client, ada: Any, dsn: Dsn
) -> None:
    rows(dsn, "UPDATE gatepost.users SET roles = '{verifier}'")
    async with stream(client, "/feed", await log_in(client)) as feed:
        await feed.next()
        rows(dsn, sql)
        await feed.ended()


async def test_a_lost_connection_means_start_over_and_a_stream_goes_on(
    client: Client, ada: Any, service: str, dsn: Dsn
) -> None:
    token = await log_in(client)
    async with stream(client, "/feed", service) as feed, stream(client, "/user/events", token) as page:
        await feed.next()
        await page.next()
        rows(
            dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE '%%pg_notify%%' AND pid <> pg_backend_pid()",
        )
        assert subject(await feed.next()) == ("reset", None, None)
        proof = await feed.next(but="")
        assert proof is not None
        assert proof.kind == "heartbeat"
        event = await page.next()
        assert event is not None
        assert event.kind == "user.changed"


async def test_what_one_node_revokes_every_node_tells(
    config: Config, start_server: StartServer, service: str
) -> None:
    one, other = await start_server(config), await start_server(config)
    await register(one, "ada")
    token = await log_in(one)
    _, handle = await who(one, token)
    async with stream(other, "/feed", service) as feed, stream(other, "/user/events", token) as page:
        await feed.next()
        await page.next()
        await one.delete("/user", headers={"Authorization": token})
        assert subject(await feed.next())[2] == handle
        assert await page.next() == Event("session.revoked", {"handle": handle, "current": True})


@pytest.mark.deadlines
async def test_a_postgres_that_hangs_ends_the_lease_and_every_stream_gets_over_it(
    client: Client, ada: Any, service: str, postgres: PostgresServer
) -> None:
    token = await log_in(client)
    async with Verifier(str(client.make_url("/")), service, mode="leased") as verifier:
        await eventually(lambda: verifier.has_lease)
        assert await verifier.check(token) is not None
        postgres.freeze()
        try:
            await eventually(lambda: verifier.peek(token) is None)
            with pytest.raises(NotKnown):
                await verifier.check(token)
            async with client.get("/feed", headers={"Authorization": service}) as answer:
                assert answer.status == 503
        finally:
            postgres.thaw()
        await eventually(lambda: verifier.has_lease)

        async def answers() -> bool:
            try:
                return await verifier.check(token) is not None
            except NotKnown:
                return False

        async with asyncio.timeout(SOON):
            while not await answers():
                await asyncio.sleep(0.05)


# ------------------------------------------------------------------------------------------- one's own


async def test_every_page_of_a_user_learns_that_it_was_signed_out(client: Client, ada: Any) -> None:
    one, other = await log_in(client), await log_in(client)
    _, handle = await who(client, one)
    async with stream(client, "/user/events", one) as first, stream(client, "/user/events", other) as second:
        assert await first.next() == Event("hello", {"handle": handle})
        await second.next()
        await client.delete("/user", headers={"Authorization": one})
        assert await first.next() == Event("session.revoked", {"handle": handle, "current": True})
        assert await first.next() is None
        assert await second.next() == Event("session.revoked", {"handle": handle, "current": False})


async def test_a_page_may_ask_with_its_cookie(client: Client, ada: Any) -> None:
    login = {"username": "ada", "password": PASSWORD, "cookie": True}
    async with client.post("/user", json=login) as answer:
        cookie = answer.headers["Set-Cookie"].split(";")[0]
    async with client.get("/user/events", headers={"Cookie": cookie}) as answer:
        event = await Stream(answer).next()
        assert event is not None
        assert event.kind == "hello"


async def test_a_page_hears_nothing_of_other_users(client: Client, ada: Any, dsn: Dsn) -> None:
    await register(client, "bob")
    async with stream(client, "/user/events", await log_in(client)) as page:
        await page.next()
        await client.delete("/user", headers={"Authorization": await log_in(client, "bob")})
        rows(dsn, "UPDATE gatepost.users SET profile = '{\"a\": 1}' WHERE username = 'ada'")
        assert await page.next() == Event("user.changed", {})


async def test_a_disabled_users_pages_end(client: Client, ada: Any, dsn: Dsn) -> None:
    async with stream(client, "/user/events", await log_in(client)) as page:
        await page.next()
        rows(dsn, "UPDATE gatepost.users SET disabled_at = now()")
        event = await page.next()
        assert event is not None
        assert event.data["current"] is True
        assert await page.next() is None


async def test_an_open_page_does_not_keep_its_session_in_use(client: Client, ada: Any, dsn: Dsn) -> None:
    token = await log_in(client)
    async with stream(client, "/user/events", token) as page:
        await page.next()
        rows(dsn, "UPDATE gatepost.sessions SET last_seen_at = 'epoch'")
        event = await page.next()
        assert event is not None
        assert event.data["current"] is True


def streams(client: Client) -> int:
    return sum(1 for connection in server_of(client).admission.members if connection.waiting is not None)


async def test_a_page_that_is_closed_leaves_nothing_behind(client: Client, ada: Any) -> None:
    token = await log_in(client)
    for _ in range(50):
        async with stream(client, "/user/events", token) as page:
            await page.next()
            page.answer.close()
    await eventually(lambda: streams(client) == 0)
    assert not client.app[FEED]._watches


async def test_streams_make_room_for_new_connections(serve: Serve) -> None:
    client = await serve(max_connections=8, max_connections_per_address=8)
    await register(client, "ada")
    token = await log_in(client)
    async with aiohttp.ClientSession() as session:
        opened = []
        for _ in range(12):
            answer = await session.get(client.make_url("/user/events"), headers={"Authorization": token})
            assert answer.status == 200
            opened.append(answer)
        assert await status_of(client, token) == 200
        for answer in opened:
            answer.close()


async def test_streams_end_when_the_server_stops(client: Client, ada: Any, service: str) -> None:
    token = await log_in(client)
    async with stream(client, "/feed", service) as feed, stream(client, "/user/events", token) as page:
        await feed.next()
        await page.next()
        client.app[FEED].close()
        await feed.ended()
        await page.ended()


async def test_without_a_database_there_is_no_stream_and_no_refusal(
    config: Config, start_server: StartServer, dsn: Dsn, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start_server(config)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("gatepost.feed.listener.Notifications.notify", never)
    monkeypatch.setattr("gatepost.feed.listener.ANSWER_TIMEOUT", 0.2)
    async with client.get("/feed", headers={"Authorization": service}) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"]


@pytest.mark.parametrize(
    "payload",
    ["", "{", "[]", "1", "null", '{"sessions": 1}', '{"sessions": [["a"]]}', '{"users": 1}', '{"all": true}', "{}",
     '{"users": ["a"], "more": 1}'],
)  # fmt: skip
def test_a_notification_that_is_not_understood_may_mean_anything(payload: str) -> None:
    assert _notices(payload) == [Notice()]


async def test_a_client_of_others_reads_it(client: Client, ada: Any, service: str) -> None:
    httpx, httpx_sse = pytest.importorskip("httpx"), pytest.importorskip("httpx_sse")
    token = await log_in(client)
    async with (
        httpx.AsyncClient(base_url=str(client.make_url("/")), headers={"Authorization": service}) as other,
        httpx_sse.aconnect_sse(other, "GET", "/feed") as source,
    ):
        kinds = list[str]()
        async for event in source.aiter_sse():
            kinds.append(event.event)
            if event.event == "hello":
                assert event.retry is not None
                assert 500 <= event.retry <= 1500
                await client.delete("/user", headers={"Authorization": token})
            if event.event == "session.revoked":
                assert json.loads(event.data)["sub_id"]["format"] == "complex"
                break
    assert kinds[0] == "hello"
