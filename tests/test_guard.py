"""Every route is public on purpose or guarded, and answers from the token alone."""

from typing import Any

import pytest

from gatepost.db import Dsn
from gatepost.routes import ROUTES
from gatepost.sessions.guard import GUARDED
from tests.conftest import Client, log_in, register, rows, status_of

# Log out looks its token up by itself, in the statement that ends the session; forward authentication answers for
# other services. Metrics are for programs on this machine, or on the operators' address (test_metrics.py).
PUBLIC = {
    ("POST", "/user"),
    ("DELETE", "/user"),
    ("POST", "/account"),
    ("POST", "/account/password/redeem"),
    ("GET", "/authz/forward"),
    ("GET", "/ping"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
}
ROUTE_TABLE = [(route.method, route.path, route.handler) for route in ROUTES]
PROTECTED = [(m, p) for m, p, handler in ROUTE_TABLE if (m, p) not in PUBLIC and not p.startswith("/docs/")]
ADMIN = [(m, p) for m, p, handler in ROUTE_TABLE if GUARDED.get(handler) == "admin"]


def test_every_route_is_on_the_public_list_or_guarded() -> None:
    unguarded = {(m, p) for m, p, handler in ROUTE_TABLE if handler not in GUARDED}
    assert {(m, p) for m, p in unguarded if not p.startswith("/docs/")} <= PUBLIC


def test_what_is_for_operators_demands_their_role() -> None:
    assert {(m, p) for m, p, _ in ROUTE_TABLE if p.startswith("/admin")} == set(ADMIN)


def path_of(template: str) -> str:
    for name in ("{handle}", "{id}"):
        template = template.replace(name, "00000000-0000-4000-8000-000000000000")
    return template


@pytest.mark.parametrize(("method", "path"), PROTECTED)
async def test_without_a_session_it_is_401_whatever_else_is_sent(
    client: Client, dsn: Dsn, method: str, path: str
) -> None:
    await register(client, "ada")
    token = await log_in(client)
    rows(dsn, "DELETE FROM gatepost.sessions")
    body = {"username": "ada", "user_id": "ada", "current": "x", "session_id": token}
    for headers in ({}, {"Authorization": token}, {"Authorization": "admin"}, {"Remote-User": "ada"}):
        answer = await client.request(method, path_of(path) + "?user=ada", json=body, headers=headers)
        assert answer.status == 401, (headers, await answer.text())
        assert "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_without_the_role_it_is_403_and_with_another_too(
    client: Client, dsn: Dsn, method: str, path: str
) -> None:
    await register(client, "ada")
    for roles in ("{}", "{administrator,Admin,admins}"):
        rows(dsn, "UPDATE gatepost.users SET roles = %s", roles)
        token = await log_in(client)
        answer = await client.request(method, path_of(path), json={}, headers={"Authorization": token})
        assert (answer.status, (await answer.json())["code"]) == (403, "forbidden")


async def test_what_i_am_told_is_mine_whoever_the_body_or_the_query_names(
    client: Client, ada: dict[str, Any]
) -> None:
    bob = await register(client, "bob")
    token, bobs = await log_in(client), await log_in(client, "bob")
    body = {"user": bob, "user_id": bob["id"], "id": bob["id"], "username": "bob"}
    for path in ("/user", "/account", "/account/export"):
        answer = await client.get(f"{path}?user_id={bob['id']}", json=body, headers={"Authorization": token})
        assert (await answer.json())["user"]["id"] == ada["id"]
    mine = await client.get("/sessions", json=body, headers={"Authorization": token})
    assert len((await mine.json())["sessions"]) == 1
    await client.delete("/sessions?scope=all", json=body, headers={"Authorization": token})
    assert [await status_of(client, t) for t in (token, bobs)] == [401, 200]
