"""Addresses, codes and recovery, with mail as files."""

import asyncio
import hashlib
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gatepost.config import Config
from gatepost.mail import queries
from gatepost.mail.mailer import preferred
from gatepost.mail.outbox import sender
from gatepost.postgres.database import Database, Dsn
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows, status_of, with_mail
from tests.received_mail import Folder

NEW = "a better horse and battery"
PAGE = "https://app.example/account"


@dataclass
class World:
    client: Client
    mailbox: Folder
    dsn: Dsn

    async def call(
        self, method: str, path: str, token: str = "", body: object = None, **headers: str
    ) -> tuple[int, Any]:
        headers |= {"Authorization": token} if token else {}
        async with self.client.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.json()

    async def add(self, token: str, address: str, password: str = PASSWORD) -> str:
        """Claim an address; its id."""
        status, answer = await self.call("POST", "/account/emails", token, {"email": address, "password": password})
        assert status == 201, answer
        return str(answer["email"]["id"])

    async def verify(self, token: str, email_id: str, code: str) -> tuple[int, Any]:
        return await self.call("POST", f"/account/emails/{email_id}/verify", token, {"code": code})

    async def own(self, token: str, address: str, password: str = PASSWORD) -> str:
        """Claim an address and prove that it is mine; its id."""
        email_id = await self.add(token, address, password)
        mail = await self.mailbox.receive(address, kind="Confirm")
        assert (await self.verify(token, email_id, mail.typed))[0] == 200
        return email_id

    async def recover(self, identifier: str) -> None:
        assert await self.call("POST", "/account/recovery", body={"identifier": identifier}) == (
            202,
            {"status": "success"},
        )

    async def redeem(self, code: str, identifier: str | None = None, new: str = NEW) -> tuple[int, Any]:
        body = {"code": code, "new": new} | ({"identifier": identifier} if identifier else {})
        return await self.call("POST", "/account/password/redeem", body=body)

    async def idle(self) -> None:
        """Wait until the outbox is empty."""
        async with asyncio.timeout(60):
            while rows(self.dsn, "SELECT count(*) FROM gatepost.outbox") != [(0,)]:
                await asyncio.sleep(0.02)


