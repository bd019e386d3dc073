"""The command line, run as an operator runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gatepost.postgres.database import Dsn
from gatepost.postgres.schema import newest
from gatepost.routes import ROUTES
from tests.conftest import PASSWORD, rows
from tests.gatepost_process import environment, gatepost, running
from tests.test_server import environment_of

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(dsn: Dsn, tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return gatepost(*arguments, cwd=tmp_path, stdin=stdin, **environment_of(dsn))

    return run


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["user", "add", "ada", "--password-stdin"], "too short\n", "password: must have at least 15 characters"),
        (["user", "add", "a b", "--password-stdin"], PASSWORD, "username: must not contain SPACE"),
        (["user", "add", "ada", "--password-stdin"], "", "password: "),
        (["user", "disable", "nobody"], None, "there is no user 'nobody'"),
        (["user", "disable", "a b"], None, "must not contain SPACE"),
        (["migrate", "--config", "nowhere.json"], None, "nowhere.json: there is no such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(
    run: Run, arguments: list[str], stdin: str | None, said: str
) -> None:
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    "arguments", [["user", "add", "ada", "a password as an argument"], ["nonsense"], ["user", "add"]]
)
def test_a_wrong_command_line_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize("arguments", [["routes"], ["openapi"]])
def test_an_output_that_is_full_is_a_mistake_too(tmp_path: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gatepost", *arguments],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=180,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "gatepost: [Errno 28] No space left on device\n")


def test_a_password_that_is_no_text_is_a_mistake_too(dsn: Dsn, tmp_path: Path) -> None:
    add = ["user", "add", "ada", "--password-stdin"]
    variables = {**environment_of(dsn), "PYTHONIOENCODING": "ascii:strict"}
    done = gatepost(*add, cwd=tmp_path, stdin="pässword, long enough", **variables)
    assert (done.returncode, done.stderr) == (1, "gatepost: the password is no text in ascii\n")


def test_migrate_says_where_the_schema_stands(run: Run, dsn: Dsn) -> None:
    rows(dsn, "DROP SCHEMA gatepost CASCADE")
    done = run("migrate")
    assert done.returncode == 0, done.stderr
    assert f"at revision {newest()}" in done.stdout
    assert done.stderr == ""


def test_commands_work_beside_a_running_gatepost_and_without_one(tmp_path: Path) -> None:
    def list_users() -> str:
        done = gatepost("user", "list", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert gatepost("user", "add", "ada", "--password-stdin", cwd=tmp_path, stdin=PASSWORD).returncode == 0
    assert "ada" in list_users()
    with running(tmp_path) as process:
        assert gatepost("user", "add", "bob", "--password-stdin", cwd=tmp_path, stdin=PASSWORD).returncode == 0
        assert process.request("POST", "/user", {"username": "bob", "password": PASSWORD})[0] == 200
        assert "bob" in list_users()
        assert process.request("GET", "/health/ready")[0] == 200


def test_the_route_table_is_whole(tmp_path: Path) -> None:
    done = gatepost("routes", cwd=tmp_path)
    assert done.returncode == 0
    printed = {tuple(line.split()[:2]) for line in done.stdout.splitlines()[1:]}
    assert printed == {(route.method, route.path) for route in ROUTES}
