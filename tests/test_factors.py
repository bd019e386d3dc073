"""Second factors: a login in steps, authenticator apps, recovery codes, confirmation, and roles that demand two."""

import asyncio
import base64
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pyotp
import pytest
from pydantic import SecretStr

from gatepost.config import Config, FactorsConfig, SessionsConfig
from gatepost.errors import MissingSecret
from gatepost.factors import passkey_queries, queries, recovery_codes, totp
from gatepost.factors.vault import MissingKey, Sealed, Vault
from gatepost.postgres.database import Database, Dsn
from gatepost.routes import ROUTES
from gatepost.server import WebServer
from gatepost.sessions.guard import GUARDED
from gatepost.sessions.session import hash_token
from tests.conftest import (
    PASSWORD,
    Client,
    CountRoundTrips,
    StartServer,
    eventually,
    log_in,
    register,
    rows,
    status_of,
    with_mail,
)
from tests.received_mail import Folder

NEW = "a better horse and battery"


@dataclass
class Phone:
    """An authenticator app with one account in it."""

    id: str
    secret: str
    codes: list[str]

    def code(self, step: int = 0) -> str:
        """What it shows now, or so many steps later."""
        return pyotp.TOTP(self.secret).at(int(time.time()) + 30 * step)


async def call(client: Client, method: str, path: str, token: str = "", body: object = None) -> tuple[int, Any]:
    headers = {"Authorization": token} if token else {}
    async with client.request(method, path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def add_phone(client: Client, token: str, name: str = "Phone") -> Phone:
    status, added = await call(client, "POST", "/account/factors", token, {"name": name})
    assert status == 201, added
    phone = Phone(added["factor"]["id"], added["secret"], [])
    status, confirmed = await call(
        client, "POST", f"/account/factors/{phone.id}/confirm", token, {"code": phone.code(-1)}
    )
    assert status == 200, confirmed
    phone.codes = confirmed["recovery_codes"]
    return phone


async def begin(client: Client, username: str = "ada", password: str = PASSWORD) -> str:
    """The first step of a login; its ticket."""
    status, answer = await call(client, "POST", "/user", body={"username": username, "password": password})
    assert (status, answer["code"]) == (401, "second_factor_required"), answer
    return str(answer["login"])


async def finish(client: Client, ticket: str, **proof: str) -> tuple[int, Any]:
    return await call(client, "POST", "/user/factor", body={"login": ticket, **proof})


def some_time_passes(dsn: Dsn) -> None:
    """Enough for a code to be new again."""
    rows(dsn, "UPDATE gatepost.totp_factors SET last_step = 0 RETURNING 1")


def grow_stale(dsn: Dsn, seconds: int = 601) -> None:
    """The sessions were authenticated so long ago."""
    rows(
        dsn,
        "UPDATE gatepost.sessions SET created_at = created_at - make_interval(secs => %s), "
        "confirmed_at = confirmed_at - make_interval(secs => %s) RETURNING 1",
        seconds,
        seconds,
    )


@pytest.fixture
async def token(client: Client, ada: dict[str, Any]) -> str:
    return await log_in(client)


@pytest.fixture
async def phone(client: Client, token: str) -> Phone:
    return await add_phone(client, token)


# ------------------------------------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize(
    ("moment", "code"),
    # RFC 6238, appendix B: SHA-1; the last six of its eight digits.
    [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"), (2000000000, "279037")],
)
def test_the_vectors_of_rfc_6238_hold(moment: int, code: str) -> None:
    vault = Vault(FactorsConfig(), b"k" * 32)
    factor = totp.Factor("1", vault.seal(b"12345678901234567890", "ada"), 0)
    for drift in (-30, 0, 30):
        match = totp.match(code, [factor], "ada", vault, moment + drift)
        assert match == totp.Match(factor, moment // 30)
    for drift in (-60, 60):
        assert totp.match(code, [factor], "ada", vault, moment + drift) is None


@pytest.mark.skipif(
    shutil.which("oathtool") is None and os.environ.get("REQUIRE_OATHTOOL") != "1",
    reason="there is no oathtool here",
)
def test_another_program_computes_the_codes_that_count_and_another_reads_the_picture(tmp_path: Path) -> None:
    """oathtool is of the OATH Toolkit; zbarimg reads what a camera sees."""
    vault, secret = Vault(FactorsConfig(), b"k" * 32), totp.new_secret()
    factor = totp.Factor("1", vault.seal(secret, "ada"), 0)
    for moment in (59, 1111111111, 2000000000, int(time.time())):
        asked = ["oathtool", "--totp", "--base32", f"--now=@{moment}", totp.written(secret)]
        code = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        assert totp.match(code, [factor], "ada", vault, moment) == totp.Match(factor, moment // 30)
    uri = totp.uri(secret, "Ünï " * 16, "Example Inc.")
    (tmp_path / "code.svg").write_text(totp.qr_code(uri))
    subprocess.run(["rsvg-convert", "-o", tmp_path / "code.png", tmp_path / "code.svg"], check=True)
    read = ["zbarimg", "--quiet", "--raw", str(tmp_path / "code.png")]
    assert subprocess.run(read, capture_output=True, text=True, check=True).stdout.strip() == uri


@pytest.mark.parametrize("code", ["", "28708", "2870822", "287 082 ", "２８７０８２", "28708a", "287082" * 9000])
def test_what_is_no_code_matches_nothing_and_spaces_are_passed_over(code: str) -> None:
    vault = Vault(FactorsConfig(), b"k" * 32)
    factor = totp.Factor("1", vault.seal(b"12345678901234567890", "ada"), 0)
    assert (totp.match(code, [factor], "ada", vault, 59) is not None) == (code == "287 082 ")


def test_recovery_codes_are_read_as_people_write_them() -> None:
    made = recovery_codes.new()
    assert len(set(made.written)) == 10
    for code, stored in zip(made.written, made.hashes, strict=True):
        assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{4}(-[0-9A-HJKMNP-TV-Z]{4}){3}", code)
        assert recovery_codes.hash_given(code) == stored
        assert recovery_codes.hash_given(f" {code.lower().replace('-', ' ')} ".replace("0", "o")) == stored
    assert recovery_codes.hash_given("\udc00") not in made.hashes


def test_a_sealed_secret_opens_for_its_user_and_under_its_key_only() -> None:
    vault = Vault(FactorsConfig(keys={"a": SecretStr("a" * 32)}), b"k" * 32)
    sealed = vault.seal(b"12345678901234567890", "ada")
    assert sealed.key == "a"
    assert b"1234567890" not in sealed.text
    assert sealed != vault.seal(b"12345678901234567890", "ada")
    assert vault.open(sealed, "ada") == b"12345678901234567890"
    for wrong, owner in (
        (sealed, "bob"),
        (Sealed(sealed.text[:-1] + bytes([sealed.text[-1] ^ 1]), "a"), "ada"),
        (Sealed(sealed.text, None), "ada"),
    ):
        with pytest.raises(ValueError, match="is not what was sealed"):
            vault.open(wrong, owner)
    with pytest.raises(MissingKey, match="'b'"):
        vault.open(Sealed(sealed.text, "b"), "ada")


# -------------------------------------------------------------------------------------------- adding one


async def test_an_app_is_added_with_a_secret_a_uri_and_a_picture_and_counts_once_confirmed(
    client: Client, token: str, dsn: Dsn
) -> None:
    status, added = await call(client, "POST", "/account/factors", token, {"name": "Phone"})
    assert status == 201
    assert added["factor"] | {"id": "", "created_at": ""} == {
        "id": "",
        "kind": "totp",
        "name": "Phone",
        "created_at": "",
        "confirmed_at": None,
        "last_used_at": None,
    }
    parsed = pyotp.parse_uri(added["uri"])
    assert isinstance(parsed, pyotp.TOTP)
    assert (parsed.secret, parsed.name, parsed.issuer) == (added["secret"], "ada", "Gatepost")
    assert ET.fromstring(added["qr"]).tag == "{http://www.w3.org/2000/svg}svg"

    assert await log_in(client)  # an unconfirmed one is none
    path = f"/account/factors/{added['factor']['id']}/confirm"
    assert (await call(client, "POST", path, token, {"code": "000000"}))[1]["code"] == "invalid_code"
    code = parsed.now()
    status, confirmed = await call(client, "POST", path, token, {"code": code})
    assert status == 200
    assert confirmed["factor"]["confirmed_at"] is not None
    assert len(confirmed["recovery_codes"]) == 10
    assert (await call(client, "POST", path, token, {"code": code}))[0] == 404
    assert (await call(client, "GET", "/account/factors", token)) == (
        200,
        {"factors": [confirmed["factor"]], "recovery_codes": 10},
    )
    session = (await call(client, "GET", "/user", token))[1]["session"]
    assert session["amr"] == ["mfa", "otp", "pwd"]
    # The code that confirmed it is used up.
    assert await finish(client, await begin(client), totp=code) == (403, confirmed_code_refusal())
    kinds = [kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events ORDER BY id DESC LIMIT 3")]
    assert kinds == ["authn_factor_fail", "authn_login_factor_required", "factor_added"]


def confirmed_code_refusal() -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "code": "invalid_code",
        "detail": "This code is wrong, used or too old: ask for a new one.",
    }


async def test_a_second_app_takes_the_place_of_one_that_waits_and_five_are_enough(
    client: Client, token: str, phone: Phone, dsn: Dsn
) -> None:
    first = (await call(client, "POST", "/account/factors", token, {}))[1]["factor"]["id"]
    second = await add_phone(client, token, "Tablet")
    assert second.codes == []  # the recovery codes are there already
    assert (await call(client, "POST", f"/account/factors/{first}/confirm", token, {"code": "1"}))[0] == 404
    for number in range(3):
        await add_phone(client, token, f"{number}")
    assert (await call(client, "POST", "/account/factors", token, {}))[1]["code"] == "too_many_factors"
    some_time_passes(dsn)
    assert (await finish(client, await begin(client), totp=second.code()))[0] == 200
    assert (await finish(client, await begin(client), totp=phone.code()))[0] == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [({"name": ""}, "name"), ({"name": "x" * 65}, "name"), ({"name": "\x07"}, "name"), ({"kind": "sms"}, "kind")],
)
async def test_bad_input_is_named(client: Client, token: str, body: object, field: str) -> None:
    status, answer = await call(client, "POST", "/account/factors", token, body)
    assert (status, [e["field"] for e in answer["errors"]]) == (422, [field])


async def test_a_long_name_still_makes_a_picture(client: Client) -> None:
    name = "ü" * 120
    await register(client, name)
    status, added = await call(client, "POST", "/account/factors", await log_in(client, name), {})
    assert status == 201
    assert pyotp.parse_uri(added["uri"]).name == "ü" * 64


async def test_an_app_that_nobody_confirms_is_forgotten(client: Client, token: str, dsn: Dsn) -> None:
    added = (await call(client, "POST", "/account/factors", token, {}))[1]
    rows(dsn, "UPDATE gatepost.totp_factors SET created_at = created_at - interval '61 minutes' RETURNING 1")
    path = f"/account/factors/{added['factor']['id']}/confirm"
    assert (await call(client, "POST", path, token, {"code": pyotp.TOTP(added["secret"]).now()}))[0] == 404


# ------------------------------------------------------------------------------------- a login in steps


async def test_a_login_takes_a_code_once_there_is_a_factor(
    client: Client, phone: Phone, dsn: Dsn, count_round_trips: CountRoundTrips
) -> None:
    status, answer = await call(client, "POST", "/user", body={"username": "ada", "password": PASSWORD})
    assert status == 401
    assert set(answer) == {"type", "title", "status", "code", "detail", "login", "methods", "expires_at"}
    assert answer["methods"] == ["totp", "recovery_code"]
    ticket = answer["login"]
    assert await status_of(client, ticket) == 401  # it is no session
    with count_round_trips() as sent:
        status, opened = await finish(client, ticket, totp=phone.code())
    assert len(sent) == 2
    assert (status, set(opened)) == (200, {"session_id", "expires_at", "user"})
    session = (await call(client, "GET", "/user", opened["session_id"]))[1]["session"]
    assert session["amr"] == ["mfa", "otp", "pwd"]
    assert (await finish(client, ticket, totp=phone.code(1)))[1]["code"] == "login_expired"  # used up
    assert rows(dsn, "SELECT kind, detail FROM gatepost.events ORDER BY id DESC LIMIT 1") == [
        ("authn_login_success", {"amr": ["mfa", "otp", "pwd"]})
    ]


async def test_the_cookie_is_set_by_the_last_step(client: Client, phone: Phone) -> None:
    async with client.post("/user", json={"username": "ada", "password": PASSWORD, "cookie": True}) as answer:
        assert "Set-Cookie" not in answer.headers
        ticket = (await answer.json())["login"]
    body = {"login": ticket, "totp": phone.code(), "cookie": True}
    foreign = {"Origin": "https://evil.example"}
    async with client.post("/user/factor", json=body, headers=foreign) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "foreign_origin")
    async with client.post("/user/factor", json=body) as answer:
        assert answer.status == 200
        assert "HttpOnly" in answer.headers["Set-Cookie"]


async def test_a_code_opens_one_session_also_on_two_nodes_at_once(
    config: Config, start_server: StartServer, client: Client, phone: Phone, dsn: Dsn
) -> None:
    other = await start_server(config)
    tickets = [await begin(client) for _ in range(4)]
    code = phone.code()
    answers = await asyncio.gather(
        *(finish(node, ticket, totp=code) for node, ticket in zip((client, other) * 2, tickets, strict=True))
    )
    assert sorted(status for status, _ in answers) == [200, 403, 403, 403]
    # Nor does one of an earlier step: a step is over once a later code was taken.
    some_time_passes(dsn)
    assert (await finish(client, await begin(client), totp=phone.code(1)))[0] == 200
    assert (await finish(client, await begin(client), totp=phone.code()))[0] == 403


async def test_a_ticket_is_worth_one_session_also_at_once(client: Client, phone: Phone) -> None:
    ticket = await begin(client)
    answers = await asyncio.gather(
        finish(client, ticket, totp=phone.code()),
        finish(client, ticket, totp=phone.code(1)),
        finish(client, ticket, recovery_code=phone.codes[0]),
        finish(client, ticket, recovery_code=phone.codes[1]),
    )
    assert [status for status, _ in answers].count(200) == 1


async def test_a_recovery_code_is_worth_one_login_and_its_owner_is_told(
    config: Config, start_server: StartServer, dsn: Dsn, tmp_path: Path
) -> None:
    client = await start_server(with_mail(config, tmp_path))
    await register(client, "ada")
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, is_primary, verified_at) "
        "SELECT id, 'a@example.org', 'a@example.org', true, now() FROM gatepost.users RETURNING 1",
    )
    phone = await add_phone(client, await log_in(client))
    assert "was added" in (await Folder(tmp_path).receive("a@example.org", kind="second factor")).text
    written = phone.codes[3].lower().replace("-", " ")
    assert (await finish(client, await begin(client), recovery_code=written))[0] == 200
    assert (await finish(client, await begin(client), recovery_code=phone.codes[3]))[0] == 403
    await eventually(lambda: any("9 left" in file.read_text() for file in tmp_path.iterdir()))
    token = (await finish(client, await begin(client), recovery_code=phone.codes[4]))[1]["session_id"]
    assert (await call(client, "GET", "/account/factors", token))[1]["recovery_codes"] == 8
    status, answer = await call(client, "POST", "/account/factors/recovery-codes", token)
    assert (status, len(answer["recovery_codes"])) == (201, 10)
    assert (await finish(client, await begin(client), recovery_code=phone.codes[5]))[0] == 403
    assert (await finish(client, await begin(client), recovery_code=answer["recovery_codes"][0]))[0] == 200


