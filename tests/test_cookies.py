"""The session cookie: what it looks like, who may send it, and what it may do."""

import json
import logging
import re
import uuid
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gatepost.config import Config, CookiesConfig, WebServerConfig
from gatepost.postgres.database import Dsn
from tests.conftest import PASSWORD, Client, StartServer, log_in, register, rows, status_of, with_every_route
from tests.test_bad_input import Answer, exchange

HOST = "gatepost.test"
COOKIE = "__Host-session"
SAME = "Sec-Fetch-Site: same-origin"
LOGIN = {"username": "ada", "password": PASSWORD}
UNSAFE = ["POST", "PUT", "PATCH", "DELETE"]


async def send(
    client: Client, method: str, path: str, *headers: str | bytes, host: str = HOST, body: object = None
) -> Answer:
    """One request, header lines as given."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    data = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    encoded = [line.encode() if isinstance(line, str) else line for line in lines]
    return await exchange(client, b"\r\n".join(encoded) + b"\r\n\r\n" + data)


async def sign_in(client: Client, *headers: str, host: str = HOST) -> Answer:
    return await send(client, "POST", "/user", *headers, host=host, body={**LOGIN, "cookie": True})


def the_cookie(answer: Answer) -> tuple[str, str, dict[str, Any]]:
    """Name, value and the attributes that are there, as the browser reads them."""
    ((name, morsel),) = SimpleCookie(answer.headers["Set-Cookie"]).items()
    return name, morsel.value, {k: v for k, v in morsel.items() if v}


def sessions(dsn: Dsn) -> int:
    count: int = rows(dsn, "SELECT count(*) FROM gatepost.sessions")[0][0]
    return count


@pytest.fixture
async def token(client: Client, ada: dict[str, Any]) -> str:
    return await log_in(client)


@pytest.fixture
def cookie(token: str) -> str:
    """The header of a browser that is signed in."""
    return f"Cookie: {COOKIE}={token}"


# ---------------------------------------------------------------------------------------- getting a cookie


async def test_a_login_that_asks_for_a_cookie_gets_the_token_where_no_script_reads_it(
    client: Client, ada: dict[str, Any]
) -> None:
    answer = await sign_in(client)
    assert answer.status == 200
    name, value, attributes = the_cookie(answer)
    assert (name, value) == (COOKIE, json.loads(answer.body)["session_id"])
    # No Domain: with one, browsers refuse the prefix, and every subdomain would be given the token.
    assert attributes == {"path": "/", "secure": True, "httponly": True, "samesite": "Lax"}
    assert await status_of(client, value) == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost", "localhost:8000", "[::1]", "[::1]:8000"]
)
async def test_on_the_developers_own_machine_the_name_is_plain_and_tls_not_needed(
    client: Client, ada: dict[str, Any], host: str
) -> None:
    name, value, attributes = the_cookie(await sign_in(client, f"Origin: http://{host}", host=host))
    assert name == "session"
    assert attributes == {"path": "/", "httponly": True, "samesite": "Lax"}
    answer = await send(client, "GET", "/user", f"Cookie: session={value}", host=host)
    assert answer.status == 200


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:127",
        "127.0.0.1:",
        "127.0.0.1:80a",
        "127.0.0.2",
        "127x0x0x1",
        "mylocalhost",
        "127.0.0.1, evil.example",
        "127.0.0.1:٣",
        "",
    ],
)
async def test_no_other_host_passes_for_the_developers_own(client: Client, ada: dict[str, Any], host: str) -> None:
    answer = await sign_in(client, host=host)
    assert answer.status in {200, 400}  # aiohttp refuses some
    if answer.status == 200:
        name, value, attributes = the_cookie(answer)
        assert (name, attributes.get("secure")) == (COOKIE, True)
        assert (await send(client, "GET", "/user", f"Cookie: session={value}", host=host)).status in {400, 401}


async def test_behind_a_proxy_that_hides_the_host_the_cookie_is_still_a_safe_one(
    client: Client, ada: dict[str, Any]
) -> None:
    """nginx says `Host: 127.0.0.1:8000` unless told otherwise: the browser's Origin gives it away."""
    hidden = "127.0.0.1:8000"
    answer = await sign_in(client, SAME, "Origin: https://app.example", host=hidden)
    name, value, attributes = the_cookie(answer)
    assert (name, attributes.get("secure")) == (COOKIE, True)
    assert (await send(client, "GET", "/user", f"Cookie: {COOKIE}={value}", host=hidden)).status == 200


