"""`/admin`: who may, what it changes and records, pages, and the last administrator."""

import asyncio
import base64
import contextlib
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg2
import pytest

from gatepost.admin import cursor
from gatepost.config import AccountsConfig, Config
from gatepost.postgres.database import Dsn
from tests.conftest import (
    PASSWORD,
    Client,
    CountRoundTrips,
    PostgresServer,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
)

NOBODY = "00000000-0000-4000-8000-000000000000"


class Answer(NamedTuple):
    status: int
    body: Any


class Caller(NamedTuple):
    """Somebody who is signed in."""

    client: Client
    id: str
    token: str

    async def __call__(self, method: str, path: str, body: object = None, **query: Any) -> Answer:
        headers = {"Authorization": self.token}
        async with self.client.request(method, path, json=body, params=query, headers=headers) as answer:
            return Answer(answer.status, await answer.json(content_type=None))

    async def ok(self, method: str, path: str, body: object = None, **query: Any) -> Any:
        answer = await self(method, path, body, **query)
        assert answer.status in {200, 201}, answer
        return answer.body


async def an_admin(client: Client, dsn: Dsn, name: str) -> Caller:
    user = await register(client, name)
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE id = %s", user["id"])
    return Caller(client, user["id"], await log_in(client, name))


@pytest.fixture
async def root(client: Client, dsn: Dsn) -> Caller:
    """The only administrator."""
    return await an_admin(client, dsn, "root")


def user_path(user_id: str, *more: str) -> str:
    return "/".join(["/admin/users", user_id, *more])


def kinds(dsn: Dsn, user_id: str) -> list[str]:
    return [k for (k,) in rows(dsn, "SELECT kind FROM gatepost.events WHERE user_id = %s ORDER BY id", user_id)]


# ------------------------------------------------------------------------------------------------ who may

EVERYTHING = [
    ("GET", "/admin/users"),
    ("POST", "/admin/users"),
    ("GET", user_path(NOBODY)),
    ("PATCH", user_path(NOBODY)),
    ("DELETE", user_path(NOBODY)),
    ("POST", user_path(NOBODY, "password-reset")),
    ("GET", user_path(NOBODY, "sessions")),
    ("DELETE", user_path(NOBODY, "sessions")),
    ("DELETE", user_path(NOBODY, "sessions", NOBODY)),
    ("GET", "/admin/events"),
]


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
async def test_without_a_session_it_is_401_and_without_the_role_403(
    client: Client, dsn: Dsn, method: str, path: str
) -> None:
    user = await register(client, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admins,Admin,operator}'")
    ada = Caller(client, user["id"], await log_in(client))
    stranger = Caller(client, NOBODY, str(uuid.uuid4()))
    before = rows(dsn, "SELECT u::text FROM gatepost.users u"), rows(dsn, "SELECT count(*) FROM gatepost.events")
    body = {"username": "new"} if method in {"POST", "PATCH"} else None
    assert (await stranger(method, path, body)).status == 401
    refused = await ada(method, path, body)
    assert (refused.status, refused.body["code"]) == (403, "forbidden")
    after = rows(dsn, "SELECT u::text FROM gatepost.users u"), rows(dsn, "SELECT count(*) FROM gatepost.events")
    assert after == before


@pytest.mark.parametrize(
    ("method", "path"), [(method, path) for method, path in EVERYTHING if path.startswith(user_path(""))]
)
@pytest.mark.parametrize("name", [NOBODY, NOBODY.upper().replace("4", "A"), "root", "1", "%00", "'; DROP", "é" * 50])
async def test_a_user_that_does_not_exist_is_404_whatever_its_name(
    root: Caller, method: str, path: str, name: str
) -> None:
    assert (await root(method, path.replace(NOBODY, name), {} if method == "PATCH" else None)).status == 404


async def test_an_admin_who_is_demoted_is_out_at_once(root: Caller, client: Client, dsn: Dsn) -> None:
    other = await an_admin(client, dsn, "other")
    await root.ok("PATCH", user_path(other.id), {"roles": []})
    assert (await other("GET", "/admin/users")).status == 401
    again = other._replace(token=await log_in(client, "other"))
    assert (await again("GET", "/admin/users")).status == 403


# ------------------------------------------------------------------------------------------------- adding


async def test_an_operator_vouches_for_an_address_and_finds_users_by_it(root: Caller, dsn: Dsn) -> None:
    answer = await root("POST", "/admin/users", {"username": "zoe", "email": "Zoe@Example.org"})
    assert answer.status == 201
    zoe = answer.body["user"]
    assert zoe["emails"] == [{"address": "Zoe@example.org", "verified": True, "primary": True}]
    assert await root.ok("GET", user_path(zoe["id"])) == {"user": zoe}
    taken = await root("POST", "/admin/users", {"username": "eve", "email": "zoe@EXAMPLE.org"})
    assert (taken.status, taken.body["code"]) == (409, "email_taken")
    wrong = await root("POST", "/admin/users", {"username": "eve", "email": "zoe"})
    assert (wrong.status, wrong.body["errors"][0]["field"]) == (422, "email")
    bob = (await root.ok("POST", "/admin/users", {"username": "bob"}))["user"]
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical) VALUES (%s, 'zoe@example.org', 'zoe@example.org') "
        "RETURNING 1",
        bob["id"],
    )
    found = await root.ok("GET", "/admin/users", email="ZOE@example.org")
    assert [user["username"] for user in found["users"]] == ["bob", "zoe"]
    assert found["users"][0]["emails"] == [{"address": "zoe@example.org", "verified": False, "primary": False}]
    for nobody in ("zoe", "no@example.org", "zoe@example.org,eve@example.org", ""):
        assert (await root.ok("GET", "/admin/users", email=nobody))["users"] == []


