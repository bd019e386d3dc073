"""Services check many tokens in one call, with a token of their own."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from gatepost.config import Config
from gatepost.errors import DatabaseUnavailable
from gatepost.postgres.database import Dsn
from gatepost.services.token import new_token, service_token
from gatepost.sessions.guard import LOOKUP
from tests.conftest import Client, CountRoundTrips, log_in, register, rows
from tests.gatepost_process import gatepost
from tests.test_server import environment_of


def add(dsn: Dsn, tmp_path: Path, name: str = "billing") -> str:
    """Add a service as an operator does; its token."""
    done = gatepost("service", "add", name, "--json", cwd=tmp_path, **environment_of(dsn))
    assert done.returncode == 0, done.stderr
    token: str = json.loads(done.stdout)["token"]
    return token


async def check(client: Client, token: str, tokens: object) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with client.post("/authz/check", json={"tokens": tokens}, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_each_token_has_its_answer_by_position_as_who_am_i_gives_it(
    client: Client, dsn: Dsn, tmp_path: Path
) -> None:
    service = await asyncio.to_thread(add, dsn, tmp_path)
    for name in ("ada", "bob"):
        await register(client, name)
    ada, bob, ended = await log_in(client), await log_in(client, "bob"), await log_in(client)
    await client.delete("/user", headers={"Authorization": ended})
    status, answer = await check(
        client, service, [ada, "", bob, ended, str(uuid.uuid4()), "\u00e4", service, "x" * 9000, ada]
    )
    assert status == 200
    found = answer["results"]
    assert [one and one["user"]["username"] for one in found] == ["ada", None, "bob", *[None] * 5, "ada"]
    async with client.get("/user", headers={"Authorization": ada}) as own:
        assert await own.json() == found[0] == found[8]
    assert await check(client, service, []) == (200, {"results": []})


async def test_what_was_revoked_before_the_call_is_not_there(client: Client, dsn: Dsn, tmp_path: Path) -> None:
    service = await asyncio.to_thread(add, dsn, tmp_path)
    await register(client, "ada")
    tokens = [await log_in(client) for _ in range(5)]
    rows(dsn, "UPDATE gatepost.users SET disabled_at = clock_timestamp() RETURNING 1")
    assert await check(client, service, tokens) == (200, {"results": [None] * 5})


async def test_500_tokens_are_one_query_and_501_are_refused(
    client: Client, dsn: Dsn, tmp_path: Path, count_round_trips: CountRoundTrips
) -> None:
    service = await asyncio.to_thread(add, dsn, tmp_path)
    await register(client, "ada")
    mine = await log_in(client)
    tokens = [str(uuid.uuid4()) for _ in range(499)]
    with count_round_trips() as sent:
        status, answer = await check(client, service, [*tokens, mine])
    assert status == 200
    assert [bool(one) for one in answer["results"]] == [False] * 499 + [True]
    # The service's own token, then a query at once for the first session token and one for all others.
    assert 2 <= len(sent) <= 3
    status, answer = await check(client, service, [*tokens, mine, mine])
    assert (status, answer["errors"][0]["field"]) == (422, "tokens")
    status, answer = await check(client, service, ["x" * 25_000])
    assert (status, answer["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("tokens", "field"), [("x", "tokens"), ({}, "tokens"), ([7], "tokens.0"), (["a", None], "tokens.1")]
)
async def test_what_is_no_list_of_text_is_422_by_position(
    client: Client, dsn: Dsn, tmp_path: Path, tokens: object, field: str
) -> None:
    service = await asyncio.to_thread(add, dsn, tmp_path)
    status, answer = await check(client, service, tokens)
    assert (status, answer["errors"][0]["field"]) == (422, field)


async def test_a_revoked_service_is_401_at_its_next_call(client: Client, dsn: Dsn, tmp_path: Path) -> None:
    first = await asyncio.to_thread(add, dsn, tmp_path)
    other = await asyncio.to_thread(add, dsn, tmp_path, "mail")
    assert (await check(client, first, []))[0] == 200
    done = await asyncio.to_thread(gatepost, "service", "revoke", "billing", cwd=tmp_path, **environment_of(dsn))
    assert (done.returncode, done.stdout) == (0, "Revoked billing.\n")
    status, answer = await check(client, first, [])
    assert (status, answer["code"]) == (401, "unauthorized")
    assert (await check(client, other, []))[0] == 200
    assert rows(dsn, "SELECT kind, detail FROM gatepost.events WHERE kind LIKE 'service%%' ORDER BY id") == [
        ("service_added", {"by": "operator", "name": "billing"}),
        ("service_added", {"by": "operator", "name": "mail"}),
        ("service_revoked", {"by": "operator", "name": "billing"}),
    ]


async def test_a_user_needs_the_role_verifier(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    token = await log_in(client)
    assert (await check(client, token, []))[0] == 403
    rows(dsn, "UPDATE gatepost.users SET roles = '{verifiers,staff}' RETURNING 1")
    assert (await check(client, token, []))[0] == 403
    rows(dsn, "UPDATE gatepost.users SET roles = '{verifier}' RETURNING 1")
    status, answer = await check(client, token, [token])
    assert (status, answer["results"][0]["user"]["username"]) == (200, "ada")


@pytest.mark.parametrize(
    "token", ["", "gps_", "gps_" + "a" * 43, "00000000-0000-4000-8000-000000000000", "GPS_" + "a" * 43]
)
async def test_without_a_service_or_a_session_it_is_401(client: Client, token: str) -> None:
    status, answer = await check(client, token, [])
    assert (status, answer["code"]) == (401, "unauthorized")


async def test_a_service_token_opens_nothing_else(client: Client, dsn: Dsn, tmp_path: Path) -> None:
    service = await asyncio.to_thread(add, dsn, tmp_path)
    for method, path in (("GET", "/user"), ("GET", "/account"), ("GET", "/admin/users"), ("GET", "/authz/forward")):
        async with client.request(method, path, headers={"Authorization": service}) as answer:
            assert answer.status == 401, path


async def test_while_the_database_does_not_answer_the_whole_call_is_503(
    client: Client, dsn: Dsn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await asyncio.to_thread(add, dsn, tmp_path)
    lookup = client.server.app[LOOKUP]  # type: ignore[attr-defined]

    async def away(*_args: object, **_kwargs: object) -> None:
        raise DatabaseUnavailable("it is away")

    monkeypatch.setattr(lookup.database, "read_by", away)
    status, answer = await check(client, service, [str(uuid.uuid4()) for _ in range(5)])
    assert (status, answer["code"]) == (503, "database_unavailable")


def test_a_token_is_random_and_read_raw_or_after_bearer() -> None:
    token = new_token()
    assert token != new_token()
    assert service_token(token) == service_token(f"Bearer {token}") == service_token(f"bearer  {token}") == token
    for other in (token[:-1], token + "a", f"Basic {token}", f" {token}", token.upper(), f"{token}\n"):
        assert service_token(other) is None


def test_the_table_has_no_token(dsn: Dsn, tmp_path: Path) -> None:
    token = add(dsn, tmp_path)
    stored = rows(dsn, "SELECT s::text, encode(token_hash, 'escape') FROM gatepost.services s")
    assert token not in str(stored)
    assert token.removeprefix("gps_") not in str(stored)


def test_services_are_listed_and_mistakes_are_one_line(dsn: Dsn, tmp_path: Path, config: Config) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = gatepost("service", *arguments, cwd=tmp_path, **environment_of(dsn))
        return done.returncode, done.stdout, done.stderr

    add(dsn, tmp_path)
    code, said, _ = run("list")
    assert code == 0
    assert "billing" in said
    assert json.loads(run("list", "--json")[1])["services"][0]["name"] == "billing"
    assert run("add", "billing") == (
        1, "", "gatepost: there is a service billing already; `gatepost service revoke billing` removes it\n"
    )  # fmt: skip
    assert run("add", "Big Name")[2].startswith("gatepost: 'Big Name' is no service's name: ")
    assert run("revoke", "nobody") == (1, "", "gatepost: there is no service 'nobody'\n")
