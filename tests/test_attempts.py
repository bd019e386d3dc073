"""What is taken from a throttle is given back when nobody judged: overloads, locks, callers who hang up."""

import ast
import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

import gatepost
from gatepost.config import Config, ThrottleConfig
from gatepost.factors import recovery_codes
from gatepost.http.app import CREDENTIALS
from gatepost.postgres.database import Dsn
from gatepost.security.credentials import hashing
from gatepost.security.credentials.hashing import Derived
from gatepost.security.credentials.kinds import Kind
from gatepost.sessions.session import hash_token
from tests.conftest import PASSWORD, Client, StartServer, eventually, log_in, register, rows
from tests.test_bad_input import raw
from tests.test_connection import GRACE, connected, server_of
from tests.test_my_account import bearer, start_reset

NEW = "a better horse and battery"
# What is taken stays taken for an hour, and all that is not given back shows.
HOURLY = {name: 3600 for name in ThrottleConfig.model_fields if name.endswith("_every")}
BURST = 5


@pytest.fixture
async def client(config: Config, start_server: StartServer) -> Client:
    bursts = {name: BURST for name in ThrottleConfig.model_fields if name.endswith("_burst")}
    passwords = config.passwords.model_copy(update={"threads": 1, "queue": 20})
    webserver = config.webserver.model_copy(update={"public_url": "https://auth.example"})
    throttle = ThrottleConfig.model_validate({**HOURLY, **bursts})
    return await start_server(
        config.model_copy(update={"throttle": throttle, "passwords": passwords, "webserver": webserver})
    )


def used(dsn: Dsn) -> list[int]:
    """How many attempts each bucket lacks, but for full ones."""
    left = rows(dsn, "SELECT round(extract(epoch FROM due - clock_timestamp()) / 3600) FROM gatepost.throttles")
    return [int(hours) for (hours,) in left if hours]


# ------------------------------------------------------------------------------------------------ every use

TICKET, RECOVERY_CODE = "6f2b8f0e-3f0b-4c8e-9f3c-0d8a0c1f2e3d", "2345-6789-ABCD-EFGH"


def give_second_factors(dsn: Dsn) -> None:
    """An app, a recovery code and a passkey to all, and a ticket."""
    for sql in (
        f"INSERT INTO gatepost.totp_factors (user_id, name, sealed, confirmed_at) "
        f"SELECT id, 'Phone', '{48 * 'x'}', now() FROM gatepost.users RETURNING 1",
        "INSERT INTO gatepost.passkeys (user_id, credential_id, public_key, sign_count, name, synced, backed_up) "
        "SELECT id, 'id', 'key', 0, 'Laptop', false, false FROM gatepost.users RETURNING 1",
    ):
        rows(dsn, sql)
    code, ticket = recovery_codes.hash_given(RECOVERY_CODE), hash_token(TICKET)
    rows(dsn, "INSERT INTO gatepost.recovery_codes SELECT id, %s FROM gatepost.users RETURNING 1", code)
    rows(
        dsn,
        "INSERT INTO gatepost.login_tickets (ticket_hash, user_id, epoch, expires_at) "
        "SELECT %s, id, epoch, now() + interval '10 minutes' FROM gatepost.users RETURNING 1",
        ticket,
    )


# By the query that takes: one request for each limit it takes from.
USES: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "find_setting": [
        ("POST", "/user", {"username": "ada", "password": PASSWORD}),
        ("POST", "/user", {"username": "ada", "password": "wrong"}),
        ("POST", "/user", {"username": "nobody", "password": "wrong"}),
    ],
    "take": [
        ("POST", "/account", {"username": "bob", "password": PASSWORD}),
        ("PATCH", "/account", {"username": "eve"}),
        ("PATCH", "/account", {"profile": {"a": 1}}),
        ("PUT", "/account/password", {"current": PASSWORD, "new": NEW}),
        ("POST", "/account/password/redeem", {"code": "the-code", "new": NEW}),
    ],
    "find_secret": [
        ("PUT", "/account/password", {"current": "wrong", "new": NEW}),
        ("DELETE", "/account", {"password": PASSWORD}),
    ],
    "find_ticket": [("POST", "/user/factor", {"login": TICKET, "recovery_code": RECOVERY_CODE})],
    "find_candidates": [("POST", "/user/confirm", {"recovery_code": RECOVERY_CODE})],
    "find_passkey": [("POST", "/user/passkey", {"credential": {"rawId": "aWQ"}})],
}


def sources() -> Iterator[ast.Module]:
    for path in Path(gatepost.__file__).parent.rglob("*.py"):
        yield ast.parse(path.read_text("utf-8"))


