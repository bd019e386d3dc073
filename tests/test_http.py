"""HTTP manners: methods, errors, CORS, and the headers that every answer has."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gatepost.config import Config, WebServerConfig
from gatepost.routes import ROUTES
from tests.conftest import PASSWORD, Client, StartServer, log_in, with_every_route
from tests.test_bad_input import exchange, judge, raw


def mounted() -> dict[str, set[str]]:
    """Every path without a variable, and the methods it must answer to."""
    methods: dict[str, set[str]] = {}
    for route in ROUTES:
        if "{" not in route.path:
            also = {"HEAD"} if route.method == "GET" else set()
            methods.setdefault(route.path, {"OPTIONS"}).update({route.method}, also)
    return methods


METHODS = mounted()
ALL = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
APP = "https://app.example"


def allowed(header: str) -> set[str]:
    return {method.strip() for method in header.split(",")}


async def test_the_plain_resources_answer(client: Client) -> None:
    async with client.get("/ping") as answer:
        assert (answer.status, await answer.json()) == (200, {"text": "pong", "status": "success"})
    for path in ("/health/live", "/health/ready"):
        async with client.get(path) as answer:
            assert answer.status == 200


# ------------------------------------------------------------------------------------------------ methods


def test_the_contract_is_mounted() -> None:
    assert METHODS["/user"] == {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}
    assert METHODS["/account"] >= {"POST", "OPTIONS"}
    for path in ("/ping", "/health/live", "/health/ready"):
        assert METHODS[path] == {"GET", "HEAD", "OPTIONS"}


@pytest.mark.parametrize("path", METHODS)
async def test_options_answers_204_with_the_allowed_methods(client: Client, path: str) -> None:
    async with client.options(path) as answer:
        assert answer.status == 204
        assert allowed(answer.headers["Allow"]) == METHODS[path]
        assert await answer.read() == b""
        assert "Content-Type" not in answer.headers or answer.headers.get("Content-Length", "0") == "0"


@pytest.mark.parametrize("path", METHODS)
async def test_a_wrong_method_is_405_with_the_allowed_ones(client: Client, path: str) -> None:
    wrong = sorted(ALL - METHODS[path])
    assert wrong
    for method in wrong:
        async with client.request(method, path) as answer:
            assert answer.status == 405, method
            assert allowed(answer.headers["Allow"]) == METHODS[path]
            if method != "HEAD":
                problem = judge(answer.status, answer.headers, await answer.read())
                assert problem["code"] == "method_not_allowed"


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return with_every_route(config, tmp_path)


@pytest.mark.parametrize("path", METHODS)
async def test_an_allowed_method_is_not_405(client: Client, path: str) -> None:
    for method in METHODS[path]:
        async with client.request(method, path) as answer:
            assert answer.status not in {404, 405, 500, 501}, method


async def test_head_is_get_without_the_body(client: Client, ada: dict[str, Any]) -> None:
    headers = {"Authorization": await log_in(client)}
    for path in ("/ping", "/health/live", "/health/ready", "/user"):
        async with client.get(path, headers=headers) as got:
            body = await got.read()
        async with client.head(path, headers=headers) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert answer.headers["Content-Type"] == got.headers["Content-Type"]
            assert int(answer.headers["Content-Length"]) == len(body)
    async with client.head("/user") as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_the_connection_stays_in_step_after_answers_without_a_body(client: Client) -> None:
    """A body after HEAD or 204 would be read as the next answer."""
    for first in (raw("HEAD", "/nope"), raw("HEAD", "/account"), raw("HEAD", "/user"), raw("OPTIONS", "/user")):
        assert client.server.port is not None
        reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
        try:
            async with asyncio.timeout(60):
                writer.write(first + raw("GET", "/ping"))
                await reader.readuntil(b"\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        finally:
            writer.close()


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "path", ["/nope", "/me/nope", "/user/", "/USER", "/users", "/user/1", "/ping/x", "/%2e%2e/ping", "/%00"]
)
async def test_an_unknown_path_is_a_404_problem_for_every_method(client: Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS", "PATCH"):
        answer = await exchange(client, raw(method, path))
        assert answer.status == 404
        assert answer.problem()["code"] == "not_found"


async def test_every_kind_of_error_is_a_problem(client: Client, ada: dict[str, Any]) -> None:
    good = json.dumps({"username": "ada", "password": PASSWORD}).encode()
    is_json = b"Content-Type: application/json"
    requests = {
        b"400": raw("POST", "/user", body=b"{"),
        b"401": raw("GET", "/user"),
        b"404": raw("GET", "/nope"),
        b"405": raw("PUT", "/user"),
        b"409": raw("POST", "/account", is_json, body=good),
        b"413": raw("POST", "/user", body=b" " * 9000),
        b"415": raw("POST", "/account", body=good),
        b"422": raw("POST", "/user", body=b"{}"),
    }
    for status, request in requests.items():
        answer = await exchange(client, request)
        assert answer.status == int(status)
        problem = answer.problem()
        assert problem["type"] == "about:blank"
        assert re.fullmatch(r"[a-z_]+", problem["code"])
        assert problem["title"]
        assert problem["detail"]


async def test_the_codes_of_aiohttps_own_errors_are_stable(client: Client) -> None:
    """Programs match them: they must not follow the phrases of a Python version (3.13 renamed 413's)."""
    codes = {
        "not_found": raw("GET", "/nope"),
        "method_not_allowed": raw("PUT", "/user"),
        "body_too_large": raw("POST", "/user", body=b" " * 9000),
    }
    for code, request in codes.items():
        assert (await exchange(client, request)).problem()["code"] == code


@pytest.mark.parametrize("expectation", [b"the-unexpected", b"\x80", b"\xed\xa0\x80", b"100-continue, more"])
async def test_an_unknown_expectation_is_ignored_and_not_500(client: Client, expectation: bytes) -> None:
    for method, path in (("POST", "/user"), ("GET", "/user"), ("GET", "/nope"), ("PUT", "/user")):
        answer = await exchange(client, raw(method, path, b"Expect: " + expectation))
        assert answer.status in {417, 400, 401, 404, 405}, answer  # RFC 9110 lets a server pass over it, too
        answer.problem()


async def test_expect_100_continue_is_answered_before_the_body(client: Client, ada: dict[str, Any]) -> None:
    body = json.dumps({"username": "ada", "password": PASSWORD}).encode()
    head = raw("POST", "/user", b"Expect: 100-continue", b"Content-Length: %d" % len(body))
    assert client.server.port is not None
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    try:
        async with asyncio.timeout(60):
            for request, status in ((head, b"100"), (body, b"200")):
                writer.write(request)
                assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == status
    finally:
        writer.close()


async def test_http_1_0_clients_are_sent_no_100_continue(client: Client, ada: dict[str, Any]) -> None:
    body = json.dumps({"username": "ada", "password": PASSWORD}).encode()
    head = b"POST /user HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert client.server.port is not None
    reader, writer = await asyncio.open_connection(client.server.host, client.server.port)
    try:
        async with asyncio.timeout(60):
            writer.write(head + body)
            assert (await reader.readline()).split()[1] == b"200"
    finally:
        writer.close()


async def test_every_401_says_how_to_authenticate(client: Client, ada: dict[str, Any]) -> None:
    async with client.post("/user", json={"username": "ada", "password": "wrong"}) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="gatepost"'
    for method in ("GET", "DELETE"):
        for headers in ({}, {"Authorization": "nonsense"}):
            async with client.request(method, "/user", headers=headers) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="gatepost"'


async def test_an_error_tells_nothing_of_the_inside(client: Client) -> None:
    async with client.post("/user", data=b"{") as answer:
        text = await answer.text()
    assert answer.headers["Server"] == "gatepost"
    assert not re.search(r"aiohttp|python|postgres|Traceback|\.py", text, re.IGNORECASE)


# ------------------------------------------------------------------------------------------------ headers


async def test_no_answer_may_be_stored_or_sniffed(client: Client, ada: dict[str, Any]) -> None:
    token = await log_in(client)
    for method, path in (
        ("GET", "/user"),
        ("POST", "/user"),
        ("GET", "/ping"),
        ("GET", "/health/ready"),
        ("GET", "/nope"),
        ("PUT", "/user"),
        ("OPTIONS", "/user"),
        ("HEAD", "/user"),
        ("DELETE", "/user"),
    ):
        async with client.request(method, path, headers={"Authorization": token}) as answer:
            assert answer.headers["Cache-Control"] == "no-store", (method, path)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Set-Cookie" not in answer.headers


async def test_a_request_keeps_the_id_it_came_with(client: Client) -> None:
    for path in ("/ping", "/nope", "/user"):
        for given in ("abc-123", "0af7651916cd43dd8448eb211c80319c", "A.b_c-9", "x" * 64):
            async with client.get(path, headers={"X-Request-ID": given}) as answer:
                assert answer.headers["X-Request-ID"] == given


async def test_a_request_without_a_usable_id_gets_a_new_one(client: Client) -> None:
    seen = set()
    unusable = [
        b"",
        b"x" * 65,
        b"two words",
        b'"><script>',
        b"\xff\xfe",
        "ａ".encode(),
        b"a,b",
        b"a;b=c",
        b"%0d%0aX: y",
    ]
    lines = [[], *([b"X-Request-ID: " + value] for value in unusable)]
    for line in lines:
        answer = await exchange(client, raw("GET", "/ping", *line))
        assert answer.status == 200
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
        seen.add(answer.headers["X-Request-ID"])
    assert len(seen) == len(lines)


# --------------------------------------------------------------------------------------------------- CORS


def cors_headers(headers: Any) -> dict[str, str]:
    return {k.lower(): v for k, v in headers.items() if k.lower().startswith("access-control-")}


def preflight(origin: str, method: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }


@pytest.fixture
async def cors_client(config: Config, start_server: StartServer) -> Client:
    webserver = WebServerConfig(port=0, cors_origins=(APP, "http://localhost:5173", "https://Shop.Example"))
    return await start_server(config.model_copy(update={"webserver": webserver}))


async def test_no_page_of_another_origin_may_read_anything_by_default(client: Client) -> None:
    for path in METHODS:
        async with client.options(path, headers=preflight(APP, "GET")) as answer:
            assert cors_headers(answer.headers) == {}
        async with client.get(path, headers={"Origin": APP}) as answer:
            assert cors_headers(answer.headers) == {}


@pytest.mark.parametrize("origin", [APP, "http://localhost:5173", "https://shop.example"])
@pytest.mark.parametrize("path", METHODS)
async def test_a_configured_origin_passes_the_preflight(cors_client: Client, path: str, origin: str) -> None:
    for method in METHODS[path] - {"OPTIONS"}:
        async with cors_client.options(path, headers=preflight(origin, method)) as answer:
            assert answer.status == 204
            headers = answer.headers
            assert headers["Access-Control-Allow-Origin"] == origin
            assert method in allowed(headers["Access-Control-Allow-Methods"])
            asked = {"authorization", "content-type"}
            assert asked <= allowed(headers["Access-Control-Allow-Headers"].lower())
            assert 0 < int(headers["Access-Control-Max-Age"]) <= 7200
            assert "Origin" in headers["Vary"]


async def test_a_configured_origin_may_read_answers_and_errors_alike(cors_client: Client) -> None:
    requests = [
        ("GET", "/ping", 200),
        ("GET", "/user", 401),
        ("POST", "/user", 400),
        ("POST", "/account", 415),
        ("PUT", "/user", 405),
        ("GET", "/nope", 404),
    ]
    for method, path, status in requests:
        async with cors_client.request(method, path, headers={"Origin": APP}) as answer:
            assert answer.status == status
            assert answer.headers.getall("Access-Control-Allow-Origin") == [APP]
            assert "Origin" in answer.headers["Vary"]
            assert "X-Request-ID" in answer.headers["Access-Control-Expose-Headers"]
    async with cors_client.post("/user", data=b" " * 9000, headers={"Origin": APP}) as answer:
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (413, APP)


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "https://sub.app.example",
        "https://app.example/",
        "https://app.exampl",
        f"{APP} {APP}",
        f"{APP}, https://evil.example",
        "null",
        "*",
        "",
        "https://ａpp.example",
    ],
)
async def test_any_other_origin_may_read_nothing(cors_client: Client, origin: str) -> None:
    line = b"Origin: " + origin.encode()
    for request in (
        raw("OPTIONS", "/user", line, b"Access-Control-Request-Method: POST"),
        raw("GET", "/ping", line),
        raw("GET", "/user", line),
    ):
        answer = await exchange(cors_client, request)
        assert answer.status in {200, 204, 401}
        assert cors_headers(answer.headers) == {}
        assert "Origin" in answer.headers["Vary"]  # else a cache gives one origin's answer to another
