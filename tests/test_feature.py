"""A feature is a folder and its two lines in `routes.py`: its routes, settings, commands and parts come with it."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gatepost.config import Config
from gatepost.postgres.database import Dsn
from gatepost.routes import FEATURES
from tests.gatepost_process import environment, gatepost, running
from tests.test_server import environment_of

ROOT = Path(__file__).parent.parent

FEATURE = '''
"""Greets people."""

import contextlib
from collections.abc import AsyncIterator

import typer

from gatepost.config import Section
from gatepost.http.feature import Feature, Parts, Settings
from gatepost.toy import handlers
from gatepost.toy.handlers import GREETED, SETTINGS, ToyConfig


@contextlib.asynccontextmanager
async def _open(parts: Parts) -> AsyncIterator[None]:
    parts.share(GREETED, [])
    yield


def greet() -> None:
    """Greet from a shell."""
    print("hello from a shell")


def _commands(root: typer.Typer) -> None:
    root.command("greet")(greet)


FEATURE = Feature(
    routes=handlers.routes,
    tags={"toy": "Greetings."},
    open=_open,
    settings=Settings("toy", ToyConfig, SETTINGS),
    commands=_commands,
    events={"user_greeted": ""},
)
'''
HANDLERS = '''
"""`/toy`."""

from aiohttp import web
from typing_extensions import TypedDict

from gatepost.config import Section
from gatepost.http.app import DATABASE, json_response
from gatepost.http.operation import operation
from gatepost.sessions.guard import guarded
from gatepost.sessions.session import Session
from gatepost.toy import queries


class ToyConfig(Section):
    """How people are greeted."""

    greeting: str = "hello"


SETTINGS = web.AppKey("toy_settings", ToyConfig)
GREETED = web.AppKey("greeted", list)


class Greeting(TypedDict):
    """A greeting, and how many there have been."""

    text: str
    count: int


@operation(Greeting)
@guarded
async def greet(request: web.Request, session: Session) -> web.Response:
    """Greet whoever asks."""
    request.app[GREETED].append(session.user_id)
    name = await request.app[DATABASE].read(queries.name_of, session.user_id)
    text = f"{request.app[SETTINGS].greeting}, {name}"
    return json_response(Greeting(text=text, count=len(request.app[GREETED])))


routes = [web.get("/toy", greet)]
'''
QUERIES = '''
"""Users' names."""

from gatepost.postgres.database import Connection, Statement

_NAME = Statement("SELECT username FROM gatepost.users WHERE id = :user")