@pytest.mark.parametrize("wish", [{}, {"cookie": False}])
async def test_a_login_that_does_not_ask_gets_none(client: Client, ada: dict[str, Any], wish: dict[str, Any]) -> None:
    answer = await send(client, "POST", "/user", body=LOGIN | wish)
    assert answer.status == 200
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("wish", ["true", 1, None, [], {}])
async def test_a_wish_that_is_no_boolean_is_422(client: Client, ada: dict[str, Any], wish: object) -> None:
    answer = await send(client, "POST", "/user", body={**LOGIN, "cookie": wish})
    assert answer.status == 422
    assert answer.problem()["errors"][0]["field"] == "cookie"


async def test_a_lost_login_sets_no_cookie(client: Client, ada: dict[str, Any]) -> None:
    answer = await send(client, "POST", "/user", body={**LOGIN, "password": "wrong", "cookie": True})
    assert answer.status == 401
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: https://evil.example"],
        ["Origin: null"],
        ["Origin: https://gatepost.test.evil.example"],
        ["Origin: https://gatepost.test:8443"],
        ["Origin: https://gatepost.test", "Sec-Fetch-Site: same-site"],
        ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: none"],
    ],
)
async def test_a_foreign_page_cannot_sign_its_visitor_in_as_somebody_else(
    client: Client, ada: dict[str, Any], dsn: Dsn, headers: list[str]
) -> None:
    answer = await sign_in(client, *headers)
    assert (answer.status, answer.problem()["code"]) == (403, "foreign_origin")
    assert "Set-Cookie" not in answer.headers
    assert sessions(dsn) == 0


async def test_a_form_of_a_foreign_page_cannot_either(client: Client, ada: dict[str, Any], dsn: Dsn) -> None:
    """A form with enctype=text/plain can write JSON, and no preflight asks first."""
    body = json.dumps({**LOGIN, "cookie": True, "padding": "="}).encode()
    lines = [
        b"POST /user HTTP/1.1",
        b"Host: gatepost.test",
        b"Origin: https://evil.example",
        b"Content-Type: text/plain",
        b"Content-Length: %d" % len(body),
    ]
    answer = await exchange(client, b"\r\n".join(lines) + b"\r\n\r\n" + body)
    assert (answer.status, answer.problem()["code"]) == (403, "foreign_origin")
    assert sessions(dsn) == 0


async def test_a_login_without_a_cookie_may_come_from_anywhere(client: Client, ada: dict[str, Any]) -> None:
    headers = ["Origin: https://evil.example", "Sec-Fetch-Site: cross-site"]
    answer = await send(client, "POST", "/user", *headers, body=LOGIN)
    assert answer.status == 200  # nothing is left in the visitor's browser, and the page may not read the answer


# ---------------------------------------------------------------------------------------- sending a cookie


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Sec-Fetch-Site: none"],
        ["Sec-Fetch-Site: cross-site", "Origin: https://evil.example"],
    ],
)
async def test_a_request_that_changes_nothing_may_come_from_anywhere(
    client: Client, cookie: str, method: str, headers: list[str]
) -> None:
    answer = await send(client, method, "/user", cookie, *headers)
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_options_takes_no_notice_of_the_cookie(client: Client, cookie: str) -> None:
    for line in (cookie, f"Cookie: {COOKIE}={uuid.uuid4()}", "Cookie: ;;;"):
        answer = await send(client, "OPTIONS", "/user", line, "Sec-Fetch-Site: cross-site")
        assert answer.status == 204
        assert "Set-Cookie" not in answer.headers