async def test_a_ticket_counts_for_five_tries_ten_minutes_and_as_long_as_nothing_changes(
    client: Client, token: str, phone: Phone, dsn: Dsn
) -> None:
    expired = (401, "login_expired")

    async def refused(ticket: str) -> tuple[int, str]:
        status, answer = await finish(client, ticket, recovery_code=phone.codes[0])
        return status, answer["code"]

    assert await refused("no-ticket") == expired
    assert await refused(token) == expired
    ticket = await begin(client)
    for _ in range(5):
        assert (await finish(client, ticket, totp="000000"))[1]["code"] == "invalid_code"
    assert await refused(ticket) == expired
    ticket = await begin(client)
    rows(dsn, "UPDATE gatepost.login_tickets SET expires_at = clock_timestamp() RETURNING 1")
    assert await refused(ticket) == expired
    ticket = await begin(client)
    status, changed = await call(client, "PUT", "/account/password", token, {"current": PASSWORD, "new": NEW})
    assert status == 200
    assert await refused(ticket) == expired
    ticket = await begin(client, password=NEW)
    rows(dsn, "UPDATE gatepost.users SET disabled_at = clock_timestamp() RETURNING 1")
    assert await refused(ticket) == expired
    rows(dsn, "UPDATE gatepost.users SET disabled_at = NULL RETURNING 1")
    ticket = await begin(client, password=NEW)
    assert (await call(client, "DELETE", f"/account/factors/{phone.id}", changed["session_id"]))[0] == 200
    assert await refused(ticket) == expired
    assert (await call(client, "GET", "/account/factors", changed["session_id"]))[1]["recovery_codes"] == 0
    assert await log_in(client, password=NEW)  # no second factor is left


