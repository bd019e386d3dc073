"""Breached passwords: the range API as a real server, and the file."""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.breached.checker import Breached
from gatepost.breached.elias_fano import HashSet, build
from gatepost.breached.password import key
from gatepost.config import Config, ConfigError, PasswordsConfig
from gatepost.postgres.database import Dsn
from tests.conftest import CHEAP, PASSWORD, Client, StartServer, log_in, register, rows
from tests.visitor import Visitor

LEAKED = "correct horse battery staple leaked"


class RangeServer:
    """Answers as the published API does; ``behave`` may answer in its place."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.behave: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.match_info["prefix"], dict(request.headers)))
        if self.behave:
            return await self.behave(request)
        digest = hashlib.sha1(LEAKED.encode()).hexdigest().upper()
        padding = hashlib.sha1(PASSWORD.encode()).hexdigest().upper()
        lines = [f"{n:035X}:{n + 1}" for n in range(800)] + [f"{digest[5:]}:42", f"{padding[5:]}:0"]
        return web.Response(text="\r\n".join(lines))


@pytest.fixture
async def ranges() -> Any:
    served = RangeServer()
    app = web.Application()
    app.router.add_get("/range/{prefix}", served.answer)
    async with TestServer(app) as server:
        yield served, str(server.make_url("/range/"))


def asking(config: Config, **passwords: Any) -> Config:
    return config.model_copy(update={"passwords": CHEAP.model_copy(update=passwords)})


async def call(client: Client, method: str, path: str, body: object, token: str = "") -> tuple[int, Any]:
    headers = {"Authorization": token} if token else {}
    async with client.request(method, path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


# ------------------------------------------------------------------------------------------ the range API


async def test_a_breached_password_becomes_nobodys_and_only_five_characters_of_its_hash_leave(
    config: Config, start_server: StartServer, ranges: tuple[RangeServer, str], dsn: Dsn
) -> None:
    served, url = ranges
    client = await start_server(asking(config, breached="range", breached_url=url))
    status, answer = await call(client, "POST", "/account", {"username": "ada", "password": LEAKED})
    assert (status, [(e["field"], e["code"]) for e in answer["errors"]]) == (
        422,
        [("password", "password_breached")],
    )
    [(prefix, headers)] = served.asked
    assert prefix == hashlib.sha1(LEAKED.encode()).hexdigest().upper()[:5]
    assert headers["Add-Padding"] == "true"
    assert LEAKED not in str(headers)
    # What is listed as padding only, with a count of 0, is none.
    await register(client, "ada")
    token = await log_in(client)
    change = {"current": PASSWORD, "new": LEAKED}
    status, answer = await call(client, "PUT", "/account/password", change, token)
    assert (status, [(e["field"], e["code"]) for e in answer["errors"]]) == (422, [("new", "password_breached")])
    rows(
        dsn,
        "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at) "
        "SELECT id, sha256('abcd'), now() + interval '1 hour' FROM gatepost.users RETURNING 1",
    )
    status, answer = await call(client, "POST", "/account/password/redeem", {"code": "abcd", "new": LEAKED})
    assert (status, [(e["field"], e["code"]) for e in answer["errors"]]) == (422, [("new", "password_breached")])
    assert await log_in(client)
    metrics = await (await client.get("/metrics")).text()
    assert 'gatepost_breached_checks_total{result="breached"} 3.0' in metrics


async def test_a_page_says_so_after_signing_in_and_leads_on(
    config: Config, start_server: StartServer, ranges: tuple[RangeServer, str]
) -> None:
    await register(await start_server(config), "ada", LEAKED)
    client = await start_server(asking(config, breached="range", breached_url=ranges[1]))
    page = await Visitor(client).sign_in("ada", LEAKED, return_to="/me/sessions?a=1")
    assert page.title == "Change the password"
    assert page.notice is not None
    assert page.notice.startswith("Your password was published in a breach")
    assert "/me/sessions?a=1" in [each.attrib["href"] for each in page.all("a")]


async def test_at_a_login_it_is_allowed_and_said_and_recorded(
    config: Config, start_server: StartServer, ranges: tuple[RangeServer, str], dsn: Dsn
) -> None:
    await register(await start_server(config), "ada", LEAKED)
    served, url = ranges
    client = await start_server(asking(config, breached="range", breached_url=url))
    assert (await call(client, "POST", "/user", {"username": "ada", "password": PASSWORD}))[0] == 401
    assert served.asked == []  # nobody is asked about a guess
    status, answer = await call(client, "POST", "/user", {"username": "ada", "password": LEAKED})
    assert (status, answer["password_breached"]) == (200, True)
    kinds = [kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events ORDER BY id DESC LIMIT 2")]
    assert kinds == ["authn_password_breached", "authn_login_success"]
    await register(client, "bob")
    status, answer = await call(client, "POST", "/user", {"username": "bob", "password": PASSWORD})
    assert (status, set(answer)) == (200, {"session_id", "expires_at", "user"})


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3600)
    raise AssertionError


async def trickling(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"0" * 35 + b":1\r\n")
        await asyncio.sleep(0.05)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"A" * 65536)


async def failing(_: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def malformed(_: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>hello</html>")


async def redirecting(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound(request.path + "?again")


async def closing(request: web.Request) -> web.StreamResponse:
    assert request.transport
    request.transport.close()
    return web.Response()


@pytest.mark.parametrize("behaviour", [never, trickling, endless, failing, malformed, redirecting, closing])
async def test_whatever_the_api_does_the_password_is_accepted_and_a_metric_counts_it(
    config: Config,
    start_server: StartServer,
    ranges: tuple[RangeServer, str],
    behaviour: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> None:
    served, url = ranges
    served.behave = behaviour
    client = await start_server(asking(config, breached="range", breached_url=url))
    async with asyncio.timeout(30):
        status, _ = await call(client, "POST", "/account", {"username": "ada", "password": LEAKED})
    assert status == 201
    # No redirect is followed; where the connection was closed, aiohttp asks a second time.
    assert len(served.asked) == (2 if behaviour is closing else 1)
    metrics = await (await client.get("/metrics")).text()
    assert 'gatepost_breached_checks_total{result="failed"} 1.0' in metrics


async def test_a_breached_password_costs_an_attempt_so_that_nobody_asks_the_api_for_ever(
    config: Config, start_server: StartServer, ranges: tuple[RangeServer, str]
) -> None:
    served, url = ranges
    throttle = config.throttle.model_copy(update={"registration_burst": 3})
    client = await start_server(
        asking(config, breached="range", breached_url=url).model_copy(update={"throttle": throttle})
    )
    body = {"username": "ada", "password": LEAKED}
    assert [(await call(client, "POST", "/account", body))[0] for _ in range(5)] == [422, 422, 422, 429, 429]
    assert len(served.asked) == 3


# ------------------------------------------------------------------------------------------------ the file


@given(st.lists(st.integers(0, 2**64 - 1), max_size=300), st.lists(st.integers(0, 2**64 - 1), max_size=50))
@settings(deadline=None, max_examples=200)
def test_every_hash_of_the_list_is_found(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], others: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{os.getpid()}-set"
    build(sorted(keys), len(keys), path)
    with contextlib.closing(HashSet(path)) as known:
        assert known.entries == len(keys)
        assert all(each in known for each in keys)
        scale = max(256, len(keys)) * 256
        values = {each * scale >> 64 for each in keys}
        assert all((each in known) == (each * scale >> 64 in values) for each in others)


def test_an_entry_takes_less_than_one_and_a_third_bytes_and_one_in_256_is_taken_for_another(tmp_path: Path) -> None:
    entries, draw = 200_000, random.Random(13)
    keys = sorted(draw.randrange(2**64) for _ in range(entries))
    build(keys, entries, tmp_path / "set")
    assert (tmp_path / "set").stat().st_size / entries < 1.3
    with contextlib.closing(HashSet(tmp_path / "set")) as known:
        assert all(each in known for each in keys[::100])
        wrong = sum(draw.randrange(2**64) in known for _ in range(20_000))
    assert 20 < wrong < 160  # 78 are expected


def of_list(lines: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "list").write_text("".join(f"{line}\r\n" for line in lines))
    command = [sys.executable, "-m", "gatepost", "breached", "build", str(tmp_path / "list"), str(tmp_path / "set")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def digest(password: str) -> str:
    return hashlib.sha1(password.encode()).hexdigest().upper()


async def test_a_file_is_built_from_the_published_list_and_asked(
    config: Config, start_server: StartServer, tmp_path: Path
) -> None:
    passwords = [LEAKED, *(f"leaked {number}" for number in range(500))]
    done = of_list([f"{line}:3" for line in sorted(map(digest, passwords))], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Wrote 501 hashes to ")
    client = await start_server(asking(config, breached="file", breached_file=tmp_path / "set"))
    status, answer = await call(client, "POST", "/account", {"username": "ada", "password": LEAKED})
    assert (status, answer["errors"][0]["code"]) == (422, "password_breached")
    assert key(PASSWORD) not in HashSet(tmp_path / "set")
    await register(client, "ada")


def test_a_password_can_be_asked_about_at_a_shell(tmp_path: Path) -> None:
    assert of_list([f"{digest(LEAKED)}:3"], tmp_path).returncode == 0
    (tmp_path / "config.json").write_text(
        json.dumps({"passwords": {"breached": "file", "breached_file": str(tmp_path / "set")}})
    )
    for password, said, code in ((LEAKED, "It is known", 1), (PASSWORD, "It is not known", 0)):
        asked = subprocess.run(
            [sys.executable, "-m", "gatepost", "breached", "check", "--config", str(tmp_path / "config.json")],
            input=password + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (asked.returncode, asked.stdout.startswith(said)) == (code, True), asked


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["hello"], "line 1 is no `HASH:COUNT`"),
        ([digest("a"), digest("a")[:-1] + "x:1"], "line 2 is no"),
        ([digest("a") + ":many"], "line 1 is no"),
        ([f"{'F' * 40}:1", f"{'0' * 40}:1"], "not in order"),
        ([f"{'0' * 36}{n:04X}:1" for n in range(2000)], "do not lie evenly"),
    ],
)
def test_a_list_that_is_none_is_refused_by_line_and_leaves_no_file(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    done = of_list(lines, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"list"}


def test_an_empty_list_knows_nothing(tmp_path: Path) -> None:
    assert of_list([], tmp_path).returncode == 0
    assert key(LEAKED) not in HashSet(tmp_path / "set")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: b"", "is no file of"),
        (lambda content: b"x" + content[1:], "is no file of"),
        (lambda content: content[:-1], "is not complete"),
        (lambda content: content + b"x", "is not complete"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_at_the_start(
    spoil: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    build([1, 2, 3], 3, tmp_path / "set")
    (tmp_path / "set").write_bytes(spoil((tmp_path / "set").read_bytes()))
    with pytest.raises(ConfigError, match=f"passwords.breached_file: .* {message}"):
        Breached.open(PasswordsConfig(breached="file", breached_file=tmp_path / "set"))
    with pytest.raises(ConfigError, match="No such file"):
        Breached.open(PasswordsConfig(breached="file", breached_file=tmp_path / "missing"))
    with pytest.raises(ValueError, match="breached_file must be given"):
        PasswordsConfig(breached="file")


def test_a_file_that_was_changed_by_hand_answers_and_breaks_nothing(tmp_path: Path) -> None:
    draw = random.Random(7)
    keys = sorted(draw.randrange(2**64) for _ in range(3000))
    build(keys, len(keys), tmp_path / "set")
    content = bytearray((tmp_path / "set").read_bytes())
    for _ in range(2000):
        content[draw.randrange(32, len(content))] = draw.randrange(256)
    (tmp_path / "set").write_bytes(content)
    with contextlib.closing(HashSet(tmp_path / "set")) as known:
        assert {each in known for each in keys} <= {True, False}


async def test_off_asks_nobody(config: Config, start_server: StartServer) -> None:
    client = await start_server(config)
    await register(client, "ada", LEAKED)
    metrics = await (await client.get("/metrics")).text()
    assert 'gatepost_breached_checks_total{result="clear"} 0.0' in metrics


def test_the_first_operator_cannot_type_one_either(config: Config, dsn: Dsn, tmp_path: Path) -> None:
    build([key(LEAKED)], 1, tmp_path / "set")
    environment = os.environ | {
        "GATEPOST_DB__HOST": dsn.hosts[0],
        "GATEPOST_DB__PORT": str(dsn.port),
        "GATEPOST_DB__USER": dsn.user,
        "GATEPOST_DB__PASSWORD": dsn.password,
        "GATEPOST_DB__DATABASE": dsn.database,
        "GATEPOST_PASSWORDS__BREACHED": "file",
        "GATEPOST_PASSWORDS__BREACHED_FILE": str(tmp_path / "set"),
    }
    command = [sys.executable, "-m", "gatepost", "user", "add", "ada", "--password-stdin"]
    done = subprocess.run(command, input=LEAKED, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "breach" in done.stderr
    assert rows(dsn, "SELECT 1 FROM gatepost.users") == []