async def test_the_plain_name_counts_on_the_developers_own_machine_only(client: Client, token: str) -> None:
    plain = f"Cookie: session={token}"
    assert (await send(client, "GET", "/user", plain)).status == 401
    assert (await send(client, "GET", "/user", plain, host="127.0.0.1:8000")).status == 200
    # Browsers of this host have a better one: the plain one may have been set by anybody.
    both = f"Cookie: session={token}; {COOKIE}={uuid.uuid4()}"
    assert (await send(client, "GET", "/user", both, host="127.0.0.1:8000")).status == 401


ALLOWED = [
    [SAME],
    [SAME, "Origin: https://gatepost.test"],
    ["Origin: https://gatepost.test"],
    ["Origin: HTTPS://Gatepost.Test"],
    ["Origin: http://gatepost.test"],  # TLS ends before us: the scheme is not ours to judge
]
FOREIGN = [
    [],
    ["Sec-Fetch-Site: same-site"],
    ["Sec-Fetch-Site: cross-site"],
    ["Sec-Fetch-Site: none"],
    ["Sec-Fetch-Site: "],
    ["Sec-Fetch-Site: Same-Origin"],
    ["Sec-Fetch-Site: same-origin, cross-site"],
    ["Sec-Fetch-Site: cross-site", "Origin: https://gatepost.test"],
    ["Sec-Fetch-Site: none", "Origin: https://gatepost.test"],
    ["Origin: https://evil.example"],
    ["Origin: https://evil.gatepost.test"],
    ["Origin: https://gatepost.test.evil.example"],
    ["Origin: https://gatepost.test:8443"],
    ["Origin: https://gatepost.test/"],
    ["Origin: https://evil.example gatepost.test"],
    ["Origin: gatepost.test"],
    ["Origin: null"],
    ["Origin: "],
    ["Origin: ://"],
    ["Referer: https://gatepost.test/"],
]


@pytest.mark.parametrize("headers", ALLOWED)
async def test_a_page_of_ours_may_do_what_its_user_may(client: Client, cookie: str, headers: list[str]) -> None:
    assert (await send(client, "DELETE", "/user", cookie, *headers)).status == 200


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_page_of_another_origin_may_not(client: Client, token: str, cookie: str, headers: list[str]) -> None:
    answer = await send(client, "DELETE", "/user", cookie, *headers)
    assert (answer.status, answer.problem()["code"]) == (403, "foreign_origin")
    assert "Set-Cookie" not in answer.headers
    assert await status_of(client, token) == 200


async def test_an_empty_host_header_matches_no_origin(client: Client, token: str, cookie: str) -> None:
    for origin in ("Origin: ", "Origin: null", "Origin: https://"):
        answer = await send(client, "DELETE", "/user", cookie, origin, host="")
        assert answer.status in {400, 403}
    assert await status_of(client, token) == 200


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return with_every_route(config, tmp_path)


async def test_every_route_that_changes_something_asks_where_a_cookie_comes_from(
    client: Client, token: str, cookie: str
) -> None:
    """For a valid cookie from a foreign page: 403 wherever a token is asked for, whatever else is wrong."""
    asked = []
    for route in client.app.router.routes():
        if route.method not in UNSAFE or route.resource is None:
            continue
        if route.resource.canonical == "/user/passkey/options":
            continue  # for everybody, and it changes nothing
        if route.handler.__module__.startswith("gatepost.pages."):
            continue  # asks too, and says so on a page: tests/test_pages.py
        path = re.sub(r"{\w+}", str(uuid.uuid4()), route.resource.canonical)
        answer = await send(client, route.method, path, cookie, "Sec-Fetch-Site: same-site", body={})
        if answer.status != 422:  # a public one: it found the body wanting
            assert (answer.status, answer.problem()["code"]) == (403, "foreign_origin"), (route.method, path)
            asked.append((route.method, path))
    assert ("DELETE", "/user") in asked
    assert ("PUT", "/account/password") in asked
    assert ("DELETE", "/sessions") in asked
    assert await status_of(client, token) == 200


