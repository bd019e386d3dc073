"""What schemathesis makes of the OpenAPI document, sent to a live server: every answer is one that the document has.

Each operation is asked by nobody, by a user and by an admin. Derandomised, so that a failure in CI is one everywhere.
"""

import asyncio
import contextlib
import json
import threading
import zlib
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeVar, get_args

import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, settings
from pydantic_core.core_schema import ErrorType
from schemathesis.specs.openapi.checks import positive_data_acceptance

from gatepost.config import AccountsConfig, Config, MailConfig, SessionsConfig, WebServerConfig
from gatepost.http.body import _CODES
from gatepost.postgres.database import Dsn
from gatepost.routes import api_document
from gatepost.server import WebServer
from tests.conftest import CHEAP, PASSWORD, UNLIMITED, PostgresServer, db_config, rows
from tests.documented import Documented

T = TypeVar("T")
Role = Literal["nobody", "user", "admin"]

schema = schemathesis.openapi.from_dict(
    json.loads(api_document()),
    config=schemathesis.Config.from_dict(
        {
            "request-timeout": 60,
            # We sign in by ourselves, below. Every check is on.
            "generation": {"with-security-parameters": False},
            # What it makes up may also be too large: 413 is a refusal like any other.
            "checks": {"negative_data_rejection": {"expected-statuses": [401, 403, 404, 409, 413, 415, 422, 400]}},
        }
    ),
)
# What pydantic finds is in the schema; but not what validators of ours find, and `\s` is another set in JSON Schema.
SHAPE = {*get_args(ErrorType)} - {"value_error", "string_pattern_mismatch"} | {
    *_CODES.values(),
    "twice",
    "not_an_object",
}


@dataclass
class Service:
    """A running Gatepost, and the people who ask it."""

    url: str
    dsn: Dsn
    tokens: dict[Role, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def who(self, token: str) -> Any:
        answer = requests.get(f"{self.url}/user", headers={"Authorization": token}, timeout=60)
        return answer.json() if answer.status_code == 200 else None

    def token(self, role: Role) -> str:
        """A live session. What is tested ends sessions, changes passwords and deletes accounts."""
        if self.who(self.tokens.get(role, "")) is None:
            self.tokens[role] = self.join(role)
        return self.tokens[role]

    def join(self, role: Role) -> str:
        """A new user's first session."""
        credentials = {"username": f"{role}{next(self.numbers)}", "password": PASSWORD}
        requests.post(f"{self.url}/account", json=credentials, timeout=60).raise_for_status()
        if role == "admin":
            rows(self.dsn, "UPDATE gatepost.users SET roles = '{admin}' WHERE username = %s", credentials["username"])
        token: str = requests.post(f"{self.url}/user", json=credentials, timeout=60).json()["session_id"]
        return token

    def existing(self, path: str, token: str) -> dict[str, str]:
        """Path parameters that name something: of somebody else for an admin, and else of the one who asks."""
        found = self.who(self.join("user") if path.startswith("/admin/") else token)
        return {"id": found["user"]["id"], "handle": found["session"]["handle"]}


@contextlib.contextmanager
def serving(config: Config, documented: Documented) -> Iterator[str]:
    """A server on a thread with a loop of its own: schemathesis waits for its answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server under schemathesis")
    thread.start()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(120)

    async def start() -> web.AppRunner:
        server = WebServer(config)
        (await server.initializer()).on_response_prepare.append(documented)
        runner = server.runner()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    try:
        runner = wait(start())
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            wait(runner.cleanup())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(120)
        loop.close()


@pytest.fixture(scope="module")
def service(postgres: PostgresServer, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    documented = Documented()
    with postgres.database(template) as dsn:
        config = Config(
            webserver=WebServerConfig(port=0),
            db=db_config(dsn),
            accounts=AccountsConfig(registration="open"),
            passwords=CHEAP,
            sessions=SessionsConfig(),
            throttle=UNLIMITED,
            mail=MailConfig(directory=tmp_path_factory.mktemp("mail")),
        )
        with serving(config, documented) as url:
            yield Service(url, dsn)
    assert documented.violations == []


@pytest.mark.parametrize("role", ["nobody", "user", "admin"])
# A stream has no end that it could wait for: tests/test_feed.py.
@schema.exclude(path="/user/events").parametrize()
@settings(max_examples=20, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_in_the_document(case: schemathesis.Case[Any], service: Service, role: Role) -> None:
    headers = {} if role == "nobody" else {"Authorization": service.token(role)}
    # Nothing that is made up exists: every other time, something that does.
    if headers and case.path_parameters and zlib.crc32(repr((case.path_parameters, case.body)).encode()) % 2:
        existing = service.existing(case.path, headers["Authorization"])
        case.path_parameters |= {name: existing[name] for name in case.path_parameters}
    response = case.call(base_url=service.url, headers=headers)
    case.validate_response(
        response,
        excluded_checks=[positive_data_acceptance] if is_beyond_schemas(response) else [],
        headers=headers,
        transport_kwargs={"base_url": service.url, "headers": headers},
    )


def is_beyond_schemas(response: schemathesis.Response) -> bool:
    """Whether only a rule that no JSON Schema can state was broken: by a name, a password, a cursor, U+0000."""
    if response.status_code not in {400, 422}:
        return False
    problem = response.json()
    fields = {error["code"] for error in problem.get("errors", ())}
    return problem["code"] == "nul_character" or (bool(fields) and not fields & SHAPE)