@pytest.fixture
async def world(
    config: Config, tmp_path: Path, start_server: StartServer, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> World:
    monkeypatch.setattr(sender, "POLL", 0.05)
    client = await start_server(with_mail(config, tmp_path / "mail", page=PAGE))
    return World(client, Folder(tmp_path / "mail"), dsn)


# ---------------------------------------------------------------------------------------------- addresses


async def test_whoever_registers_with_an_address_verifies_it_and_signs_in_with_it(world: World) -> None:
    body = {"username": "ada", "password": PASSWORD, "email": "Ada@Example.org"}
    assert (await world.call("POST", "/account", body=body))[0] == 201
    token = await log_in(world.client)
    assert (await world.call("POST", "/user", body={"username": "ada@example.org", "password": PASSWORD}))[0] == 401
    _, answer = await world.call("GET", "/account/emails", token)
    (email,) = answer["emails"]
    assert (email["address"], email["primary"], email["verified_at"]) == ("Ada@example.org", False, None)
    mail = await world.mailbox.receive("Ada@example.org", kind="Confirm")
    # Whose mailbox it is, is not known yet. (The code is hexadecimal, and may have "ada" in it.)
    assert not re.search(r"\bada\b", mail.text)
    status, answer = await world.verify(token, email["id"], mail.typed.lower().replace("-", " "))
    assert status == 200
    assert answer["email"]["primary"]
    assert answer["email"]["verified_at"]
    await log_in(world.client, "ADA@example.ORG")
    # Used once.
    assert (await world.verify(token, email["id"], mail.typed))[0] == 403


async def test_the_code_in_the_link_does_the_same_and_opening_the_link_uses_nothing_up(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    email_id = await world.add(token, "ada@example.org")
    mail = await world.mailbox.receive("ada@example.org")
    code = mail.link("verify_email")
    assert f"{PAGE}#verify_email={code}&email={email_id}" in mail.text
    assert f'href="{PAGE}#verify_email={code}&amp;email={email_id}"' in mail.html
    # The code is behind the #, so it is in no request that a scanner makes; and nothing here takes it by GET.
    for path in (f"/account/emails/{email_id}/verify", "/account/password/redeem", "/account/emails/undo"):
        async with world.client.get(path, params={"code": code}, headers={"Authorization": token}) as answer:
            assert answer.status == 405
    assert (await world.verify(token, email_id, code))[0] == 200


async def test_adding_an_address_takes_the_password(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    body = {"email": "ada@example.org", "password": "wrong"}
    status, answer = await world.call("POST", "/account/emails", token, body)
    assert (status, answer["code"]) == (403, "wrong_password")
    assert (await world.call("GET", "/account/emails", token))[1] == {"emails": []}
    assert world.mailbox.rest() == []


@pytest.mark.parametrize(
    "address",
    [
        "ada",
        "ada@",
        "@example.org",
        "ada@b@example.org",
        "ada@example.org,eve@example.org",
        "ada@example.org eve@example.org",
        "<ada@example.org>",
        "Ada <ada@example.org>",
        "ada@example.org\r\nBcc: eve@example.org",
        "ada@example.org\n",
        '"a b"@example.org',
        "ada@[127.0.0.1]",
        "ädä@example.org",
        "a" * 65 + "@example.org",
        "ada@" + "a." * 130 + "org",
        "ada@" + "é" * 200 + ".org",
        "ada@-example.org",
        "ada@example..org",
    ],
)
async def test_what_is_no_address_is_named_and_nothing_is_sent(world: World, address: str) -> None:
    body = {"username": "ada", "password": PASSWORD, "email": address}
    status, answer = await world.call("POST", "/account", body=body)
    assert status == 422
    (error,) = answer["errors"]
    assert (error["field"], error["code"]) == ("email", "invalid_email")
    assert rows(world.dsn, "SELECT count(*) FROM gatepost.users") == [(0,)]
    assert rows(world.dsn, "SELECT count(*) FROM gatepost.outbox") == [(0,)]


async def test_an_address_in_another_script_is_one_recipient_in_ascii(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    email_id = await world.add(token, "ada@bücher.example")
    mail = await world.mailbox.receive("ada@xn--bcher-kva.example")
    assert (await world.verify(token, email_id, mail.typed))[0] == 200
    for typed in ("ada@bücher.example", "ADA@XN--BCHER-KVA.example", "ada@BÜCHER.example"):
        await log_in(world.client, typed)


async def test_an_unverified_address_binds_nobody_and_a_verified_one_belongs_to_one(world: World) -> None:
    for name in ("ada", "eve"):
        await register(world.client, name)
    ada, eve = await log_in(world.client), await log_in(world.client, "eve")
    hers = await world.add(eve, "ada@example.org")
    for_eve = await world.mailbox.receive("ada@example.org")
    await world.own(ada, "ADA@example.org")
    status, answer = await world.verify(eve, hers, for_eve.typed)
    assert (status, answer["code"]) == (409, "email_taken")
    await log_in(world.client, "ada@example.org")


async def test_a_code_for_another_address_user_or_purpose_is_none(world: World) -> None:
    for name in ("ada", "eve"):
        await register(world.client, name)
    ada, eve = await log_in(world.client), await log_in(world.client, "eve")
    first, second = await world.add(ada, "one@example.org"), await world.add(ada, "two@example.org")
    mail = await world.mailbox.receive("one@example.org")
    for code in (mail.typed, mail.link("verify_email")):
        assert (await world.verify(ada, second, code))[0] == 403
        assert (await world.verify(eve, first, code))[0] == 403
        assert (await world.redeem(code, "one@example.org"))[0] == 403
        assert (await world.call("POST", "/account/emails/undo", body={"code": code}))[0] == 403
    assert (await world.verify(ada, first, mail.typed))[0] == 200


async def test_a_code_from_before_a_password_change_is_none(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    other = await world.add(token, "other@example.org")
    code = (await world.mailbox.receive("other@example.org")).typed
    await world.recover("ada")
    recovery = await world.mailbox.receive("ada@example.org", kind="Choose")
    status, answer = await world.call("PUT", "/account/password", token, {"current": PASSWORD, "new": NEW})
    assert status == 200
    assert (await world.verify(answer["session_id"], other, code))[0] == 403
    assert (await world.redeem(recovery.typed, "ada"))[0] == 403
    await world.mailbox.receive("ada@example.org", kind="was changed")


async def test_one_code_twice_at_once_is_taken_once(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    other = await world.add(token, "other@example.org")
    code = (await world.mailbox.receive("other@example.org")).typed
    answers = await asyncio.gather(*(world.verify(token, other, code) for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 403, 403, 403]
    await world.recover("ada")
    mail = await world.mailbox.receive("ada@example.org", kind="Choose")
    redeemed = await asyncio.gather(
        world.redeem(mail.typed, "ada"), world.redeem(mail.link("recovery")), world.redeem(mail.typed, "ada")
    )
    assert sorted(status for status, _ in redeemed) == [200, 403, 403]


async def test_five_wrong_codes_and_the_right_one_is_refused_too_but_not_the_link(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    email_id = await world.add(token, "ada@example.org")
    mail = await world.mailbox.receive("ada@example.org")
    wrong = "0000-0000" if mail.typed != "0000-0000" else "1111-1111"
    for _ in range(5):
        assert (await world.verify(token, email_id, wrong))[0] == 403
    status, answer = await world.verify(token, email_id, mail.typed)
    assert (status, answer["code"]) == (429, "too_many_attempts")


async def test_an_account_has_ten_addresses_at_most(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    for n in range(10):
        await world.add(token, f"ada{n}@example.org")
    status, answer = await world.call(
        "POST", "/account/emails", token, {"email": "ada10@example.org", "password": PASSWORD}
    )
    assert (status, answer["code"]) == (409, "too_many_emails")
    await world.add(token, "ada3@example.org")  # another code for one that is there


async def test_one_address_gets_five_mails_with_codes_and_then_none(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    for _ in range(5):
        await world.add(token, "ada@example.org")
    body = {"email": "ADA@example.org", "password": PASSWORD}
    status, answer = await world.call("POST", "/account/emails", token, body)
    assert (status, answer["code"]) == (429, "too_many_attempts")
    await world.idle()
    assert len(world.mailbox.rest()) == 5


async def test_a_new_name_contains_no_at_and_an_old_one_goes_before_an_address(world: World) -> None:
    status, answer = await world.call("POST", "/account", body={"username": "ada@example.org", "password": PASSWORD})
    assert (status, answer["errors"][0]["code"]) == (422, "invalid_username")
    old = await register(world.client, "old")
    rows(
        world.dsn, "UPDATE gatepost.users SET username = 'ada@example.org', canonical = 'ada@example.org' RETURNING 1"
    )
    await register(world.client, "eve")
    eve = await log_in(world.client, "eve")
    assert (await world.call("PATCH", "/account", eve, {"username": "eve@example.org"}))[0] == 422
    await world.own(eve, "ada@example.org")
    token = await log_in(world.client, "ada@example.org")
    assert (await world.call("GET", "/user", token))[1]["user"]["id"] == old["id"]
    rows(world.dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE canonical = 'eve' RETURNING 1")
    eve = await log_in(world.client, "eve")
    path = f"/admin/users/{old['id']}"
    assert (await world.call("PATCH", path, eve, {"username": "Ada@example.org"}))[0] == 200
    assert (await world.call("PATCH", path, eve, {"username": "other@example.org"}))[0] == 422
    assert (await world.call("POST", "/admin/users", eve, {"username": "new@example.org"}))[0] == 422
    # Whoever is called so may keep the name.
    assert (await world.call("PATCH", "/account", token, {"username": "Ada@example.org"}))[0] == 200


async def test_an_address_that_nobody_verifies_is_forgotten_after_a_day(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    await world.add(token, "typo@example.org")
    await world.add(token, "young@example.org")
    rows(
        world.dsn,
        "UPDATE gatepost.emails SET created_at = created_at - interval '25 hours' "
        "WHERE canonical <> 'young@example.org' RETURNING 1",
    )
    database = await Database.open(world.dsn, 3)
    try:
        assert await database.write(queries.sweep_unverified, 10) == 1
    finally:
        await database.close()
    _, answer = await world.call("GET", "/account/emails", token)
    assert [email["address"] for email in answer["emails"]] == ["ada@example.org", "young@example.org"]


# ----------------------------------------------------------------------------------------------- recovery


@pytest.mark.parametrize("identifier", ["ada", "ADA", "Ada@Example.org"])
async def test_who_has_forgotten_the_password_chooses_a_new_one(world: World, identifier: str) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    await world.recover(identifier)
    mail = await world.mailbox.receive("ada@example.org", kind="Choose")
    assert "Hello ada," in mail.text
    assert (await world.redeem(mail.typed, "eve"))[0] == 403
    status, answer = await world.redeem(mail.typed)
    assert (status, answer["errors"][0]["field"]) == (422, "identifier")
    assert (await world.redeem(mail.typed, identifier, new="short"))[0] == 422
    assert (await world.redeem(mail.typed, identifier.lower())) == (200, {"status": "success"})
    assert await status_of(world.client, token) == 401
    await log_in(world.client, password=NEW)
    await world.mailbox.receive("ada@example.org", kind="A new password was chosen")
    assert (await world.redeem(mail.typed, identifier))[0] == 403


async def test_the_link_needs_no_name_and_a_name_goes_to_the_primary_address(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "first@example.org")
    await world.own(token, "second@example.org")
    await world.recover("ada")
    mail = await world.mailbox.receive("first@example.org", kind="Choose")
    await world.recover("second@example.org")
    await world.mailbox.receive("second@example.org", kind="Choose")
    assert (await world.redeem(mail.link("recovery")))[0] == 200


async def test_nobody_unverified_or_disabled_gets_a_mail_and_the_answer_is_the_same(world: World) -> None:
    users = {}
    for name in ("ada", "eve", "bob"):
        users[name] = await register(world.client, name)
    eve, bob = await log_in(world.client, "eve"), await log_in(world.client, "bob")
    await world.add(eve, "eve@example.org")
    await world.own(bob, "bob@example.org")
    rows(world.dsn, "UPDATE gatepost.users SET disabled_at = now() WHERE canonical = 'bob' RETURNING 1")
    await world.idle()
    world.mailbox.rest()
    for identifier in (
        "nobody",
        "no@example.org",
        "ada",
        "eve",
        "eve@example.org",
        "bob",
        "bob@example.org",
        " ",
        "@",
    ):
        await world.recover(identifier)
    await world.idle()
    assert world.mailbox.rest() == []
    assert rows(world.dsn, "SELECT count(*) FROM gatepost.codes WHERE purpose = 'recovery'") == [(0,)]


async def test_asking_is_limited_for_whom_it_is_and_mail_for_the_address(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    for identifier in ("ada", "ada@example.org", "nobody"):
        for _ in range(5):
            await world.recover(identifier)
        status, answer = await world.call("POST", "/account/recovery", body={"identifier": identifier})
        assert (status, answer["code"]) == (429, "too_many_attempts")
    await world.idle()
    assert len([mail for mail in world.mailbox.rest() if "Choose" in mail.subject]) == 5


async def test_claiming_somebodys_address_holds_up_no_mail_with_a_way_back(world: World) -> None:
    for name in ("ada", "eve"):
        await register(world.client, name)
    ada, eve = await log_in(world.client), await log_in(world.client, "eve")
    await world.own(ada, "ada@example.org")
    body = {"email": "ada@example.org", "password": PASSWORD}
    while (await world.call("POST", "/account/emails", eve, body))[0] == 201:
        pass
    await world.recover("ada")
    await world.mailbox.receive("ada@example.org", kind="Choose")


async def test_an_operator_lets_somebody_try_again_also_with_an_address(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    for _ in range(5):
        await world.recover("ada@example.org")
    rows(world.dsn, "DELETE FROM gatepost.known_places RETURNING 1")
    for _ in range(10):
        await world.call("POST", "/user", body={"username": "ada@example.org", "password": "wrong"})
    wanted = [
        ("/user", {"username": "ada@example.org", "password": PASSWORD}),
        ("/account/recovery", {"identifier": "ada@example.org"}),
    ]
    assert [(await world.call("POST", path, body=body))[0] for path, body in wanted] == [429, 429]
    rows(world.dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    user = (await world.call("GET", "/user", token))[1]["user"]["id"]
    assert (await world.call("DELETE", f"/admin/users/{user}/throttle", token))[0] == 200
    assert [(await world.call("POST", path, body=body))[0] for path, body in wanted] == [200, 202]


async def administrator(client: Client, dsn: Dsn) -> str:
    await register(client, "grace")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE username = 'grace' RETURNING 1")
    return await log_in(client, "grace")


async def add(world: World, token: str, username: str, **more: object) -> str:
    """Add a user; the id."""
    status, answer = await world.call("POST", "/admin/users", token, {"username": username, **more})
    assert status == 201, answer
    return str(answer["user"]["id"])


async def invite(world: World, token: str, user: str) -> tuple[int, Any]:
    return await world.call("POST", f"/admin/users/{user}/invitation", token, **{"Accept-Language": "de"})


async def test_an_invitation_counts_once_and_for_seven_days(world: World) -> None:
    token = await administrator(world.client, world.dsn)
    ada = await add(world, token, "ada", email="ada@example.org")
    assert await invite(world, token, ada) == (202, {"status": "success"})
    mail = await world.mailbox.receive("ada@example.org", kind="Ihr Konto bei")
    assert "Guten Tag ada," in mail.text
    code = mail.link("recovery")
    assert f"{PAGE}#recovery={code}" in mail.text
    # A short code would be too easy to guess in seven days.
    kept = rows(
        world.dsn, "SELECT typed_hash, round(extract(epoch FROM expires_at - created_at)) FROM gatepost.codes"
    )
    assert kept == [(None, 7 * 86400)]
    assert (await world.redeem(code, new="short"))[0] == 422
    assert (await world.redeem(code))[0] == 200
    assert (await world.redeem(code))[0] == 403
    await log_in(world.client, password=NEW)
    started = rows(
        world.dsn,
        "SELECT e.user_id::text, u.username FROM gatepost.events e JOIN gatepost.users u ON u.id = e.actor_id "
        "WHERE kind = 'authn_password_reset_started'",
    )
    assert started == [(ada, "grace")] * 2  # one is the code that came with the account


async def test_an_invitation_ends_with_what_the_user_was_when_it_was_sent(world: World) -> None:
    token = await administrator(world.client, world.dsn)
    ada = await add(world, token, "ada", email="ada@example.org")
    await invite(world, token, ada)
    code = (await world.mailbox.receive("ada@example.org", kind="Ihr Konto bei")).link("recovery")
    assert (await world.call("PATCH", f"/admin/users/{ada}", token, {"disabled": True}))[0] == 200
    assert (await world.redeem(code))[0] == 403
    assert (await world.call("PATCH", f"/admin/users/{ada}", token, {"disabled": False}))[0] == 200
    assert (await world.redeem(code))[0] == 403


async def test_who_cannot_be_invited_is_named_and_gets_no_mail(world: World) -> None:
    token = await administrator(world.client, world.dsn)
    ada = await add(world, token, "ada", email="ada@example.org")
    bob = await add(world, token, "bob")
    assert (await invite(world, token, str(uuid.uuid4())))[0] == 404
    status, answer = await invite(world, token, bob)
    assert (status, answer["code"]) == (409, "no_address")
    assert (await world.call("PATCH", f"/admin/users/{ada}", token, {"disabled": True}))[0] == 200
    status, answer = await invite(world, token, ada)
    assert (status, answer["code"]) == (409, "no_address")
    assert rows(world.dsn, "SELECT count(*) FROM gatepost.outbox") == [(0,)]


async def test_the_outbox_and_the_codes_hold_nothing_that_could_be_redeemed(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "ada@example.org")
    await world.recover("ada")
    mail = await world.mailbox.receive("ada@example.org", kind="Choose")
    typed, link = mail.typed.replace("-", ""), mail.link("recovery")
    dump = "".join(
        str(row)
        for table in ("codes", "outbox", "events", "emails")
        for row in rows(world.dsn, f"SELECT to_jsonb(t)::text FROM gatepost.{table} t")
    )
    assert typed not in dump
    assert link not in dump
    # Nor a hash of the typed code that is as fast as it is short.
    assert hashlib.sha256(typed.encode()).hexdigest() not in dump


# ------------------------------------------------------------------------------------------- changing, undoing


async def emails(world: World, token: str) -> dict[str, bool]:
    _, answer = await world.call("GET", "/account/emails", token)
    return {email["address"]: email["primary"] for email in answer["emails"] if email["verified_at"]}


async def test_a_change_of_address_is_told_to_the_old_one_which_can_undo_it(world: World) -> None:
    await register(world.client, "ada")
    thief = token = await log_in(world.client)
    old = await world.own(token, "old@example.org")
    rows(
        world.dsn,
        "UPDATE gatepost.emails SET created_at = created_at - interval '30 days', "
        "verified_at = verified_at - interval '30 days' RETURNING 1",
    )
    new = await world.own(thief, "thief@example.org")
    added = await world.mailbox.receive("old@example.org", kind="have changed")
    assert "thief@example.org now belongs" in added.text
    assert (await world.call("PUT", f"/account/emails/{new}/primary", thief))[0] == 200
    primary = await world.mailbox.receive("old@example.org", kind="have changed")
    assert "now goes to thief@example.org" in primary.text
    assert (await world.call("DELETE", f"/account/emails/{old}", thief))[0] == 200
    removed = await world.mailbox.receive("old@example.org", kind="have changed")
    assert "old@example.org no longer belongs" in removed.text
    assert await emails(world, token) == {"thief@example.org": True}
    # A thief who has changed the password too does not stop it.
    _, answer = await world.call("PUT", "/account/password", thief, {"current": PASSWORD, "new": NEW})
    thief = answer["session_id"]
    assert await world.call("POST", "/account/emails/undo", body={"code": removed.link("undo_email")}) == (
        200,
        {"status": "success"},
    )
    assert await status_of(world.client, thief) == 401
    for password in (PASSWORD, NEW):
        assert (await world.call("POST", "/user", body={"username": "ada", "password": password}))[0] == 401
    mail = await world.mailbox.receive("old@example.org", kind="Choose")
    assert (await world.redeem(mail.typed, "old@example.org", new="words that only ada knows"))[0] == 200
    token = await log_in(world.client, "old@example.org", "words that only ada knows")
    assert await emails(world, token) == {"old@example.org": True}
    assert (await world.call("POST", "/account/emails/undo", body={"code": removed.link("undo_email")}))[0] == 403
    await world.idle()
    assert [
        m for m in world.mailbox.rest() if m.recipients == ["thief@example.org"] and "have changed" in m.subject
    ] == []


async def test_a_patient_thief_is_undone_too(world: World) -> None:
    """Whose address was verified weeks before the owner's was removed."""
    await register(world.client, "ada")
    token = await log_in(world.client)
    old = await world.own(token, "old@example.org")
    await world.own(token, "thief@example.org")
    await world.idle()
    rows(
        world.dsn,
        "UPDATE gatepost.emails SET created_at = created_at - interval '30 days', "
        "verified_at = verified_at - interval '30 days' RETURNING 1",
    )
    world.mailbox.rest()
    assert (await world.call("DELETE", f"/account/emails/{old}", token))[0] == 200
    notice = await world.mailbox.receive("old@example.org", kind="have changed")
    assert (await world.call("POST", "/account/emails/undo", body={"code": notice.link("undo_email")}))[0] == 200
    addresses = rows(
        world.dsn, "SELECT canonical, is_primary, verified_at < now() - interval '1 day' FROM gatepost.emails"
    )
    assert addresses == [("old@example.org", True, True)]


async def test_an_address_that_is_removed_by_its_elder_cannot_come_back(world: World) -> None:
    """Or a thief whose address is found out would undo that, and end the owner's sessions."""
    await register(world.client, "ada")
    token = await log_in(world.client)
    await world.own(token, "old@example.org")
    thief = await world.own(token, "thief@example.org")
    assert (await world.call("DELETE", f"/account/emails/{thief}", token))[0] == 200
    await world.idle()
    told = [mail for mail in world.mailbox.rest() if "have changed" in mail.subject]
    assert {mail.recipients[0] for mail in told} == {"old@example.org"}


async def test_the_next_verified_address_takes_the_place_of_a_primary_one_that_is_removed(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    first = await world.own(token, "first@example.org")
    await world.own(token, "second@example.org")
    await world.add(token, "unverified@example.org")
    assert (await world.call("DELETE", f"/account/emails/{first}", token))[0] == 200
    assert await emails(world, token) == {"second@example.org": True}


async def test_an_address_of_somebody_else_or_unverified_is_not_found(world: World) -> None:
    for name in ("ada", "eve"):
        await register(world.client, name)
    ada, eve = await log_in(world.client), await log_in(world.client, "eve")
    hers = await world.own(ada, "ada@example.org")
    unverified = await world.add(ada, "new@example.org")
    assert (await world.call("PUT", f"/account/emails/{hers}/primary", eve))[0] == 404
    assert (await world.call("DELETE", f"/account/emails/{hers}", eve))[0] == 404
    assert (await world.call("PUT", f"/account/emails/{unverified}/primary", ada))[0] == 404
    assert (await world.call("DELETE", "/account/emails/nonsense", ada))[0] == 404
    assert await emails(world, ada) == {"ada@example.org": True}


# --------------------------------------------------------------------------------------- with and without


async def test_without_a_way_for_mail_to_leave_there_is_nothing_of_it(client: Client, dsn: Dsn) -> None:
    world = World(client, Folder(Path("nowhere")), dsn)
    status, answer = await world.call(
        "POST", "/account", body={"username": "ada", "password": PASSWORD, "email": "ada@example.org"}
    )
    assert (status, answer["errors"][0]["field"]) == (422, "email")
    await register(client, "ada@example.org")  # as before
    token = await log_in(client, "ada@example.org")
    for method, path, body in [
        ("GET", "/account/emails", None),
        ("POST", "/account/emails", {"email": "ada@example.org", "password": PASSWORD}),
        ("POST", "/account/recovery", {"identifier": "ada"}),
        ("POST", "/account/emails/undo", {"code": "0" * 32}),
    ]:
        assert (await world.call(method, path, token, body))[0] == 404
    assert (await world.call("PUT", "/account/password", token, {"current": PASSWORD, "new": NEW}))[0] == 200
    admin = await administrator(client, dsn)
    assert (await invite(world, admin, await add(world, admin, "bob")))[0] == 404
    assert rows(dsn, "SELECT count(*) FROM gatepost.outbox") == [(0,)]


async def test_where_addresses_are_required_nobody_registers_without(
    config: Config, tmp_path: Path, start_server: StartServer
) -> None:
    accounts = config.accounts.model_copy(update={"email": "required"})
    settings = with_mail(config, tmp_path / "mail").model_copy(update={"accounts": accounts})
    client = await start_server(settings)
    async with client.post("/account", json={"username": "ada", "password": PASSWORD}) as answer:
        assert answer.status == 422
        assert (await answer.json())["errors"][0]["field"] == "email"


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("ja, fr;q=0.5, es;q=0.7", "es"),
        ("fr;q=0, es;q=0.1", "es"),
        ("fr;q=0", "en"),
        ("*", "en"),
        (";;;,,,q=1", "en"),
        ("DE", "de"),
    ],
)
def test_the_language_is_the_one_of_ours_that_the_browser_asks_for_most(accepted: str, language: str) -> None:
    assert preferred(accepted, "en") == language


async def test_mail_is_in_the_language_of_the_request(world: World) -> None:
    await register(world.client, "ada")
    token = await log_in(world.client)
    body = {"email": "ada@example.org", "password": PASSWORD}
    headers = {"Authorization": token, "Accept-Language": "fr-CH, de;q=0.5"}
    async with world.client.post("/account/emails", json=body, headers=headers) as answer:
        assert answer.status == 201
    mail = await world.mailbox.receive("ada@example.org")
    assert mail.subject == "Confirmez votre adresse pour Gatepost"
    assert mail.message["Content-Language"] == "fr"
    assert "C’est" not in mail.subject
    assert "Votre code :" in mail.text