async def test_a_configured_origin_may_act_for_its_user(
    config: Config, start_server: StartServer, ada: dict[str, Any]
) -> None:
    webserver = WebServerConfig(port=0, cors_origins=("https://Shop.Example", "http://localhost:5173"))
    client = await start_server(config.model_copy(update={"webserver": webserver}))
    for origin in ("https://shop.example", "https://SHOP.example", "http://localhost:5173"):
        cookie = f"Cookie: {COOKIE}={await log_in(client)}"
        site = "Sec-Fetch-Site: same-site"
        answer = await send(client, "DELETE", "/user", cookie, f"Origin: {origin}", site)
        assert answer.status == 200, origin
        assert (await sign_in(client, f"Origin: {origin}", site)).status == 200
    cookie = f"Cookie: {COOKIE}={await log_in(client)}"
    for origin in ("https://shop.example.evil.example", "https://shop.example:8443", "http://shop.example", "null"):
        answer = await send(client, "DELETE", "/user", cookie, f"Origin: {origin}")
        assert answer.status == 403, origin


# ------------------------------------------------------------------------- a cookie beside an Authorization


async def test_the_authorization_header_wins_over_the_cookie(client: Client, token: str) -> None:
    other = await log_in(client)
    for bad in ("nonsense", str(uuid.uuid4()), "Basic YWRhOmFkYQ==", ""):
        headers = [f"Authorization: {bad}", f"Cookie: {COOKIE}={token}"]
        assert (await send(client, "GET", "/user", *headers)).status == 401
    headers = [f"Authorization: {other}", f"Cookie: {COOKIE}={token}", "Origin: https://evil.example"]
    answer = await send(client, "DELETE", "/user", *headers)
    assert answer.status == 200  # no page of another origin can set this header unasked
    assert "Set-Cookie" not in answer.headers  # the cookie's own session goes on
    assert await status_of(client, token) == 200
    assert await status_of(client, other) == 401


# ----------------------------------------------------------------------- a cookie whose session ends or changes


@pytest.mark.parametrize("host", [HOST, "127.0.0.1:8000"])
async def test_logging_out_takes_the_cookie_back(client: Client, token: str, host: str) -> None:
    name = COOKIE if host == HOST else "session"
    answer = await send(client, "DELETE", "/user", f"Cookie: {name}={token}", SAME, host=host)
    assert answer.status == 200
    dropped, value, attributes = the_cookie(answer)
    assert (dropped, value) == (name, "")
    # Browsers refuse to touch a __Host- cookie without these, so it would stay.
    assert attributes["path"] == "/"
    assert "domain" not in attributes
    assert attributes.get("secure", False) is (name == COOKIE)
    assert attributes["max-age"] == "0"
    assert await status_of(client, token) == 401


async def test_logging_out_by_header_takes_the_cookie_of_the_same_session_back(client: Client, token: str) -> None:
    headers = [f"Authorization: Bearer {token}", f"Cookie: {COOKIE}={token}"]
    answer = await send(client, "DELETE", "/user", *headers)
    assert the_cookie(answer)[:2] == (COOKIE, "")


async def test_cookies_of_other_software_on_the_host_are_left_alone(client: Client, token: str) -> None:
    change = {"current": PASSWORD, "new": "another correct horse"}
    headers = [f"Authorization: {token}", "Cookie: _ga=1; theme=dark"]
    answer = await send(client, "PUT", "/account/password", *headers, body=change)
    assert answer.status == 200
    assert "Set-Cookie" not in answer.headers
    headers[0] = f"Authorization: {json.loads(answer.body)['session_id']}"
    answer = await send(client, "DELETE", "/user", *headers)
    assert answer.status == 200
    assert "Set-Cookie" not in answer.headers


