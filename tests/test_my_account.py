"""`/account`: people manage themselves."""

import asyncio
import hashlib
import json
from datetime import datetime
from typing import Any

import pytest

from gatepost.postgres.database import Dsn
from gatepost.security.credentials import Credentials, Setting
from tests.conftest import PASSWORD, Client, log_in, register, rows, status_of

NEW = "a better horse and battery"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": token}


async def patch(client: Client, token: str, body: object) -> tuple[int, Any]:
    async with client.patch("/account", json=body, headers=bearer(token)) as answer:
        return answer.status, await answer.json()


async def change(client: Client, token: str, current: str = PASSWORD, new: str = NEW) -> tuple[int, Any]:
    body = {"current": current, "new": new}
    async with client.put("/account/password", json=body, headers=bearer(token)) as answer:
        return answer.status, await answer.json()


@pytest.fixture
async def token(client: Client, ada: dict[str, Any]) -> str:
    return await log_in(client)


async def test_my_account_shows_me_and_since_when(client: Client, ada: dict[str, Any], token: str) -> None:
    answer = await client.get("/account", headers=bearer(token))
    body = await answer.json()
    assert (answer.status, body["user"]) == (200, ada)
    assert set(body) == {"user", "created_at", "password_changed_at"}


# ----------------------------------------------------------------------------------------- name and profile


async def test_a_profile_is_changed_by_merge_patch(client: Client, token: str) -> None:
    await patch(client, token, {"profile": {"a": 1, "b": {"c": [1], "d": "x"}}})
    status, body = await patch(client, token, {"profile": {"a": None, "b": {"c": 2}, "é": "ü"}})
    assert (status, body["user"]["profile"]) == (200, {"b": {"c": 2, "d": "x"}, "é": "ü"})
    assert (await (await client.get("/user", headers=bearer(token))).json())["user"]["profile"] == {
        "b": {"c": 2, "d": "x"},
        "é": "ü",
    }


async def test_a_profile_over_four_kilobytes_is_refused_and_nothing_is_changed(client: Client, token: str) -> None:
    await patch(client, token, {"profile": {"a": "x" * 3000}})
    # The others are short as they are sent; Postgres writes 91 digits or more for each number.
    for more in ("x" * 1100, [1e90] * 12, [1e-300] * 40):
        status, body = await patch(client, token, {"username": "eve", "profile": {"b": more}})
        assert (status, body["errors"][0]["field"], body["errors"][0]["code"]) == (
            422,
            "profile",
            "profile_too_large",
        )
    account = await (await client.get("/account", headers=bearer(token))).json()
    assert account["user"]["username"] == "ada"
    assert list(account["user"]["profile"]) == ["a"]


async def test_two_patches_at_once_lose_neither(client: Client, token: str) -> None:
    await asyncio.gather(*(patch(client, token, {"profile": {f"k{n}": n}}) for n in range(6)))
    _, body = await patch(client, token, {})
    assert body["user"]["profile"] == {f"k{n}": n for n in range(6)}


async def test_a_name_can_be_changed_and_its_old_form_is_free_again(client: Client, token: str) -> None:
    assert (await patch(client, token, {"username": "Grace"}))[1]["user"]["username"] == "Grace"
    await log_in(client, "GRACE")
    await register(client, "ada")
    assert await status_of(client, token) == 200


async def test_a_name_in_another_spelling_of_my_own_is_no_collision(client: Client, token: str) -> None:
    status, body = await patch(client, token, {"username": "ADA"})
    assert (status, body["user"]["username"]) == (200, "ADA")


@pytest.mark.parametrize("name", ["bob", "BOB", "ｂob"])
async def test_a_taken_name_is_409_in_every_spelling(client: Client, token: str, name: str) -> None:
    await register(client, "bob")
    status, body = await patch(client, token, {"username": name, "profile": {"a": 1}})
    assert (status, body["code"]) == (409, "username_taken")
    assert (await patch(client, token, {}))[1]["user"] | {"id": ""} == {
        "id": "",
        "username": "ada",
        "roles": [],
        "profile": {},
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"username": ""}, "username"),
        ({"username": None}, "username"),
        ({"username": "a b"}, "username"),
        ({"profile": None}, "profile"),
        ({"profile": []}, "profile"),
        ({"roles": ["admin"]}, "roles"),
        ({"id": "x"}, "id"),
        ({"disabled": False}, "disabled"),
        ({"epoch": 1}, "epoch"),
    ],
)
async def test_what_cannot_be_changed_is_named(client: Client, token: str, body: object, field: str) -> None:
    status, answer = await patch(client, token, body)
    assert (status, answer["errors"][0]["field"]) == (422, field)


