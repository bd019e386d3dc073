"""The OpenAPI document says all that the handlers can do; the page shows it, and asks nobody else."""

import ast
import asyncio
import base64
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from gatepost import server
from gatepost.config import Config
from gatepost.errors import Forbidden, ForeignOrigin, Problem
from gatepost.http import strict_json
from gatepost.http.app import set_common_headers
from gatepost.ops import openapi
from gatepost.ops.handlers import ping
from gatepost.ops.refusals import BODY
from gatepost.routes import OPERATOR_PAGES, PUBLIC_PAGES, ROUTES, api_document
from gatepost.sessions.guard import GUARDED
from tests.conftest import Client, StartServer
from tests.documented import Documented

DOCUMENT = json.loads(api_document())
OPERATIONS = {
    (method.upper(), path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
# aiohttp's table of routes without HEAD, which GET brings along, and without the answers to what is no route.
NAMED = {(route.method, route.path): route.handler for route in ROUTES}


def codes(operation: Any) -> set[str]:
    """Every `code` that the document knows of an operation."""
    found: set[str] = set()
    for response in operation["responses"].values():
        shared = DOCUMENT["components"]["responses"].get(response.get("$ref", "").rpartition("/")[2])
        problem = (shared or response).get("content", {}).get("application/problem+json")
        found |= set(problem["schema"]["properties"]["code"]["enum"]) if problem else set()
    return found


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref" and isinstance(value, str))
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_every_reference_leads_to_a_component_and_every_component_is_used() -> None:
    used = set(references(DOCUMENT))
    parts = DOCUMENT["components"].items()
    named = {f"#/components/{part}/{name}" for part, things in parts if part != "securitySchemes" for name in things}
    assert used == named


def test_no_two_schemas_have_one_name() -> None:
    """Generators name a class after the title: of two titled ``Change`` they made one, and lost an operation."""
    titles = [schema["title"] for schema in DOCUMENT["components"]["schemas"].values() if "title" in schema]
    assert titles == []


def test_every_operation_says_how_it_is_refused_and_whether_it_needs_a_token() -> None:
    for route, operation in OPERATIONS.items():
        assert any(status.startswith("4") for status in operation["responses"]), route
        assert {"bad_request", "internal_error"} <= codes(operation), route
        assert isinstance(operation["security"], list), route


def test_every_tag_is_described_and_used() -> None:
    assert all(tag["description"].endswith((".", "?")) for tag in DOCUMENT["tags"])
    assert {tag["name"] for tag in DOCUMENT["tags"]} == {name for one in OPERATIONS.values() for name in one["tags"]}


def test_every_route_but_the_pages_is_in_it_and_nothing_else(client: Client) -> None:
    assert client.app is not None
    pages = {(route.method, route.path) for route in PUBLIC_PAGES + OPERATOR_PAGES}
    mounted = {(r.method, r.resource.canonical) for r in client.app.router.routes() if r.resource}
    assert set(OPERATIONS) == {(method, path) for method, path in mounted if method not in {"HEAD", "*"}} - pages
    assert mounted >= pages


def test_operations_have_names_of_their_own_and_a_summary() -> None:
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z_]+", name) for name in names)
    assert all(operation["summary"].endswith(".") for operation in OPERATIONS.values())


def test_components_are_named_after_their_types() -> None:
    # One that reads otherwise than it writes would be `Name-Input`.
    assert [name for name in DOCUMENT["components"]["schemas"] if not re.fullmatch("[A-Za-z]+", name)] == []


def test_the_command_prints_what_the_server_answers_the_same_each_time() -> None:
    def printed(seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "gatepost", "openapi"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        ).stdout

    first = printed("1")
    assert json.loads(first) == DOCUMENT
    assert printed("2") == first


async def test_the_document_is_public(client: Client) -> None:
    async with client.get("/openapi.json") as answer:
        assert answer.status == 200
        assert await answer.json() == DOCUMENT


async def test_the_document_is_made_on_the_first_request_and_delays_no_other_request(
    config: Config, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = threading.Event()
    finish = threading.Event()

    def make() -> bytes:
        asked_for.set()
        assert finish.wait(60)
        return api_document()

    monkeypatch.setattr(server, "api_document", make)
    client = await start_server(config)
    assert not asked_for.is_set()
    asking = asyncio.create_task(client.get("/openapi.json"))
    assert await asyncio.to_thread(asked_for.wait, 60)
    try:
        async with client.get("/ping") as answer:
            assert answer.status == 200
        assert not asking.done()
    finally:
        finish.set()
    async with await asking as answer:
        assert await answer.json() == DOCUMENT


def test_who_must_be_signed_in_and_as_what_is_said() -> None:
    for route, operation in OPERATIONS.items():
        roles = {role for scheme in operation["security"] for scopes in scheme.values() for role in scopes}
        handler = NAMED[route]
        assert roles == {role for role in [GUARDED.get(handler)] if role}, route
        assert bool(operation["security"]) == ("unauthorized" in codes(operation)), route
        if handler in GUARDED:
            assert {"unauthorized", "two_authorizations", "database_unavailable"} <= codes(operation), route


def test_a_handler_without_a_note_is_a_mistake() -> None:
    async def forgotten(_request: web.Request) -> web.Response:
        return web.Response()

    with pytest.raises(TypeError, match="forgotten has no @operation"):
        openapi.document([web.get("/forgotten", forgotten)], {"forgotten": "A path."})


def test_the_decoders_codes_are_those_of_the_document() -> None:
    given = set(re.findall(r'code="(\w+)"', inspect.getsource(strict_json)))
    assert given | {"body_incomplete"} == {refusal.code for refusal in BODY if refusal.status == 400}
    assert given <= codes(OPERATIONS["POST", "/user"])


# ------------------------------------------------------------------------------- what a handler can raise


def source(function: FunctionType) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def callees(function: FunctionType) -> Iterator[Any]:
    """What a function names: of its module, of modules that it imports, of its class, of what the app holds."""
    known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
    tree = list(ast.walk(source(function)))
    names = {node.id for node in tree if isinstance(node, ast.Name)}
    attributes = {node.attr for node in tree if isinstance(node, ast.Attribute)}
    yield from (known.get(name) for name in names)
    for node in tree:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield getattr(known.get(node.value.id), node.attr, None)
    keys = [known[name] for name in names if isinstance(known.get(name), web.AppKey)]
    for owner in [*(key._t for key in keys), known.get(function.__qualname__.partition(".")[0])]:
        yield from (inspect.getattr_static(owner, name, None) for name in attributes)


def reached(handler: Callable[..., Any]) -> set[FunctionType]:
    seen: set[FunctionType] = set()
    todo: list[Any] = [handler]
    while todo:
        function = inspect.unwrap(todo.pop())
        if (
            isinstance(function, FunctionType)
            and function.__module__.startswith("gatepost.")
            and function not in seen
        ):
            seen.add(function)
            todo += [thing for thing in callees(function) if isinstance(thing, FunctionType)]
    return seen


def raised(function: FunctionType) -> set[str]:
    """The codes of the problems in a function's `raise` statements."""
    found = set()
    for node in ast.walk(source(function)):
        if isinstance(node, ast.Raise) and node.exc:
            call = node.exc if isinstance(node.exc, ast.Call) else ast.Call(node.exc, [], [])
            thing = function.__globals__.get(call.func.id) if isinstance(call.func, ast.Name) else None
            given = [
                key.value.value for key in call.keywords if key.arg == "code" and isinstance(key.value, ast.Constant)
            ]
            if isinstance(thing, type) and issubclass(thing, Problem):
                found.add(str(given[0]) if given else thing.code)
    return found


@pytest.mark.parametrize("route", OPERATIONS, ids=" ".join)
def test_every_problem_in_the_functions_that_a_handler_calls_is_in_it(route: tuple[str, str]) -> None:
    functions = reached(NAMED[route])
    can_be = {code for function in functions for code in raised(function)}
    if route[0] == "GET" and route[1] != "/authz/forward":
        can_be.discard(ForeignOrigin.code)  # session_token raises it for methods that change something
    if not GUARDED.get(NAMED[route]) and route[1] != "/authz/forward":
        can_be.discard(Forbidden.code)  # for guards that demand a role
    assert can_be <= codes(OPERATIONS[route]), sorted(function.__qualname__ for function in functions)


# ------------------------------------------------------------------------------------ the check of answers


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda answers, _: answers.pop("200"), "this status is not in the document"),
        (lambda answers, _: answers["200"].pop("content"), "a body is not in the document"),
        (
            lambda answers, _: answers["200"].update(content={"text/plain": {}}),
            "application/json is not in the document",
        ),
        (lambda answers, _: answers["200"]["headers"].update({"ETag": {}}), "without ETag"),
        (lambda _, pong: pong["properties"].pop("text"), "Additional properties are not allowed ('text'"),
        (lambda _, pong: pong["required"].append("more"), "'more' is a required property"),
        (lambda _, pong: pong["properties"]["status"].update(const="failure"), "'failure' was expected"),
    ],
)
async def test_an_answer_that_is_not_in_the_document_is_noticed(
    aiohttp_client: Callable[[web.Application], Awaitable[Client]],
    spoil: Callable[[Any, Any], object],
    complaint: str,
) -> None:
    document = json.loads(api_document())
    spoil(document["paths"]["/ping"]["get"]["responses"], document["components"]["schemas"]["Pong"])
    sound, spoilt = Documented(), Documented(json.dumps(document))
    app = web.Application()
    app.add_routes([web.get("/ping", ping)])
    app.on_response_prepare.extend([set_common_headers, sound, spoilt])
    client = await aiohttp_client(app)
    async with client.get("/ping") as answer:
        assert answer.status == 200
    assert sound.violations == []
    assert len(spoilt.violations) == 1
    assert complaint in spoilt.violations[0]


# ----------------------------------------------------------------------------------------------- the page


async def test_the_page_runs_what_is_in_it_and_may_fetch_from_us_alone(client: Client) -> None:
    async with client.get("/docs") as answer:
        page = await answer.text()
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("connect-src") == "'self'"
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert set(policy.values()) == {"'none'"}
    assert "default-src" in policy
    assert not re.search(r"https?:|//[a-z]|\son\w+=|style=|@import|innerHTML", page)


async def test_all_answers_share_one_document(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[object] = []
    honest = web.Response.write_eof

    async def note(response: web.Response, data: bytes = b"") -> None:
        bodies.append(response.body)
        await honest(response, data)

    monkeypatch.setattr(web.Response, "write_eof", note)
    for _ in range(2):
        await client.get("/openapi.json")
    first, second = bodies
    assert isinstance(first, bytes)
    assert first is second