async def test_the_cookie_follows_the_session_through_a_change_of_password(client: Client, cookie: str) -> None:
    change = {"current": PASSWORD, "new": "another correct horse"}
    answer = await send(client, "PUT", "/account/password", cookie, SAME, body=change)
    assert answer.status == 200
    name, value, attributes = the_cookie(answer)
    assert (name, value) == (COOKIE, json.loads(answer.body)["session_id"])
    assert attributes == {"path": "/", "secure": True, "httponly": True, "samesite": "Lax"}
    assert (await send(client, "GET", "/user", cookie)).status == 401
    assert (await send(client, "GET", "/user", f"Cookie: {name}={value}")).status == 200


async def test_the_cookie_goes_with_the_account_and_with_the_session(client: Client, token: str) -> None:
    first, second = await log_in(client), await log_in(client)
    by_first = f"Cookie: {COOKIE}={first}"
    async with client.get("/user", headers={"Authorization": first}) as whose:
        handle = (await whose.json())["session"]["handle"]
    async with client.get("/user", headers={"Authorization": second}) as whose:
        other = (await whose.json())["session"]["handle"]
    answer = await send(client, "DELETE", f"/sessions/{other}", by_first, SAME)
    assert (answer.status, "Set-Cookie" in answer.headers) == (200, False)
    answer = await send(client, "DELETE", "/sessions?scope=others", by_first, SAME)
    assert (answer.status, "Set-Cookie" in answer.headers) == (200, False)
    answer = await send(client, "DELETE", f"/sessions/{handle}", by_first, SAME)
    assert (answer.status, the_cookie(answer)[1]) == (200, "")
    by_third = f"Cookie: {COOKIE}={await log_in(client)}"
    answer = await send(client, "DELETE", "/sessions?scope=all", by_third, SAME)
    assert (answer.status, the_cookie(answer)[1]) == (200, "")
    by_fourth = f"Cookie: {COOKIE}={await log_in(client)}"
    answer = await send(client, "DELETE", "/account", by_fourth, SAME, body={"password": PASSWORD})
    assert (answer.status, the_cookie(answer)[1]) == (200, "")


# ------------------------------------------------------------------------------------------ reading a cookie


async def test_two_cookies_of_the_name_are_none(client: Client, token: str) -> None:
    """A browser holds one; whoever made the other must not have the choice."""
    other = await log_in(client)
    for first, second in ((token, other), (other, token), (token, ""), ("", token), (token, "x")):
        pairs = f"{COOKIE}={first}; {COOKIE}={second}"
        assert (await send(client, "GET", "/user", f"Cookie: {pairs}")).status == 401
        lines = [f"Cookie: {COOKIE}={first}", f"Cookie: {COOKIE}={second}"]
        assert (await send(client, "GET", "/user", *lines)).status == 401
    twice = f"Cookie: {COOKIE}={token}; {COOKIE}={token}"
    assert (await send(client, "GET", "/user", twice)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "{c}",
        " {c} ",
        "a=b; {c}",
        "{c}; a=b",
        "a=b;{c};d=e",
        ";;{c};;",
        "a; {c}; b",
        "=; {c}",
        'a="unfinished; {c}',
        "a=b=c; {c}",
        "[]()/@=1; {c}",
        "expires=Wed, 09 Jun 2021 10:18:14 GMT; {c}",
        "path=/; domain=x; {c}; secure",
        "\xe9=\u20ac; {c}",
        f"long={'x' * 4000}; {{c}}",
    ],
)
async def test_the_cookie_is_found_among_any_others(client: Client, token: str, header: str) -> None:
    line = "Cookie: " + header.format(c=f"{COOKIE}={token}")
    assert (await send(client, "GET", "/user", line)).status == 200
    split = [f"Cookie: {part}" for part in header.format(c=f"{COOKIE}={token}").split(";")]
    assert (await send(client, "GET", "/user", *split)).status == 200  # HTTP/2 may split it