async def name_of(connection: Connection, user_id: str) -> str:
    """How a user is called."""
    row = await _NAME.first(connection, user=user_id)
    assert row is not None
    return str(row[0])
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the source with a toy feature in it: a folder, and what CONTRIBUTING names besides."""
    for name in ("src", "migrations"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    toy = tmp_path / "src" / "gatepost" / "toy"
    toy.mkdir()
    for name, text in {"__init__": '"""Greeting people."""\n', "feature": FEATURE, "handlers": HANDLERS}.items():
        (toy / f"{name}.py").write_text(text.lstrip())
    (toy / "queries.py").write_text(QUERIES.lstrip())
    routes = tmp_path / "src" / "gatepost" / "routes.py"
    text = routes.read_text()
    changed = text.replace(
        "from gatepost.transfer.feature",
        "from gatepost.toy.feature import FEATURE as TOY\nfrom gatepost.transfer.feature",
    ).replace("    TRANSFER,\n", "    TRANSFER,\n    TOY,\n")
    assert len(changed.splitlines()) == len(text.splitlines()) + 2
    routes.write_text(changed)
    return tmp_path


def test_a_feature_is_a_folder_and_two_lines(source: Path, dsn: Dsn) -> None:
    variables = environment_of(dsn) | {"PYTHONPATH": str(source / "src"), "GATEPOST_TOY__GREETING": "good day"}
    assert gatepost("greet", cwd=source, **variables).stdout == "hello from a shell\n"
    assert "/toy" in gatepost("routes", cwd=source, **variables).stdout
    document = json.loads(gatepost("openapi", cwd=source, **variables).stdout)
    assert document["paths"]["/toy"]["get"]["operationId"] == "toy_greet"
    made = gatepost("user", "add", "ada", "--password-stdin", cwd=source, stdin="correct horse battery", **variables)
    assert made.returncode == 0, made.stderr
    with running(source, **variables) as process:
        _, opened = process.request("POST", "/user", {"username": "ada", "password": "correct horse battery"})
        for count in (1, 2):
            answer = process.request("GET", "/toy", token=opened["session_id"])
            assert answer == (200, {"text": "good day, ada", "count": count})


def test_a_key_that_its_settings_do_not_have_is_refused_by_name(source: Path, dsn: Dsn) -> None:
    variables = environment_of(dsn) | {"PYTHONPATH": str(source / "src"), "GATEPOST_TOY__SHOUT": "yes"}
    refused = gatepost("user", "list", cwd=source, **variables)
    assert refused.returncode == 1
    assert refused.stderr == "gatepost: environment variable GATEPOST_TOY__SHOUT: toy.shout: there is no such key\n"


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("toy/queries.py", "import aiohttp", "SQL and security know no HTTP"),
        ("http/tokens.py", "import gatepost.toy.handlers", "by no package below"),
        ("toy/handlers.py", "import gatepost.accounts.handlers", "reach into another's handlers"),
        ("toy/queries.py", "import psycopg2", "only postgres/ knows the drivers"),
    ],
)
def test_the_layers_hold_a_feature_that_no_list_names(source: Path, file: str, line: str, broken: str) -> None:
    def lint() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).parent / "lint-imports", "--no-cache"],
            cwd=source,
            env=environment(PYTHONPATH=str(source / "src"), COLUMNS="1000"),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    path = source / "src" / "gatepost" / file
    if broken == "SQL and security know no HTTP":
        assert lint().returncode == 0
    path.write_text(path.read_text() + f"\n{line}\n")
    done = lint()
    assert done.returncode != 0
    assert re.search(rf"{re.escape(broken)}.* BROKEN", done.stdout), done.stdout


def test_every_feature_is_in_the_list() -> None:
    folders = {path.parent.name for path in (ROOT / "src" / "gatepost").glob("*/feature.py")} - {"http"}
    assert len(folders) == len(FEATURES)
    for folder in folders:
        assert importlib.import_module(f"gatepost.{folder}.feature").FEATURE in FEATURES
    assert Config._added == {}  # none of them has settings of its own


def test_every_kind_of_event_is_in_a_feature_and_in_the_docs() -> None:
    known = {kind: detail for feature in FEATURES for kind, detail in feature.events.items()}
    assert sum(len(feature.events) for feature in FEATURES) == len(known)
    table = (ROOT / "docs" / "administration.md").read_text().partition("## Events")[2]
    documented = dict(re.findall(r"^\| `(\w+)` \| ?(.*?) ?\|$", table, re.MULTILINE))
    assert documented == known
    sql = [*(ROOT / "src").rglob("*queries.py"), *(ROOT / "migrations").rglob("*.py")]
    words = "authn|user|session|privilege|service|email|mail|factors?|recovery|passkey"
    recorded = {kind for path in sql for kind in re.findall(rf"'((?:{words})_[a-z_]+)'", path.read_text())}
    assert set(known) <= recorded
    others = {"services_pkey", "session_limit", "email_changed", "user_agent", "session_handle", "user_id"}
    others |= {"factor_changed", "recovery_code", "recovery_codes", "passkey_added", "passkey_removed"}
    assert recorded - set(known) <= others


def test_the_wheel_needs_no_list_of_folders() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert built["packages"] == ["src/gatepost"]
