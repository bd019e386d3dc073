"""Four tools that people build clients with read the OpenAPI document, and drop nothing.

`make api-tools` installs them. The tests skip without them, unless REQUIRE_API_TOOLS=1.
"""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from gatepost.routes import api_document
from tests.conftest import PASSWORD, Client

TOOLS = Path(__file__).parent.parent / ".venv" / "api-tools"
BIN, NODE = TOOLS / "bin", TOOLS / "node_modules" / ".bin"

pytestmark = pytest.mark.skipif(
    not (NODE / "redocly").exists() and os.environ.get("REQUIRE_API_TOOLS") != "1",
    reason="`make api-tools` was not run here",
)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_bytes(api_document())
    return path


def ran(*command: Path | str, folder: Path) -> str:
    """What it prints, on both streams. Fails if it fails."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "REDOCLY_TELEMETRY": "off"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_redocly_has_nothing_to_say(document: Path, tmp_path: Path) -> None:
    said = ran(NODE / "redocly", "lint", document, "--format=json", folder=tmp_path)
    report, _ = json.JSONDecoder().raw_decode(said[said.index("{") :])
    assert report["problems"] == []


def test_typescript_compiles_its_types(document: Path, tmp_path: Path) -> None:
    ran(NODE / "openapi-typescript", document, "-o", tmp_path / "api.ts", folder=tmp_path)
    use = """
        import type { paths } from "./api";
        type Answer = paths["/user"]["post"]["responses"][200]["content"]["application/json"];
        export const token = (answer: Answer): string => answer.session_id;
        type Problem = paths["/user"]["post"]["responses"][401]["content"]["application/problem+json"];
        export const code = (problem: Problem): string => problem.code;
    """
    (tmp_path / "use.ts").write_text(use)
    ran(NODE / "tsc", "--noEmit", "--strict", "use.ts", folder=tmp_path)


def test_openapi_generator_finds_it_valid(document: Path, tmp_path: Path) -> None:
    assert "No validation issues" in ran(BIN / "openapi-generator-cli", "validate", "-i", document, folder=tmp_path)


SIGN_IN = """
import sys
from gatepost_client import AuthenticatedClient, Client
from gatepost_client.api.account import accounts_change
from gatepost_client.api.user import sessions_log_in, sessions_log_out, sessions_who_am_i
from gatepost_client.models import AccountsChange, Login

url, password = sys.argv[1:]
refused = sessions_log_in.sync(client=Client(url), body=Login("ada", "not the password"))
assert (refused.status, refused.code) == (401, "invalid_credentials"), refused
token = sessions_log_in.sync(client=Client(url), body=Login("ada", password)).session_id
client = AuthenticatedClient(url, token)
assert sessions_who_am_i.sync(client=client).user.username == "ada"
assert accounts_change.sync(client=client, body=AccountsChange(username="Ada")).user.username == "Ada"
assert sessions_log_out.sync(client=client)
assert sessions_who_am_i.sync(client=client).code == "unauthorized"
"""


@pytest.mark.usefixtures("ada")
async def test_a_generated_python_client_signs_in(document: Path, tmp_path: Path, client: Client) -> None:
    said = ran(
        BIN / "openapi-python-client", "generate", "--path", document, "--output-path", "made", folder=tmp_path
    )
    assert "arning" not in said
    operations = [
        one["operationId"] for path in json.loads(api_document())["paths"].values() for one in path.values()
    ]
    made = await asyncio.to_thread(lambda: list(tmp_path.glob("made/gatepost_client/api/*/[a-z]*.py")))
    assert sorted(path.stem for path in made) == sorted(operations)
    url = str(client.make_url("")).rstrip("/")
    await asyncio.to_thread(ran, BIN / "python", "-c", SIGN_IN, url, PASSWORD, folder=tmp_path / "made")