async def test_an_added_user_has_no_password_but_a_code_to_choose_one(root: Caller, client: Client, dsn: Dsn) -> None:
    asked = {"username": "Zoë", "roles": ["writer", "editor", "writer"], "profile": {"team": "a", "gone": None}}
    answer = await root("POST", "/admin/users", asked)
    assert answer.status == 201
    user, reset = answer.body["user"], answer.body["reset"]
    assert set(answer.body) == {"user", "reset"}
    assert {k: user[k] for k in ("username", "roles", "profile", "has_password", "disabled_at")} == {
        "username": "Zoë",
        "roles": ["editor", "writer"],
        "profile": {"team": "a"},
        "has_password": False,
        "disabled_at": None,
    }
    assert await root.ok("GET", user_path(user["id"])) == {"user": user}
    left = datetime.fromisoformat(reset["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=58) < left < timedelta(minutes=62)
    assert (await client.post("/user", json={"username": "Zoë", "password": ""})).status == 401
    chosen = await client.post("/account/password/redeem", json={"code": reset["code"], "new": PASSWORD})
    assert chosen.status == 200
    await log_in(client, "zoë")
    assert (await root.ok("GET", user_path(user["id"])))["user"]["has_password"] is True


async def test_adding_a_user_records_who_did_it(root: Caller, dsn: Dsn) -> None:
    user = (await root.ok("POST", "/admin/users", {"username": "ada", "roles": ["editor"]}))["user"]
    found = rows(
        dsn,
        "SELECT kind, actor_id::text, host(ip), user_agent LIKE 'Python%%', detail FROM gatepost.events "
        "WHERE user_id = %s ORDER BY id",
        user["id"],
    )
    assert found == [
        ("user_created", root.id, "127.0.0.1", True, {"roles": ["editor"]}),
        ("authn_password_reset_started", root.id, "127.0.0.1", True, {}),
    ]


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "username", "required"),
        ({"username": "a b"}, "username", "invalid_username"),
        ({"username": 1}, "username", "not_a_string"),
        ({"username": "x", "password": PASSWORD}, "password", "unknown_field"),
        ({"username": "x", "id": NOBODY}, "id", "unknown_field"),
        ({"username": "x", "roles": "admin"}, "roles", "list_type"),
        ({"username": "x", "roles": ["no role"]}, "roles.0", "string_pattern_mismatch"),
        ({"username": "x", "roles": ["a", "b\n"]}, "roles.1", "string_pattern_mismatch"),
        ({"username": "x", "roles": ["a" * 65]}, "roles.0", "string_pattern_mismatch"),
        ({"username": "x", "roles": ["'); DROP"]}, "roles.0", "string_pattern_mismatch"),
        ({"username": "x", "roles": [f"r{n}" for n in range(33)]}, "roles", "too_long"),
        ({"username": "x", "profile": []}, "profile", "dict_type"),
        ({"username": "x", "profile": {"k": "v" * 4090}}, "profile", "profile_too_large"),
        ({"username": "x", "profile": {"k": [1e-300] * 40}}, "profile", "profile_too_large"),
    ],
)
async def test_a_user_that_cannot_be_added_is_422_by_field(
    root: Caller, dsn: Dsn, body: dict[str, Any], field: str, code: str
) -> None:
    answer = await root("POST", "/admin/users", body)
    assert answer.status == 422
    assert [(error["field"], error["code"]) for error in answer.body["errors"]] == [(field, code)]
    assert rows(dsn, "SELECT count(*) FROM gatepost.users") == [(1,)]


async def test_a_taken_name_is_409_in_every_spelling_and_starts_no_reset(root: Caller, dsn: Dsn) -> None:
    await root.ok("POST", "/admin/users", {"username": "zoë"})
    answer = await root("POST", "/admin/users", {"username": "ZOE\u0308"})
    assert (answer.status, answer.body["code"]) == (409, "username_taken")
    assert rows(dsn, "SELECT count(*) FROM gatepost.password_resets") == [(1,)]


# ----------------------------------------------------------------------------------------------- changing


@pytest.fixture
async def ada(client: Client) -> Caller:
    """An ordinary user with a session."""
    user = await register(client, "ada")
    return Caller(client, user["id"], await log_in(client))


async def test_name_and_profile_are_changed_and_sessions_stay(root: Caller, ada: Caller, dsn: Dsn) -> None:
    await root.ok("PATCH", user_path(ada.id), {"profile": {"team": {"name": "a", "floor": 3}, "x": 1}})
    body = {"username": "Lovelace", "profile": {"team": {"floor": None}, "x": None, "y": [1]}}
    user = (await root.ok("PATCH", user_path(ada.id), body))["user"]
    assert (user["username"], user["profile"]) == ("Lovelace", {"team": {"name": "a"}, "y": [1]})
    assert await status_of(ada.client, ada.token) == 200
    await log_in(ada.client, "LOVELACE")
    await register(ada.client, "ada")  # the old name is free
    changes = rows(dsn, "SELECT actor_id::text, detail FROM gatepost.events WHERE kind = 'user_updated' ORDER BY id")
    assert changes == [(root.id, {"changed": ["profile"]}), (root.id, {"changed": ["username", "profile"]})]


async def test_new_roles_end_the_sessions_and_are_recorded_old_and_new(root: Caller, ada: Caller, dsn: Dsn) -> None:
    user = (await root.ok("PATCH", user_path(ada.id), {"roles": ["editor", "admin", "editor"]}))["user"]
    assert user["roles"] == ["admin", "editor"]
    assert await status_of(ada.client, ada.token) == 401
    assert rows(dsn, "SELECT epoch FROM gatepost.users WHERE canonical = 'ada'") == [(2,)]
    assert kinds(dsn, ada.id)[2:] == ["privilege_permissions_changed", "session_revoked"]
    found = rows(dsn, "SELECT actor_id::text, detail FROM gatepost.events ORDER BY id DESC LIMIT 2")
    assert found == [
        (root.id, {"reason": "roles_changed"}),
        (root.id, {"old": [], "new": ["admin", "editor"]}),
    ]
    fresh = ada._replace(token=await log_in(ada.client))
    assert (await fresh("GET", "/admin/users")).status == 200


