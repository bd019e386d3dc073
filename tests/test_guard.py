"""Every route is public on purpose or guarded, and answers from the token alone."""

from pathlib import Path
from typing import Any

import pytest

from gatepost.config import Config
from gatepost.postgres.database import Dsn
from gatepost.routes import ROUTES
from gatepost.sessions.guard import GUARDED
from tests.conftest import Client, CountRoundTrips, log_in, register, rows, status_of, with_every_route

# Log out looks its token up by itself, in the statement that ends the session; forward authentication answers for
# other services. Metrics are for programs on this machine, or on the operators' address (test_metrics.py).
PUBLIC = {
    ("POST", "/user"),
    ("DELETE", "/user"),
    ("POST", "/account"),
    ("POST", "/account/password/redeem"),
    ("POST", "/account/recovery"),
    ("POST", "/account/emails/undo"),
    ("POST", "/user/factor"),
    ("POST", "/user/passkey"),
    ("POST", "/user/passkey/options"),
    ("GET", "/authz/forward"),
    ("GET", "/ping"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
}
# Guarded by a service's token, or a user's with the role verifier: tests/test_services.py.
OF_SERVICES = {("POST", "/authz/check"), ("GET", "/feed")}
ROUTE_TABLE = [(route.method, route.path, route.handler) for route in ROUTES]
PROTECTED = [(m, p) for m, p, handler in ROUTE_TABLE if (m, p) not in PUBLIC and not p.startswith("/docs/")]
ADMIN = [(m, p) for m, p, handler in ROUTE_TABLE if GUARDED.get(handler) == "admin"]


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return with_every_route(config, tmp_path)


def test_every_route_is_on_the_public_list_or_guarded() -> None:
    unguarded = {(m, p) for m, p, handler in ROUTE_TABLE if handler not in GUARDED}
    assert {(m, p) for m, p in unguarded if not p.startswith("/docs/")} <= PUBLIC | OF_SERVICES


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


# What each route answers to a user and to an administrator who is not bob, where what it names is bob's.
FOR_OTHERS: dict[tuple[str, str], tuple[int, int]] = {
    ("GET", "/user"): (200, 200),
    ("GET", "/account"): (200, 200),
    ("PATCH", "/account"): (200, 200),
    ("GET", "/account/export"): (200, 200),
    ("GET", "/sessions"): (200, 200),
    ("DELETE", "/sessions"): (200, 200),
    ("DELETE", "/sessions/{handle}"): (404, 404),
    # bob's password is not theirs, whatever their role.
    ("PUT", "/account/password"): (403, 403),
    ("DELETE", "/account"): (403, 403),
    ("GET", "/account/emails"): (200, 200),
    ("POST", "/account/emails"): (403, 403),
    ("POST", "/account/emails/{id}/verify"): (403, 403),
    ("PUT", "/account/emails/{id}/primary"): (404, 404),
    ("DELETE", "/account/emails/{id}"): (404, 404),
    ("GET", "/account/factors"): (200, 200),
    ("POST", "/account/factors"): (201, 201),
    ("POST", "/account/factors/{id}/confirm"): (404, 404),
    ("DELETE", "/account/factors/{id}"): (404, 404),
    ("POST", "/account/factors/recovery-codes"): (409, 409),
    ("POST", "/user/confirm"): (403, 403),
    ("GET", "/account/passkeys"): (200, 200),
    ("POST", "/account/passkeys/options"): (200, 200),
    ("POST", "/account/passkeys"): (403, 403),
    ("PATCH", "/account/passkeys/{id}"): (404, 404),
    ("DELETE", "/account/passkeys/{id}"): (404, 404),
    ("POST", "/authz/check"): (403, 403),
    ("GET", "/feed"): (403, 403),
    ("GET", "/user/events"): (200, 200),
    ("GET", "/admin/users"): (403, 200),
    ("POST", "/admin/users"): (403, 201),
    ("GET", "/admin/users/{id}"): (403, 200),
    ("PATCH", "/admin/users/{id}"): (403, 200),
    ("POST", "/admin/users/{id}/invitation"): (403, 409),
    ("POST", "/admin/users/{id}/password-reset"): (403, 200),
    ("GET", "/admin/users/{id}/sessions"): (403, 200),
    ("DELETE", "/admin/users/{id}/sessions/{handle}"): (403, 200),
    ("DELETE", "/admin/users/{id}/sessions"): (403, 200),
    ("DELETE", "/admin/users/{id}/throttle"): (403, 200),
    ("GET", "/admin/events"): (403, 200),
    ("GET", "/admin/users/{id}/factors"): (403, 200),
    ("DELETE", "/admin/users/{id}/factors"): (403, 200),
    ("DELETE", "/admin/users/{id}"): (403, 200),
}
BODIES = {
    ("PATCH", "/account"): {"profile": {"colour": "blue"}},
    ("PUT", "/account/password"): {"current": "bob's own password", "new": "a better horse and battery"},
    ("DELETE", "/account"): {"password": "bob's own password"},
    ("POST", "/account/emails"): {"email": "bob@example.org", "password": "bob's own password"},
    ("POST", "/account/emails/{id}/verify"): {"code": "0" * 32},
    ("POST", "/account/factors"): {},
    ("POST", "/account/passkeys"): {"credential": {}},
    ("PATCH", "/account/passkeys/{id}"): {"name": "mine"},
    ("POST", "/account/factors/{id}/confirm"): {"code": "000000"},
    ("POST", "/user/confirm"): {"password": "bob's own password"},
    ("POST", "/admin/users"): {"username": "eve"},
    ("PATCH", "/admin/users/{id}"): {"profile": {"colour": "red"}},
}


async def test_each_route_answers_each_role_as_expected_and_no_user_reaches_another_users_data(
    client: Client, dsn: Dsn, ada: dict[str, Any]
) -> None:
    assert set(FOR_OTHERS) == set(PROTECTED)
    bob = await register(client, "bob", "bob's own password")
    bobs = await log_in(client, "bob", "bob's own password")
    of_bob = (
        "SELECT u::text, p::text, (SELECT array_agg(s::text) FROM gatepost.sessions s WHERE s.user_id = u.id), "
        "(SELECT array_agg(e::text) FROM gatepost.emails e WHERE e.user_id = u.id), "
        "(SELECT array_agg(f::text) FROM gatepost.totp_factors f WHERE f.user_id = u.id), "
        "(SELECT array_agg(y::text) FROM gatepost.passkeys y WHERE y.user_id = u.id) "
        f"FROM gatepost.users u JOIN gatepost.passwords p ON p.user_id = u.id WHERE u.id = '{bob['id']}'"
    )
    handle = rows(dsn, "SELECT handle::text FROM gatepost.sessions")[0][0]
    email = rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, verified_at) "
        "VALUES (%s, 'bob@example.org', 'bob@example.org', now()) RETURNING id::text",
        bob["id"],
    )[0][0]
    factor = rows(
        dsn,
        "INSERT INTO gatepost.totp_factors (user_id, name, sealed, confirmed_at) "
        "VALUES (%s, 'Phone', %s, now()) RETURNING id::text",
        bob["id"],
        bytes(48),
    )[0][0]
    passkey = rows(
        dsn,
        "INSERT INTO gatepost.passkeys (user_id, credential_id, public_key, sign_count, name, synced, backed_up) "
        "VALUES (%s, 'id', 'key', 0, 'Laptop', false, false) RETURNING id::text",
        bob["id"],
    )[0][0]
    of_their_own = {"/account/emails": email, "/account/factors": factor, "/account/passkeys": passkey}
    before = rows(dsn, of_bob)

    async def ask(method: str, path: str, token: str) -> int:
        named = next((own for part, own in of_their_own.items() if path.startswith(part)), bob["id"])
        where = path.replace("{id}", named).replace("{handle}", handle)
        query = "?scope=others" if (method, path) == ("DELETE", "/sessions") else ""
        body = BODIES.get((method, path))
        async with client.request(method, where + query, json=body, headers={"Authorization": token}) as answer:
            return answer.status

    for roles, column in (("{}", 0), ("{staff,administrator}", 0), ("{admin}", 1)):
        rows(dsn, "UPDATE gatepost.users SET roles = %s WHERE id = %s", roles, ada["id"])
        token = await log_in(client)
        for (method, path), expected in FOR_OTHERS.items():
            status = await ask(method, path, token)
            assert status == expected[column], (roles, method, path)
            if column == 0 or not path.startswith("/admin"):
                assert rows(dsn, of_bob) == before, (roles, method, path)
    assert await status_of(client, bobs) == 401  # what an administrator may do was done
    assert rows(dsn, "SELECT canonical FROM gatepost.users ORDER BY 1") == [("ada",), ("eve",)]


@pytest.mark.parametrize(
    "token", ["{}-1000-8000-000000000000", "{}-4000-c000-000000000000", "{}-7000-8000-000000000000"]
)
async def test_a_token_that_is_no_version_4_uuid_is_401_before_the_database_is_asked(
    client: Client, count_round_trips: CountRoundTrips, token: str
) -> None:
    with count_round_trips() as sent:
        assert await status_of(client, token.format("00000000-0000")) == 401
    assert sent == []
