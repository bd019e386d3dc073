"""gatepost-client against a real Gatepost: strict, leased, synchronous, and in four frameworks."""

import ast
import asyncio
import contextlib
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import pyotp
import pytest
from aiohttp import web

import gatepost_client
from gatepost.config import Config, MailConfig
from gatepost.feed.handlers import FEED
from gatepost.feed.listener import Listener
from gatepost.postgres.database import Dsn
from gatepost.services.token import new_token
from gatepost.sessions.session import hash_token
from gatepost_client import (
    GatepostClient,
    GatepostError,
    NotKnown,
    SecondFactorRequired,
    SignedIn,
    SyncVerifier,
    Verifier,
)
from gatepost_client.verifier import CALLS
from tests.authenticator import Authenticator
from tests.conftest import PASSWORD, Client, StartServer, eventually, log_in, rows
from tests.received_mail import Folder

# Nobody answers there (port 9, "discard").
AWAY = "http://127.0.0.1:9"
STRANGER = "6f2b8f0e-3f0b-4c8e-9f3c-0d8a0c1f2e3d"


@pytest.fixture
def service(dsn: Dsn) -> str:
    """The token of a service."""
    token = new_token()
    rows(dsn, "INSERT INTO gatepost.services (name, token_hash) VALUES ('notes', %s)", hash_token(token))
    return token


@pytest.fixture
def url(client: Client) -> str:
    return str(client.make_url("/"))


@pytest.fixture
async def strict(url: str, service: str) -> AsyncIterator[Verifier]:
    async with Verifier(url, service, timeout=60) as verifier:
        yield verifier


@pytest.fixture
async def leased(url: str, service: str) -> AsyncIterator[Verifier]:
    async with Verifier(url, service, mode="leased", timeout=60) as verifier:
        await eventually(lambda: verifier.has_lease)
        yield verifier


async def test_strict_knows_whose_session_it_is_and_asks_every_time(
    client: Client, ada: Any, strict: Verifier
) -> None:
    token = await log_in(client)
    who = await strict.check(token)
    assert who is not None
    assert (who.user_id, who.username, who.roles, who.profile) == (ada["id"], "ada", frozenset(), {})
    await client.delete("/user", headers={"Authorization": token})
    assert await strict.check(token) is None
    assert strict.calls == 2


@pytest.mark.parametrize("token", [None, "", "x", STRANGER.upper(), "ä" * 36, STRANGER + "\n", "x" * 100_000])
async def test_what_is_no_token_is_nobodys_and_is_not_asked(token: str | None, strict: Verifier) -> None:
    assert await strict.check(token) is None
    assert strict.calls == 0


async def test_checks_that_arrive_together_share_calls(client: Client, ada: Any, strict: Verifier) -> None:
    tokens = [await log_in(client) for _ in range(5)] + [str(uuid.uuid4()) for _ in range(1200)]
    found = await asyncio.gather(*(strict.check(token) for token in tokens * 2))
    assert [who is not None for who in found] == ([True] * 5 + [False] * 1200) * 2
    assert strict.calls <= 15


async def test_leased_answers_from_memory_until_it_is_told(
    client: Client, ada: Any, leased: Verifier, dsn: Dsn
) -> None:
    one, other = await log_in(client), await log_in(client)
    assert await leased.check(one) == await leased.check(one) is not None
    assert await leased.check(other) is not None
    calls = leased.calls
    for _ in range(100):
        assert leased.peek(one) is not None
    assert leased.calls == calls
    await client.delete("/user", headers={"Authorization": one})
    await eventually(lambda: leased.peek(one) is None)
    assert await leased.check(one) is None
    assert leased.peek(other) is not None
    rows(dsn, "UPDATE gatepost.users SET roles = '{staff}'")
    await eventually(lambda: leased.peek(other) is None)
    who = await leased.check(other)
    assert who is not None
    assert who.roles == {"staff"}


async def test_leased_keeps_no_more_than_allowed(client: Client, ada: Any, url: str, service: str) -> None:
    async with Verifier(url, service, mode="leased", most=2, timeout=60) as verifier:
        await eventually(lambda: verifier.has_lease)
        tokens = [await log_in(client) for _ in range(3)]
        for token in tokens:
            await verifier.check(token)
        assert [verifier.peek(token) is not None for token in tokens] == [False, True, True]