async def test_a_reset_that_was_started_before_a_disabling_is_worth_nothing_after_it(
    root: Caller, ada: Caller, client: Client, dsn: Dsn
) -> None:
    reset = (await root.ok("POST", user_path(ada.id, "password-reset")))["reset"]
    await root.ok("PATCH", user_path(ada.id), {"disabled": True})
    assert rows(dsn, "SELECT count(*) FROM gatepost.password_resets") == [(0,)]
    await root.ok("PATCH", user_path(ada.id), {"disabled": False})
    body = {"code": reset["code"], "new": "a better horse and battery"}
    async with client.post("/account/password/redeem", json=body) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "invalid_code")


async def test_roles_as_they_were_change_nothing(root: Caller, ada: Caller, dsn: Dsn) -> None:
    await root.ok("PATCH", user_path(root.id), {"roles": ["admin", "admin"], "disabled": False})
    await root.ok("PATCH", user_path(ada.id), {})
    assert await status_of(ada.client, ada.token) == 200
    assert kinds(dsn, root.id) == kinds(dsn, ada.id) == ["user_created", "authn_login_success"]


async def test_a_disabled_user_is_out_until_enabled(root: Caller, ada: Caller, dsn: Dsn) -> None:
    reset = (await root.ok("POST", user_path(ada.id, "password-reset")))["reset"]
    user = (await root.ok("PATCH", user_path(ada.id), {"disabled": True}))["user"]
    assert user["disabled_at"] is not None
    assert await status_of(ada.client, ada.token) == 401
    assert (await ada.client.post("/user", json={"username": "ada", "password": PASSWORD})).status == 401
    again = (await root.ok("PATCH", user_path(ada.id), {"disabled": True}))["user"]
    assert again == user
    assert rows(dsn, "SELECT epoch FROM gatepost.users WHERE canonical = 'ada'") == [(2,)]
    assert (await root.ok("PATCH", user_path(ada.id), {"disabled": False}))["user"]["disabled_at"] is None
    assert await status_of(ada.client, ada.token) == 401
    await log_in(ada.client)
    # What was started before does not count any more.
    redeem = await ada.client.post("/account/password/redeem", json={"code": reset["code"], "new": PASSWORD + "!"})
    assert redeem.status == 403
    done = [kind for kind in kinds(dsn, ada.id) if kind.startswith(("user", "session"))]
    assert done == ["user_created", "user_disabled", "session_revoked", "user_enabled"]


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"username": ""}, "username", "invalid_username"),
        ({"username": None}, "username", "not_a_string"),
        ({"disabled": "true"}, "disabled", "bool_type"),
        ({"disabled": None}, "disabled", "bool_type"),
        ({"roles": None}, "roles", "list_type"),
        ({"roles": ["a", 1]}, "roles.1", "not_a_string"),
        ({"profile": None}, "profile", "dict_type"),
        ({"password": PASSWORD}, "password", "unknown_field"),
        ({"epoch": 7}, "epoch", "unknown_field"),
        ({"profile": {"b": "v" * 2100}}, "profile", "profile_too_large"),
        ({"profile": {"b": [1e-300] * 40}}, "profile", "profile_too_large"),
    ],
)
async def test_a_change_that_cannot_be_is_422_and_changes_nothing(
    root: Caller, ada: Caller, dsn: Dsn, body: dict[str, Any], field: str, code: str
) -> None:
    await root.ok("PATCH", user_path(ada.id), {"profile": {"a": "v" * 2100}})
    before = rows(dsn, "SELECT u::text FROM gatepost.users u ORDER BY id")
    answer = await root("PATCH", user_path(ada.id), {"roles": ["admin"]} | body)
    assert answer.status == 422
    assert [(error["field"], error["code"]) for error in answer.body["errors"]] == [(field, code)]
    assert rows(dsn, "SELECT u::text FROM gatepost.users u ORDER BY id") == before


async def test_a_change_to_a_taken_name_changes_nothing_else_either(root: Caller, ada: Caller, dsn: Dsn) -> None:
    answer = await root("PATCH", user_path(ada.id), {"username": "ROOT", "roles": ["admin"], "disabled": True})
    assert (answer.status, answer.body["code"]) == (409, "username_taken")
    assert await status_of(ada.client, ada.token) == 200
    assert kinds(dsn, ada.id) == ["user_created", "authn_login_success"]


async def test_changes_at_once_to_one_profile_all_count(root: Caller, ada: Caller) -> None:
    changes = [{"profile": {f"k{n}": n}} for n in range(12)]
    await asyncio.gather(*(root.ok("PATCH", user_path(ada.id), change) for change in changes))
    user = (await root.ok("GET", user_path(ada.id)))["user"]
    assert user["profile"] == {f"k{n}": n for n in range(12)}


async def test_where_an_administrator_sits_is_in_their_export_and_not_in_the_users(root: Caller, ada: Caller) -> None:
    await root.ok("PATCH", user_path(ada.id), {"profile": {"a": 1}})
    await ada.ok("PATCH", "/account", {"profile": {"a": 2}})
    events = (await ada.ok("GET", "/account/export"))["events"]
    assert [(one["kind"], one["ip"], one["user_agent"] is None) for one in events[-2:]] == [
        ("user_updated", None, True),
        ("user_updated", "127.0.0.1", False),
    ]
    own = await root.ok("GET", "/account/export")
    assert [sorted(one) for one in own["events_as_administrator"]] == [["at", "ip", "kind", "user_agent"]]
    assert own["events_as_administrator"][0]["ip"] == "127.0.0.1"
    assert ada.id not in json.dumps(own)
    await root.ok("PATCH", user_path(root.id), {"profile": {"a": 1}})
    again = await root.ok("GET", "/account/export")
    assert again["events_as_administrator"] == own["events_as_administrator"]
    assert (again["events"][-1]["kind"], again["events"][-1]["ip"]) == ("user_updated", "127.0.0.1")


