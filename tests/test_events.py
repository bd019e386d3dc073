"""The record of what happened: whole, bounded, and closed to those who might want to rewrite it."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from gatepost.admin import retention
from gatepost.config import Config
from gatepost.postgres import batches
from gatepost.postgres.database import Database, Dsn
from tests.conftest import PASSWORD, Client, PostgresServer, StartServer, db_config, log_in, register, rows, status_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "least-privilege.md"


async def test_old_events_are_swept_in_small_batches_and_young_ones_stay(
    database: Database, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = "INSERT INTO gatepost.events (kind, at) SELECT 'x', now() - %s::interval FROM generate_series(1, %s)"
    rows(dsn, insert, "2 hours", 25)
    rows(dsn, insert, "30 minutes", 5)
    monkeypatch.setattr(batches, "BATCH", 10)
    await retention.sweep(database, 3600)
    assert rows(dsn, "SELECT count(*) FROM gatepost.events") == [(5,)]


@pytest.fixture
def restricted(dsn: Dsn, postgres: PostgresServer) -> Iterator[Dsn]:
    """The role of docs/least-privilege.md."""
    name, password = f"app_{secrets.token_hex(4)}", secrets.token_hex(8)
    sql = re.findall(r"```sql\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[0]
    rows(dsn, sql.replace("gatepost_app", name).replace("change me", password))
    yield replace(dsn, user=name, password=password)
    rows(dsn, f"DROP OWNED BY {name}")
    postgres.admin(f"DROP ROLE {name}")


async def test_everything_works_for_a_role_that_cannot_change_or_delete_events(
    restricted: Dsn, dsn: Dsn, config: Config, start_server: StartServer
) -> None:
    client: Client = await start_server(config.model_copy(update={"db": db_config(restricted)}))
    await register(client, "ada")
    token = await log_in(client)
    assert await status_of(client, token) == 200
    headers = {"Authorization": token}
    change = {"current": PASSWORD, "new": "a better horse and battery"}
    for method, path, body in [
        ("GET", "/health/ready", None),
        ("GET", "/account", None),
        ("GET", "/account/export", None),
        ("GET", "/sessions", None),
        ("PATCH", "/account", {"username": "Ada", "profile": {"a": 1}}),
        ("DELETE", "/sessions?scope=others", None),
        ("PUT", "/account/password", change),
    ]:
        answer = await client.request(method, path, json=body, headers=headers)
        assert answer.status == 200, (path, await answer.text())
    headers = {"Authorization": await log_in(client, password=change["new"])}
    assert (await client.delete("/account", json={"password": change["new"]}, headers=headers)).status == 200
    database = await Database.open(restricted, 1)
    await retention.sweep(database, 0)
    await database.close()
    before: list[tuple[Any, ...]] = rows(dsn, "SELECT * FROM gatepost.events ORDER BY id")
    assert len(before) == 8
    for sql in ("UPDATE gatepost.events SET kind = 'x'", "DELETE FROM gatepost.events", "TRUNCATE gatepost.events"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            rows(restricted, sql)
    assert rows(dsn, "SELECT * FROM gatepost.events ORDER BY id") == before


async def test_no_event_holds_a_secret(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)
    await client.post("/user", json={"username": "a secret typed into the wrong field", "password": "x"})
    await client.delete("/user", headers={"Authorization": token})
    dump = repr(rows(dsn, "SELECT e::text FROM gatepost.events e"))
    for secret in (token, PASSWORD, "wrong field", "argon2"):
        assert secret not in dump
    assert len(rows(dsn, "SELECT 1 FROM gatepost.events")) == 4


def test_every_kind_of_event_is_documented_and_no_other() -> None:
    sources = [path.read_text("utf-8") for part in ("src", "migrations") for path in (ROOT / part).rglob("*.py")]
    written = set(re.findall(r"'((?:authn|privilege|session|user)_[a-z_]+)'", "\n".join(sources)))
    table = re.findall(r"^\| (`[^|]+)\|", (ROOT / "docs" / "administration.md").read_text("utf-8"), re.MULTILINE)
    kinds = set(re.findall(r"`((?:authn|privilege|session|user)_[a-z_]+)`", "\n".join(table)))
    assert kinds == written - {"session_handle", "user_agent"}  # keys of JSON documents
