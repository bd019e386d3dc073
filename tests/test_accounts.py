"""`POST /account`: who may register, under which name, with which password."""

import asyncio
import json
import unicodedata
from typing import Any

import pytest

from gatepost.config import AccountsConfig, Config, PasswordsConfig
from gatepost.postgres.database import Dsn
from tests.conftest import CHEAP, PASSWORD, Client, StartServer, log_in, register, rows, status_of


async def attempt(client: Client, username: str, password: str = PASSWORD) -> tuple[int, dict[str, Any]]:
    # As UTF-8: escaped, 1,024 characters outside the BMP would take 12 KB.
    body = json.dumps({"username": username, "password": password}, ensure_ascii=False).encode()
    async with client.post("/account", data=body, headers={"Content-Type": "application/json"}) as answer:
        return answer.status, await answer.json(content_type=None)


async def reasons(client: Client, username: str, password: str = PASSWORD) -> list[tuple[str, str]]:
    """The fields and codes with which a registration is refused; none when it is accepted."""
    status, body = await attempt(client, username, password)
    if status == 201:
        return []
    assert status == 422, body
    assert body["code"] == "invalid_body"
    assert all(error["message"] for error in body["errors"])
    assert len(password) < 12 or password not in json.dumps(body, ensure_ascii=False)
    return [(error["field"], error["code"]) for error in body["errors"]]


async def login_status(client: Client, username: str, password: str) -> int:
    async with client.post("/user", json={"username": username, "password": password}) as answer:
        return answer.status


# ----------------------------------------------------------------------------------------------- accepted


async def test_a_registration_answers_201_with_the_user_and_can_log_in(client: Client, dsn: Dsn) -> None:
    status, body = await attempt(client, "Zoë")
    assert status == 201
    user = body["user"]
    assert set(body) == {"user"}
    assert user == {"id": user["id"], "username": "Zoë", "roles": [], "profile": {}}
    assert rows(dsn, "SELECT id::text, username, canonical FROM gatepost.users") == [(user["id"], "Zoë", "zoë")]
    assert rows(dsn, "SELECT kind, user_id::text FROM gatepost.events") == [("user_created", user["id"])]
    assert rows(dsn, "SELECT 1 FROM gatepost.sessions") == []
    assert await status_of(client, await log_in(client, "zoë")) == 200


async def test_a_name_is_shown_as_it_was_written_but_normalised(client: Client) -> None:
    assert (await register(client, "ＡdaLovelace"))["username"] == "AdaLovelace"
    assert (await register(client, "ZOE\u0308"))["username"] == "ZOË"


async def test_the_shown_name_can_log_in_however_long_it_is(client: Client) -> None:
    for name in ("a" * 128, "\u0958" * 64, "İ" * 64, "é" * 128):
        user = await register(client, name)
        await log_in(client, user["username"])
    # At the edge, where normalising lengthens: either refused, or able to log in as it is shown.
    for name in ("\u0958" * 128, "İ" * 128, "x" * 127 + "İ"):
        status, body = await attempt(client, name)
        if status == 201:
            await log_in(client, body["user"]["username"])
        else:
            assert status == 422
            assert [error["field"] for error in body["errors"]] == ["username"]


# -------------------------------------------------------------------------------------------------- taken

SPELLINGS = [
    ("ada", ["ada", "ADA", "Ada", "ａｄａ", "ＡＤＡ", "aDa"]),
    ("zoë", ["ZOË", "zoe\u0308", "ZOE\u0308"]),
    ("STRAßE", ["straße", "Stra\u1e9ee"]),
    ("kelvin", ["\u212aelvin", "KELVIN"]),
]


@pytest.mark.parametrize(("name", "spellings"), SPELLINGS, ids=[name for name, _ in SPELLINGS])
async def test_a_taken_name_is_409_in_every_spelling_and_nothing_changes(
    client: Client, dsn: Dsn, name: str, spellings: list[str]
) -> None:
    user = await register(client, name)
    kept = rows(dsn, "SELECT u::text, p::text FROM gatepost.users u JOIN gatepost.passwords p ON p.user_id = u.id")
    for spelling in spellings:
        status, body = await attempt(client, spelling, "another password, just as good")
        assert (status, body["code"]) == (409, "username_taken"), spelling
    assert kept == rows(
        dsn, "SELECT u::text, p::text FROM gatepost.users u JOIN gatepost.passwords p ON p.user_id = u.id"
    )
    assert rows(dsn, "SELECT kind, user_id::text FROM gatepost.events") == [("user_created", user["id"])]
    assert await login_status(client, name, "another password, just as good") == 401
    await log_in(client, name)


async def test_of_many_who_want_one_name_at_once_one_gets_it(client: Client, dsn: Dsn) -> None:
    spellings = ["ada", "ADA", "Ada", "ａｄａ"] * 5
    answers = await asyncio.gather(*(attempt(client, name, f"{PASSWORD} {i}") for i, name in enumerate(spellings)))
    statuses = [status for status, _ in answers]
    assert sorted(statuses) == [201] + [409] * 19
    winner = statuses.index(201)
    assert rows(dsn, "SELECT username FROM gatepost.users") == [(answers[winner][1]["user"]["username"],)]
    assert rows(dsn, "SELECT count(*) FROM gatepost.passwords") == [(1,)]
    await log_in(client, "ada", f"{PASSWORD} {winner}")