async def test_a_deleted_user_leaves_events_with_an_id_and_no_name(root: Caller, ada: Caller, dsn: Dsn) -> None:
    await root.ok("POST", user_path(ada.id, "password-reset"))
    assert await root.ok("DELETE", user_path(ada.id)) == {"status": "success"}
    assert await status_of(ada.client, ada.token) == 401
    assert (await root("GET", user_path(ada.id))).status == 404
    assert kinds(dsn, ada.id)[-2:] == ["user_deleted", "session_revoked"]
    for table in ("users", "passwords", "sessions", "password_resets"):
        where = "WHERE id = %s" if table == "users" else "WHERE user_id = %s"
        assert rows(dsn, f"SELECT 1 FROM gatepost.{table} {where}", ada.id) == []
    # As a word: three letters may well be three digits of an id.
    assert rows(dsn, r"SELECT e FROM gatepost.events e WHERE e::text ~ '\mada\M'") == []
    assert (await register(ada.client, "ada"))["id"] != ada.id


# --------------------------------------------------------------------------------------- password resets


async def test_a_reset_leaves_password_and_sessions_until_it_is_used_once(
    root: Caller, ada: Caller, dsn: Dsn
) -> None:
    first = (await root.ok("POST", user_path(ada.id, "password-reset")))["reset"]
    second = (await root.ok("POST", user_path(ada.id, "password-reset")))["reset"]
    assert first["code"] != second["code"]
    assert len(bytes.fromhex(second["code"])) == 16
    assert await status_of(ada.client, ada.token) == 200
    await log_in(ada.client)

    async def redeem(code: str) -> int:
        body = {"code": code, "new": "a completely new password"}
        async with ada.client.post("/account/password/redeem", json=body) as answer:
            return answer.status

    typed = f" {second['code'][:16].upper()} {second['code'][16:]}\n"
    assert [await redeem(code) for code in (first["code"], typed, second["code"])] == [403, 200, 403]
    assert await status_of(ada.client, ada.token) == 401
    started = rows(
        dsn, "SELECT actor_id::text, detail FROM gatepost.events WHERE kind = 'authn_password_reset_started'"
    )
    assert started == [(root.id, {}), (root.id, {})]


async def test_of_a_reset_the_database_holds_a_hash_only_and_its_time_is_configured(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    accounts = AccountsConfig(registration="open", reset_lifetime=120)
    client = await start_server(config.model_copy(update={"accounts": accounts}))
    root = await an_admin(client, dsn, "root")
    reset = (await root.ok("POST", user_path(root.id, "password-reset")))["reset"]
    assert timedelta(0) < datetime.fromisoformat(reset["expires_at"]) - datetime.now(UTC) <= timedelta(seconds=121)
    for table in ("users", "password_resets", "events"):
        dump = repr(rows(dsn, f"SELECT t::text FROM gatepost.{table} t"))
        assert reset["code"] not in dump
    assert rows(dsn, "SELECT code_hash = sha256(%s) FROM gatepost.password_resets", reset["code"].encode()) == [
        (True,)
    ]


# ----------------------------------------------------------------------------------------------- sessions


async def test_the_sessions_of_a_user_are_listed_and_ended(root: Caller, ada: Caller, dsn: Dsn) -> None:
    other = await log_in(ada.client)
    sessions = (await root.ok("GET", user_path(ada.id, "sessions")))["sessions"]
    assert len(sessions) == 2
    keys = {"handle", "created_at", "last_seen_at", "expires_at", "ip", "user_agent", "amr", "authenticated_at"}
    assert set(sessions[0]) == keys
    assert ada.token not in json.dumps(sessions)
    assert sessions == sorted(sessions, key=lambda s: s["created_at"], reverse=True)
    newest = user_path(ada.id, "sessions", sessions[0]["handle"])
    assert (await root("DELETE", user_path(root.id, "sessions", sessions[0]["handle"]))).status == 404
    assert [(await root("DELETE", newest)).status for _ in range(2)] == [200, 404]
    assert [await status_of(ada.client, token) for token in (ada.token, other)] == [200, 401]
    await root.ok("DELETE", user_path(ada.id, "sessions"))
    assert await status_of(ada.client, ada.token) == 401
    assert (await root.ok("GET", user_path(ada.id, "sessions")))["sessions"] == []
    assert rows(dsn, "SELECT epoch FROM gatepost.users WHERE canonical = 'ada'") == [(2,)]
    revoked = rows(
        dsn,
        "SELECT actor_id::text, detail, session_handle::text FROM gatepost.events WHERE kind = 'session_revoked' "
        "ORDER BY id",
    )
    assert revoked == [(root.id, {"reason": "admin"}, session["handle"]) for session in sessions]


# -------------------------------------------------------------------------------------------------- pages


def seed(dsn: Dsn, *names: str, roles: str = "{}", disabled: bool = False) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.users (username, canonical, roles, disabled_at) "
        "SELECT n, n, %s, CASE WHEN %s THEN now() END FROM unnest(%s) AS n",
        roles,
        disabled,
        list(names),
    )


async def names_of(root: Caller, limit: int = 100, **query: Any) -> list[str]:
    """Every name that all pages show."""
    found: list[str] = []
    more: dict[str, Any] = {}
    while True:
        page = await root.ok("GET", "/admin/users", limit=limit, **query, **more)
        found += [user["username"] for user in page["users"]]
        if page["next"] is None:
            return found
        assert len(page["users"]) == limit
        assert more != {"cursor": page["next"]}, "this page ends where the one before ended"
        more = {"cursor": page["next"]}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_of_every_size_show_each_user_once_in_order(root: Caller, dsn: Dsn, limit: int) -> None:
    names = ["a", "a.b", "ab", "b", "zoë", "zz", "ß", "я", "中", "𐐨"]
    seed(dsn, *names)
    assert await names_of(root, limit) == sorted([*names, "root"], key=str.encode)


async def test_a_page_has_fifty_users_unless_asked_otherwise_and_no_secret(root: Caller, dsn: Dsn) -> None:
    seed(dsn, *(f"user{n}" for n in range(60)))
    page = await root.ok("GET", "/admin/users")
    assert len(page["users"]) == 50
    assert set(page["users"][0]) == {
        "id",
        "username",
        "roles",
        "profile",
        "has_password",
        "emails",
        "created_at",
        "disabled_at",
    }