async def test_a_code_counts_for_its_own_user_only(client: Client, phone: Phone) -> None:
    await register(client, "bob")
    await add_phone(client, await log_in(client, "bob"))
    ticket = await begin(client, "bob")
    assert (await finish(client, ticket, totp=phone.code()))[0] == 403
    assert (await finish(client, ticket, recovery_code=phone.codes[0]))[0] == 403


async def test_guesses_are_few_and_an_operator_gives_them_back(client: Client, phone: Phone, dsn: Dsn) -> None:
    for _ in range(2):
        ticket = await begin(client)
        for _ in range(5):
            assert (await finish(client, ticket, totp="000000"))[0] == 403
    ticket = await begin(client)
    status, answer = await finish(client, ticket, totp=phone.code())
    assert (status, answer["code"]) == (429, "too_many_attempts")
    rows(dsn, "DELETE FROM gatepost.throttles WHERE get_byte(key, 0) = ascii('f') RETURNING 1")
    assert (await finish(client, ticket, totp=phone.code()))[0] == 200


async def test_right_codes_cost_no_guesses(client: Client, phone: Phone, dsn: Dsn) -> None:
    for _ in range(12):
        some_time_passes(dsn)
        assert (await finish(client, await begin(client), totp=phone.code()))[0] == 200
    assert rows(dsn, "SELECT key FROM gatepost.throttles WHERE get_byte(key, 0) = ascii('f') AND due > now()") == []


