"""The operators' own address: what is there, what is not, and what is then nowhere else."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from gatepost.config import Config
from gatepost.errors import DatabaseUnavailable
from gatepost.http.app import CONFIG
from gatepost.ops.handlers import _is_from_here
from gatepost.postgres.database import Dsn
from gatepost.routes import OPERATOR_ROUTES, PUBLIC_ROUTES, ROUTES
from gatepost.server import WebServer
from tests.conftest import Client, ProductionServer, StartServer, log_in, register, rows, with_every_route
from tests.documented import Documented
from tests.gatepost_process import gatepost, running
from tests.test_addresses import trusting
from tests.test_forward_auth import free_port, program, send
from tests.test_forward_auth import running as proxy_running
from tests.test_server import environment_of, refuses

FOR_OPERATORS = {("GET", "/metrics"), ("GET", "/health/live"), ("GET", "/health/ready")} | {
    (route.method, route.path) for route in ROUTES if route.path.startswith("/admin/")
}
ALL = {(route.method, route.path) for route in ROUTES}


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return with_every_route(config, tmp_path)


def apart(config: Config) -> Config:
    return config.model_copy(update={"webserver": config.webserver.model_copy(update={"operator_port": 0})})


@pytest.fixture
async def both(
    config: Config, aiohttp_client: Callable[..., Awaitable[Client]]
) -> AsyncIterator[tuple[Client, aiohttp.ClientSession]]:
    """Clients of the first address and of the second."""
    server, documented = WebServer(apart(config)), Documented()
    assert server.operators is not None
    for app in (server.app, server.operators):
        app.on_response_prepare.append(documented)
    await server.initializer()
    client = await aiohttp_client(ProductionServer(server))
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.operators_port}") as operators:
        yield client, operators
    assert documented.violations == []


async def found(client: Client | aiohttp.ClientSession) -> set[tuple[str, str]]:
    """The routes that are there: all whose answer is not that to an unknown path."""
    there = set()
    for method, path in ALL:
        async with client.request(method, path.replace("{", "").replace("}", "")) as answer:
            if answer.status != 404:
                there.add((method, path))
    return there


async def test_every_route_is_on_one_address_and_on_no_other(both: tuple[Client, aiohttp.ClientSession]) -> None:
    first, second = both
    assert await found(first) == ALL - FOR_OPERATORS == {(r.method, r.path) for r in PUBLIC_ROUTES}
    assert await found(second) == FOR_OPERATORS == {(r.method, r.path) for r in OPERATOR_ROUTES}
    for client, path in ((first, "/metrics"), (second, "/ping"), (second, "/user"), (second, "/docs")):
        async with client.get(path) as answer:
            assert (await answer.json())["code"] == "not_found"


async def test_without_a_second_address_everything_is_on_the_first(client: Client) -> None:
    assert await found(client) == ALL


async def test_administrators_sign_in_on_the_first_address_and_work_on_the_second(
    both: tuple[Client, aiohttp.ClientSession], dsn: Dsn
) -> None:
    first, second = both
    await register(first, "ada")
    rows(dsn, "UPDATE gatepost.users SET roles = '{admin}'")
    headers = {"Authorization": await log_in(first)}
    async with second.get("/admin/users", headers=headers) as answer:
        assert [user["username"] for user in (await answer.json())["users"]] == ["ada"]
    async with second.get("/admin/users") as answer:
        assert answer.status == 401
    async with second.get("/health/ready") as answer:
        assert answer.status == 200


def test_the_process_says_where_it_is_and_both_end_together(dsn: Dsn, tmp_path: Path) -> None:
    with running(tmp_path, **environment_of(dsn), GATEPOST_WEBSERVER__OPERATOR_PORT="0") as process:
        line = next(line for line in process.banner.splitlines() if line.startswith("Metrics, health, admin: "))
        url = line.rpartition(" ")[2]
        assert not refuses(url)
        assert process.request("GET", "/health/live")[0] == 404
        assert process.end() == 0
        assert refuses(url)


def test_an_operators_address_that_is_taken_is_one_line_and_nothing_is_started(dsn: Dsn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        variables = {
            "GATEPOST_WEBSERVER__OPERATOR_PORT": str(taken.getsockname()[1]),
            "GATEPOST_WEBSERVER__PORT": "0",
        }
        done = gatepost("run", cwd=tmp_path, **variables, **environment_of(dsn))
    assert done.returncode == 1
    assert done.stderr.endswith("is in use: set webserver.operator_port to a free one\n")
    assert done.stderr.count("\n") == 1
    ours = "datname = current_database() AND backend_type = 'client backend'"  # and not Postgres' own
    assert rows(dsn, f"SELECT count(*) FROM pg_stat_activity WHERE {ours}") == [(1,)]


async def test_an_initializer_that_fails_gives_the_operators_address_back(config: Config, dsn: Dsn) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    webserver = config.webserver.model_copy(update={"operator_port": port})
    config = config.model_copy(update={"webserver": webserver})
    bad = config.model_copy(
        update={"db": config.db.model_copy(update={"port": 1, "host": "127.0.0.1", "start_timeout": 0.0})}
    )
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await WebServer(bad).initializer()


# ------------------------------------------------------------------------- /metrics on the one address


def asking(peer: object, **headers: str) -> web.Request:
    transport = SimpleNamespace(get_extra_info=lambda _: peer)
    named = CIMultiDict({"Host": "localhost:8000"})
    named.update({name.replace("_", "-"): value for name, value in headers.items()})
    return cast(
        "web.Request",
        SimpleNamespace(transport=transport, headers=named, version=HttpVersion11, app={CONFIG: Config()}),
    )


@pytest.mark.parametrize(
    ("peer", "headers", "is_from_here"),
    [
        (("127.0.0.1", 1), {}, True),
        (("127.9.9.9", 1), {}, True),
        (("::1", 1, 0, 0), {}, True),
        (("::ffff:127.0.0.1", 1, 0, 0), {}, True),
        (("10.0.0.1", 1), {}, False),
        (("172.17.0.1", 1), {}, False),
        (("::ffff:10.0.0.1", 1, 0, 0), {}, False),
        (("fe80::1%eth0", 1, 0, 2), {}, False),
        (None, {}, False),
        ("/run/socket", {}, False),
        *(
            (("127.0.0.1", 1), {name: "10.0.0.1"}, False)
            for name in ("X_Forwarded_For", "x_real_ip", "FORWARDED", "Via", "X_Forwarded_Proto", "X_Forwarded_Host")
        ),
        *(
            (("127.0.0.1", 1), {"Host": host}, True)
            for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.9.9.9:8000", "[::1]", "[::1]:8000")
        ),
        *(
            (("127.0.0.1", 1), {"Host": host}, False)
            for host in (
                "",
                "sso.example",
                "sso.example:8000",
                "10.0.0.1:8000",
                "localhost.example",
                "127.0.0.1.example",
            )
        ),
    ],
)
def test_metrics_are_for_programs_on_this_machine(peer: Any, headers: dict[str, str], is_from_here: bool) -> None:
    assert _is_from_here(asking(peer, **headers)) == is_from_here


async def test_through_a_proxy_metrics_are_not_found(client: Client) -> None:
    async with client.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}) as answer:
        assert answer.status == 404
        assert (await answer.json())["code"] == "not_found"


BARE = {
    "nginx": "location / { proxy_pass http://127.0.0.1:%d; }",
    "nginx, by name": "location / { proxy_pass http://localhost:%d; }",
    "nginx, kept alive": """location / {
        proxy_pass http://127.0.0.1:%d; proxy_http_version 1.1; proxy_set_header Host $http_host; }""",
    "Caddy": "reverse_proxy 127.0.0.1:%d",
}