async def test_filters_combine(root: Caller, dsn: Dsn) -> None:
    seed(dsn, "anna", "anno", "bert")
    seed(dsn, "annie", "carl", roles="{editor,writer}")
    seed(dsn, "annabel", "dora", disabled=True)
    seed(dsn, "annika", "emil", roles="{editor}", disabled=True)
    assert await names_of(root, prefix="ann") == ["anna", "annabel", "annie", "annika", "anno"]
    assert await names_of(root, role="editor") == ["annie", "annika", "carl", "emil"]
    assert await names_of(root, role="writer") == ["annie", "carl"]
    assert await names_of(root, role="admin") == ["root"]
    for nothing in (
        "nobody",
        "Editor",
        "",
        "%",
        "editor}",
        "{}",
        "a' OR true --",
        "'); DROP TABLE gatepost.users; --",
    ):
        assert await names_of(root, role=nothing) == []
    seed(dsn, "imported", roles='{"team:Write"}')
    assert await names_of(root, role="team:Write") == ["imported"]
    rows(dsn, "DELETE FROM gatepost.users WHERE canonical = 'imported'")
    assert await names_of(root, disabled="true") == ["annabel", "annika", "dora", "emil"]
    assert await names_of(root, disabled="false") == ["anna", "annie", "anno", "bert", "carl", "root"]
    assert await names_of(root, 1, prefix="ann", disabled="true") == ["annabel", "annika"]
    assert await names_of(root, 1, prefix="ann", role="editor", disabled="true") == ["annika"]
    assert await names_of(root, 1, role="editor", disabled="false") == ["annie", "carl"]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("ZO", ["zoë", "zo%e", "zo_e"]),
        ("ｚｏ", ["zoë", "zo%e", "zo_e"]),
        ("ZOE\u0308", ["zoë"]),
        ("zo%", ["zo%e"]),
        ("zo_", ["zo_e"]),
        ("%", []),
        ("_", []),
        ("zo\\", []),
        ("'", []),
        ("' OR true --", []),
        ("zo'); DROP TABLE gatepost.users; --", []),
        ("l·", ["l·l"]),  # RFC 8265 allows it between two l only, so never at the end of a name
        ("\u05d0", ["\u05d0\u05d1"]),
        ("\U0010ffff", []),
    ],
)
async def test_a_prefix_is_of_the_canonical_name_and_literal(
    root: Caller, dsn: Dsn, typed: str, found: list[str]
) -> None:
    seed(dsn, "zoë", "zo%e", "zo_e", "zap", "l·l", "\u05d0\u05d1")
    assert sorted(await names_of(root, prefix=typed)) == sorted(found)
    assert rows(dsn, "SELECT count(*) FROM gatepost.users") == [(7,)]


async def test_pages_are_whole_and_without_doubles_while_users_come_and_go(root: Caller, dsn: Dsn) -> None:
    there = [f"m{n:03}" for n in range(0, 300, 3)]
    seed(dsn, *there)
    walks: list[list[str]] = []

    async def come_and_go() -> None:
        for n in range(1, 300, 3):
            if n == 151:  # half of them during the first walk, half after it
                await eventually(lambda: bool(walks))
            await asyncio.to_thread(seed, dsn, f"m{n:03}")
            if n % 2:
                await asyncio.to_thread(rows, dsn, "DELETE FROM gatepost.users WHERE canonical = %s", f"m{n:03}")

    coming = asyncio.create_task(come_and_go())
    while not coming.done():
        walks.append(await names_of(root, 7, prefix="m"))
    await coming
    assert len(walks) > 1
    for walk in walks:
        assert walk == sorted(set(walk))
        assert set(there) <= set(walk)


def a_cursor(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


BAD_CURSORS = [
    "",
    "x",
    "=",
    "' OR 1=1 --",
    "YQ",
    a_cursor(b""),
    a_cursor(b"\x00a"),
    a_cursor(b"\x03a"),
    a_cursor(b"a"),
    a_cursor(b"\x01\x00"),
    a_cursor(b"\x01a\x00b"),
    a_cursor(b"\x01\xff\xfe"),
    a_cursor(b"\x01\xed\xa0\x80"),
    a_cursor(b"\x02abc"),
    a_cursor(b"\x02" + b"\x7f" * 16),
    a_cursor(b"\x02" + b"\x80" * 16),
    a_cursor(b"\x02" + b"\x00" * 15),
    a_cursor(b"\x02" + b"\x00" * 17),
    cursor.after_name("abc") + "=",
    cursor.after_name("abc") + "\n",
    cursor.after_name("abc")[:-1] + "9",
    "é",
    "A" * 4000,
]


@pytest.mark.parametrize("path", ["/admin/users", "/admin/events"])
@pytest.mark.parametrize("bad", BAD_CURSORS, ids=range(len(BAD_CURSORS)))
async def test_a_malformed_cursor_is_422_and_named(root: Caller, path: str, bad: str) -> None:
    answer = await root("GET", path, cursor=bad)
    assert answer.status == 422
    assert [error["field"] for error in answer.body["errors"]] == ["cursor"]


async def test_a_cursor_of_one_list_is_refused_by_the_other(root: Caller) -> None:
    assert (await root("GET", "/admin/events", cursor=cursor.after_name("a"))).status == 422
    assert (await root("GET", "/admin/users", cursor=cursor.before_event(datetime.now(UTC), 7))).status == 422


@pytest.mark.parametrize("name", ["a", "'; DROP TABLE gatepost.users; --", "\U0010ffff" * 128, "%"])
async def test_a_cursor_made_by_hand_can_do_no_more_than_one_that_was_given(
    root: Caller, dsn: Dsn, name: str
) -> None:
    seed(dsn, "zoë")
    page = await root.ok("GET", "/admin/users", cursor=cursor.after_name(name))
    expected = [known for known in ("root", "zoë") if known.encode() > name.encode()]
    assert [user["username"] for user in page["users"]] == expected


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/admin/users", "limit", "0"),
        ("/admin/users", "limit", "101"),
        ("/admin/users", "limit", "-1"),
        ("/admin/users", "limit", "ten"),
        ("/admin/users", "limit", "9" * 400),
        ("/admin/users", "disabled", "1"),
        ("/admin/users", "disabled", "True"),
        ("/admin/users", "role", "x" * 65),
        ("/admin/users", "prefix", "x" * 129),
        ("/admin/users", "order", "created_at; DROP"),
        ("/admin/events", "limit", "101"),
        ("/admin/events", "user", "root"),
        ("/admin/events", "user", "{" + NOBODY + "}"),
        ("/admin/events", "actor", "root"),
        ("/admin/events", "kind", "'; DROP TABLE gatepost.events; --"),
        ("/admin/events", "kind", "User_Created"),
        ("/admin/events", "from", "yesterday"),
        ("/admin/events", "from", "2026-01-01"),
        ("/admin/events", "from", "1767225600"),
        ("/admin/events", "to", "2026-01-01T00:00:00"),
        ("/admin/events", "to", "2026-13-01T00:00:00Z"),
        ("/admin/events", "to", "now()"),
        ("/admin/events", "to", "0001-01-01T00:00:00+00:01"),
        ("/admin/events", "since", "2026-01-01T00:00:00Z"),
    ],
)
async def test_a_bad_parameter_is_422_and_named(root: Caller, path: str, field: str, value: str) -> None:
    answer = await root("GET", path, **{field: value})
    assert answer.status == 422
    assert [error["field"] for error in answer.body["errors"]] == [field]
    assert "Value error" not in answer.body["detail"]