@pytest.mark.parametrize("proof", [{}, {"totp": "1", "recovery_code": "2"}, {"totp": 123456}, {"sms": "1"}])
async def test_a_step_takes_one_proof(client: Client, phone: Phone, proof: dict[str, Any]) -> None:
    assert (await finish(client, await begin(client), **proof))[0] == 422


async def test_code_of_the_release_before_lets_nobody_in_by_the_password_alone(
    client: Client, phone: Phone, dsn: Dsn, database: Database
) -> None:
    """It asks `open_session_3`, which answers as for a lost login."""
    await register(client, "bob")
    asked = """
        SELECT o.unchanged, o.expires_at, o.id FROM gatepost.passwords p JOIN gatepost.users u ON u.id = p.user_id,
            gatepost.open_session_3(u.canonical, NULL, p.setting, p.pepper, p.digest, sha256(convert_to(%s, 'UTF8')),
            1000, 10, NULL, NULL, NULL, '{}', '{}', '{}', '{}', 'u123456789012345', 10, 1, false) o
        WHERE u.canonical = %s
    """
    [(unchanged, expires_at, user_id)] = rows(dsn, asked, "t1", "ada")
    assert (unchanged, expires_at, user_id) == (True, None, None)
    [(unchanged, expires_at, user_id)] = rows(dsn, asked, "t2", "bob")
    assert unchanged
    assert expires_at
    assert user_id