@pytest.mark.parametrize(
    "header",
    [
        "a=b {c}",  # aiohttp's own parser ends a cookie at a space …
        "a {c}",
        "a=b\t{c}",
        "a=b,{c}",
        'a="x; {c}"'.replace("; ", " "),
        "\u2000{c}",  # … and strips what Unicode calls a space, which browsers take for part of the name
        "\u00a0{c}",
        "\u0085{c}",
        "\u3000{c}",
        "a=b;\u2003{c}",
        "a={c}",
        "__host-session={t}",
        "__HOST-SESSION={t}",
        "__Host-session ={t}",
        "__Host-session= {t}",
        '__Host-session="{t}"',
        "__Host-session=Bearer {t}",
        "__Host-session={t}x",
        "__Host-session={{{t}}}",
        "__Host-session=urn:uuid:{t}",
        "__Host-session",
        "__Host-session=",
        "=__Host-session={t}",
        "__Host-session=={t}",
        "session={t}",
        "__Secure-session={t}",
        "__Host-session%3D{t}",
    ],
)
async def test_what_a_browser_holds_under_another_name_does_not_pass_for_the_cookie(
    client: Client, token: str, header: str
) -> None:
    line = "Cookie: " + header.format(c=f"{COOKIE}={token}", t=token)
    assert (await send(client, "GET", "/user", line)).status == 401


async def test_a_neighbours_cookie_cannot_take_the_place_of_ours(client: Client, ada: dict[str, Any]) -> None:
    """A subdomain may set cookies for its parent, but none with the prefix: whatever it writes, ours is read."""
    mine = await log_in(client)
    await register(client, "mallory")
    theirs = await log_in(client, "mallory")
    for planted in (
        f"x=y {COOKIE}={theirs}",
        f"\u2000{COOKIE}={theirs}",
        f'x="; {COOKIE}={theirs}"'.replace("; ", " "),
        f"session={theirs}",
        f"x={COOKIE}={theirs}",
    ):
        for pairs in (f"{COOKIE}={mine}; {planted}", f"{planted}; {COOKIE}={mine}"):
            answer = await send(client, "GET", "/user", f"Cookie: {pairs}")
            assert answer.status == 200, pairs
            assert json.loads(answer.body)["user"]["username"] == "ada", pairs


@pytest.mark.parametrize(
    "line",
    [
        b"Cookie:",
        b"Cookie: ;",
        b"Cookie: =",
        b"Cookie: ====;;;;",
        b'Cookie: "',
        b'Cookie: a="\\',
        b"Cookie: \xff\xfe\xfd",
        b"Cookie: __Host-session=\xff",
        b"Cookie: \xed\xa0\x80=\xed\xb0\x80; __Host-session=\xed\xa0\x80",
        b"Cookie: __Host-session=\xef\xbc\x91",
        b"Cookie: " + b";" * 8000,
        b"Cookie: " + b"a=b; " * 1600,
        b"Cookie: " + b'"' * 8000,
        b"Cookie: " + b" " * 8000,
        b"Cookie: " + b"__Host-session=x; " * 400,
        b"Cookie: " + b"\\" * 8000,
    ],
)
async def test_garbage_in_the_cookie_header_is_401_and_no_500(client: Client, line: bytes) -> None:
    for method in ("GET", "HEAD", "DELETE"):
        assert (await send(client, method, "/user", line, SAME)).status == 401, method
    assert (await send(client, "GET", "/ping", line)).status == 200