# -------------------------------------------------------------------------------------------------- password


async def test_a_new_password_ends_every_other_session_and_this_one_goes_on_with_a_new_token(
    client: Client, token: str
) -> None:
    other = await log_in(client)
    status, body = await change(client, token)
    assert status == 200
    assert [await status_of(client, t) for t in (token, other, body["session_id"])] == [401, 401, 200]
    refused = await client.post("/user", json={"username": "ada", "password": PASSWORD})
    assert refused.status == 401
    await log_in(client, password=NEW)


async def test_the_session_keeps_its_handle_and_its_end(client: Client, token: str) -> None:
    before = (await (await client.get("/user", headers=bearer(token))).json())["session"]
    body = (await change(client, token))[1]
    after = (await (await client.get("/user", headers=bearer(body["session_id"]))).json())["session"]
    assert (after["handle"], after["expires_at"]) == (before["handle"], before["expires_at"])
    # Postgres leaves out the zeros at a fraction's end, Python does not.
    assert datetime.fromisoformat(body["expires_at"]) == datetime.fromisoformat(after["expires_at"])


async def test_a_wrong_current_password_is_403_changes_nothing_and_is_recorded(
    client: Client, dsn: Dsn, token: str
) -> None:
    status, body = await change(client, token, current="not the password at all")
    assert (status, body["code"]) == (403, "wrong_password")
    assert await status_of(client, token) == 200
    await log_in(client)
    assert ("authn_password_change_fail",) in rows(dsn, "SELECT kind FROM gatepost.events")


@pytest.mark.parametrize(
    ("new", "code"),
    [("short", "password_too_short"), ("adaadaadaadaada", "password_is_username"), (5, "not_a_string")],
)
async def test_a_new_password_must_be_acceptable(client: Client, token: str, new: Any, code: str) -> None:
    status, body = await change(client, token, new=new)
    assert (status, body["errors"][0]["field"], body["errors"][0]["code"]) == (422, "new", code)


async def test_an_imported_password_is_prepared_as_its_origin_did(client: Client, dsn: Dsn, token: str) -> None:
    """A tab is no character of a password of ours, but may be one of a password that was brought along."""
    digest = hashlib.pbkdf2_hmac("sha256", b"tab\tin it", b"salt", 10_000)
    setting = "$pbkdf2-sha256$10000$c2FsdA"
    rows(dsn, "UPDATE gatepost.passwords SET setting = %s, digest = %s, norm = 'raw'", setting, digest)
    assert (await change(client, token, current="tab in it"))[0] == 403
    assert (await change(client, token, current="tab\tin it"))[0] == 200


async def test_of_two_password_changes_at_once_one_wins_and_its_token_is_the_only_one(
    client: Client, token: str
) -> None:
    answers = await asyncio.gather(*(change(client, token, new=f"{NEW} {n}") for n in range(4)))
    won = [n for n, (status, _) in enumerate(answers) if status == 200]
    assert len(won) == 1
    assert {status for status, _ in answers} <= {200, 401, 403}
    assert await status_of(client, answers[won[0]][1]["session_id"]) == 200
    await log_in(client, password=f"{NEW} {won[0]}")


# ------------------------------------------------------------------------------------------ leaving, export


