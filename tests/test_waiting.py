"""Starting before the database is up, and with one that will never let us in."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from gatepost.errors import DatabaseRefuses
from gatepost.postgres import schema
from gatepost.postgres.connection import cannot_connect
from gatepost.postgres.database import Dsn
from gatepost.postgres.embedded import EmbeddedPostgres
from tests.conftest import rows
from tests.gatepost_process import environment, gatepost
from tests.test_server import environment_of

NOWHERE = {"GATEPOST_DB__HOST": "127.0.0.1", "GATEPOST_DB__PORT": "1"}

READ_VERSION = "USAGE ON SCHEMA gatepost; SELECT ON gatepost.alembic_version"


@pytest.fixture
def late(tmp_path: Path) -> Iterator[tuple[EmbeddedPostgres, Dsn]]:
    """A server with a migrated database that is not up; what it will be reached by."""
    postgres = EmbeddedPostgres(tmp_path / "late")
    dsn = Dsn.of_embedded(postgres.start())
    schema.migrate(dsn)
    postgres.stop()
    yield postgres, dsn
    postgres.stop()


def start(cwd: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "gatepost", *arguments],
        cwd=cwd,
        env=environment(GATEPOST_WEBSERVER__PORT="0", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"ended with {process.wait()}: {read}")


@pytest.mark.parametrize(
    ("arguments", "then"),
    [(["run"], "Log out:"), (["run", "--workers", "2"], "Log out:"), (["migrate"], "is at revision")],
)
def test_a_database_that_comes_up_late_is_waited_for(
    late: tuple[EmbeddedPostgres, Dsn], tmp_path: Path, arguments: list[str], then: str
) -> None:
    postgres, dsn = late
    with start(tmp_path, *arguments, **environment_of(dsn), GATEPOST_DB__START_TIMEOUT="300") as process:
        try:
            said = read_until(process, '"waiting for the database", "seconds": 300.0')
            assert said.count("\n") == 1
            assert dsn.password not in said
            postgres.start()
            said = read_until(process, then)
            assert "the database is up" in said
            if arguments[0] == "run":
                process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("arguments", [["run"], ["run", "--workers", "2"], ["migrate"]])
def test_a_database_that_never_comes_up_ends_the_start_with_one_line(
    dsn: Dsn, tmp_path: Path, arguments: list[str]
) -> None:
    variables = {**environment_of(dsn), **NOWHERE, "GATEPOST_DB__START_TIMEOUT": "2.5"}
    done = gatepost(*arguments, cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0", **variables)
    assert done.returncode == 1
    began, gave_up = done.stderr.splitlines()
    assert "Connection refused" in began
    assert '"waiting for the database", "seconds": 2.5' in began
    assert "waited 2.5 s for it (db.start_timeout)" in gave_up


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_while_it_waits_ends_it_with_zero(dsn: Dsn, tmp_path: Path, workers: str) -> None:
    variables = {**environment_of(dsn), **NOWHERE, "GATEPOST_DB__START_TIMEOUT": "300"}
    with start(tmp_path, "run", "--workers", workers, **variables) as process:
        try:
            read_until(process, "waiting for the database")
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 0, said
        finally:
            process.kill()


def test_a_host_that_is_not_known_yet_is_waited_for(dsn: Dsn, tmp_path: Path) -> None:
    variables = {**environment_of(dsn), "GATEPOST_DB__HOST": "db.invalid", "GATEPOST_DB__START_TIMEOUT": "2.5"}
    done = gatepost("run", cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0", **variables)
    assert done.returncode == 1
    assert '"seconds": 2.5' in done.stderr


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        ("wrong password", "password authentication failed"),
        ("no such database", "does not exist"),
        ("not permitted", "is not permitted to log in"),
    ],
)
def test_a_database_that_refuses_us_is_not_waited_for(dsn: Dsn, tmp_path: Path, sabotage: str, said: str) -> None:
    variables = environment_of(dsn)
    role = f"{dsn.database}_role"
    login = "NOLOGIN" if sabotage == "not permitted" else "LOGIN"
    rows(dsn, f"CREATE ROLE {role} {login} PASSWORD 'the right one'")
    try:
        variables |= {"GATEPOST_DB__USER": role, "GATEPOST_DB__PASSWORD": "the right one"}
        match sabotage:
            case "wrong password":
                variables["GATEPOST_DB__PASSWORD"] = "the wrong one"
            case "no such database":
                variables["GATEPOST_DB__DATABASE"] = "nowhere"
        done = gatepost("run", cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0", **variables)
    finally:
        rows(dsn, f"DROP ROLE {role}")
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "one" not in done.stderr.replace(role, "").partition("FATAL")[2]


@pytest.mark.parametrize(
    ("granted", "arguments", "said"),
    [
        ("", ["run"], "cannot read the schema in {database}: permission denied for schema gatepost"),
        ("USAGE ON SCHEMA gatepost", ["run"], "permission denied for table alembic_version"),
        (READ_VERSION, ["run"], "permission denied for table passwords: grant it to the role of db.user"),
        (READ_VERSION, ["run", "--workers", "2"], "permission denied for table passwords: grant it"),
        (READ_VERSION, ["user", "list"], "permission denied for table users: grant it to the role of db.user"),
        (READ_VERSION, ["user", "export"], "the database: permission denied for table users"),
    ],
)
def test_a_role_that_lacks_a_grant_is_told_which_in_a_line(
    dsn: Dsn, tmp_path: Path, granted: str, arguments: list[str], said: str
) -> None:
    role = f"{dsn.database}_role"
    rows(dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'the right one'")
    try:
        for grant in filter(None, granted.split("; ")):
            rows(dsn, f"GRANT {grant} TO {role}")
        variables = environment_of(dsn) | {"GATEPOST_DB__USER": role, "GATEPOST_DB__PASSWORD": "the right one"}
        done = gatepost(*arguments, cwd=tmp_path, GATEPOST_WEBSERVER__PORT="0", **variables)
    finally:
        rows(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert done.returncode == 1
    assert said.format(database=dsn.database) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "for_good"),
    [
        ("FATAL:  the database system is starting up", False),
        ("FATAL:  the database system is in recovery mode", False),
        ("FATAL:  sorry, too many clients already", False),
        ("server closed the connection unexpectedly", False),
        ('FATAL:  no pg_hba.conf entry for host "192.0.2.1"', True),
        ("server does not support SSL, but SSL was required", True),
        ("", False),
    ],
)
def test_what_a_server_says_is_for_good_or_for_now(dsn: Dsn, text: str, for_good: bool) -> None:
    error = cannot_connect(dsn, psycopg2.OperationalError(text))
    assert isinstance(error, DatabaseRefuses) is for_good