def taking() -> set[str]:
    """The queries that take: those that give `Taken`."""
    return {
        function.name
        for source in sources()
        for function in source.body
        if isinstance(function, ast.AsyncFunctionDef)
        and "Taken" in ast.unparse(function.returns or ast.Constant(None))
    }


def test_every_query_that_takes_is_walked_here() -> None:
    assert taking() == set(USES)


def test_queries_that_take_attempts_are_used_through_refunds_only() -> None:
    queries = taking()
    for source in sources():
        rightly = {
            call.args[0]
            for call in ast.walk(source)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "attempt"
        }
        for node in ast.walk(source):
            if isinstance(node, ast.Name):
                name = node.id
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(("queries", "throttle")):
                name = node.attr
            else:
                continue
            assert name not in queries or node in rightly, ast.unparse(node)


@pytest.mark.deadlines
@pytest.mark.parametrize("use", [use for uses in USES.values() for use in uses], ids=lambda use: f"{use[0]} {use[2]}")
async def test_what_ends_in_503_has_cost_no_attempt(
    client: Client, dsn: Dsn, use: tuple[str, str, dict[str, Any]]
) -> None:
    await register(client, "ada")
    token = await log_in(client)
    start_reset(dsn, "the-code")
    rows(dsn, "DELETE FROM gatepost.throttles")
    method, path, body = use
    if path in ("/user/factor", "/user/passkey", "/user/confirm"):
        give_second_factors(dsn)
    of_the_user = path == "/user/confirm" or (path.startswith("/account") and path != "/account/password/redeem")
    headers = bearer(token) if of_the_user else {}
    headers = {} if (method, path) == ("POST", "/account") else headers
    with contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as holder:
        holder.cursor().execute("LOCK gatepost.events IN SHARE MODE")  # whatever is decided leaves an event
        async with client.request(method, path, json=body, headers=headers) as answer:
            assert answer.status == 503
    await eventually(lambda: used(dsn) == [])
    async with client.request(method, path, json=body, headers=headers) as answer:
        assert answer.status != 503


# ------------------------------------------------------------------------------------------ callers who hang up


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[bytes], threading.Event]]:
    """What threads have begun to hash; they go on when the event is set."""
    began: list[bytes] = []
    go_on, honest = threading.Event(), hashing.derive
    go_on.set()

    def wait(kind: Kind, secret: Callable[[], bytes]) -> Derived:
        began.append(secret())
        assert go_on.wait(2 * GRACE)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", wait)
    yield began, go_on
    go_on.set()