async def test_the_token_is_in_no_log(client: Client, ada: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _, token, _ = the_cookie(await sign_in(client))
        cookie = f"{COOKIE}={token}"
        for line in (cookie, f"{cookie}; {cookie}x", f"\u2000{cookie}", f"{token}=1", f"({token})é"):
            await send(client, "GET", "/user", f"Cookie: {line}")
            await send(client, "DELETE", "/user", f"Cookie: {line}", "Origin: https://evil.example")
        await send(client, "DELETE", "/user", f"Cookie: {cookie}", SAME)
    assert token not in caplog.text


# ---------------------------------------------------------------------------------------- one domain for all


@pytest.fixture
async def sharing(config: Config, start_server: StartServer) -> Client:
    """A server whose cookie all hosts of its domain share."""
    webserver = WebServerConfig(port=0, public_url="https://auth.shop.example")
    changes: dict[str, Any] = {"webserver": webserver, "cookies": CookiesConfig(domain="shop.example")}
    client = await start_server(config.model_copy(update=changes))
    await register(client, "ada")
    return client


WITH_COOKIE: dict[str, Any] = {"username": "ada", "password": PASSWORD, "cookie": True}


@pytest.mark.parametrize("host", ["auth.shop.example", "shop.example", "a.b.shop.example:8443", "AUTH.Shop.Example"])
async def test_the_hosts_of_a_domain_share_its_cookie(sharing: Client, host: str) -> None:
    answer = await send(sharing, "POST", "/user", host=host, body=WITH_COOKIE)
    name, value, attributes = the_cookie(answer)
    assert (name, attributes["domain"], attributes["secure"], attributes["httponly"]) == (
        "__Secure-session",
        "shop.example",
        True,
        True,
    )
    carried = f"Cookie: {name}={value}"
    assert (await send(sharing, "GET", "/user", carried, host="app.shop.example")).status == 200
    answer = await send(sharing, "DELETE", "/user", carried, f"Origin: https://{host}", host=host)
    assert answer.status == 200
    name, value, attributes = the_cookie(answer)
    assert (name, value, attributes["domain"]) == ("__Secure-session", "", "shop.example")


@pytest.mark.parametrize("host", ["shop.example.evil.example", "evilshop.example", "example", "127.0.0.2"])
async def test_a_host_outside_of_the_domain_has_a_cookie_of_its_own(sharing: Client, host: str) -> None:
    answer = await send(sharing, "POST", "/user", host=host, body=WITH_COOKIE)
    name, value, attributes = the_cookie(answer)
    assert name == COOKIE
    assert "domain" not in attributes
    assert (await send(sharing, "GET", "/user", f"Cookie: __Secure-session={value}", host=host)).status == 401


async def test_without_a_domain_a_shared_cookie_counts_for_nothing(client: Client, token: str) -> None:
    assert (await send(client, "GET", "/user", f"Cookie: __Secure-session={token}")).status == 401


async def test_a_neighbour_in_the_domain_may_change_nothing_with_the_cookie(sharing: Client) -> None:
    name, value, _ = the_cookie(await send(sharing, "POST", "/user", host="auth.shop.example", body=WITH_COOKIE))
    carried = f"Cookie: {name}={value}"
    for origin in ("Origin: https://app.shop.example", "Sec-Fetch-Site: same-site"):
        answer = await send(sharing, "DELETE", "/sessions?scope=all", carried, origin, host="auth.shop.example")
        assert (answer.status, answer.problem()["code"]) == (403, "foreign_origin")


@pytest.mark.parametrize("url", [None, "https://auth.example", "https://shop.example.evil.example"])
def test_a_domain_without_our_own_address_is_refused(url: str | None) -> None:
    with pytest.raises(ValidationError, match=r"cookies\.domain is shop\.example"):
        Config(webserver=WebServerConfig(public_url=url), cookies=CookiesConfig(domain="shop.example"))


@pytest.mark.parametrize("domain", ["com", ".shop.example", "shop.example; Secure", "*.shop.example", "Shop.example"])
def test_a_domain_that_is_none_is_refused(domain: str) -> None:
    with pytest.raises(ValidationError):
        CookiesConfig(domain=domain)
