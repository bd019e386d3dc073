"""`GET /account/export`: whole, in pieces, and never more of it in memory than its reader takes."""

import asyncio
import contextlib
import json
import socket
from typing import Any

import aiohttp
import psycopg2
import pytest

from gatepost.accounts.export_queries import PAGE
from gatepost.http import connection_limits
from gatepost.postgres.database import Dsn
from tests.conftest import Client, eventually, log_in, rows
from tests.test_connection import Serve, port_of, serve, server_of
from tests.test_my_account import bearer

__all__ = ["serve"]  # a fixture


def record(dsn: Dsn, count: int, *, size: int = 10) -> None:
    """Events of and by the one user there is, ``count`` each, whose user agent has ``size`` letters."""
    for whose in ("user_id", "actor_id"):
        rows(
            dsn,
            f"INSERT INTO gatepost.events (kind, {whose}, user_agent) "
            f"SELECT 'user_updated', id, lpad(n::text, {size}, 'x') FROM gatepost.users, generate_series(1, %s) AS n "
            "ORDER BY n RETURNING id",
            count,
        )


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
async def test_a_history_of_any_length_is_exported_whole_and_in_order(
    client: Client, dsn: Dsn, ada: dict[str, Any], count: int
) -> None:
    token = await log_in(client)
    rows(dsn, "DELETE FROM gatepost.events RETURNING 1")
    if count:
        record(dsn, count)
    async with client.get("/account/export", headers=bearer(token)) as answer:
        body = json.loads(await answer.read())
    numbers = [str(n).rjust(10, "x") for n in range(1, count + 1)]
    assert [event["user_agent"] for event in body["events"]] == numbers
    assert [event["user_agent"] for event in body["events_as_administrator"]] == numbers
    async with client.head("/account/export", headers=bearer(token)) as answer:
        assert answer.status == 200
        assert answer.content_type == "application/json"


@pytest.mark.deadlines
async def test_an_export_that_the_database_ends_breaks_off_and_is_told_once(
    client: Client, dsn: Dsn, ada: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    token = await log_in(client)
    record(dsn, 20 * PAGE, size=256)  # more than is on its way to one who does not read
    answer = await client.get("/account/export", headers=bearer(token))
    assert answer.status == 200
    with psycopg2.connect(**dsn.parameters(dsn.hosts[0])) as other, other.cursor() as cursor:
        cursor.execute("LOCK gatepost.events IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
        other.rollback()
    assert caplog.text.count("database_unavailable") == 1
    assert "Error handling request" not in caplog.text
    assert (await client.get("/account/export", headers=bearer(token))).status == 200


async def unread(client: Client, token: str) -> socket.socket:
    """A connection on which an export was asked for, and of which nothing is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", port_of(client)))
    request = f"GET /account/export HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n\r\n"
    await loop.sock_sendall(connection, request.encode())
    return connection


async def test_exports_that_nobody_reads_are_bounded_in_bytes_for_one_client_and_for_all(
    serve: Serve, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve()
    await client.post("/account", json={"username": "ada", "password": "correct horse battery"})
    token = await log_in(client)
    record(dsn, 300 * PAGE, size=256)  # 10 MB
    admitted = server_of(client).admission
    with contextlib.ExitStack() as stack:
        most = 0
        for number in range(5):
            stack.enter_context(await unread(client, token))
            await eventually(lambda number=number: len(admitted.untaken) == number + 1)  # type: ignore[misc]
            most = max(most, *(each.untaken for each in admitted.untaken))
        one = 65536 + 600 * PAGE  # what aiohttp lets wait, and a page
        assert most <= one

        async def cut_off_by_one_more() -> int:
            before = set(admitted.untaken)
            stack.enter_context(await unread(client, token))
            await eventually(lambda: not set(admitted.untaken) <= before)
            return len(before - set(admitted.untaken))

        monkeypatch.setattr(connection_limits, "MAX_UNTAKEN_BYTES_PER_ADDRESS", 3 * most)
        assert await cut_off_by_one_more() >= 2
        assert sum(each.untaken for each in admitted.untaken) <= 3 * most + one
        monkeypatch.setattr(connection_limits, "MAX_UNTAKEN_BYTES", most)
        assert await cut_off_by_one_more() >= 1
        assert sum(each.untaken for each in admitted.untaken) <= most + one
    await eventually(lambda: not admitted.untaken)