def kinds_of(dsn: Dsn) -> set[str]:
    return {kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events WHERE kind <> 'session_revoked'")}


async def scraped(client: Client) -> str:
    async with client.get("/metrics") as answer:
        return await answer.text()


def login(password: str) -> bytes:
    return raw("POST", "/user", body=b'{"username":"ada","password":"%s"}' % password.encode())


async def test_right_passwords_whose_clients_hang_up_before_hashing_lock_no_user_out(
    client: Client, dsn: Dsn, hashes: tuple[list[bytes], threading.Event]
) -> None:
    began, go_on = hashes
    await register(client, "ada")
    rows(dsn, "DELETE FROM gatepost.throttles")
    hasher = client.server.app[CREDENTIALS].hasher  # type: ignore[attr-defined]
    began.clear()
    go_on.clear()
    async with connected(client) as stays:
        stays[1].write(login("wrong"))
        await eventually(lambda: len(began) == 1)
        for _ in range(3):  # more than the burst in all
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(2):
                    _, writer = await stack.enter_async_context(connected(client))
                    writer.write(login(PASSWORD))
                await eventually(lambda: hasher.waiting == 2)
            await eventually(lambda: hasher.waiting == 0)
            await eventually(lambda: set(used(dsn)) == {1})
        go_on.set()
        assert (await stays[0].readline()).startswith(b"HTTP/1.1 401")
    assert began == [b"wrong"]
    await log_in(client)


@pytest.mark.parametrize(("password", "kinds"), [(PASSWORD, []), ("wrong", ["authn_login_fail"])])
async def test_a_login_whose_client_hangs_up_during_hashing_is_judged_and_opens_no_session(
    client: Client, dsn: Dsn, hashes: tuple[list[bytes], threading.Event], password: str, kinds: list[str]
) -> None:
    began, go_on = hashes
    await register(client, "ada")
    rows(dsn, "DELETE FROM gatepost.throttles")
    rows(dsn, "DELETE FROM gatepost.events")
    began.clear()
    go_on.clear()
    members = server_of(client).admission
    async with connected(client) as (_, writer):
        writer.write(login(password))
        await eventually(lambda: began == [password.encode()])
        ours = writer.get_extra_info("sockname")
    await eventually(
        lambda: all(
            c.transport_until_lost.get_extra_info("peername") != ours
            for c in members.members
            if c.transport_until_lost
        )
    )
    go_on.set()
    async with asyncio.timeout(GRACE):
        while 'gatepost_logins_total{outcome="abandoned"} 1.0' not in await scraped(client):
            await asyncio.sleep(0.01)
    assert used(dsn) == ([] if password == PASSWORD else [1, 1, 1])
    assert [kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events")] == kinds
    assert rows(dsn, "SELECT 1 FROM gatepost.sessions") == []


async def test_a_password_change_whose_client_hangs_up_during_hashing_is_completed(
    client: Client, dsn: Dsn, hashes: tuple[list[bytes], threading.Event]
) -> None:
    began, go_on = hashes
    await register(client, "ada")
    token = await log_in(client)
    for current, passed in (("wrong", False), (PASSWORD, True)):
        rows(dsn, "DELETE FROM gatepost.throttles")
        rows(dsn, "DELETE FROM gatepost.events")
        began.clear()
        go_on.clear()
        body = b'{"current":"%s","new":"%s"}' % (current.encode(), NEW.encode())
        header = [b"Authorization: " + token.encode(), b"Content-Type: application/json"]
        async with connected(client) as (_, writer):
            writer.write(raw("PUT", "/account/password", *header, body=body))
            await eventually(lambda current=current: began == [current.encode()])  # type: ignore[misc]
        go_on.set()
        judged = {"authn_password_change"} if passed else {"authn_password_change_fail"}
        await eventually(lambda judged=judged: kinds_of(dsn) == judged)  # type: ignore[misc]
        assert sorted(used(dsn)) == ([1] if passed else [1, 1])
    await log_in(client, password=NEW)


# ------------------------------------------------------------------------------------- what leaves rows behind


async def test_what_a_user_may_do_is_bounded_also_with_the_right_password(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)
    rows(dsn, "DELETE FROM gatepost.throttles")
    for number in range(BURST):
        async with client.patch("/account", json={"profile": {"n": number}}, headers=bearer(token)) as answer:
            assert answer.status == 200
    before = rows(dsn, "SELECT count(*) FROM gatepost.events")
    for method, path, body in (
        ("PATCH", "/account", {"profile": {"n": 9}}),
        ("PUT", "/account/password", {"current": PASSWORD, "new": NEW}),
        ("POST", "/user", {"username": "ada", "password": PASSWORD}),
    ):
        async with client.request(method, path, json=body, headers=bearer(token)) as answer:
            assert (answer.status, answer.headers["RateLimit-Policy"].split(";")[0]) == (429, '"activity"')
    assert rows(dsn, "SELECT count(*) FROM gatepost.events") == before
    async with client.get("/user", headers=bearer(token)) as answer:
        assert answer.status == 200


async def test_a_login_is_as_durable_as_before(client: Client, dsn: Dsn) -> None:
    """The throttles wait for no disk, within the same statement."""
    await register(client, "ada")
    rows(dsn, "CREATE TABLE gatepost.seen (setting text)")
    rows(dsn, "GRANT ALL ON gatepost.seen TO PUBLIC")
    rows(
        dsn,
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO gatepost.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
    )
    rows(
        dsn,
        "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON gatepost.sessions DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION note()",
    )
    await log_in(client)
    assert rows(dsn, "SELECT setting FROM gatepost.seen") == [("on",)]


async def test_a_failed_login_does_not_wait_for_the_lock_on_the_users_row(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    with contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as holder:
        holder.cursor().execute("SELECT FROM gatepost.users FOR NO KEY UPDATE")
        for name in ("ada", "nobody"):
            async with (
                asyncio.timeout(GRACE),
                client.post("/user", json={"username": name, "password": "wrong"}) as answer,
            ):
                assert answer.status == 401
        winning = asyncio.create_task(log_in(client))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        await eventually(lambda: rows(dsn, waiting) != [(0,)])
        assert not winning.done()
        holder.rollback()
        await winning


async def test_a_password_that_changes_while_a_login_waits_for_its_user_opens_nothing(
    client: Client, dsn: Dsn
) -> None:
    await register(client, "ada")
    with contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as holder:
        holder.cursor().execute("UPDATE gatepost.users SET disabled_at = now()")
        waiting = asyncio.create_task(client.post("/user", json={"username": "ada", "password": PASSWORD}))
        await eventually(lambda: rows(dsn, "SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
        holder.commit()
    async with await waiting as answer:
        assert answer.status == 401
    assert rows(dsn, "SELECT 1 FROM gatepost.sessions") == []
