"""The command line, run as an operator runs it."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gatepost.db import Dsn
from gatepost.schema import newest
from gatepost.server import ROUTES
from tests.conftest import PASSWORD, rows
from tests.gatepost_process import environment, gatepost, running
from tests.test_server import environment_of

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(dsn: Dsn, tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return gatepost(*arguments, cwd=tmp_path, stdin=stdin, **environment_of(dsn))

    return run


def test_a_user_is_added_listed_and_disabled(run: Run, dsn: Dsn) -> None:
    added = run("user", "add", "Ada", "--password-stdin", stdin=PASSWORD + "\n")
    assert (added.returncode, added.stdout, added.stderr) == (0, "Added Ada.\n", "")
    assert rows(dsn, "SELECT username, canonical FROM gatepost.users") == [("Ada", "ada")]
    assert rows(dsn, "SELECT kind FROM gatepost.events") == [("user_created",)]
    listed = run("user", "list")
    assert "Ada" in listed.stdout
    disabled = run("user", "disable", "ADA")
    assert disabled.returncode == 0
    assert rows(dsn, "SELECT disabled_at IS NOT NULL, epoch FROM gatepost.users") == [(True, 2)]
    assert re.search(r"Ada .*\d{4}-\d\d-\d\dT.*\d{4}-\d\d-\d\dT", run("user", "list").stdout)


def test_disabling_ends_every_session_of_a_running_server(dsn: Dsn, run: Run, tmp_path: Path) -> None:
    run("user", "add", "ada", "--password-stdin", stdin=PASSWORD)
    with running(tmp_path, **environment_of(dsn)) as process:
        credentials = {"username": "ada", "password": PASSWORD}
        token = process.request("POST", "/user", credentials)[1]["session_id"]
        assert run("user", "disable", "ada").returncode == 0
        assert process.request("GET", "/user", token=token)[0] == 401
        assert process.request("POST", "/user", credentials)[0] == 401
    assert rows(dsn, "SELECT kind FROM gatepost.events WHERE kind LIKE '%%ed' ORDER BY id") == [
        ("user_created",),
        ("user_disabled",),
        ("session_revoked",),
    ]


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


def test_a_name_that_is_taken_is_said_to_be_so(run: Run) -> None:
    run("user", "add", "ada", "--password-stdin", stdin=PASSWORD)
    again = run("user", "add", "ADA", "--password-stdin", stdin=PASSWORD)
    assert (again.returncode, again.stderr) == (1, "gatepost: An account of this name exists already.\n")


@pytest.mark.parametrize(
    "arguments", [["user", "add", "ada", "a password as an argument"], ["nonsense"], ["user", "add"]]
)
def test_a_wrong_command_line_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def type_passwords(dsn: Dsn, cwd: Path, *typed: str) -> tuple[int, str]:
    """`gatepost user add ada` at a terminal: what stood on it in the end, and the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "gatepost", "user", "add", "ada"],
            environment(**environment_of(dsn), TERM="dumb"),
        )
    screen, answers, deadline = "", list(typed), time.monotonic() + 30
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            screen += os.read(terminal, 4096).decode()
        except OSError:  # the other side is gone
            break
        # The space comes once the echo is off and earlier input has been thrown away.
        if answers and screen.count(": ") > len(typed) - len(answers):
            os.write(terminal, answers.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_a_password_is_asked_for_twice_without_echo(dsn: Dsn, tmp_path: Path) -> None:
    code, screen = type_passwords(dsn, tmp_path, PASSWORD, PASSWORD)
    assert code == 0
    assert "Added ada." in screen
    assert PASSWORD not in screen
    assert screen.count("Password:") == screen.count("Repeat for confirmation:") == 1


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


def test_a_name_cannot_colour_the_operators_terminal(run: Run, dsn: Dsn) -> None:
    rows(dsn, "INSERT INTO gatepost.users (username, canonical) VALUES ('[red]x[/red]', 'x')")
    assert "[red]x[/red]" in run("user", "list").stdout