async def test_a_password_that_changes_under_every_attempt_is_503_and_nothing_is_decided(
    client: Client, dsn: Dsn, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Credentials.check

    async def meanwhile(self: Credentials, setting: Setting, password: str, place: str | None) -> Any:
        changed = setting.phc.replace("t=1", "t=3") if "t=1" in setting.phc else setting.phc.replace("t=3", "t=1")
        await asyncio.to_thread(rows, dsn, f"UPDATE gatepost.passwords SET setting = '{changed}'")
        return await check(self, setting, password, place)

    monkeypatch.setattr(Credentials, "check", meanwhile)
    status, body = await change(client, token)
    assert (status, body["code"]) == (503, "unavailable")
    async with client.post("/user", json={"username": "ada", "password": PASSWORD}) as answer:
        assert answer.status == 503
    monkeypatch.undo()
    assert await status_of(client, token) == 200
    kinds = {kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events")}
    assert kinds == {"user_created", "authn_login_success"}


async def test_deleting_my_account_takes_my_password_and_frees_my_name(client: Client, dsn: Dsn, token: str) -> None:
    other = await log_in(client)
    refused = await client.delete("/account", json={"password": "wrong"}, headers=bearer(token))
    assert refused.status == 403
    assert await status_of(client, other) == 200
    gone = await client.delete("/account", json={"password": PASSWORD}, headers=bearer(token))
    assert gone.status == 200
    assert [await status_of(client, t) for t in (token, other)] == [401, 401]
    for table in ("users", "passwords", "sessions"):
        assert rows(dsn, f"SELECT 1 FROM gatepost.{table}") == []
    assert rows(
        dsn,
        "SELECT kind, detail, count(DISTINCT session_handle) FROM gatepost.events "
        "WHERE kind IN ('user_deleted', 'session_revoked') GROUP BY 1, 2 ORDER BY 1",
    ) == [("session_revoked", {"reason": "user_deleted"}, 2), ("user_deleted", {}, 1)]
    # As a word: three letters may well be three digits of an id.
    assert rows(dsn, r"SELECT e FROM gatepost.events e WHERE e::text ~ '\mada\M'") == []
    await register(client, "ada")


async def test_my_export_is_everything_but_secrets(client: Client, dsn: Dsn, ada: dict[str, Any], token: str) -> None:
    await patch(client, token, {"profile": {"colour": "blue"}})
    await client.post("/user", json={"username": "ada", "password": "wrong"})
    answer = await client.get("/account/export", headers=bearer(token))
    text = await answer.text()
    body = json.loads(text)
    assert body["user"]["profile"] == {"colour": "blue"}
    assert len(body["sessions"]) == 1
    kinds = [event["kind"] for event in body["events"]]
    assert kinds == ["user_created", "authn_login_success", "user_updated", "authn_login_fail"]
    setting, digest = rows(dsn, "SELECT setting, encode(digest, 'hex') FROM gatepost.passwords")[0]
    for secret in (token, hashlib.sha256(token.encode()).hexdigest(), PASSWORD, setting, digest):
        assert secret not in text


# ------------------------------------------------------------------------------------------------------ reset


def start_reset(dsn: Dsn, code: str, seconds: int = 60) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at) "
        "SELECT id, sha256(%s::bytea), clock_timestamp() + make_interval(secs => %s) FROM gatepost.users "
        "ON CONFLICT (user_id) DO UPDATE SET code_hash = excluded.code_hash, expires_at = excluded.expires_at",
        code,
        seconds,
    )


async def redeem(client: Client, code: Any, new: Any = NEW) -> tuple[int, Any]:
    async with client.post("/account/password/redeem", json={"code": code, "new": new}) as answer:
        return answer.status, await answer.json()


async def test_a_code_gives_a_new_password_once_and_ends_every_session(client: Client, dsn: Dsn, token: str) -> None:
    start_reset(dsn, "the-code")
    assert (await redeem(client, "the-code", "short"))[0] == 422  # and the code is still good
    assert (await redeem(client, "the-code"))[0] == 200
    assert await status_of(client, token) == 401
    await log_in(client, password=NEW)
    status, body = await redeem(client, "the-code")
    assert (status, body["code"]) == (403, "invalid_code")


async def test_of_many_who_redeem_one_code_at_once_one_succeeds(client: Client, dsn: Dsn, token: str) -> None:
    start_reset(dsn, "the-code")
    answers = await asyncio.gather(*(redeem(client, "the-code", f"{NEW} {n}") for n in range(8)))
    won = [n for n, (status, _) in enumerate(answers) if status == 200]
    assert len(won) == 1
    assert sorted(status for status, _ in answers) == [200] + [403] * 7
    await log_in(client, password=f"{NEW} {won[0]}")


async def test_a_code_that_is_old_wrong_or_a_disabled_users_is_worth_nothing(
    client: Client, dsn: Dsn, token: str
) -> None:
    start_reset(dsn, "old", -1)
    assert (await redeem(client, "old"))[0] == 403
    start_reset(dsn, "good")
    for wrong in ("", "goo", "goods", "g-ood", "x" * 5000, "' OR '1'='1"):
        assert (await redeem(client, wrong))[0] == 403
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now()")
    assert (await redeem(client, "good"))[0] == 403
    assert (await redeem(client, 5))[0] == 422


async def test_a_password_change_forgets_a_started_reset(client: Client, dsn: Dsn, token: str) -> None:
    start_reset(dsn, "the-code")
    assert (await change(client, token))[0] == 200
    assert (await redeem(client, "the-code"))[0] == 403