async def test_a_disabled_users_name_stays_taken(client: Client, dsn: Dsn, ada: dict[str, Any]) -> None:
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now()")
    assert (await attempt(client, "ADA"))[0] == 409


async def test_names_that_only_look_alike_are_different_users(client: Client, ada: dict[str, Any]) -> None:
    for name in ("ada.", "ad\u0430", "adaa", "strasse", "straße", "ı", "i"):
        await register(client, name)


# ----------------------------------------------------------------------------------------- the name: reasons

BAD_NAMES = [
    "",
    " ",
    "ada lovelace",
    "ada\t",
    "ada\n",
    " ada",
    "ada\u00a0",
    "\u202eada",
    "ada\u200b",
    "ﬁn",
    "☕",
    "ada\U0001f600",
    "\u0627a\u0627",
    "x" * 129,
    "é" * 2000,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:12]))
async def test_a_bad_name_is_422_with_the_reason(client: Client, dsn: Dsn, name: str) -> None:
    assert await reasons(client, name) == [("username", "invalid_username")]
    assert rows(dsn, "SELECT 1 FROM gatepost.users") == []
    assert rows(dsn, "SELECT 1 FROM gatepost.events") == []


async def test_what_is_wrong_with_the_name_is_said_but_not_the_name(client: Client) -> None:
    _, body = await attempt(client, "ada lovelace")
    assert "SPACE at position 4" in body["errors"][0]["message"]
    assert "lovelace" not in json.dumps(body)


async def test_a_bad_name_and_a_bad_password_are_both_named(client: Client) -> None:
    assert await reasons(client, "a b", "short") == [
        ("username", "invalid_username"),
        ("password", "password_too_short"),
    ]


# -------------------------------------------------------------------------------------- the password: length

COMPOSED = [
    ("x", 1),
    ("é", 1),
    ("e\u0301", 1),  # two code points, one after OpaqueString
    ("\u1112\u1161\u11ab", 1),  # three, one
    ("\U0001f600", 1),  # four bytes, two UTF-16 units
    ("\u0958", 2),  # one, two
    ("a\u0323\u0301", 2),  # ạ and an accent that composes with neither
]


