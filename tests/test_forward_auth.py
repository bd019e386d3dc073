"""Forward authentication: what `/authz/forward` answers, and what a real nginx and a real Caddy make of it with the
configuration files of `docs/`.
"""

import asyncio
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from gatepost.config import Config, PagesConfig, WebServerConfig
from gatepost.errors import DatabaseUnavailable
from gatepost.postgres.database import Dsn
from gatepost.sessions.guard import LOOKUP
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows

DOCS = Path(__file__).parent.parent / "docs"
APP = "app.example"
FORWARD = "/authz/forward"
SAME = "Sec-Fetch-Site: same-origin"


class Reply(NamedTuple):
    """An answer as it came over the wire."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def code(self) -> str:
        """The stable code of a problem."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        code: str = json.loads(self.body)["code"]
        return code


async def send(
    port: int | None, method: str, target: str, *headers: str, host: str = APP, body: bytes | None = None
) -> Reply:
    """One request on a connection of its own: target and header lines exactly as given."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if not any(line.lower().startswith("connection:") for line in headers):
        lines.append("Connection: close")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
            answer = http.client.HTTPResponse(_Received(await reader.read()), method=method)  # type: ignore[arg-type]
            answer.begin()
            return Reply(answer.status, answer.headers, answer.read())
    finally:
        writer.close()


class _Received:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def give_roles(dsn: Dsn, username: str, *roles: str) -> None:
    rows(dsn, "UPDATE gatepost.users SET roles = %s WHERE username = %s", list(roles), username)


def cookie(token: str) -> str:
    return f"Cookie: theme=dark; __Host-session={token}"


@pytest.fixture
async def token(client: Client, ada: dict[str, Any], dsn: Dsn) -> str:
    """A session of ada, who is staff and an editor."""
    give_roles(dsn, "ada", "staff", "editor")
    return await log_in(client)


async def identity(client: Client, token: str) -> dict[str, str]:
    """What a backend should be told."""
    async with client.get("/user", headers={"Authorization": token}) as answer:
        document = await answer.json()
    return {
        "remote-user": document["user"]["username"],
        "remote-user-id": document["user"]["id"],
        "remote-roles": ",".join(document["user"]["roles"]),
        "remote-session": document["session"]["handle"],
    }


# ----------------------------------------------------------------------------------------------- the question


async def ask(client: Client, *headers: str, query: str = "", method: str = "GET", host: str = APP) -> Reply:
    """What a proxy asks, about a GET unless it says otherwise."""
    if not any("-Method:" in line for line in headers):
        headers = (*headers, "X-Forwarded-Method: GET")
    return await send(client.server.port, method, FORWARD + query, *headers, host=host)


def told(headers: http.client.HTTPMessage) -> dict[str, str]:
    found = [(k.lower(), v) for k, v in headers.items() if k.lower().startswith("remote")]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("carrier", ["Authorization: {}", "Authorization: Bearer {}", "Cookie: __Host-session={}"])
async def test_a_session_is_200_and_says_whose_it_is(client: Client, token: str, carrier: str) -> None:
    answer = await ask(client, carrier.format(token))
    assert (answer.status, answer.body) == (200, b"")
    assert told(answer.headers) == await identity(client, token)
    assert answer.headers["Cache-Control"] == "no-store"
    head = await ask(client, carrier.format(token), method="HEAD")
    assert (head.status, told(head.headers)) == (200, told(answer.headers))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [f"Authorization: {uuid.uuid4()}"],
        ["Authorization: nonsense"],
        ["Authorization: Basic YWRhOmFkYQ=="],
        [f"Cookie: __Host-session={uuid.uuid4()}"],
        ["Cookie: __Host-session="],
        ["Remote-User: ada", "Remote-Roles: staff"],
    ],
)
async def test_no_session_is_401(client: Client, token: str, headers: list[str]) -> None:
    answer = await ask(client, *headers)
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="gatepost"'
    assert told(answer.headers) == {}


async def test_a_session_that_has_ended_is_401_at_once(client: Client, token: str, dsn: Dsn) -> None:
    other = await log_in(client)
    async with client.delete("/user", headers={"Authorization": token}):
        assert (await ask(client, f"Authorization: {token}")).status == 401
    assert (await ask(client, f"Authorization: {other}")).status == 200
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now()")
    assert (await ask(client, f"Authorization: {other}")).status == 401


async def test_what_cannot_be_known_is_503(client: Client, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(client.app[LOOKUP], "find", fail)
    answer = await ask(client, f"Authorization: {token}")
    assert (answer.status, answer.code) == (503, "database_unavailable")
    assert told(answer.headers) == {}


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?role=staff", 200),
        ("?role=editor", 200),
        ("?role=nobody,staff", 200),
        ("?role=staff%2Cnobody", 200),
        ("?role=nobody", 403),
        ("?role=Staff", 403),
        ("?role=staf", 403),
        ("?role=staff-only", 403),
        ("?role=nobody,noone", 403),
    ],
)
async def test_a_role_is_demanded(client: Client, token: str, query: str, status: int) -> None:
    answer = await ask(client, f"Authorization: {token}", query=query)
    assert answer.status == status
    assert (told(answer.headers) != {}) is (status == 200)
    if status == 403:
        assert answer.code == "forbidden"
    assert (await ask(client, query=query)).status == 401


@pytest.mark.parametrize(
    "query",
    [
        "?role=",
        "?role",
        "?role=,",
        "?role=staff,",
        "?role=,staff",
        "?role=staff,,editor",
        "?role=staff%20editor",
        "?role=staff%0A",
        "?role=staff&role=nobody",
        "?roles=staff",
        "?role=staff&x=1",
        "?Role=staff",
        "?role=" + "x" * 65,
    ],
)
async def test_an_empty_or_invalid_role_demand_is_422_and_never_passes(
    client: Client, token: str, query: str
) -> None:
    for headers in ([f"Authorization: {token}"], []):
        answer = await ask(client, *headers, query=query)
        assert (answer.status, answer.code) == (422, "invalid_body")


@pytest.mark.parametrize(
    ("username", "header"),
    [
        ("ada", "ada"),
        ("Ada", "ada"),  # the form in which names are one: however it is shown, the backend has one user
        ("ada.lovelace@example.com", "ada.lovelace@example.com"),
        ("100%ada", "100%25ada"),
        ("Günther", "g%C3%BCnther"),
        ("ὀδυσσεύς", "%E1%BD%80%CE%B4%CF%85%CF%83%CF%83%CE%B5%CF%8D%CF%82"),
        ("艾达", "%E8%89%BE%E8%BE%BE"),
        ("a%0d%0ab", "a%250d%250ab"),
        ("a,b;c=\"d\\'", "a,b;c=\"d\\'"),
    ],
)
async def test_a_name_in_any_script_is_a_legal_header(client: Client, username: str, header: str) -> None:
    await register(client, username)
    answer = await ask(client, f"Authorization: {await log_in(client, username)}")
    assert answer.headers["Remote-User"] == header
    assert unquote(header) == username.lower()


async def test_roles_of_any_text_stay_apart_and_forge_no_header(client: Client, token: str, dsn: Dsn) -> None:
    roles = ["a,staff", "b c", "d\r\nRemote-User: root", "é", "%2C", "x;y"]
    give_roles(dsn, "ada", *roles)
    answer = await ask(client, f"Authorization: {token}")
    assert [unquote(role) for role in answer.headers["Remote-Roles"].split(",")] == roles
    assert answer.headers["Remote-User"] == "ada"
    assert (await ask(client, f"Authorization: {token}", query="?role=staff")).status == 403


async def test_an_empty_roles_header_is_sent_so_that_no_client_can_set_it(
    client: Client, token: str, dsn: Dsn
) -> None:
    give_roles(dsn, "ada")
    answer = await ask(client, f"Authorization: {token}")
    assert answer.headers["Remote-Roles"] == ""


FOREIGN = [
    [],
    ["Sec-Fetch-Site: same-site"],
    ["Sec-Fetch-Site: cross-site", f"Origin: https://{APP}"],
    ["Sec-Fetch-Site: none"],
    ["Origin: https://evil.example"],
    ["Origin: null"],
]
OWN = [[SAME], [f"Origin: https://{APP}"]]


@pytest.mark.parametrize("header", ["X-Forwarded-Method", "X-Original-Method"])
async def test_a_change_by_cookie_must_come_from_an_own_page(client: Client, token: str, header: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "PROPFIND", "TRACE", "get", "GET, POST", "GET POST", ""):
        for headers in FOREIGN:
            answer = await ask(client, cookie(token), f"{header}: {method}", *headers)
            assert (answer.status, answer.code) == (403, "foreign_origin"), (method, headers)
        for headers in OWN:
            assert (await ask(client, cookie(token), f"{header}: {method}", *headers)).status == 200
        # No page of another origin can send this one.
        assert (await ask(client, f"Authorization: {token}", f"{header}: {method}", *FOREIGN[1])).status == 200
    for method in ("GET", "HEAD", "OPTIONS"):
        for headers in FOREIGN:
            assert (await ask(client, cookie(token), f"{header}: {method}", *headers)).status == 200


async def test_a_proxy_that_does_not_say_the_method_or_says_two_is_asked_for_an_own_page(
    client: Client, token: str
) -> None:
    for methods in (
        [],
        ["X-Forwarded-Method: GET", "X-Original-Method: POST"],
        ["X-Forwarded-Method: POST", "X-Original-Method: GET"],
        ["X-Forwarded-Method: GET", "X-Forwarded-Method: POST"],
    ):
        for headers, status in (([], 403), (FOREIGN[1], 403), (OWN[0], 200)):
            lines = [cookie(token), *methods, *headers]
            assert (await send(client.server.port, "GET", FORWARD, *lines)).status == status


async def test_the_host_is_the_one_that_the_browser_asked(client: Client, token: str) -> None:
    """Traefik asks with a `Host` of its own."""
    proxied = [f"X-Forwarded-Host: {APP}", "X-Forwarded-Method: POST"]
    own, inner = f"Origin: https://{APP}", "127.0.0.1:8000"
    assert (await ask(client, cookie(token), *proxied, own, host=inner)).status == 200
    assert (await ask(client, cookie(token), *proxied, "Origin: http://127.0.0.1:8000", host=inner)).status == 403
    assert (await ask(client, cookie(token), proxied[1], own, host=inner)).status == 403
    # The name that a neighbour could set counts on the developer's machine only, and that is not where this is.
    plain = f"Cookie: session={token}"
    assert (await ask(client, plain, proxied[0], host=inner)).status == 401
    assert (await ask(client, plain, host=inner)).status == 200
    assert (await ask(client, plain, "X-Forwarded-Host: 127.0.0.1:8080", host="gatepost:8000")).status == 200
    for hosts in ([f"X-Forwarded-Host: {APP}, evil.example"], [proxied[0], "X-Forwarded-Host: evil.example"]):
        for origin in (own, "Origin: https://evil.example"):
            assert (await ask(client, cookie(token), *hosts, proxied[1], origin, host=inner)).status == 403


async def test_garbage_in_what_is_passed_on_is_no_500(client: Client, token: str) -> None:
    for name in ("Cookie", "Origin", "X-Forwarded-Host", "X-Forwarded-Method", "X-Original-Method", "Sec-Fetch-Site"):
        for value in ("\xff", "\u2000", ";" * 4000, '"', "=", "\ud7ff"):
            answer = await ask(client, f"{name}: {value}")
            assert answer.status == 401
            answer = await ask(client, cookie(token), "X-Forwarded-Method: POST", f"{name}: {value}")
            assert answer.status in {401, 403}


async def test_only_get_and_head_are_answered(client: Client, token: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await ask(client, f"Authorization: {token}", method=method)
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD, OPTIONS"


# ------------------------------------------------------------------------------------------------- the proxies


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def of_gatepost(self) -> dict[str, str]:
        """Whatever a backend could take for Gatepost's word. Empty ones are as good as none."""
        found = [(name.lower(), value) for name, value in self.headers if name.lower().startswith("remote")]
        assert len(dict(found)) == len(found), found
        return {name: value for name, value in found if value}