async def test_without_a_proof_nothing_is_answered_from_memory(
    client: Client, ada: Any, leased: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await log_in(client)
    await leased.check(token)
    monkeypatch.setattr(client.app[FEED], "prove", lambda moment: None)
    await eventually(lambda: leased.peek(token) is None)
    assert await leased.check(token) is not None  # it asks instead


async def test_a_feed_that_is_cut_ends_the_lease_and_comes_back(client: Client, ada: Any, leased: Verifier) -> None:
    token = await log_in(client)
    await leased.check(token)
    client.app[FEED].close()
    await eventually(lambda: not leased.has_lease)
    assert leased.peek(token) is None
    assert await leased.check(token) is not None
    client.app[FEED].closed = False
    await eventually(lambda: leased.has_lease)


async def test_a_stream_that_was_slow_to_begin_is_opened_anew(
    client: Client, url: str, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, slow = Listener.start, [1.5]

    async def slowly(self: Listener) -> None:
        await start(self)
        await asyncio.sleep(slow.pop() if slow else 0)

    monkeypatch.setattr(Listener, "start", slowly)
    async with Verifier(url, service, mode="leased") as verifier:
        await eventually(lambda: verifier.has_lease)


@pytest.mark.parametrize("mode", ["strict", "leased"])
async def test_a_gatepost_that_is_away_makes_it_unknown_and_lets_nobody_in(
    mode: Literal["strict", "leased"], caplog: pytest.LogCaptureFixture
) -> None:
    async with Verifier(AWAY, "gps_secret", mode=mode) as verifier:
        for _ in range(3):
            with pytest.raises(NotKnown):
                await verifier.check(STRANGER)
    assert len([r for r in caplog.records if "cannot be reached" in r.message]) == 1
    assert "gps_secret" not in caplog.text + repr(verifier) + str(vars(verifier.__class__))


async def answering(aiohttp_server: Any, status: int, body: str, seconds: float = 0) -> str:
    async def handler(_request: web.Request) -> web.Response:
        await asyncio.sleep(seconds)
        return web.Response(status=status, text=body, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return str((await aiohttp_server(app)).make_url("/"))


STRANGE: list[tuple[int, str]] = [
    (401, "{}"),
    (403, "{}"),
    (404, "{}"),
    (422, "{}"),
    (429, "{}"),
    (500, "{}"),
    (503, "{}"),
    (200, ""),
    (200, "{"),
    (200, "[]"),
    (200, "null"),
    (200, "{}"),
    (200, '{"results": []}'),
    (200, '{"results": [null, null]}'),
    (200, '{"results": [1]}'),
    (200, '{"results": [{}]}'),
    (200, '{"results": [{"user": {}, "session": {}}]}'),
]


@pytest.mark.parametrize(("status", "body"), STRANGE)
@pytest.mark.parametrize("mode", ["strict", "leased"])
async def test_whatever_is_no_answer_makes_it_unknown(
    mode: Literal["strict", "leased"], status: int, body: str, aiohttp_server: Any
) -> None:
    async with Verifier(await answering(aiohttp_server, status, body), "gps_x", mode=mode) as verifier:
        with pytest.raises(NotKnown):
            await verifier.check(STRANGER)
        assert not verifier.has_lease


async def test_a_gatepost_that_hangs_makes_it_unknown_in_time(aiohttp_server: Any) -> None:
    url = await answering(aiohttp_server, 200, '{"results": [null]}', seconds=5)
    async with Verifier(url, "gps_x", timeout=0.1) as verifier:
        with pytest.raises(NotKnown):
            await verifier.check(STRANGER)


@pytest.fixture
async def hanging(aiohttp_server: Any) -> AsyncIterator[Verifier]:
    """A verifier whose every call is under way, and none answered."""
    url = await answering(aiohttp_server, 200, '{"results": []}', seconds=600)
    verifier = Verifier(url, "gps_x", timeout=300)
    await verifier.start()
    yield verifier
    await verifier.close()


async def test_closing_leaves_nobody_waiting(hanging: Verifier) -> None:
    checks = [asyncio.create_task(hanging.check(str(uuid.uuid4()))) for _ in range(2000)]
    await eventually(lambda: hanging.calls == CALLS)
    await hanging.close()
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*checks, return_exceptions=True)
    assert {type(answer) for answer in answers} == {NotKnown}


async def test_each_check_has_the_whole_time_however_long_others_have_waited(hanging: Verifier) -> None:
    checks = [asyncio.create_task(hanging.check(str(uuid.uuid4()))) for _ in range(2000)]
    await eventually(lambda: hanging.calls == CALLS)
    first = next(iter(hanging._waiting.values())).due
    await asyncio.sleep(0.01)
    checks.append(asyncio.create_task(hanging.check(STRANGER)))
    await eventually(lambda: STRANGER in hanging._waiting)
    assert hanging._waiting[STRANGER].due > first
    await hanging.close()
    await asyncio.gather(*checks, return_exceptions=True)


async def test_a_revoked_service_knows_nothing(client: Client, ada: Any, leased: Verifier, dsn: Dsn) -> None:
    token = await log_in(client)
    await leased.check(token)
    rows(dsn, "DELETE FROM gatepost.services")
    await eventually(lambda: leased.peek(token) is None)
    with pytest.raises(NotKnown):
        await leased.check(token)


async def test_a_wrong_mode_is_refused() -> None:
    mode: Any = "lax"
    for kind in (Verifier, SyncVerifier):
        with pytest.raises(ValueError, match="must be 'strict' or 'leased'"):
            kind(AWAY, "gps_x", mode=mode)


# ------------------------------------------------------------------------------------- other faces of it


@pytest.mark.parametrize("mode", ["strict", "leased"])
async def test_threads_share_the_verifier(
    mode: Literal["strict", "leased"], client: Client, ada: Any, url: str, service: str
) -> None:
    verifier = SyncVerifier(url, service, mode=mode, timeout=60)
    try:
        token = await log_in(client)
        # Threads of their own: Gatepost, which runs in this process, needs some too.
        with ThreadPoolExecutor(8) as threads:
            loop = asyncio.get_running_loop()
            found = await asyncio.gather(
                *(loop.run_in_executor(threads, verifier.check, t) for t in [token, STRANGER, None] * 10)
            )
        assert [who and who.username for who in found] == ["ada", None, None] * 10
        await client.delete("/user", headers={"Authorization": token})

        async def refused() -> bool:
            return await asyncio.to_thread(verifier.check, token) is None

        async with asyncio.timeout(60):
            while not await refused():
                assert mode == "leased"
    finally:
        await asyncio.to_thread(verifier.close)


async def test_people_sign_in_and_out_by_it(client: Client, url: str) -> None:
    async with GatepostClient(url, timeout=60) as gatepost:
        user = await gatepost.register("ada", PASSWORD)
        one, other = await gatepost.log_in("ada", PASSWORD), await gatepost.log_in("ada", PASSWORD)
        await gatepost.update_account(one.token, {"profile": {"colour": "blue"}})
        assert one.token not in repr(one)
        who = await gatepost.who_am_i(one.token)
        assert who is not None
        assert (who.user_id, who.profile, who.expires_at) == (user["id"], {"colour": "blue"}, one.expires_at)
        assert (await gatepost.account(one.token))["user"]["username"] == "ada"
        sessions = await gatepost.sessions(one.token)
        assert [s["current"] for s in sessions] == [False, True]
        await gatepost.end_session(one.token, sessions[0]["handle"])
        assert await gatepost.who_am_i(other.token) is None
        renewed = await gatepost.change_password(one.token, PASSWORD, PASSWORD + "!")
        assert await gatepost.who_am_i(one.token) is None
        with pytest.raises(GatepostError) as refused:
            await gatepost.log_in("ada", PASSWORD)
        assert (refused.value.status, refused.value.code) == (401, "invalid_credentials")
        with pytest.raises(GatepostError) as wrong:
            await gatepost.register("bob", "short")
        assert wrong.value.errors[0]["field"] == "password"
        assert await gatepost.log_out(renewed.token) is True
        assert await gatepost.log_out(renewed.token) is False
        last = await gatepost.log_in("ada", PASSWORD + "!")
        await gatepost.end_sessions(last.token, "all")
        last = await gatepost.log_in("ada", PASSWORD + "!")
        await gatepost.delete_account(last.token, PASSWORD + "!")
        assert await gatepost.who_am_i(last.token) is None
    async with GatepostClient(AWAY) as away:
        with pytest.raises(NotKnown):
            await away.who_am_i(STRANGER)


async def test_addresses_and_the_way_back_by_it(config: Config, start_server: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    client = await start_server(config.model_copy(update={"mail": MailConfig(directory=folder)}))
    mailbox = Folder(folder)
    async with GatepostClient(str(client.make_url("")), timeout=60) as gatepost:
        await gatepost.register("ada", PASSWORD, "old@example.org")
        token = (await gatepost.log_in("ada", PASSWORD)).token
        (old,) = await gatepost.emails(token)
        verified = await gatepost.verify_email(token, old["id"], (await mailbox.receive("old@example.org")).typed)
        assert verified["primary"] is True
        await gatepost.recover("old@example.org")
        code = (await mailbox.receive("old@example.org", kind="Choose")).typed
        await gatepost.redeem_code(code, PASSWORD + "!", "old@example.org")
        token = (await gatepost.log_in("old@example.org", PASSWORD + "!")).token
        new = await gatepost.add_email(token, "new@example.org", PASSWORD + "!")
        await gatepost.verify_email(token, new["id"], (await mailbox.receive("new@example.org")).typed)
        assert (await gatepost.make_email_primary(token, new["id"]))["primary"] is True
        await gatepost.remove_email(token, old["id"])
        assert [email["address"] for email in await gatepost.emails(token)] == ["new@example.org"]
        notice = await mailbox.receive("old@example.org", kind="have changed")
        await gatepost.undo_email_changes(notice.link("undo_email"))
        assert await gatepost.who_am_i(token) is None


# ------------------------------------------------------------------------------------------- frameworks

Get = Callable[[str, str | Mapping[str, str] | None], Awaitable[tuple[int, Any, Any]]]


def _headers(session: str | Mapping[str, str] | None) -> dict[str, str]:
    if isinstance(session, str):
        return {"Authorization": f"Bearer {session}"}
    return dict(session or {})


@contextlib.asynccontextmanager
async def of_fastapi(url: str, token: str) -> AsyncIterator[Get]:
    import httpx
    from fastapi import Depends, FastAPI

    from gatepost_client.fastapi import Gatepost

    gatepost = Gatepost(url, token, timeout=30)
    app = FastAPI(lifespan=gatepost.lifespan)

    @app.get("/")
    async def who(who: Annotated[SignedIn, Depends(gatepost.signed_in())]) -> dict[str, str]:
        return {"who": who.username}

    @app.get("/staff")
    async def staff(who: Annotated[SignedIn, Depends(gatepost.signed_in(role="staff"))]) -> dict[str, str]:
        return {"who": who.username}

    async with (
        gatepost.lifespan(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://notes") as http,
    ):

        async def get(path: str, session: str | Mapping[str, str] | None) -> tuple[int, Any, Any]:
            answer = await http.get(path, headers=_headers(session))
            return answer.status_code, answer.headers, answer.json().get("who")

        yield get


@contextlib.asynccontextmanager
async def of_flask(url: str, token: str) -> AsyncIterator[Get]:
    from flask import Flask, g

    from gatepost_client.flask import Gatepost

    gatepost, app = Gatepost(url, token, timeout=30), Flask("notes")

    @app.get("/")
    @gatepost.signed_in()
    def who() -> dict[str, str]:
        return {"who": g.signed_in.username}

    @app.get("/staff")
    @gatepost.signed_in(role="staff")
    def staff() -> dict[str, str]:
        return {"who": g.signed_in.username}

    def ask(path: str, session: str | Mapping[str, str] | None) -> tuple[int, Any, Any]:
        answer = app.test_client(use_cookies=False).get(path, headers=_headers(session))
        return answer.status_code, answer.headers, (answer.json or {}).get("who")

    async def get(path: str, session: str | Mapping[str, str] | None) -> tuple[int, Any, Any]:
        return await asyncio.to_thread(ask, path, session)

    yield get
    await asyncio.to_thread(gatepost.verifier.close)


@contextlib.asynccontextmanager
async def of_aiohttp(url: str, token: str) -> AsyncIterator[Get]:
    from aiohttp.test_utils import TestClient, TestServer

    from gatepost_client.aiohttp import SIGNED_IN, gatepost, running, signed_in

    verifier = Verifier(url, token, timeout=30)
    app = web.Application(middlewares=[gatepost(verifier)])
    app.cleanup_ctx.append(running(verifier))

    @signed_in()
    async def who(request: web.Request) -> web.Response:
        found = request[SIGNED_IN]
        return web.json_response({"who": found and found.username})

    @signed_in(role="staff")
    async def staff(request: web.Request) -> web.Response:
        found = request[SIGNED_IN]
        return web.json_response({"who": found and found.username})

    app.router.add_get("/", who)
    app.router.add_get("/staff", staff)
    async with TestClient(TestServer(app)) as http:

        async def get(path: str, session: str | Mapping[str, str] | None) -> tuple[int, Any, Any]:
            async with http.get(path, headers=_headers(session)) as answer:
                return answer.status, answer.headers, (await answer.json())["who"] if answer.status == 200 else None

        yield get


FRAMEWORKS = [of_fastapi, of_flask, of_aiohttp]


async def test_a_program_signs_people_in_by_two_factors(config: Config, start_server: StartServer) -> None:
    webserver = config.webserver.model_copy(update={"public_url": "https://auth.example"})
    client = await start_server(config.model_copy(update={"webserver": webserver}))
    async with GatepostClient(str(client.make_url(""))) as gatepost:
        await gatepost.register("ada", PASSWORD)
        token = (await gatepost.log_in("ada", PASSWORD)).token
        added = await gatepost.add_factor(token, "Phone")
        app = pyotp.TOTP(added["secret"])
        codes = (await gatepost.confirm_factor(token, added["factor"]["id"], app.now()))["recovery_codes"]
        who = await gatepost.who_am_i(token)
        assert who
        assert who.two_factors
        assert who.authenticated_at
        with pytest.raises(SecondFactorRequired) as required:
            await gatepost.log_in("ada", PASSWORD)
        assert required.value.methods == ["totp", "recovery_code"]
        with pytest.raises(GatepostError) as refused:
            await gatepost.finish_log_in(required.value.ticket, totp="000000")
        assert refused.value.code == "invalid_code"
        token = (await gatepost.finish_log_in(required.value.ticket, recovery_code=codes[0])).token
        assert await gatepost.confirm(token, recovery_code=codes[1]) >= who.authenticated_at
        assert (await gatepost.factors(token))["recovery_codes"] == 8
        assert len(await gatepost.new_recovery_codes(token)) == 10

        device = Authenticator()
        made = device.make((await gatepost.new_passkey_options(token))["publicKey"])
        passkey = (await gatepost.add_passkey(token, made, "Laptop"))["passkey"]
        await gatepost.rename_passkey(token, passkey["id"], "Old laptop")
        assert [each["name"] for each in await gatepost.passkeys(token)] == ["Old laptop"]
        signed = device.sign((await gatepost.passkey_options())["publicKey"])
        assert (await gatepost.log_in_with_passkey(signed)).token
        await gatepost.remove_factor(token, added["factor"]["id"])
        await gatepost.remove_passkey(token, passkey["id"])
        assert (await gatepost.log_in("ada", PASSWORD)).token


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_framework_lets_in_who_is_signed_in_and_tells_apart_why_not(
    framework: Callable[[str, str], contextlib.AbstractAsyncContextManager[Get]],
    client: Client,
    ada: Any,
    url: str,
    service: str,
    dsn: Dsn,
) -> None:
    token = await log_in(client)
    async with framework(url, service) as get:
        assert (await get("/", token))[::2] == (200, "ada")
        assert (await get("/staff", token))[0] == 403
        rows(dsn, "UPDATE gatepost.users SET roles = '{staff}'")
        assert (await get("/staff", token))[::2] == (200, "ada")
        for other in (None, STRANGER):
            status, headers, _ = await get("/", other)
            assert status == 401
            assert headers["WWW-Authenticate"].lower().startswith("bearer")
        cookie = {"Cookie": f"theme=dark; __Host-session={token}"}
        assert (await get("/", cookie))[::2] == (200, "ada")
        # A WebSocket, which browsers let a page open to any origin, needs a page of the same.
        assert (await get("/", {**cookie, "Upgrade": "websocket", "Sec-Fetch-Site": "same-site"}))[0] == 401
        await client.delete("/user", headers={"Authorization": token})
        assert (await get("/", token))[0] == 401
        assert (await get("/", cookie))[0] == 401
    async with framework(AWAY, service) as get:
        status, headers, _ = await get("/", token)
        assert (status, headers["Retry-After"]) == (503, "1")


async def test_aiohttp_security_takes_it(client: Client, ada: Any, strict: Verifier, dsn: Dsn) -> None:
    import aiohttp_security
    from aiohttp.test_utils import TestClient, TestServer

    from gatepost_client.aiohttp_security import AuthorizationPolicy, IdentityPolicy

    async def who(request: web.Request) -> web.Response:
        await aiohttp_security.check_permission(request, "staff")
        return web.json_response(await aiohttp_security.authorized_userid(request))

    app = web.Application()
    app.router.add_get("/", who)
    aiohttp_security.setup(app, IdentityPolicy(), AuthorizationPolicy(strict))
    token = await log_in(client)
    async with TestClient(TestServer(app)) as http:
        for headers, status in [({}, 401), ({"Authorization": token}, 403)]:
            async with http.get("/", headers=headers) as answer:
                assert answer.status == status
        rows(dsn, "UPDATE gatepost.users SET roles = '{staff}'")
        async with http.get("/", headers={"Authorization": token}) as answer:
            assert await answer.json() == ada["id"]


DJANGO = """
import json, sys
import django
from django.conf import settings
from django.http import JsonResponse
from django.urls import path

url, away, service, token, stranger = sys.argv[1:]
BACKEND, MODEL = "gatepost_client.django.GatepostBackend", "django.contrib.auth.backends.ModelBackend"
settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware", "gatepost_client.django.GatepostMiddleware"],
    AUTHENTICATION_BACKENDS=[MODEL, BACKEND],
    GATEPOST={"url": url, "token": service, "timeout": 30},
)
django.setup()
from django.core.management import call_command
from django.test import Client
import gatepost_client.django as of_gatepost

def who(request):
    name = request.signed_in and request.signed_in.username
    return JsonResponse({"user": request.user.get_username(), "name": name})

urlpatterns = [path("", who)]
call_command("migrate", verbosity=0)
told = []

def ask(token, method="get"):
    client = Client(enforce_csrf_checks=True)
    answer = getattr(client, method)("/", headers={"Authorization": "Bearer " + token} if token else {})
    body = answer.json() if answer.status_code == 200 else None
    told.append([answer.status_code, answer.headers.get("Retry-After"), body])

ask(token); ask(token); ask(""); ask(stranger); ask(token, "post"); ask("", "post")
from django.contrib.auth.models import User
told.append(list(User.objects.values_list("username", flat=True)))
User.objects.update(is_active=False)
ask(token)
settings.GATEPOST = {"url": away, "token": service}
of_gatepost.verifier().close()
of_gatepost.verifier.cache_clear()
ask(token); ask("")
print(json.dumps(told))
"""


async def test_django_mirrors_users_by_their_id(
    client: Client, ada: Any, url: str, service: str, tmp_path: Path
) -> None:
    token, script = await log_in(client), tmp_path / "notes.py"
    script.write_text(DJANGO)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), url, AWAY, service, token, STRANGER, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    me, nobody = {"user": ada["id"], "name": "ada"}, {"user": "", "name": None}
    assert ast.literal_eval(out.decode().replace("null", "None")) == [
        [200, None, me],
        [200, None, me],
        [200, None, nobody],
        [401, None, None],
        [200, None, me],
        [403, None, None],
        [ada["id"]],
        [403, None, None],
        [503, "1", None],
        [200, None, nobody],
    ]


# ------------------------------------------------------------------------------------------ the package


def test_it_imports_nothing_of_the_server_and_no_framework_unasked() -> None:
    folder = Path(gatepost_client.__file__).parent
    imported = {
        name.split(".")[0]
        for file in folder.glob("*.py")
        if file.stem not in ("fastapi", "django", "flask", "aiohttp_security")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"gatepost_client", "aiohttp"}