@pytest.mark.parametrize("name", ["cursor", "prefix", "role", "kind", "user", "from", "nonsense"])
@pytest.mark.parametrize("path", ["/admin/users", "/admin/events"])
async def test_nul_in_a_parameter_is_400(root: Caller, path: str, name: str) -> None:
    assert (await root("GET", path, **{name: "a\0"})).status == 400


# ------------------------------------------------------------------------------------------------- events


async def events_of(root: Caller, **query: Any) -> list[dict[str, Any]]:
    """Every event that all pages show."""
    found: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    while True:
        page = await root.ok("GET", "/admin/events", **{"limit": 100} | query, **more)
        found += page["events"]
        if page["next"] is None:
            return found
        more = {"cursor": page["next"]}


async def test_events_are_listed_newest_first_and_filtered(root: Caller, ada: Caller, dsn: Dsn) -> None:
    await root.ok("PATCH", user_path(ada.id), {"roles": ["editor"]})
    everything = await events_of(root, limit=2)
    assert [event["id"] for event in everything] == sorted((e["id"] for e in everything), reverse=True)
    assert [event["kind"] for event in everything[:2]] == ["session_revoked", "privilege_permissions_changed"]
    assert everything[1] == {
        "id": everything[1]["id"],
        "at": everything[1]["at"],
        "kind": "privilege_permissions_changed",
        "user_id": ada.id,
        "actor_id": root.id,
        "session_handle": None,
        "ip": "127.0.0.1",
        "user_agent": everything[0]["user_agent"],
        "detail": {"old": [], "new": ["editor"]},
    }
    assert len(everything) == len(rows(dsn, "SELECT 1 FROM gatepost.events"))
    assert [e["kind"] for e in await events_of(root, user=ada.id, limit=1)] == kinds(dsn, ada.id)[::-1]
    both = await events_of(root, user=ada.id, kind="authn_login_success")
    assert [(e["user_id"], e["kind"]) for e in both] == [(ada.id, "authn_login_success")]
    assert [e["kind"] for e in await events_of(root, actor=root.id)] == [e["kind"] for e in everything[:2]]
    for nothing in ({"actor": ada.id}, {"kind": "no_such_kind"}, {"user": NOBODY}):
        assert await events_of(root, **nothing) == []


async def test_events_are_filtered_by_time_also_when_times_stand_close(root: Caller, dsn: Dsn) -> None:
    # A second apart, some numbers swapped, as by two transactions at once; and some long ago.
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, at) SELECT 'test', timestamptz '2026-01-01T00:00:00Z' + "
        "make_interval(secs => n # 1) FROM generate_series(0, 2999) AS n ORDER BY n",
    )
    rows(
        dsn, "INSERT INTO gatepost.events (kind, at) SELECT 'test', '2025-01-01T00:00:00Z' FROM generate_series(1, 3)"
    )
    midnight = datetime(2026, 1, 1, tzinfo=UTC)

    async def between(since: datetime | None, until: datetime | None, **query: Any) -> int:
        times = {name: at.isoformat() for name, at in (("from", since), ("to", until)) if at}
        return len(await events_of(root, **times, **query))

    def second(n: int) -> datetime:
        return midnight + timedelta(seconds=n)

    assert await between(second(0), second(3000)) == 3000
    assert await between(second(100), second(103)) == 3
    assert await between(second(101), second(102), kind="test") == 1
    assert await between(second(2999), second(9999)) == 1
    assert await between(None, midnight) == 3
    assert await between(None, second(1), limit=1) == 4
    assert await between(midnight.astimezone(), None, kind="test") == 3000
    assert await between(second(5), second(5)) == 0
    assert len(await events_of(root, **{"from": "2026-01-01t00:00:00.123456789z", "kind": "test"})) == 2999
    for far in ("2026-01-01T23:59:00+23:59", "2025-12-31T00:01:00-23:59"):
        assert len(await events_of(root, **{"from": far, "kind": "test"})) == 3000


# ------------------------------------------------------------------------------- one query, and its index