@pytest.fixture
def port() -> Iterator[int]:
    with free_port() as port:
        yield port


@pytest.mark.parametrize("name", BARE)
async def test_a_proxy_on_this_machine_without_configuration_publishes_no_metrics(
    client: Client, port: int, tmp_path: Path, name: str
) -> None:
    assert client.server.port is not None
    site = BARE[name] % client.server.port
    if name == "Caddy":
        file = tmp_path / "Caddyfile"
        file.write_text(f"{{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}}\nhttp://:{port} {{\n\t{site}\n}}\n")
        command = [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(file)]
    else:
        file = tmp_path / "nginx.conf"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        own = "access_log off; " + "".join(f"{kind}_temp_path {tmp_path}/{kind}; " for kind in kinds)
        file.write_text(f"events {{}} http {{ {own} server {{ listen 127.0.0.1:{port}; {site} }} }}")
        process = f"daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log stderr;"
        command = [program("nginx"), "-e", "stderr", "-p", str(tmp_path), "-c", str(file), "-g", process]
    with proxy_running(command, tmp_path, port):
        for host in ("sso.example", "localhost", f"127.0.0.1:{client.server.port}"):
            if name == "nginx, kept alive" and host != "sso.example":
                continue  # a stranger who calls us so through such a one is taken for one of us: docs/monitoring.md
            assert (await send(port, "GET", "/ping", host=host)).status == 200
            assert (await send(port, "GET", "/metrics", host=host)).status == 404, host
    assert (await send(client.server.port, "GET", "/metrics", host="localhost")).status == 200


async def test_where_a_proxy_on_this_machine_is_named_only_other_addresses_of_it_may_ask_for_metrics(
    config: Config, start_server: StartServer
) -> None:
    client = await start_server(trusting(config, "127.0.0.1", "::1"))
    for local, status in (("127.0.0.1", 404), ("127.0.0.2", 200)):
        connector = aiohttp.TCPConnector(local_addr=(local, 0))
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get(client.make_url("/metrics")) as answer,
        ):
            assert answer.status == status


async def test_on_the_operators_address_a_proxy_may_ask_for_metrics(
    both: tuple[Client, aiohttp.ClientSession],
) -> None:
    async with both[1].get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"}) as answer:
        assert answer.status == 200


async def test_two_servers_can_have_operators_in_one_process(config: Config, start_server: StartServer) -> None:
    one, other = WebServer(apart(config)), WebServer(apart(config))
    try:
        await one.initializer()
        await other.initializer()
        assert one.operators_port != other.operators_port
        assert not refuses(f"http://127.0.0.1:{one.operators_port}")
    finally:
        for server in (one, other):
            await server._resources.aclose()