# ------------------------------------------------------------------------------------------ confirmation

SENSITIVE = [
    ("POST", "/account/factors", {}),
    ("POST", "/account/factors/recovery-codes", None),
    ("GET", "/account/export", None),
    ("PUT", "/account/password", {"current": PASSWORD, "new": NEW}),
    ("PATCH", "/account", {"username": "eve"}),
    ("DELETE", "/account", {"password": PASSWORD}),
]


async def test_changing_how_one_signs_in_takes_a_fresh_proof_of_the_second_factor(
    client: Client, token: str, phone: Phone, dsn: Dsn
) -> None:
    grow_stale(dsn)
    for method, path, body in [*SENSITIVE, ("DELETE", f"/account/factors/{phone.id}", None)]:
        assert (await call(client, method, path, token, body))[1]["code"] == "confirmation_required", path
    status, answer = await call(client, "POST", "/user/confirm", token, {"password": PASSWORD})
    assert (status, answer["code"]) == (403, "confirmation_required")  # the password is not enough
    assert (await call(client, "POST", "/user/confirm", token, {"totp": "000000"}))[1]["code"] == "invalid_code"
    status, confirmed = await call(client, "POST", "/user/confirm", token, {"totp": phone.code()})
    assert status == 200
    session = (await call(client, "GET", "/user", token))[1]["session"]
    said, known = (datetime.fromisoformat(each["authenticated_at"]) for each in (confirmed, session))
    assert said == known > datetime.fromisoformat(session["created_at"])
    assert (await call(client, "GET", "/account/export", token))[0] == 200
    grow_stale(dsn)
    assert (await call(client, "POST", "/user/confirm", token, {"totp": phone.code()}))[0] == 403  # used up
    assert (await call(client, "POST", "/user/confirm", token, {"recovery_code": phone.codes[0]}))[0] == 200
    assert (await call(client, "DELETE", f"/account/factors/{phone.id}", token))[0] == 200
    assert (await call(client, "DELETE", f"/account/factors/{phone.id}", token))[0] == 404
    assert (await call(client, "POST", "/account/factors/recovery-codes", token))[1]["code"] == "no_second_factor"


async def test_without_a_second_factor_the_password_confirms(client: Client, token: str, dsn: Dsn) -> None:
    grow_stale(dsn)
    assert (await call(client, "POST", "/account/factors", token, {}))[1]["code"] == "confirmation_required"
    assert (await call(client, "POST", "/user/confirm", token, {"password": NEW}))[1]["code"] == "wrong_password"
    assert (await call(client, "POST", "/account/factors", token, {}))[0] == 403
    assert (await call(client, "POST", "/user/confirm", token, {"password": PASSWORD}))[0] == 200
    assert (await call(client, "POST", "/account/factors", token, {}))[0] == 201
    assert (await call(client, "POST", "/user/confirm", token, {"totp": "000000"}))[1]["code"] == "invalid_code"
    assert (await call(client, "POST", "/user/confirm", token, {}))[0] == 422
    # The password in the body is a proof of its own.
    grow_stale(dsn)
    assert (await call(client, "PATCH", "/account", token, {"username": "eve"}))[0] == 403
    assert (await call(client, "PATCH", "/account", token, {"username": "Ada", "profile": {"a": 1}}))[0] == 200
    assert (await call(client, "PUT", "/account/password", token, {"current": PASSWORD, "new": NEW}))[0] == 200


async def test_a_confirmation_is_of_one_session_and_its_guesses_are_few(
    client: Client, token: str, phone: Phone, dsn: Dsn
) -> None:
    other = (await finish(client, await begin(client), recovery_code=phone.codes[0]))[1]["session_id"]
    grow_stale(dsn)
    assert (await call(client, "POST", "/user/confirm", token, {"totp": phone.code()}))[0] == 200
    assert (await call(client, "GET", "/account/export", other))[0] == 403
    for _ in range(10):
        assert (await call(client, "POST", "/user/confirm", other, {"totp": "000000"}))[0] == 403
    assert (await call(client, "POST", "/user/confirm", other, {"totp": phone.code(1)}))[0] == 429


