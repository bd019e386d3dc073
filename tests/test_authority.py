"""A caller who is revoked changes nothing any more, however early the request began."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pyotp
import pytest

from gatepost.config import Config, FactorsConfig
from gatepost.factors import recovery_codes
from gatepost.factors.passkeys import RelyingParty
from gatepost.factors.vault import Vault
from gatepost.mail import codes
from gatepost.postgres.database import Dsn
from gatepost.routes import ROUTES
from gatepost.sessions.guard import GUARDED
from tests.authenticator import Authenticator
from tests.conftest import PASSWORD, Client, eventually, log_in, register, rows, with_every_route
from tests.test_admin import Caller, an_admin, user_path
from tests.test_bad_input import raw
from tests.test_connection import connected, server_of

NEW = "a better horse and battery"
CODE = "c" * 32


class World(NamedTuple):
    """An administrator who calls, another who stays, and a user who is acted on, with a session.

    ``other``: another session of the caller's. ``email``: a verified address of the caller's. ``claim``: one to which
    ``CODE`` was mailed. ``factor``: one of the caller's second factors; ``waiting``: another, which waits for a code;
    ``passkey``: a third. ``made``: a passkey that a browser has just made for the caller.
    """

    caller: Caller
    user: str
    handle: str
    other: str
    email: str
    claim: str
    factor: str
    waiting: str
    passkey: str
    made: dict[str, Any]


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return with_every_route(config, tmp_path)


@pytest.fixture
async def world(client: Client, dsn: Dsn) -> World:
    await an_admin(client, dsn, "spare")
    caller = await an_admin(client, dsn, "root")
    user = await register(client, "ada")
    await log_in(client, "ada")
    handle = rows(dsn, "SELECT handle::text FROM gatepost.sessions WHERE user_id = %s", user["id"])[0][0]
    email, claim = (
        rows(
            dsn,
            "INSERT INTO gatepost.emails (user_id, address, canonical, verified_at) "
            "VALUES (%s, %s, %s, CASE WHEN %s THEN now() END) RETURNING id::text",
            *(caller.id, address, address, verified),
        )[0][0]
        for address, verified in (("root@example.org", True), ("new@example.org", False))
    )
    rows(
        dsn,
        "INSERT INTO gatepost.codes (purpose, user_id, email_id, epoch, link_hash, expires_at) "
        "SELECT 'verify_email', id, %s, epoch, %s, now() + interval '1 hour' FROM gatepost.users WHERE id = %s "
        "RETURNING 1",
        *(claim, codes.hash_link(CODE), caller.id),
    )
    factors = second_factors(dsn, caller.id, user["id"])
    # Or whatever takes a fresh session would be refused for want of one.
    rows(
        dsn,
        "UPDATE gatepost.sessions SET amr = '{mfa,otp,pwd}', confirmed_at = now() WHERE user_id = %s RETURNING 1",
        caller.id,
    )
    other = rows(
        dsn,
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at) "
        "SELECT sha256('other'), id, epoch, now() + interval '1 hour' FROM gatepost.users WHERE id = %s "
        "RETURNING handle::text",
        caller.id,
    )[0][0]
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, verified_at, is_primary) "
        "VALUES (%s, 'ada@example.org', 'ada@example.org', now(), true) RETURNING 1",
        user["id"],
    )
    return World(caller, user["id"], handle, other, email, claim, *factors)


SECRET, RECOVERY_CODE = b"12345678901234567890", "2345-6789-ABCD-EFGH"


def second_factors(dsn: Dsn, caller: str, user: str) -> tuple[str, str, str, dict[str, Any]]:
    """Give the caller two of each kind, one of which is not there yet, and the user one."""

    def key(name: str) -> bytes:
        return bytes(rows(dsn, "SELECT key FROM gatepost.deployment_keys WHERE name = %s", name)[0][0])

    sealed = Vault(FactorsConfig(), key("factors")).seal(SECRET, caller).text
    factor, waiting, _ = (
        rows(
            dsn,
            "INSERT INTO gatepost.totp_factors (user_id, name, sealed, confirmed_at) "
            "VALUES (%s, 'Phone', %s, CASE WHEN %s THEN now() END) RETURNING id::text",
            *(owner, sealed, confirmed),
        )[0][0]
        for owner, confirmed in ((caller, True), (caller, False), (user, True))
    )
    passkey = rows(
        dsn,
        "INSERT INTO gatepost.passkeys (user_id, credential_id, public_key, sign_count, name, synced, backed_up) "
        "VALUES (%s, 'id', 'key', 0, 'Laptop', false, false) RETURNING id::text",
        caller,
    )[0][0]
    code = recovery_codes.hash_given(RECOVERY_CODE)
    rows(dsn, "INSERT INTO gatepost.recovery_codes (user_id, code_hash) VALUES (%s, %s) RETURNING 1", caller, code)
    party = RelyingParty("auth.example", "Gatepost", ["https://auth.example"], key("passkeys"))
    return factor, waiting, passkey, Authenticator().make(party.creation_options(caller, "root", []))


def code_now() -> str:
    return pyotp.TOTP(base64.b32encode(SECRET).decode()).now()


# By route: path and body. A route that changes something and is not here fails the test below.
ACTS: dict[tuple[str, str], Callable[[World], tuple[str, Any]]] = {
    ("PATCH", "/account"): lambda _: ("/account", {"profile": {"a": 1}, "username": "boot"}),
    ("DELETE", "/account"): lambda _: ("/account", {"password": PASSWORD}),
    ("PUT", "/account/password"): lambda _: ("/account/password", {"current": PASSWORD, "new": NEW}),
    ("POST", "/account/emails"): lambda _: ("/account/emails", {"email": "ada@example.org", "password": PASSWORD}),
    ("POST", "/account/emails/{id}/verify"): lambda world: (
        f"/account/emails/{world.claim}/verify",
        {"code": CODE},
    ),
    ("PUT", "/account/emails/{id}/primary"): lambda world: (f"/account/emails/{world.email}/primary", None),
    ("DELETE", "/account/emails/{id}"): lambda world: (f"/account/emails/{world.email}", None),
    ("POST", "/account/factors"): lambda _: ("/account/factors", {}),
    ("POST", "/account/factors/{id}/confirm"): lambda world: (
        f"/account/factors/{world.waiting}/confirm",
        {"code": code_now()},
    ),
    ("DELETE", "/account/factors/{id}"): lambda world: (f"/account/factors/{world.factor}", None),
    ("POST", "/account/factors/recovery-codes"): lambda _: ("/account/factors/recovery-codes", None),
    ("POST", "/account/passkeys"): lambda world: ("/account/passkeys", {"credential": world.made}),
    ("PATCH", "/account/passkeys/{id}"): lambda world: (f"/account/passkeys/{world.passkey}", {"name": "Key"}),
    ("DELETE", "/account/passkeys/{id}"): lambda world: (f"/account/passkeys/{world.passkey}", None),
    ("POST", "/user/confirm"): lambda _: ("/user/confirm", {"recovery_code": RECOVERY_CODE}),
    ("DELETE", "/sessions"): lambda _: ("/sessions?scope=all", None),
    ("DELETE", "/sessions/{handle}"): lambda world: (f"/sessions/{world.other}", None),
    ("POST", "/admin/users"): lambda _: ("/admin/users", {"username": "eve", "roles": ["admin"]}),
    ("PATCH", "/admin/users/{id}"): lambda world: (user_path(world.user), {"roles": ["admin"]}),
    ("DELETE", "/admin/users/{id}"): lambda world: (user_path(world.user), None),
    ("POST", "/admin/users/{id}/invitation"): lambda world: (user_path(world.user, "invitation"), None),
    ("POST", "/admin/users/{id}/password-reset"): lambda world: (user_path(world.user, "password-reset"), None),
    ("DELETE", "/admin/users/{id}/sessions"): lambda world: (user_path(world.user, "sessions"), None),
    ("DELETE", "/admin/users/{id}/sessions/{handle}"): lambda world: (
        user_path(world.user, "sessions", world.handle),
        None,
    ),
    ("DELETE", "/admin/users/{id}/factors"): lambda world: (user_path(world.user, "factors"), None),
    ("DELETE", "/admin/users/{id}/throttle"): lambda world: (user_path(world.user, "throttle"), None),
}
# What takes the authority away, and how it is answered then. An administrator also ends the sessions, so it is 401;
# SQL typed by hand may leave them.
REVOCATIONS = {
    "signed out": "DELETE FROM gatepost.sessions WHERE user_id = %s",
    "signed out everywhere": "UPDATE gatepost.users SET epoch = epoch + 1 WHERE id = %s",
    "disabled": "UPDATE gatepost.users SET disabled_at = now() WHERE id = %s",
    "demoted": "UPDATE gatepost.users SET roles = '{}' WHERE id = %s",
}


def state(dsn: Dsn) -> list[Any]:
    """All that a request can change, but for when a session was last seen."""
    accounts = ("users", "passwords", "password_resets", "events", "known_places", "emails", "codes", "outbox")
    factors = ("totp_factors", "recovery_codes", "passkeys", "used_challenges", "login_tickets")
    seen = [f"SELECT '{table}', t::text FROM gatepost.{table} t" for table in (*accounts, *factors)]
    sessions = "SELECT 'sessions', (token_hash, user_id, epoch, amr, confirmed_at)::text FROM gatepost.sessions"
    return rows(dsn, " UNION ALL ".join([*seen, sessions]) + " ORDER BY 1, 2")


def test_every_route_that_changes_something_for_a_caller_is_tried() -> None:
    changing = {
        (route.method, route.path)
        for route in ROUTES
        if route.method not in ("GET", "HEAD") and route.handler in GUARDED
    } - {("POST", "/account/passkeys/options")}  # what it answers is stored nowhere
    assert changing == set(ACTS)


def refused(act: tuple[str, str], revoked: str) -> bool:
    """A role that is gone takes nothing from who needs none."""
    return revoked != "demoted" or act[1].startswith("/admin")


WHERE_REFUSED = [(act, revoked) for act in ACTS for revoked in REVOCATIONS if refused(act, revoked)]


@pytest.mark.parametrize(
    ("act", "revoked"), WHERE_REFUSED, ids=lambda part: part if isinstance(part, str) else part[0] + part[1]
)
async def test_a_caller_who_is_revoked_while_the_act_waits_changes_nothing(
    world: World, dsn: Dsn, act: tuple[str, str], revoked: str
) -> None:
    path, body = ACTS[act](world)
    with contextlib.closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as revoking:
        revoking.cursor().execute(REVOCATIONS[revoked], [world.caller.id])
        acting = asyncio.create_task(world.caller(act[0], path, body))
        await eventually(lambda: rows(dsn, "SELECT count(*) FROM pg_locks WHERE NOT granted") != [(0,)])
        revoking.commit()
        before = state(dsn)
        answer = await acting
    refusal = (403, "forbidden") if revoked == "demoted" else (401, "unauthorized")
    assert (answer.status, answer.body["code"]) == refusal
    assert state(dsn) == before


@pytest.mark.parametrize("act", ACTS, ids="".join)
async def test_a_caller_who_is_not_revoked_does_it(world: World, dsn: Dsn, act: tuple[str, str]) -> None:
    path, body = ACTS[act](world)
    before = state(dsn)
    answer = await world.caller(act[0], path, body)
    assert answer.status < 300, answer
    assert state(dsn) != before or act[1].endswith("/throttle")


@pytest.mark.parametrize(
    "act", [act for act in ACTS if act[0] in ("POST", "PATCH", "PUT") or act[1] == "/account"], ids="".join
)
async def test_a_caller_who_is_revoked_before_the_last_byte_changes_nothing(
    world: World, dsn: Dsn, act: tuple[str, str]
) -> None:
    path, body = ACTS[act](world)
    text = json.dumps(body).encode() if body is not None else b"{}"
    headers = [b"Authorization: " + world.caller.token.encode(), b"Content-Type: application/json"]
    request = raw(act[0], path, *headers, body=text)
    client = world.caller.client
    async with connected(client) as (reader, writer):
        writer.write(request[:-1])
        if body is not None:  # a route that reads none has answered by now
            await eventually(lambda: any(c.is_receiving for c in server_of(client).admission.members))
            rows(dsn, REVOCATIONS["signed out everywhere"], world.caller.id)
            before = state(dsn)
            writer.write(request[-1:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
            assert state(dsn) == before


async def test_two_administrators_who_act_on_each_other_at_once_never_wait_for_each_other(
    client: Client, dsn: Dsn
) -> None:
    one, other = await an_admin(client, dsn, "one"), await an_admin(client, dsn, "other")
    await an_admin(client, dsn, "spare")
    for _ in range(10):
        answers = await asyncio.gather(
            *(
                caller("PATCH", user_path(target.id), {"profile": {"n": n}})
                for n in range(5)
                for caller, target in ((one, other), (other, one))
            )
        )
        assert {answer.status for answer in answers} == {200}