@pytest.fixture
def many_users(root: Caller, dsn: Dsn) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.users (username, canonical, roles, disabled_at) SELECT n, n, "
        "CASE WHEN i % 500 = 0 THEN '{editor}'::text[] ELSE '{}' END, CASE WHEN i % 300 = 0 THEN now() END "
        "FROM (SELECT i, 'user' || i AS n FROM generate_series(1, 20000) AS i) AS u".replace("%", "%%"),
    )
    rows(
        dsn,
        "INSERT INTO gatepost.passwords (user_id, setting, digest, norm) "
        "SELECT id, '$argon2id$v=19$m=8192,t=1,p=1$c2FsdHNhbHQ', sha256(''), 'opaque' FROM gatepost.users u "
        "WHERE NOT EXISTS (SELECT 1 FROM gatepost.passwords p WHERE p.user_id = u.id)",
    )
    rows(
        dsn,
        "INSERT INTO gatepost.events (kind, user_id, at) SELECT CASE WHEN i % 200 = 0 THEN 'rare' ELSE 'often' END, "
        "(ARRAY(SELECT id FROM gatepost.users LIMIT 100))[1 + i % 100], now() - make_interval(secs => 20000 - i) "
        "FROM generate_series(1, 20000) AS i".replace("%", "%%"),
    )
    rows(dsn, "ANALYZE gatepost.users, gatepost.events, gatepost.passwords")


def plan_of(dsn: Dsn, statement: str) -> str:
    return "\n".join(line for (line,) in rows(dsn, "EXPLAIN " + statement.replace("%", "%%")))


USER_QUERIES: list[tuple[dict[str, str], str]] = [
    ({}, "users_canonical_key"),
    ({"cursor": cursor.after_name("user5")}, "users_canonical_key"),
    ({"prefix": "user77"}, "users_canonical_key"),
    ({"prefix": "user77", "cursor": cursor.after_name("user775")}, "users_canonical_key"),
    ({"disabled": "false"}, "users_canonical_key"),
    ({"disabled": "false", "prefix": "user77"}, "users_canonical_key"),
    ({"disabled": "true"}, "users_disabled_idx"),
    ({"disabled": "true", "cursor": cursor.after_name("user5")}, "users_disabled_idx"),
    ({"role": "editor"}, "users_roles_idx"),
    ({"role": "nobody"}, "users_roles_idx"),
    ({"role": "editor", "disabled": "false"}, "users_roles_idx"),
    ({"role": "editor", "disabled": "true"}, "users_"),
    ({"role": "editor", "prefix": "user7"}, "users_"),
]


@pytest.mark.usefixtures("many_users")
@pytest.mark.parametrize(("query", "index"), USER_QUERIES)
async def test_a_page_of_users_is_one_query_that_walks_an_index(
    root: Caller, dsn: Dsn, count_round_trips: CountRoundTrips, query: dict[str, str], index: str
) -> None:
    with count_round_trips() as sent:
        await root.ok("GET", "/admin/users", **query)
    assert len(sent) == 2, "the check of the session, and one query"
    plan = plan_of(dsn, sent[1])
    assert "Seq Scan" not in plan, plan
    assert f"using {index}" in plan or f"on {index}" in plan, plan


EVENT_QUERIES: list[dict[str, str]] = [
    {},
    {"cursor": cursor.before_event(datetime.now(UTC), 5000)},
    {"kind": "often"},
    {"kind": "rare"},
    {"user": NOBODY},
    {"user": NOBODY, "kind": "rare"},
    {"actor": NOBODY},
    {"from": "2026-01-01T00:00:00Z"},
    {"to": "2026-01-01T00:00:00Z"},
    {"from": "2026-01-01T00:00:00Z", "to": "2026-01-02T00:00:00Z", "kind": "rare"},
]


@pytest.mark.usefixtures("many_users")
@pytest.mark.parametrize("query", EVENT_QUERIES)
async def test_a_page_of_events_is_one_query_that_walks_an_index(
    root: Caller, dsn: Dsn, count_round_trips: CountRoundTrips, query: dict[str, str]
) -> None:
    with count_round_trips() as sent:
        await root.ok("GET", "/admin/events", **query)
    assert len(sent) == 2
    plan = plan_of(dsn, sent[1])
    assert "Seq Scan" not in plan, plan


# --------------------------------------------------------------------------------- the last administrator


async def test_the_last_admin_can_neither_be_deleted_disabled_nor_demoted(
    root: Caller, client: Client, dsn: Dsn
) -> None:
    gone = await an_admin(client, dsn, "gone")
    await root.ok("PATCH", user_path(gone.id), {"disabled": True})  # does not count
    seed(dsn, "almost", roles="{admins,xadmin}")
    before = rows(dsn, "SELECT u::text FROM gatepost.users u ORDER BY id")
    for method, body in (
        ("DELETE", None),
        ("PATCH", {"disabled": True}),
        ("PATCH", {"roles": []}),
        ("PATCH", {"roles": ["editor"], "username": "other", "profile": {"a": 1}}),
        ("PATCH", {"roles": [], "disabled": True}),
    ):
        answer = await root(method, user_path(root.id), body)
        assert (answer.status, answer.body["code"]) == (409, "last_admin"), (method, body)
    assert rows(dsn, "SELECT u::text FROM gatepost.users u ORDER BY id") == before
    assert kinds(dsn, root.id) == ["user_created", "authn_login_success"]
    left = await root("DELETE", "/account", {"password": PASSWORD})
    assert (left.status, left.body["code"]) == (409, "last_admin")
    assert rows(dsn, "SELECT u::text FROM gatepost.users u ORDER BY id") == before
    await root.ok("PATCH", user_path(root.id), {"roles": ["admin", "editor"], "username": "other"})
    token = await log_in(client, "other")
    again = root._replace(token=token)
    await again.ok("PATCH", user_path(gone.id), {"disabled": False})
    await again.ok("DELETE", user_path(root.id))


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM gatepost.users",
        "DELETE FROM gatepost.users WHERE roles <> '{}'",
        "UPDATE gatepost.users SET roles = '{}'",
        "UPDATE gatepost.users SET disabled_at = now()",
    ],
)
async def test_not_even_by_hand_and_not_all_at_once(root: Caller, client: Client, dsn: Dsn, sql: str) -> None:
    await an_admin(client, dsn, "other")
    with pytest.raises(psycopg2.errors.CheckViolation, match="last administrator"):
        rows(dsn, sql)
    assert rows(dsn, "SELECT count(*) FROM gatepost.users WHERE roles <> '{}' AND disabled_at IS NULL") == [(2,)]