@dataclass
class Backend:
    """A service behind the proxy that notes what reaches it."""

    port: int = 0
    seen: list[Seen] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        headers = [(k.decode(), v.decode()) for k, v in request.raw_headers]
        self.seen.append(Seen(request.method, request.raw_path, headers, await request.read()))
        return web.Response(text="from the backend")


@contextlib.asynccontextmanager
async def served(handler: Callable[[web.Request], Any]) -> AsyncIterator[int]:
    """Any request to any path; yields the port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(app)
    await server.start_server()
    try:
        assert server.port is not None
        yield server.port
    finally:
        await server.close()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend = Backend()
    async with served(backend.handle) as backend.port:
        yield backend


def program(name: str) -> str:
    """Where it is. With REQUIRE_PROXIES=1, nowhere is a failure."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        (pytest.fail if os.environ.get("REQUIRE_PROXIES") == "1" else pytest.skip)(f"{name} is not installed")
    return found


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody else is given meanwhile. Whoever listens with SO_REUSEADDR, as servers do, can have it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def shipped(name: str, *changes: tuple[str, str]) -> str:
    """A file of `docs/`, with addresses of this test in it."""
    text = (DOCS / name).read_text()
    for old, new in changes:
        assert old in text, (name, old)
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, gatepost: int, backend: int, patience: int = 60, app: str = APP) -> list[str]:
    """The command that runs it. ``patience``: seconds that it waits for Gatepost's answer. ``app``: its host."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds) + "access_log off;\n"
    text = shipped(
        "nginx.conf",
        ("http {\n", "http {\n" + own),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("127.0.0.1:8000", f"127.0.0.1:{gatepost}"),
        ("127.0.0.1:9000", f"127.0.0.1:{backend}"),
        ("proxy_connect_timeout 2s;", "proxy_connect_timeout 60s;"),
        ("proxy_read_timeout 5s;", f"proxy_read_timeout {patience}s;"),
        (APP, app),
    )
    (folder / "nginx.conf").write_text(text)
    process = f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;"
    return [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", process]


def caddy(folder: Path, port: int, gatepost: int, backend: int, patience: int = 60, app: str = APP) -> list[str]:
    """As `nginx`."""
    text = shipped(
        "Caddyfile",
        (f"auth.{APP} {{", f"http://auth.{APP}:{port} {{"),
        (f"\n{APP} {{", f"\nhttp://{APP}:{port} {{"),
        ("127.0.0.1:8000", f"127.0.0.1:{gatepost}"),
        ("127.0.0.1:9000", f"127.0.0.1:{backend}"),
        ("dial_timeout 2s", "dial_timeout 60s"),
        ("response_header_timeout 5s", f"response_header_timeout {patience}s"),
        (APP, app),
    )
    own = "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}\n"
    (folder / "Caddyfile").write_text(own + text)
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        return True
    return False


@contextlib.contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """The proxy in the foreground, once it listens; gone afterwards."""
    home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **home}, cwd=folder)
        try:
            deadline = time.monotonic() + 60
            while not listens(port):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.01)
                assert process.poll() is None, (folder / "output").read_text()
                assert time.monotonic() < deadline, (folder / "output").read_text()
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


PROXIES = {"nginx": nginx, "caddy": caddy}
StartProxy = Callable[..., int]


@pytest.fixture(params=PROXIES)
def start_proxy(request: pytest.FixtureRequest, tmp_path: Path, backend: Backend) -> Iterator[StartProxy]:
    """Start each of the proxies before the backend, asking the Gatepost at a port, for whose answer it waits so many
    seconds; returns its own port.
    """
    with contextlib.ExitStack() as stack:

        def start(gatepost: int, patience: int = 60) -> int:
            port = stack.enter_context(free_port())
            command = PROXIES[request.param](tmp_path, port, gatepost, backend.port, patience)
            stack.enter_context(running(command, tmp_path, port))
            return port

        yield start


@pytest.fixture
def proxy(start_proxy: StartProxy, client: Client) -> int:
    """The port of each of the proxies, before a Gatepost and a backend."""
    assert client.server.port is not None
    return start_proxy(client.server.port)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: nonsense"],
        [f"Authorization: Bearer {uuid.uuid4()}"],
        [f"Cookie: __Host-session={uuid.uuid4()}", SAME],
        ["Remote-User: ada", "Remote-Roles: staff", "X-Forwarded-Method: GET", "X-Original-Method: GET"],
    ],
)
async def test_without_a_session_nothing_reaches_the_backend(
    proxy: int, backend: Backend, headers: list[str]
) -> None:
    for path in ("/", "/page?a=b", "/?role=staff", "/staff/", "/staff/x", "/publicity", "/auth/admin/users", "/auth"):
        for method in ("GET", "HEAD", "POST", "DELETE"):
            answer = await send(proxy, method, path, *headers, body=b"x" if method == "POST" else None)
            assert answer.status == 401, (method, path)
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="gatepost"'
    assert backend.seen == []


@pytest.mark.parametrize("carrier", ["Authorization: {}", "Authorization: Bearer {}", "Cookie: __Host-session={}"])
async def test_with_a_session_the_backend_is_told_whose_it_is(
    proxy: int, backend: Backend, client: Client, token: str, carrier: str
) -> None:
    line = carrier.format(token)
    assert (await send(proxy, "GET", "/page?a=b%20c", line)).body == b"from the backend"
    body = b"x" * 100_000
    assert (await send(proxy, "POST", "/page", line, SAME, body=body)).status == 200
    assert (await send(proxy, "HEAD", "/page", line)).status == 200
    expected = await identity(client, token)
    assert [seen.of_gatepost() for seen in backend.seen] == [expected] * 3
    assert [(seen.method, seen.target, len(seen.body)) for seen in backend.seen] == [
        ("GET", "/page?a=b%20c", 0),
        ("POST", "/page", len(body)),
        ("HEAD", "/page", 0),
    ]
    assert all(dict(seen.headers)["Host"] == APP for seen in backend.seen)


async def test_a_chunked_body_reaches_the_backend_and_not_gatepost(proxy: int, backend: Backend, token: str) -> None:
    headers = [f"Authorization: {token}", "Transfer-Encoding: chunked", "Connection: close"]
    lines = "\r\n".join(["POST / HTTP/1.1", f"Host: {APP}", *headers]).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
    writer.write(lines + b"\r\n\r\n" + b"2710\r\n" + b"x" * 10000 + b"\r\n0\r\n\r\n")
    async with asyncio.timeout(60):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    assert [len(seen.body) for seen in backend.seen] == [10000]


FORGED = [
    "Remote-User: root",
    "remote-user: root",
    "REMOTE-USER: root",
    "Remote_User: root",
    "remote_user: root",
    "Remote-User-Id: 0",
    "Remote_User_Id: 0",
    "Remote-User_Id: 0",
    "Remote-Roles: admin",
    "remote-roles: admin",
    "Remote_Roles: admin",
    "remote-session: x",
    "Remote_Session: x",
    "Remote-Groups: admin",
]


@pytest.mark.parametrize("roles", [["staff"], []])
async def test_what_a_client_says_of_itself_never_arrives(
    proxy: int, backend: Backend, client: Client, token: str, roles: list[str], dsn: Dsn
) -> None:
    give_roles(dsn, "ada", *roles)
    expected = {name: value for name, value in (await identity(client, token)).items() if value}
    forged = [line for line in FORGED if "Groups" not in line]
    for lines in ([forged[0], forged[8]], forged, forged[::-1], *([line] for line in forged)):
        for who in (f"Authorization: {token}", cookie(token)):
            assert (await send(proxy, "GET", "/", who, *lines)).status == 200
            assert backend.seen.pop().of_gatepost() == expected, lines
            # Nor where nobody is asked, whoever asks.
            assert (await send(proxy, "GET", "/public/", who, *lines)).status == 200
            assert backend.seen.pop().of_gatepost() == {}, lines
        assert (await send(proxy, "GET", "/", *lines)).status == 401
        assert backend.seen == []
        assert (await send(proxy, "GET", "/public/", *lines)).status == 200
        assert backend.seen.pop().of_gatepost() == {}, lines


async def test_a_client_cannot_take_away_what_gatepost_says_either(
    proxy: int, backend: Backend, client: Client, token: str
) -> None:
    """A proxy removes what Connection names before it passes a request on: Remote-User must not be among it."""
    expected = await identity(client, token)
    for names in ("Remote-User", "remote-roles", "Remote-User, Remote-Roles, Remote-Session", "X, Remote-User-Id"):
        answer = await send(proxy, "GET", "/", f"Authorization: {token}", f"Connection: close, {names}")
        assert answer.status in {200, 400}
        assert [seen.of_gatepost() for seen in backend.seen] == [expected] * (answer.status == 200)
        backend.seen.clear()
    for names in ("Cookie", "Authorization", "Origin", "Sec-Fetch-Site", "X-Forwarded-Method", "X-Original-Method"):
        lines = [cookie(token), "Sec-Fetch-Site: cross-site", "Origin: https://evil.example"]
        answer = await send(proxy, "POST", "/", *lines, f"Connection: close, {names}")
        assert answer.status in {400, 401, 403}, names
    assert backend.seen == []


async def test_a_name_in_another_script_arrives_encoded(proxy: int, backend: Backend, client: Client) -> None:
    await register(client, "Günther")
    assert (await send(proxy, "GET", "/", f"Authorization: {await log_in(client, 'Günther')}")).status == 200
    assert backend.seen[0].of_gatepost()["remote-user"] == quote("günther")


async def test_a_session_that_has_ended_is_refused_at_once(
    proxy: int, backend: Backend, client: Client, token: str
) -> None:
    for carrier in (cookie, "Authorization: {}".format):
        token = await log_in(client)
        assert (await send(proxy, "GET", "/", carrier(token))).status == 200
        async with client.delete("/user", headers={"Authorization": token}) as answer:
            assert answer.status == 200
        assert (await send(proxy, "GET", "/", carrier(token))).status == 401
    assert len(backend.seen) == 2


async def test_a_role_is_demanded_where_the_proxy_says(
    proxy: int, backend: Backend, client: Client, token: str, dsn: Dsn
) -> None:
    line = f"Authorization: {token}"
    assert (await send(proxy, "GET", "/staff/x", line)).status == 200
    assert backend.seen.pop().of_gatepost() == await identity(client, token)
    give_roles(dsn, "ada", "editor")
    for forged in ([], ["Remote-Roles: staff"]):
        assert (await send(proxy, "GET", "/staff/x", line, *forged)).status == 403
        assert (await send(proxy, "GET", "/staff/x?role=editor", line, *forged)).status == 403
    assert backend.seen == []
    assert (await send(proxy, "GET", "/?role=nobody&roles=x", line)).status == 200  # the backend's own query


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_foreign_page_changes_nothing_with_the_cookie(
    proxy: int, backend: Backend, token: str, headers: list[str]
) -> None:
    tricks: list[list[str]] = [
        [],
        ["X-Forwarded-Method: GET"],
        ["X-Original-Method: GET"],
        ["X-Forwarded-Method: GET", "X-Original-Method: GET"],
        ["X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https", "X-Forwarded-Uri: /"],
        ["X-HTTP-Method-Override: GET"],
    ]
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/", "/staff/"):
            for trick in tricks:
                assert (await send(proxy, method, path, cookie(token), *headers, *trick)).status == 403
    assert backend.seen == []
    assert (await send(proxy, "GET", "/", cookie(token), *headers)).status == 200  # following a link is no change


@pytest.mark.parametrize("headers", OWN)
async def test_a_page_of_our_own_origin_may_change_things(
    proxy: int, backend: Backend, token: str, headers: list[str]
) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await send(proxy, method, "/", cookie(token), *headers, body=b"change")).status == 200
        assert (backend.seen[-1].method, backend.seen[-1].body) == (method, b"change")


WAYS_ROUND = [
    "/public/../private",
    "/public/..%2fprivate",
    "/public/%2e%2e/private",
    "/public/%2e%2e%2fprivate",
    "/public/x/../../private",
    "//private",
    "/./private",
    "/Public/",
    "/public",
]


async def test_no_spelling_of_a_path_walks_around_the_question(proxy: int, backend: Backend) -> None:
    for path in WAYS_ROUND:
        assert (await send(proxy, "GET", path)).status in {301, 308, 400, 401, 404}, path
    assert backend.seen == []


async def test_a_browser_signs_in_and_out_through_the_proxy(
    proxy: int, backend: Backend, client: Client, ada: dict[str, Any]
) -> None:
    login = json.dumps({"username": "ada", "password": PASSWORD, "cookie": True}).encode()
    headers = ["Content-Type: application/json", f"Origin: https://{APP}"]
    answer = await send(proxy, "POST", "/auth/user", *headers, SAME, *FORGED, body=login)
    assert answer.status == 200
    given = answer.headers["Set-Cookie"]
    assert given.startswith("__Host-session=")
    assert "Secure" in given
    browser = "Cookie: " + given.partition(";")[0]
    assert (await send(proxy, "GET", "/", browser)).status == 200
    assert backend.seen.pop().of_gatepost()["remote-user"] == "ada"
    assert (await send(proxy, "GET", "/auth/sessions", browser)).status == 200
    assert (await send(proxy, "DELETE", "/auth/user", browser, "Origin: https://evil.example")).status == 403
    assert (await send(proxy, "DELETE", "/auth/user", browser, f"Origin: https://{APP}")).status == 200
    assert (await send(proxy, "GET", "/", browser)).status == 401
    answer = await send(proxy, "POST", "/auth/user", headers[0], "Origin: https://evil.example", body=login)
    assert answer.status == 403
    assert backend.seen == []


INSIDE = [
    "/_gatepost/session",
    "/_gatepost/role/staff",
    "/_gatepost/",
    "/auth/authz/forward",
    "/auth/admin/users",
    "/auth/metrics",
    "/auth/health/ready",
    "/auth/user/../health/ready",
    "/auth/user/..%2fhealth/ready",
    "/auth/user/%2e%2e/health/ready",
    "/auth//health/ready",
]


async def test_the_rest_of_gatepost_is_not_reachable_from_outside(proxy: int, backend: Backend, token: str) -> None:
    for path in INSIDE:
        assert (await send(proxy, "GET", path)).status in {400, 401, 404}, path
        answer = await send(proxy, "GET", path, f"Authorization: {token}")
        # Whatever is not for Gatepost is for the backend, and a path that can be read in two ways is for nobody.
        assert answer.status in {400, 404} or answer.body == b"from the backend", path
        assert told(answer.headers) == {}


@pytest.mark.parametrize("status", [503, 500, 502, 429, 422, 404, 400, 302])
async def test_any_answer_but_yes_keeps_the_backend_out_of_reach(
    start_proxy: StartProxy, backend: Backend, status: int
) -> None:
    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Remote-User": "ada", "Location": "/elsewhere"})

    async with served(refuse) as gatepost:
        proxy = start_proxy(gatepost)
        for path in ("/", "/staff/"):
            for method in ("GET", "POST"):
                answer = await send(proxy, method, path, f"Authorization: {uuid.uuid4()}")
                assert answer.status >= 500 or answer.status == status < 500
    assert backend.seen == []


async def test_while_gatepost_is_down_hangs_or_breaks_off_the_answer_is_an_error(
    start_proxy: StartProxy, backend: Backend
) -> None:
    over, asked = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        asked.set()
        if request.query or request.headers.get("Authorization") == "break off":
            assert request.transport is not None
            request.transport.abort()
        else:
            await over.wait()
        return web.Response()

    async with served(hang) as gatepost:
        proxy = start_proxy(gatepost, patience=1)
        assert (await send(proxy, "GET", "/")).status >= 500
        await asyncio.wait_for(asked.wait(), 60)
        for path in ("/", "/staff/"):
            assert (await send(proxy, "GET", path, "Authorization: break off")).status >= 500
        over.set()
    for path in ("/", "/staff/"):
        for _ in range(3):
            assert (await send(proxy, "GET", path)).status >= 500
    assert backend.seen == []


async def test_while_the_database_is_away_nobody_passes_and_nobody_is_sent_to_sign_in(
    proxy: int, backend: Backend, client: Client, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(client.app[LOOKUP], "find", fail)
        assert (await send(proxy, "GET", "/", f"Authorization: {token}")).status >= 500
    assert backend.seen == []
    assert (await send(proxy, "GET", "/", f"Authorization: {token}")).status == 200


def test_the_traefik_file_removes_what_a_client_says_of_itself_everywhere() -> None:
    """There is no Traefik in Debian to try it with. Each route to the backend has a middleware that removes them."""
    text = (DOCS / "traefik.yml").read_text()
    assert text.count("forwardAuth:") == text.count('authResponseHeadersRegex: "(?i)^remote"') == 2
    routes = re.findall(r"middlewares: \[([\w-]+)\]\n +service: backend", text)
    assert sorted(routes) == ["anonymous", "session", "staff"]
    assert text.count("service: backend") == len(routes)
    cleared = {line.split(":")[0] for line in re.findall(r"Remote\S+: \"\"", text)}
    assert {line.split(":")[0].lower() for line in FORGED} - {name.lower() for name in cleared} == {"remote-groups"}
    # And no router takes a path that could be read in two ways. Go writes a control character otherwise than Python.
    rules = [rule for rule in re.findall(r"rule: .*", text) if "auth.app.example" not in rule]
    refused = {re.search(r"!PathRegexp\(`(.*?)`\)", rule)[1] for rule in rules}  # type: ignore[index]
    (pattern,) = refused
    assert text.count("!PathRegexp(") - 1 == len(rules) == 4
    judge = re.compile(pattern.replace("[:cntrl:]", "\\x00-\\x1f\\x7f"))
    assert [path for path in AMBIGUOUS if not judge.search(path.partition("?")[0])] == []
    assert [path for path in PLAIN if judge.search(path.partition("?")[0])] == []


# ---------------------------------------------------------------------------------------------- people

PERSON = "Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"
HOME = "https://auth.app.example"
ASKED = ["X-Forwarded-Proto: https", "X-Forwarded-Host: app.example", "X-Forwarded-Uri: /a?b=c&d=%C3%A4&e=1+2"]
ADDRESS = "https://app.example/a?b=c&d=%C3%A4&e=1+2"


@pytest.fixture
async def with_pages(config: Config, start_server: StartServer) -> Client:
    webserver = WebServerConfig(port=0, public_url=HOME)
    return await start_server(config.model_copy(update={"webserver": webserver}))


def way_out(reply: Reply) -> tuple[str, dict[str, str]]:
    """The page to which an answer leads, and what it says to it."""
    url = URL(reply.headers["Location"])
    return str(url.with_query(None)), dict(url.query)


async def test_a_person_is_sent_to_sign_in_with_the_whole_address(with_pages: Client) -> None:
    reply = await ask(with_pages, PERSON, *ASKED, query="?sign_in=redirect")
    assert reply.status == 303
    assert way_out(reply) == (f"{HOME}/sign-in", {"return_to": ADDRESS})


async def test_nginx_is_told_the_page_beside_its_401(with_pages: Client) -> None:
    asked = [each.replace("X-Forwarded-Uri", "X-Original-URI") for each in ASKED]
    reply = await ask(with_pages, PERSON, *asked, query="?sign_in=location")
    assert reply.status == 401
    assert way_out(reply) == (f"{HOME}/sign-in", {"return_to": ADDRESS})
    assert reply.headers["WWW-Authenticate"] == 'Bearer realm="gatepost"'


@pytest.mark.parametrize(
    "headers",
    [
        ["Accept: */*"],
        ["Accept: application/json"],
        [],
        [PERSON, "Sec-Fetch-Mode: cors"],
        [PERSON, "X-Forwarded-Method: POST"],
    ],
)
async def test_a_program_keeps_its_401(with_pages: Client, headers: list[str]) -> None:
    reply = await ask(with_pages, *ASKED, *headers, query="?sign_in=redirect")
    assert reply.status == 401
    assert "Location" not in reply.headers


async def test_without_pages_everybody_keeps_the_401(
    config: Config, start_server: StartServer, client: Client
) -> None:
    assert (await ask(client, PERSON, *ASKED, query="?sign_in=redirect")).status == 401
    changes = {"webserver": WebServerConfig(port=0, public_url=HOME), "pages": PagesConfig(enabled=False)}
    client = await start_server(config.model_copy(update=changes))
    assert (await ask(client, PERSON, *ASKED, query="?sign_in=redirect")).status == 401


async def test_a_person_learns_what_the_session_lacks(with_pages: Client, dsn: Dsn) -> None:
    await register(with_pages, "ada")
    carried = cookie(await log_in(with_pages))
    reply = await ask(with_pages, PERSON, *ASKED, carried, query="?sign_in=redirect&role=staff,owner")
    assert way_out(reply) == (f"{HOME}/forbidden", {"return_to": ADDRESS, "role": "staff,owner"})
    reply = await ask(with_pages, PERSON, *ASKED, carried, query="?sign_in=location&role=staff")
    assert (reply.status, way_out(reply)[0]) == (403, f"{HOME}/forbidden")
    reply = await ask(with_pages, PERSON, *ASKED, carried, query="?sign_in=redirect&factors=2")
    assert way_out(reply) == (f"{HOME}/me/factors", {"return_to": ADDRESS})
    rows(dsn, "UPDATE gatepost.sessions SET created_at = created_at - interval '1 hour' RETURNING 1")
    reply = await ask(with_pages, PERSON, *ASKED, carried, query="?sign_in=redirect&fresh=600")
    assert way_out(reply) == (f"{HOME}/confirm", {"return_to": ADDRESS})
    assert (await ask(with_pages, PERSON, *ASKED, carried, query="?sign_in=redirect")).status == 200


async def test_garbage_in_the_address_is_no_500_for_a_person_either(with_pages: Client) -> None:
    lines = [PERSON, "X-Forwarded-Proto: \xff", "X-Forwarded-Host: \xc3\xa4", "X-Forwarded-Uri: /\xff%"]
    reply = await ask(with_pages, *lines, query="?sign_in=redirect")
    assert reply.status == 303
    assert reply.headers["Location"].isascii()


async def test_where_nothing_helps_nobody_is_sent_anywhere(with_pages: Client) -> None:
    reply = await ask(with_pages, PERSON, "X-Forwarded-Uri: /a/../b", query="?sign_in=redirect")
    assert (reply.status, "Location" in reply.headers) == (403, False)


# ----------------------------------------------------------------------------------------------- paths

# To one program below /secret/, to another below /public/ or where nobody is asked.
AMBIGUOUS = [
    "/secret/../public/x",
    "/secret/..%2fpublic/x",
    "/secret/..%2Fpublic/x",
    "/secret/%2e%2e/public/x",
    "/secret/.%2E/public/x",
    "/secret/%2e./public/x",
    "/secret/..;/public/x",
    "/secret/..%3b/public/x",
    "/secret/..%5cpublic/x",
    "/secret/..\\public/x",
    "/secret/%252e%252e/public/x",
    "/secret/..%252fpublic/x",
    "/public/../secret/x",
    "/public/..%2fsecret/x",
    "/public/%2e%2e%2fsecret/x",
    "/public//secret/x",
    "//secret/x",
    "/public/./x",
    "/public/.",
    "/public/..",
    "/public/%00/x",
    "/public/x%0d%0aSet-Cookie:x",
    "/public/x%7f",
    "/public/..?x",
]
PLAIN = [
    "/public/x",
    "/public/a.b/..c/d..",
    "/public/...",
    "/public/.well-known/x",
    "/public/g%C3%BCnther%20x",
    "/public/a%2eb",
    "/public/100%25",
    "/public/x?next=%2f..%2f//&back=../x",
    "/public/x;y=1",
]


@pytest.mark.parametrize("path", AMBIGUOUS)
async def test_a_path_that_can_be_read_in_two_ways_reaches_no_backend_with_or_without_a_session(
    proxy: int, backend: Backend, token: str, path: str
) -> None:
    for headers in ([], [f"Authorization: {token}"]):
        assert (await send(proxy, "GET", path, *headers)).status == 400
    assert backend.seen == []


@pytest.mark.parametrize("path", PLAIN)
async def test_a_path_that_can_be_read_in_one_way_only_passes_as_it_is(
    proxy: int, backend: Backend, token: str, path: str
) -> None:
    assert (await send(proxy, "GET", path)).status == 200
    inside = path.replace("/public/", "/secret/")
    assert (await send(proxy, "GET", inside)).status == 401
    assert (await send(proxy, "GET", inside, f"Authorization: {token}")).status == 200
    assert [seen.target for seen in backend.seen] == [path, inside]


@pytest.mark.parametrize("header", ["X-Forwarded-Uri", "X-Original-URI"])
async def test_the_question_itself_refuses_what_can_be_read_in_two_ways(
    client: Client, token: str, header: str
) -> None:
    for path in AMBIGUOUS:
        answer = await ask(client, f"Authorization: {token}", f"{header}: {path}")
        assert (answer.status, answer.code) == (403, "ambiguous_path"), path
    for path in PLAIN:
        assert (await ask(client, f"Authorization: {token}", f"{header}: {path}")).status == 200, path


async def test_more_paths_than_a_proxy_sends_are_refused_unread(client: Client) -> None:
    await register(client, "ada")
    token = await log_in(client)
    for count, status in ((4, 200), (5, 403)):
        headers = [("Authorization", token), *[("X-Forwarded-Uri", "/plain")] * count]
        async with client.get("/authz/forward", headers=headers) as answer:
            assert answer.status == status
