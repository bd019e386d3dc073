"""Passkeys: made, used without a name, as a second factor and to confirm; and what attackers send."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    AuthenticationResponse,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    RegistrationResponse,
)

from gatepost.config import Config, FactorsConfig, WebServerConfig
from gatepost.factors import passkeys
from gatepost.postgres.database import Dsn
from tests.authenticator import MAY_BE_SYNCED, PRESENT, SYNCED, VERIFIED, Authenticator, decoded, encoded
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows, status_of
from tests.test_factors import add_phone, begin, call, finish, grow_stale


@pytest.fixture
def config(config: Config) -> Config:
    return config.model_copy(update={"webserver": WebServerConfig(port=0, public_url="https://auth.example")})


@pytest.fixture
async def token(client: Client, ada: dict[str, Any]) -> str:
    return await log_in(client)


async def creation_options(client: Client, token: str) -> dict[str, Any]:
    status, answer = await call(client, "POST", "/account/passkeys/options", token)
    assert status == 200
    options: dict[str, Any] = answer["publicKey"]
    return options


async def add(
    client: Client, token: str, device: Authenticator | None = None, name: str = "Laptop"
) -> tuple[Authenticator, dict[str, Any]]:
    device = device or Authenticator()
    made = device.make(await creation_options(client, token))
    status, added = await call(client, "POST", "/account/passkeys", token, {"credential": made, "name": name})
    assert status == 201, added
    return device, added


async def request_options(client: Client) -> dict[str, Any]:
    options: dict[str, Any] = (await call(client, "POST", "/user/passkey/options"))[1]["publicKey"]
    return options


async def sign_in(client: Client, device: Authenticator) -> tuple[int, Any]:
    signed = device.sign(await request_options(client))
    return await call(client, "POST", "/user/passkey", body={"credential": signed})


# --------------------------------------------------------------------------------------- making and using


async def test_a_passkey_is_made_and_signs_in_without_a_name(client: Client, token: str, dsn: Dsn) -> None:
    device, added = await add(client, token)
    assert added["passkey"] | {"id": "", "created_at": ""} == {
        "id": "",
        "name": "Laptop",
        "synced": False,
        "backed_up": False,
        "created_at": "",
        "last_used_at": None,
    }
    assert len(added["recovery_codes"]) == 10
    assert (await call(client, "GET", "/user", token))[1]["session"]["amr"] == ["hwk", "mfa", "pwd", "user"]
    status, opened = await sign_in(client, device)
    assert (status, set(opened), opened["user"]["username"]) == (200, {"session_id", "expires_at", "user"}, "ada")
    session = (await call(client, "GET", "/user", opened["session_id"]))[1]["session"]
    assert session["amr"] == ["hwk", "mfa", "user"]
    shown = (await call(client, "GET", "/account/passkeys", token))[1]["passkeys"]
    assert [(each["name"], each["last_used_at"] is not None) for each in shown] == [("Laptop", True)]
    kinds = [kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events ORDER BY id DESC LIMIT 2")]
    assert kinds == ["authn_login_success", "factor_added"]


async def test_a_synced_passkey_is_one_in_software(client: Client, token: str) -> None:
    device = Authenticator(flags=PRESENT | VERIFIED | MAY_BE_SYNCED | SYNCED)
    device.counts = False
    device, added = await add(client, token, device)
    assert (added["passkey"]["synced"], added["passkey"]["backed_up"]) == (True, True)
    for _ in range(2):  # a counter that stays 0 is none
        opened = (await sign_in(client, device))[1]
        session = (await call(client, "GET", "/user", opened["session_id"]))[1]["session"]
        assert session["amr"] == ["mfa", "swk", "user"]


async def test_with_a_passkey_the_password_alone_opens_nothing(client: Client, token: str) -> None:
    device, added = await add(client, token)
    status, answer = await call(client, "POST", "/user", body={"username": "ada", "password": PASSWORD})
    assert (status, answer["code"], answer["methods"]) == (
        401,
        "second_factor_required",
        ["passkey", "recovery_code"],
    )
    signed = device.sign(await request_options(client))
    status, opened = await call(client, "POST", "/user/factor", body={"login": answer["login"], "passkey": signed})
    assert status == 200
    session = (await call(client, "GET", "/user", opened["session_id"]))[1]["session"]
    assert session["amr"] == ["hwk", "mfa", "pwd", "user"]
    assert (await finish(client, await begin(client), recovery_code=added["recovery_codes"][0]))[0] == 200


async def test_a_passkey_confirms_once(client: Client, token: str, dsn: Dsn) -> None:
    device, _ = await add(client, token)
    grow_stale(dsn)
    assert (await call(client, "GET", "/account/export", token))[1]["code"] == "confirmation_required"
    signed = device.sign(await request_options(client))
    assert (await call(client, "POST", "/user/confirm", token, {"passkey": signed}))[0] == 200
    assert (await call(client, "GET", "/account/export", token))[0] == 200
    grow_stale(dsn)
    assert (await call(client, "POST", "/user/confirm", token, {"passkey": signed}))[1]["code"] == "invalid_code"


async def test_passkeys_are_renamed_and_removed_and_with_the_last_one_the_recovery_codes(
    client: Client, token: str
) -> None:
    device, added = await add(client, token)
    _, another = await add(client, token, name="Key")
    assert another["recovery_codes"] == []
    path = f"/account/passkeys/{added['passkey']['id']}"
    status, answer = await call(client, "PATCH", path, token, {"name": "Old laptop"})
    assert (status, answer["passkey"]["name"]) == (200, "Old laptop")
    assert (await call(client, "PATCH", path, token, {"name": "\x07"}))[0] == 422
    assert (await call(client, "DELETE", path, token))[0] == 200
    assert (await call(client, "DELETE", path, token))[0] == 404
    assert (await call(client, "PATCH", path, token, {"name": "gone"}))[0] == 404
    assert (await sign_in(client, device))[1]["code"] == "passkey_unknown"
    ticket = await begin(client)
    assert (await call(client, "DELETE", f"/account/passkeys/{another['passkey']['id']}", token))[0] == 200
    assert (await finish(client, ticket, totp="000000"))[1]["code"] == "login_expired"
    assert (await call(client, "GET", "/account/factors", token))[1]["recovery_codes"] == 0
    assert await log_in(client)


async def test_a_passkey_belongs_to_one_account_and_an_account_has_twenty(client: Client, token: str) -> None:
    device, _ = await add(client, token)
    await register(client, "bob")
    for owner in (token, await log_in(client, "bob")):
        made = device.make(await creation_options(client, owner))
        status, answer = await call(client, "POST", "/account/passkeys", owner, {"credential": made})
        assert (status, answer["code"]) == (409, "passkey_taken")
    for _ in range(19):
        await add(client, token)
    made = Authenticator().make(await creation_options(client, token))
    status, answer = await call(client, "POST", "/account/passkeys", token, {"credential": made})
    assert (status, answer["code"]) == (409, "too_many_passkeys")
    excluded = (await creation_options(client, token))["excludeCredentials"]
    assert encoded(device.credential_id) in [each["id"] for each in excluded]


async def test_a_disabled_user_gets_no_session_and_an_operator_removes_passkeys_too(
    client: Client, token: str, ada: dict[str, Any], dsn: Dsn
) -> None:
    device, _ = await add(client, token)
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now() RETURNING 1")
    assert (await sign_in(client, device))[1]["code"] == "passkey_unknown"
    rows(dsn, "UPDATE gatepost.users SET disabled_at = NULL RETURNING 1")
    await register(client, "eve")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE canonical = 'eve' RETURNING 1")
    eve = await log_in(client, "eve")
    path = f"/admin/users/{ada['id']}/factors"
    assert [each["name"] for each in (await call(client, "GET", path, eve))[1]["passkeys"]] == ["Laptop"]
    assert (await call(client, "DELETE", path, eve))[0] == 200
    assert await status_of(client, token) == 401
    assert (await sign_in(client, device))[0] == 401
    assert await log_in(client)


async def test_a_passkey_meets_what_a_role_demands(config: Config, start_server: StartServer, dsn: Dsn) -> None:
    client = await start_server(config.model_copy(update={"factors": FactorsConfig(required_for=("admin",))}))
    await register(client, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}' RETURNING 1")
    token = await log_in(client)
    assert (await call(client, "GET", "/user", token))[0] == 403
    device, added = await add(client, token)
    assert (await call(client, "GET", "/user", token))[0] == 200
    path = f"/account/passkeys/{added['passkey']['id']}"
    assert (await call(client, "DELETE", path, token))[1]["code"] == "last_factor"
    assert (await sign_in(client, device))[0] == 200
    phone = await add_phone(client, token)
    assert (await call(client, "DELETE", path, token))[0] == 200
    assert (await call(client, "DELETE", f"/account/factors/{phone.id}", token))[1]["code"] == "last_factor"


async def test_the_cookie_is_set_for_an_own_page_only(client: Client, token: str) -> None:
    device, _ = await add(client, token)
    body = {"credential": device.sign(await request_options(client)), "cookie": True}
    async with client.post("/user/passkey", json=body, headers={"Origin": "https://evil.example"}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (403, "foreign_origin")
    async with client.post("/user/passkey", json=body) as answer:
        assert answer.status == 200
        assert "HttpOnly" in answer.headers["Set-Cookie"]


async def test_without_a_public_url_there_are_no_passkeys(
    config: Config, start_server: StartServer, dsn: Dsn
) -> None:
    client = await start_server(config.model_copy(update={"webserver": WebServerConfig(port=0)}))
    await register(client, "ada")
    token = await log_in(client)
    assert (await call(client, "POST", "/account/passkeys/options", token))[0] == 404
    assert (await call(client, "POST", "/user/passkey/options"))[0] == 404
    assert (await call(client, "POST", "/user/passkey", body={"credential": {}}))[0] == 404
    assert (await call(client, "POST", "/user/confirm", token, {"passkey": {}}))[1]["code"] == "invalid_passkey"


# ------------------------------------------------------------------------------------------------- attacks


async def refused_at_creation(client: Client, token: str, credential: dict[str, Any]) -> bool:
    status, answer = await call(client, "POST", "/account/passkeys", token, {"credential": credential})
    return (status, answer["code"]) == (403, "invalid_passkey")


class Unusual(Authenticator):
    """Says that its public key is this."""

    def __init__(self, public: dict[int, Any]) -> None:
        super().__init__()
        self.public = public

    def public_key(self) -> dict[int, Any]:
        return self.public


async def test_an_rsa_key_signs_in_as_windows_has_them(client: Client, token: str) -> None:
    device = Authenticator()
    device.key = rsa.generate_private_key(65537, 2048)
    await add(client, token, device)
    assert (await sign_in(client, device))[0] == 200


@pytest.mark.parametrize(
    "public",
    [
        {1: 3, 3: -257, -1: b"\xff" * 384, -2: b"\xef" + b"\xff" * 383},
        {1: 3, 3: -257, -1: b"\xff" * 256, -2: b"\3"},
        {1: 3, 3: -257, -1: b"\xff" * 1024, -2: b"\1\0\1"},
    ],
    ids=["an exponent of 3,072 bits", "an exponent of 3", "8,192 bits"],
)
async def test_a_key_that_no_device_makes_is_refused(client: Client, token: str, public: dict[int, Any]) -> None:
    made = Unusual(public).make(await creation_options(client, token))
    body = {"credential": made, "name": "Laptop"}
    status, answer = await call(client, "POST", "/account/passkeys", token, body)
    assert (status, answer["code"]) == (403, "invalid_passkey")


async def test_certificates_that_nobody_has_asked_for_are_refused(client: Client, token: str) -> None:
    device, computed = Authenticator(), []
    device.statement = ("packed", {"alg": -7, "sig": b"x", "x5c": [b"a certificate"]})
    made = device.make(await creation_options(client, token))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("webauthn.verify_registration_response", lambda **given: computed.append(given))
        body = {"credential": made, "name": "Laptop"}
        status, answer = await call(client, "POST", "/account/passkeys", token, body)
    assert (status, answer["code"], computed) == (403, "invalid_passkey", [])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda device: setattr(device, "origin", "https://auth.example.evil.test"),
        lambda device: setattr(device, "origin", "http://auth.example"),
        lambda device: setattr(device, "rp_id", "evil.test"),
        lambda device: setattr(device, "flags", PRESENT),
        lambda device: setattr(device, "flags", VERIFIED),
        lambda device: setattr(device, "algorithm", -65535),
    ],
    ids=["origin", "http", "relying party", "no verification", "no presence", "algorithm"],
)
async def test_what_is_made_elsewhere_or_without_the_user_is_refused(
    client: Client, token: str, spoil: Callable[[Authenticator], None]
) -> None:
    device = Authenticator()
    spoil(device)
    assert await refused_at_creation(client, token, device.make(await creation_options(client, token)))
    assert (await call(client, "GET", "/account/passkeys", token))[1] == {"passkeys": []}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda device: setattr(device, "origin", "https://evil.test"), "origin"),
        (lambda device: setattr(device, "rp_id", "evil.test"), "invalid"),
        (lambda device: setattr(device, "flags", PRESENT), "invalid"),
        (lambda device: setattr(device, "user_handle", bytes(16)), "invalid"),
        (lambda device: setattr(device, "key", Authenticator().key), "invalid"),
    ],
    ids=["origin", "relying party", "no verification", "another user", "another key"],
)
async def test_what_is_signed_elsewhere_or_without_the_user_is_refused_and_recorded(
    client: Client, token: str, dsn: Dsn, spoil: Callable[[Authenticator], None], reason: str
) -> None:
    device, _ = await add(client, token)
    spoil(device)
    status, answer = await sign_in(client, device)
    assert (status, answer["code"]) == (401, "passkey_unknown")
    assert rows(dsn, "SELECT kind, detail FROM gatepost.events ORDER BY id DESC LIMIT 1") == [
        ("authn_factor_fail", {"factor": "passkey", "reason": reason})
    ]
    ticket = await begin(client)
    signed = device.sign(await request_options(client))
    status, answer = await call(client, "POST", "/user/factor", body={"login": ticket, "passkey": signed})
    assert (status, answer["code"]) == (403, "invalid_passkey")


async def test_a_challenge_counts_once_for_its_purpose_its_user_and_five_minutes(
    client: Client, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Authenticator()
    device.counts = False  # otherwise the counter would tell too
    await add(client, token, device)
    # Used twice, also at once.
    signed = device.sign(await request_options(client))
    answers = await asyncio.gather(
        *(call(client, "POST", "/user/passkey", body={"credential": signed}) for _ in range(4))
    )
    assert sorted(status for status, _ in answers) == [200, 401, 401, 401]
    # For making one, to sign in; and the other way round.
    creating, requesting = await creation_options(client, token), await request_options(client)
    signed = device.sign({"challenge": creating["challenge"]})
    assert (await call(client, "POST", "/user/passkey", body={"credential": signed}))[0] == 401
    other = Authenticator()
    assert await refused_at_creation(client, token, other.make(creating | {"challenge": requesting["challenge"]}))
    # Another user's.
    await register(client, "bob")
    bob = await log_in(client, "bob")
    assert await refused_at_creation(client, bob, Authenticator().make(creating))
    # Used twice to make one.
    made = Authenticator().make(creating)
    assert (await call(client, "POST", "/account/passkeys", token, {"credential": made}))[0] == 201
    assert await refused_at_creation(client, token, Authenticator().make(creating))
    # None of ours.
    signed = device.sign({"challenge": encoded(bytes(40))})
    assert (await call(client, "POST", "/user/passkey", body={"credential": signed}))[0] == 401
    # Too old.
    signed = device.sign(await request_options(client))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + passkeys.LIFETIME + 2)
    assert (await call(client, "POST", "/user/passkey", body={"credential": signed}))[0] == 401


async def test_a_counter_that_falls_is_refused_and_recorded_and_copies_at_once_open_one_session(
    client: Client, token: str, dsn: Dsn
) -> None:
    device, _ = await add(client, token)
    device.counter = 9
    assert (await sign_in(client, device))[0] == 200
    device.counter = 4
    assert (await sign_in(client, device))[0] == 401
    kinds = [kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events ORDER BY id DESC LIMIT 2")]
    assert kinds == ["authn_factor_fail", "passkey_counter_fell"]
    signed = []
    for _ in range(2):
        device.counter = 20
        signed.append(device.sign(await request_options(client)))
    answers = await asyncio.gather(*(call(client, "POST", "/user/passkey", body={"credential": s}) for s in signed))
    assert sorted(status for status, _ in answers) == [200, 401]


async def test_another_users_passkey_is_no_second_factor(client: Client, token: str) -> None:
    device, _ = await add(client, token)
    await register(client, "bob")
    bob = await log_in(client, "bob")
    await add(client, bob)
    ticket = await begin(client, "bob")
    signed = device.sign(await request_options(client))
    assert (await call(client, "POST", "/user/factor", body={"login": ticket, "passkey": signed}))[0] == 403
    signed = device.sign(await request_options(client))
    assert (await call(client, "POST", "/user/confirm", bob, {"passkey": signed}))[0] == 403


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.clear(),
        lambda c: c.update(rawId=5),
        lambda c: c.update(rawId="*"),
        lambda c: c.update(id="AAAA"),
        lambda c: c.update(type="password"),
        lambda c: c.update(response=None),
        lambda c: c["response"].clear(),
        lambda c: c["response"].update(clientDataJSON="AAAA"),
        lambda c: c["response"].update(clientDataJSON=encoded(b"[" * 3000)),
        lambda c: c["response"].update(clientDataJSON=encoded(b"[]")),
        lambda c: c["response"].update(clientDataJSON=encoded(b'{"challenge": 1}')),
        lambda c: c["response"].update(clientDataJSON="é"),
        lambda c: c["response"].update(authenticatorData=""),
        lambda c: c["response"].update(authenticatorData=encoded(bytes(3000))),
        lambda c: c["response"].update(signature="*"),
        lambda c: c["response"].update(signature=7),
        lambda c: c["response"].update(userHandle=7),
        lambda c: c["response"].update(userHandle="é"),
    ],
)
async def test_an_answer_that_is_none_is_refused(
    client: Client, token: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    device, _ = await add(client, token)
    signed = device.sign(await request_options(client))
    spoil(signed)
    assert (await call(client, "POST", "/user/passkey", body={"credential": signed}))[0] == 401
    assert (await call(client, "POST", "/user/confirm", token, {"passkey": signed}))[0] == 403


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r.update(attestationObject=""),
        lambda r: r.update(attestationObject=encoded(b"\x9f" * 4000)),
        lambda r: r.update(attestationObject=encoded(b"\x81" * 4000)),
        lambda r: r.update(attestationObject=encoded(b"\xbb" + b"\xff" * 8)),
        lambda r: r.update(attestationObject=encoded(b"\x5b" + b"\x7f" + b"\xff" * 7)),
        lambda r: r.update(attestationObject=r["attestationObject"][:-20]),
        lambda r: r.pop("attestationObject"),
    ],
)
async def test_cbor_that_is_none_is_refused_at_once(
    client: Client, token: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    made = Authenticator().make(await creation_options(client, token))
    spoil(made["response"])
    async with asyncio.timeout(30):
        status, answer = await call(client, "POST", "/account/passkeys", token, {"credential": made})
    assert (status, answer["code"]) == (403, "invalid_passkey")
    assert await status_of(client, token) == 200


async def test_64_kb_of_cbor_are_too_large(client: Client, token: str) -> None:
    made = Authenticator().make(await creation_options(client, token))
    made["response"]["attestationObject"] = "A" * 65536
    assert (await call(client, "POST", "/account/passkeys", token, {"credential": made}))[0] == 413


# ------------------------------------------------------------------------------------- the second judge


async def test_what_we_ask_for_and_accept_is_accepted_by_another_server_too(client: Client, token: str) -> None:
    """fido2 is Yubico's; py_webauthn, which the service uses, is Duo's."""
    judge = Fido2Server(PublicKeyCredentialRpEntity(name="Gatepost", id="auth.example"))
    options = await creation_options(client, token)
    device = Authenticator()
    made = device.make(options)
    user = PublicKeyCredentialUserEntity(name="ada", id=decoded(options["user"]["id"]))
    _, state = judge.register_begin(user, challenge=decoded(options["challenge"]))
    data = judge.register_complete(state, RegistrationResponse.from_dict(made))
    assert data.credential_data is not None
    assert (await call(client, "POST", "/account/passkeys", token, {"credential": made}))[0] == 201
    asked = await request_options(client)
    signed = device.sign(asked)
    credentials = [AttestedCredentialData(data.credential_data)]
    _, state = judge.authenticate_begin(credentials, challenge=decoded(asked["challenge"]))
    judge.authenticate_complete(state, credentials, AuthenticationResponse.from_dict(signed))
    assert (await call(client, "POST", "/user/passkey", body={"credential": signed}))[0] == 200


def test_the_options_are_those_of_the_standard_as_another_library_reads_them() -> None:
    from webauthn.helpers import parse_authentication_options_json, parse_registration_options_json

    party = passkeys.RelyingParty("auth.example", "Gatepost", ["https://auth.example"], b"k" * 32)
    created = parse_registration_options_json(
        json.dumps(party.creation_options("00000000-0000-4000-8000-000000000000", "ada", [b"x" * 16]))
    )
    assert created.rp.id == "auth.example"
    assert created.authenticator_selection
    assert created.authenticator_selection.user_verification == "required"
    assert created.authenticator_selection.resident_key == "required"
    asked = parse_authentication_options_json(json.dumps(party.request_options()))
    assert asked.user_verification == "required"


# ----------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("public_url", "factors", "rp_id"),
    [
        ("https://auth.example", {}, "auth.example"),
        ("https://auth.example", {"relying_party": "example"}, "example"),
        ("https://auth.example", {"origins": ["https://www.auth.example"]}, "auth.example"),
        ("http://localhost:8000", {}, "localhost"),
        ("http://auth.example", {}, None),
        ("https://192.0.2.1", {}, None),
        (None, {}, None),
    ],
)
def test_the_domain_is_that_of_the_public_url_or_the_one_that_is_named(
    public_url: str | None, factors: dict[str, Any], rp_id: str | None
) -> None:
    config = Config(webserver=WebServerConfig(public_url=public_url), factors=FactorsConfig(**factors))
    party = passkeys.RelyingParty.of(config, b"k" * 32)
    assert (party and party.request_options()["rpId"]) == rp_id


@pytest.mark.parametrize(
    ("public_url", "factors", "message"),
    [
        ("https://auth.example", {"relying_party": "other.example"}, "cannot be used on https://auth.example"),
        ("https://auth.example", {"relying_party": "th.example"}, "cannot be used on"),
        ("https://auth.example", {"origins": ["https://app.example"]}, "cannot be used on https://app.example"),
        ("http://auth.example", {"relying_party": "auth.example"}, "not for http://auth.example"),
        (None, {"relying_party": "auth.example"}, "webserver.public_url must be"),
    ],
)
def test_origins_that_do_not_fit_are_refused(public_url: str | None, factors: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(webserver=WebServerConfig(public_url=public_url), factors=FactorsConfig(**factors))