async def test_a_session_from_before_the_first_factor_changes_nothing_until_it_has_proved_that_too(
    client: Client, token: str
) -> None:
    older = await log_in(client)
    phone = await add_phone(client, token)
    for method, path, body in SENSITIVE:
        if path != "/account/export":  # it only reads
            assert (await call(client, method, path, older, body))[1]["code"] == "confirmation_required", path
    assert (await call(client, "POST", "/user/confirm", older, {"password": PASSWORD}))[0] == 403
    assert (await call(client, "POST", "/user/confirm", older, {"totp": phone.code()}))[0] == 200
    assert (await call(client, "DELETE", f"/account/factors/{phone.id}", older))[0] == 200


async def test_who_has_waited_too_long_to_add_the_demanded_factor_confirms_first(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(demanding(config))
    await register(client, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    token = await log_in(client)
    grow_stale(dsn)
    assert (await call(client, "POST", "/account/factors", token, {}))[1]["code"] == "confirmation_required"
    assert (await call(client, "POST", "/user/confirm", token, {"password": PASSWORD}))[0] == 200
    await add_phone(client, token)
    assert (await call(client, "GET", "/user", token))[0] == 200


async def test_administration_takes_a_fresh_session(client: Client, token: str, dsn: Dsn) -> None:
    bob = (await register(client, "bob"))["id"]
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE canonical = 'ada' RETURNING 1")
    grow_stale(dsn)
    assert (await call(client, "GET", f"/admin/users/{bob}", token))[0] == 200
    for method, path, body in [
        ("POST", "/admin/users", {"username": "eve"}),
        ("PATCH", f"/admin/users/{bob}", {"disabled": True}),
        ("DELETE", f"/admin/users/{bob}", None),
        ("POST", f"/admin/users/{bob}/password-reset", None),
        ("DELETE", f"/admin/users/{bob}/sessions", None),
        ("DELETE", f"/admin/users/{bob}/factors", None),
        ("DELETE", f"/admin/users/{bob}/throttle", None),
    ]:
        assert (await call(client, method, path, token, body))[1]["code"] == "confirmation_required", path
    assert (await call(client, "POST", "/user/confirm", token, {"password": PASSWORD}))[0] == 200
    assert (await call(client, "PATCH", f"/admin/users/{bob}", token, {"disabled": True}))[0] == 200


async def test_forward_auth_can_demand_two_factors_and_a_fresh_session(client: Client, token: str, dsn: Dsn) -> None:
    async def asked(query: str) -> tuple[int, str]:
        async with client.get(f"/authz/forward?{query}", headers={"Authorization": token}) as answer:
            return answer.status, "" if answer.status == 200 else (await answer.json())["code"]

    assert await asked("factors=1&fresh=600") == (200, "")
    assert await asked("factors=2") == (403, "factor_required")
    for misspelt in ("factors=3", "factors=", "fresh=0", "fresh=soon", "fresh=-1"):
        assert (await asked(misspelt))[0] == 422
    phone = await add_phone(client, token)
    assert await asked("factors=2&fresh=600") == (200, "")
    grow_stale(dsn)
    assert await asked("factors=2") == (200, "")
    assert await asked("factors=2&fresh=600") == (403, "confirmation_required")
    assert (await call(client, "POST", "/user/confirm", token, {"totp": phone.code()}))[0] == 200
    assert await asked("factors=2&fresh=600") == (200, "")


# --------------------------------------------------------------------------------- roles that demand two


def demanding(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"factors": FactorsConfig(required_for=("admin",)), **changes})


async def test_who_must_have_a_second_factor_can_add_one_and_nothing_else(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(demanding(config))
    user = await register(client, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin,verifier}' RETURNING 1")
    token = await log_in(client)
    allowed = {
        ("GET", "/account/factors"),
        ("POST", "/account/factors"),
        ("POST", "/account/factors/{id}/confirm"),
        ("GET", "/account/passkeys"),
        ("POST", "/account/passkeys"),
        ("POST", "/account/passkeys/options"),
        ("POST", "/user/confirm"),  # adding one may take it
    }
    asked = 0
    for route in ROUTES:
        if route.handler in GUARDED and (route.method, route.path) not in allowed:
            path = route.path.replace("{id}", user["id"]).replace("{handle}", user["id"])
            assert (await call(client, route.method, path, token, {}))[1]["code"] == "factor_required", route
            asked += 1
    assert asked > 25
    # Nor is it a session to any backend.
    async with client.get("/authz/forward", headers={"Authorization": token}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "factor_required")
    await register(client, "eve")
    rows(dsn, "UPDATE gatepost.users SET roles = '{verifier}' WHERE canonical = 'eve' RETURNING 1")
    verifier = await log_in(client, "eve")
    status, answer = await call(client, "POST", "/authz/check", verifier, {"tokens": [token, verifier]})
    assert status == 200
    assert [result and result["user"]["username"] for result in answer["results"]] == [None, "eve"]
    signed_in = "SELECT l.canonical FROM gatepost.live_sessions_2(ARRAY[%s::bytea], 1000) l"
    assert rows(dsn, signed_in, hash_token(token)) == []
    assert rows(dsn, signed_in, hash_token(verifier)) == [("eve",)]

    phone = await add_phone(client, token)
    assert (await call(client, "GET", "/admin/users", token))[0] == 200
    assert rows(dsn, signed_in, hash_token(token)) == [("ada",)]
    status, answer = await call(client, "DELETE", f"/account/factors/{phone.id}", token)
    assert (status, answer["code"]) == (409, "last_factor")
    await add_phone(client, token, "another")
    assert (await call(client, "DELETE", f"/account/factors/{phone.id}", token))[0] == 200
    assert (await call(client, "DELETE", "/user", token))[0] == 200


async def test_who_must_have_a_second_factor_can_still_sign_out(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(demanding(config))
    await register(client, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    token = await log_in(client)
    assert (await call(client, "DELETE", "/user", token))[0] == 200
    assert await status_of(client, token) == 401


async def test_a_role_that_no_longer_demands_two_is_forgotten_in_the_database_too(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    named = "SELECT name FROM gatepost.settings WHERE name ^@ 'two_factors:'"
    await start_server(demanding(config))
    assert rows(dsn, named) == [("two_factors:admin",)]
    await start_server(config)
    assert rows(dsn, named) == []


# --------------------------------------------------------------------------------------------- operators


async def test_an_operator_sees_and_removes_the_factors_of_a_user_who_has_lost_them(
    config: Config, start_server: StartServer, dsn: Dsn, tmp_path: Path
) -> None:
    client = await start_server(with_mail(config, tmp_path))
    await register(client, "ada")
    bob = await register(client, "bob")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE canonical = 'ada' RETURNING 1")
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, is_primary, verified_at) "
        "SELECT id, 'b@example.org', 'b@example.org', true, now() FROM gatepost.users "
        "WHERE canonical = 'bob' RETURNING 1",
    )
    admin, token = await log_in(client), await log_in(client, "bob")
    path = f"/admin/users/{bob['id']}/factors"
    assert await call(client, "GET", path, admin) == (200, {"factors": [], "passkeys": [], "recovery_codes": 0})
    assert (await call(client, "DELETE", path, admin))[0] == 200
    assert await status_of(client, token) == 200  # there was none, so nothing ended
    await add_phone(client, token)
    ticket = await begin(client, "bob")
    status, answer = await call(client, "GET", path, admin)
    assert (status, [f["name"] for f in answer["factors"]], answer["recovery_codes"]) == (200, ["Phone"], 10)
    assert (await call(client, "DELETE", path, admin))[0] == 200
    assert await status_of(client, token) == 401
    assert (await finish(client, ticket, totp="000000"))[1]["code"] == "login_expired"
    assert await log_in(client, "bob")
    assert await call(client, "GET", path, admin) == (200, {"factors": [], "passkeys": [], "recovery_codes": 0})
    await eventually(lambda: any("has removed the second" in file.read_text() for file in tmp_path.iterdir()))
    kinds = rows(
        dsn,
        "SELECT kind, actor_id::text, detail FROM gatepost.events WHERE user_id = %s AND actor_id IS NOT NULL "
        "ORDER BY id",
        bob["id"],
    )
    admin_id = rows(dsn, "SELECT id::text FROM gatepost.users WHERE canonical = 'ada'")[0][0]
    assert kinds == [
        ("factors_removed", admin_id, {}),
        ("session_revoked", admin_id, {"reason": "factors_removed"}),
    ]
    missing = "/admin/users/00000000-0000-4000-8000-000000000000/factors"
    assert (await call(client, "GET", missing, admin))[0] == 404
    assert (await call(client, "DELETE", missing, admin))[0] == 404


async def test_a_new_password_by_recovery_does_not_pass_over_the_second_factor(
    config: Config, start_server: StartServer, tmp_path: Path, dsn: Dsn
) -> None:
    client = await start_server(with_mail(config, tmp_path))
    await register(client, "ada")
    rows(
        dsn,
        "INSERT INTO gatepost.emails (user_id, address, canonical, is_primary, verified_at) "
        "SELECT id, 'a@example.org', 'a@example.org', true, now() FROM gatepost.users RETURNING 1",
    )
    phone = await add_phone(client, await log_in(client))
    assert (await call(client, "POST", "/account/recovery", body={"identifier": "ada"}))[0] == 202
    mail = await Folder(tmp_path).receive("a@example.org", kind="new password")
    body = {"code": mail.typed, "identifier": "ada", "new": NEW}
    assert (await call(client, "POST", "/account/password/redeem", body=body))[0] == 200
    assert (await finish(client, await begin(client, password=NEW), totp=phone.code()))[0] == 200


# ------------------------------------------------------------------------------------------ the secrets


async def test_nothing_that_proves_anything_is_stored_as_it_is(
    client: Client, token: str, phone: Phone, dsn: Dsn
) -> None:
    ticket = await begin(client)
    tables = ("totp_factors", "recovery_codes", "login_tickets")
    stored = str([rows(dsn, f"SELECT t::text FROM gatepost.{table} t") for table in tables])
    assert phone.id in stored
    raw = base64.b32decode(phone.secret)
    for secret in (ticket, phone.secret, raw.hex(), *phone.codes, phone.codes[0].replace("-", "")):
        assert secret not in stored
    document = (await call(client, "GET", "/account/export", token))[1]
    assert [(f["kind"], f["name"]) for f in document["factors"]] == [("totp", "Phone")]
    assert (len(document["recovery_codes"]), len(document["logins_under_way"])) == (10, 1)
    assert phone.secret not in str(document)
    assert "sealed" not in str(document)


async def test_a_key_is_introduced_and_rotated_and_missed_at_the_start(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    def keyed(current: str | None, **keys: str) -> Config:
        factors = FactorsConfig(key=current, keys={name: SecretStr(key * 32) for name, key in keys.items()})
        return config.model_copy(update={"factors": factors})

    def kept_under() -> str | None:
        key: str | None = rows(dsn, "SELECT key FROM gatepost.totp_factors")[0][0]
        return key

    client = await start_server(config)
    await register(client, "ada")
    phone = await add_phone(client, await log_in(client))
    assert kept_under() is None
    for step in (keyed("one", one="1"), keyed("two", one="1", two="2")):
        client = await start_server(step)
        some_time_passes(dsn)
        assert (await finish(client, await begin(client), totp=phone.code()))[0] == 200
        assert kept_under() == step.factors.key
    client = await start_server(keyed("two", two="2"))
    some_time_passes(dsn)
    assert (await finish(client, await begin(client), totp=phone.code()))[0] == 200
    for without in (config, keyed("three", three="3")):
        with pytest.raises(MissingSecret, match=r"'two'.*factors\.keys"):
            await WebServer(without).initializer()


def test_nothing_secret_is_in_the_repr_of_a_request_or_of_the_configuration() -> None:
    from gatepost.factors.handlers import FirstCode
    from gatepost.factors.proving import Confirmation, FurtherStep

    said = repr(
        [
            FirstCode(code="s3cret"),
            FurtherStep(login="s3cret", totp="s3cret"),
            FurtherStep(login="s3cret", recovery_code="s3cret"),
            Confirmation(password="s3cret"),
            FactorsConfig(keys={"a": SecretStr("s3cret" * 6)}),
        ]
    )
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"keys": {"a": "short"}}, "fewer than 32"),
        ({"keys": {"a": "k" * 32, "b": "l" * 32}}, "several keys"),
        ({"key": "c", "keys": {"a": "k" * 32}}, "'c'"),
        ({"issuer": "a:b"}, "colon"),
        ({"required_for": ["no role"]}, "pattern"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FactorsConfig(**section)


async def test_freshness_is_configured(config: Config, start_server: StartServer, dsn: Dsn) -> None:
    client = await start_server(config.model_copy(update={"sessions": SessionsConfig(fresh=3600)}))
    await register(client, "ada")
    token = await log_in(client)
    grow_stale(dsn, 3500)
    assert (await call(client, "POST", "/account/factors", token, {}))[0] == 201
    grow_stale(dsn, 200)
    assert (await call(client, "POST", "/account/factors", token, {}))[0] == 403


async def test_what_has_passed_is_swept_and_what_counts_is_not(
    client: Client, phone: Phone, token: str, dsn: Dsn, database: Database
) -> None:
    await call(client, "POST", "/account/factors", token, {})
    await begin(client)
    rows(dsn, "INSERT INTO gatepost.used_challenges (challenge_hash) VALUES (sha256('a')) RETURNING 1")
    sweeps = (
        queries.sweep_tickets,
        queries.sweep_unconfirmed,
        partial(passkey_queries.sweep_challenges, lifetime=600.0),
    )
    assert [await database.write(sweep, 1000) for sweep in sweeps] == [0, 0, 0]
    aged = {"login_tickets": "expires_at", "totp_factors": "created_at", "used_challenges": "used_at"}
    for table, moment in aged.items():
        rows(dsn, f"UPDATE gatepost.{table} SET {moment} = {moment} - interval '61 minutes' RETURNING 1")
    assert [await database.write(sweep, 1000) for sweep in sweeps] == [1, 1, 1]
    assert rows(dsn, "SELECT id::text FROM gatepost.totp_factors") == [(phone.id,)]