REMOVALS: list[tuple[str, Any]] = [("PATCH", {"roles": []}), ("PATCH", {"disabled": True}), ("DELETE", None)]


async def test_of_admins_who_remove_each_other_at_once_one_is_left(client: Client, dsn: Dsn) -> None:
    rounds = 40
    for round_ in range(rounds):
        rows(dsn, "TRUNCATE gatepost.users, gatepost.throttles CASCADE")
        admins = [await an_admin(client, dsn, f"a{n}") for n in range(2 + round_ % 2)]
        attempts = [admin(*_removal(admins[(n + 1) % len(admins)], round_ + n)) for n, admin in enumerate(admins)]
        answers = await asyncio.gather(*attempts)
        left = rows(dsn, "SELECT count(*) FROM gatepost.users WHERE roles @> '{admin}' AND disabled_at IS NULL")
        statuses = sorted(answer.status for answer in answers)
        # 401: ended by another before its turn came.
        assert set(statuses) <= {200, 401, 409}, answers
        assert left[0][0] == len(admins) - statuses.count(200) >= 1


def _removal(target: Caller, number: int) -> tuple[str, str, Any]:
    method, body = REMOVALS[number % len(REMOVALS)]
    return method, user_path(target.id), body


async def test_of_transactions_that_cross_one_waits_and_is_refused(root: Caller, client: Client, dsn: Dsn) -> None:
    """The race itself, held open: the first has not committed when the second begins."""
    await an_admin(client, dsn, "other")
    first = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        first.cursor().execute("UPDATE gatepost.users SET roles = '{}' WHERE canonical = 'other'")
        second = asyncio.create_task(root("PATCH", user_path(root.id), {"roles": []}))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await eventually(lambda: rows(dsn, waiting) != [(0,)])
        first.commit()
        answer = await second
    finally:
        first.close()
    assert (answer.status, answer.body["code"]) == (409, "last_admin")


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    "away",
    [
        "UPDATE gatepost.users SET roles = '{}' WHERE canonical = %s",
        "UPDATE gatepost.users SET disabled_at = now() WHERE canonical = %s",
        "DELETE FROM gatepost.users WHERE canonical = %s",
    ],
    ids=["demoted", "disabled", "deleted"],
)
@pytest.mark.parametrize("overlapping", [True, False])
async def test_two_transactions_that_remove_each_other_leave_one_whatever_they_see(
    root: Caller, client: Client, dsn: Dsn, isolation: str, away: str, overlapping: bool
) -> None:
    await an_admin(client, dsn, "other")
    first, second = (psycopg2.connect(**dsn.parameters(dsn.hosts[0])) for _ in range(2))
    with contextlib.closing(first), contextlib.closing(second):
        for connection in (first, second):
            connection.set_session(isolation_level=isolation)
            connection.cursor().execute("SELECT count(*) FROM gatepost.users")  # a snapshot, where it is kept
        first.cursor().execute(away, ["other"])
        if not overlapping:
            first.commit()
        removing = asyncio.create_task(asyncio.to_thread(second.cursor().execute, away, ["root"]))
        if overlapping:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await eventually(lambda: rows(dsn, waiting) != [(0,)])
            first.commit()
        with pytest.raises(psycopg2.Error) as refused:
            await removing
        assert refused.value.pgcode in {"23514", "40001"}
    admins = "SELECT canonical FROM gatepost.users WHERE roles @> '{admin}' AND disabled_at IS NULL"
    assert rows(dsn, admins) == [("root",)]


async def test_a_promotion_that_crosses_a_demotion_leaves_no_gap(root: Caller, client: Client, dsn: Dsn) -> None:
    """Whoever is being made an administrator counts once that is committed, not before."""
    user = await register(client, "other")
    first = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        first.cursor().execute("UPDATE gatepost.users SET roles = '{admin}' WHERE canonical = 'other'")
        answer = await root("PATCH", user_path(root.id), {"roles": []})
        first.commit()
    finally:
        first.close()
    assert answer.status == 409
    assert (await root.ok("GET", user_path(user["id"])))["user"]["roles"] == ["admin"]


# --------------------------------------------------------------------------------------------- the epoch


@pytest.mark.parametrize("body", [{"disabled": True}, {"roles": ["x"]}, None], ids=["disabled", "roles", "deleted"])
async def test_no_session_opened_before_a_change_survives_it(
    root: Caller, ada: Caller, dsn: Dsn, body: dict[str, Any] | None
) -> None:
    """Logins race with the change, many rounds; those that come after it may well succeed."""
    for _ in range(8):
        rows(dsn, "DELETE FROM gatepost.throttles")
        logins = [asyncio.create_task(_try_log_in(ada.client)) for _ in range(6)]
        await asyncio.sleep(0.01)
        changed = await root("DELETE" if body is None else "PATCH", user_path(ada.id), body)
        assert changed.status in {200, 404}, changed
        tokens = [token for token in await asyncio.gather(*logins) if token]
        valid = {token for token in tokens if await status_of(ada.client, token) == 200}
        seen = rows(
            dsn,
            "SELECT s.epoch = u.epoch FROM gatepost.sessions s JOIN gatepost.users u ON u.id = s.user_id "
            "WHERE u.id = %s",
            ada.id,
        )
        assert seen == [(True,)] * len(valid), "a session of an earlier epoch was left"
        if body is None or "disabled" in body:
            assert not valid
        if body is not None:
            await root.ok("PATCH", user_path(ada.id), {"roles": [], "disabled": False})


async def _try_log_in(client: Client) -> str | None:
    async with client.post("/user", json={"username": "ada", "password": PASSWORD}) as answer:
        body = await answer.json()
        assert answer.status in {200, 401}, body
        token: str | None = body.get("session_id")
        return token


def test_the_lock_of_the_last_admin_goes_with_its_migration(postgres: PostgresServer) -> None:
    from gatepost.postgres import schema

    with postgres.database() as dsn:
        schema.migrate(dsn)
        schema.migrate(dsn, "0001")
        assert rows(dsn, "SELECT proname FROM pg_proc WHERE pronamespace = 'gatepost'::regnamespace") == []