@pytest.mark.parametrize(("unit", "points"), COMPOSED, ids=[ascii(unit) for unit, _ in COMPOSED])
async def test_the_least_length_counts_code_points_after_normalisation(
    client: Client, unit: str, points: int
) -> None:
    assert len(unicodedata.normalize("NFC", unit)) == points
    enough = -(-15 // points)
    assert await reasons(client, "ada", unit * (enough - 1)) == [("password", "password_too_short")]
    assert await reasons(client, "ada", unit * enough) == []
    await log_in(client, "ada", unicodedata.normalize("NFC", unit * enough))


async def test_fifteen_characters_are_the_least_and_1024_the_most_by_default(
    config: Config, start_server: StartServer
) -> None:
    assert (PasswordsConfig().min_length, PasswordsConfig().max_length) == (15, 1024)
    client = await start_server(config)
    assert await reasons(client, "a", "") == [("password", "invalid_password")]
    assert await reasons(client, "a", "qwcvbnzlkjhgfd") == [("password", "password_too_short")]
    assert await reasons(client, "a", "qwcvbnzlkjhgfdr") == []
    for i, character in enumerate(["q", "é", "\U0001f600"]):
        assert await reasons(client, f"b{i}", character * 1024) == []
        assert await reasons(client, f"c{i}", character * 1025) == [("password", "password_too_long")]
    assert await reasons(client, "c", "q" * 8000) == [("password", "password_too_long")]


async def test_nothing_of_a_long_password_is_cut_off(client: Client) -> None:
    # bcrypt would stop at 72 bytes, a careless C library at a NUL.
    for i, (long, other) in enumerate(
        [
            ("q" * 1024, "q" * 1023),
            ("q" * 1024, "q" * 1023 + "p"),
            ("q" * 1024, "q" * 1025),
            ("q" * 80 + "r", "q" * 80 + "s"),
            ("é" * 1024, "é" * 1023 + "è"),
        ]
    ):
        await register(client, f"user{i}", long)
        assert await login_status(client, f"user{i}", other) == 401
        assert await login_status(client, f"user{i}", long) == 200


async def test_the_bounds_can_be_configured(config: Config, start_server: StartServer) -> None:
    passwords = CHEAP.model_copy(update={"min_length": 8, "max_length": 64})
    client = await start_server(config.model_copy(update={"passwords": passwords}))
    assert await reasons(client, "ada", "gr8tuxz") == [("password", "password_too_short")]
    assert await reasons(client, "ada", "gr8tuxzq") == []
    assert await reasons(client, "eve", "q" * 65) == [("password", "password_too_long")]
    assert await reasons(client, "eve", "q" * 64) == []


# --------------------------------------------------------------------------------------- the password: kinds


@pytest.mark.parametrize(
    "password",
    [
        "onlysmalllettershere",
        "ONLYCAPITALSINTHISONE",
        "8273645918273460",
        "!!??!!??!!??!!??",
        "               ",
        "correct horse battery staple",
        "   spaces at both ends   ",
        "пароль из русских букв",
        "密碼密碼密碼密碼密碼密碼密碼密",
        "\U0001f600\U0001f511" * 8,
        '"\\/\\u0000 is no escape here',
        "<script>alert(1)</script>",
    ],
)
async def test_no_kind_of_character_is_demanded_or_forbidden(client: Client, password: str) -> None:
    assert await reasons(client, "ada", password) == []
    await log_in(client, "ada", password)
    assert await login_status(client, "ada", password.strip() + "x") == 401


@pytest.mark.parametrize("bad", ["\t", "\n", "\x7f", "\u200b\u0378", "\ufdd0", "\x1b[31m"])
async def test_a_character_that_a_password_cannot_have_is_a_reason(client: Client, bad: str) -> None:
    assert await reasons(client, "ada", PASSWORD + bad) == [("password", "invalid_password")]


async def test_spaces_and_composition_do_not_lock_a_user_out(client: Client) -> None:
    await register(client, "ada", "crème brûlée with coffee")
    for spelling in ("cre\u0300me bru\u0302le\u0301e with coffee", "crème\u00a0brûlée\u2003with\u3000coffee"):
        await log_in(client, "ada", spelling)
    assert await login_status(client, "ada", "creme brulee with coffee") == 401
    assert await login_status(client, "ada", "Crème brûlée with coffee") == 401


COMMON = ["1234567890987654321", "111222333444555", "12345678900987654321"]


@pytest.mark.parametrize("password", COMMON)
async def test_a_common_password_is_refused_though_it_is_long_enough(client: Client, password: str) -> None:
    assert await reasons(client, "ada", password) == [("password", "password_too_common")]
    assert await reasons(client, "ada", password + "x") == []


async def test_common_passwords_are_known_in_any_case(config: Config, start_server: StartServer) -> None:
    passwords = CHEAP.model_copy(update={"min_length": 8})
    client = await start_server(config.model_copy(update={"passwords": passwords}))
    for password in ("password", "PASSWORD", "Password", "12345678", "iloveyou", "ILoveYou", "qwertyuiop"):
        assert await reasons(client, "ada", password) == [("password", "password_too_common")], password


@pytest.mark.parametrize(
    "password",
    [
        "ada.lovelace123",
        "ADA.LOVELACE!!!",
        "***Ada.Lovelace",
        "ada.lovelaceada.lovelace",
        "ecalevol.ada123",
        "1815 ada.lovelace 1852",
        "ada.lovelaceecalevol.ada",
    ],
)
async def test_a_password_made_of_the_username_is_refused(client: Client, password: str) -> None:
    for name in ("ada.lovelace", "Ada.Lovelace", "ａｄａ.LOVELACE"):
        assert await reasons(client, name, password) == [("password", "password_is_username")]


async def test_a_password_may_contain_the_username_among_other_words(client: Client) -> None:
    assert await reasons(client, "ada.lovelace", "ada.lovelace writes notes") == []
    assert await reasons(client, "a", "a password with an a or two") == []
    assert await reasons(client, "straße", "STRASSE 12345678") == [("password", "password_is_username")]


# ---------------------------------------------------------------------------------------------- who may


async def test_registration_is_closed_by_default(config: Config, start_server: StartServer, dsn: Dsn) -> None:
    client = await start_server(config.model_copy(update={"accounts": AccountsConfig()}))
    for username, password in (("ada", PASSWORD), ("a b", "short")):
        status, body = await attempt(client, username, password)
        assert (status, body["code"]) == (403, "registration_closed")
    assert rows(dsn, "SELECT 1 FROM gatepost.users") == []
    async with client.post("/account", data=b"{") as answer:
        assert answer.status == 403  # before anything is read: it would only be refused


async def test_where_registration_is_closed_nobody_learns_who_is_registered(
    config: Config, start_server: StartServer
) -> None:
    await register(await start_server(config), "ada")
    closed = await start_server(config.model_copy(update={"accounts": AccountsConfig(registration="closed")}))
    assert await attempt(closed, "ada") == await attempt(closed, "nobody")
    await log_in(closed, "ada")


async def test_a_registration_must_be_declared_as_json(client: Client, dsn: Dsn) -> None:
    # A form on another site can send text/plain and urlencoded without a preflight; it cannot send this.
    body = json.dumps({"username": "ada", "password": PASSWORD})
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        async with client.post("/account", data=body, headers=headers) as answer:
            assert answer.status == 415
            assert (await answer.json(content_type=None))["code"] == "unsupported_media_type"
    assert rows(dsn, "SELECT 1 FROM gatepost.users") == []
