"""`gatepost user …`, run as an operator runs it."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gatepost.postgres.database import Dsn
from gatepost.process.console import plain
from tests.conftest import PASSWORD, Client, log_in, register, rows, status_of
from tests.gatepost_process import environment, gatepost, running
from tests.test_server import environment_of

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(dsn: Dsn, tmp_path: Path) -> Run:
    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return gatepost("user", *arguments, cwd=tmp_path, stdin=stdin, **environment_of(dsn))

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document of a command."""
    return json.loads(said(done))


def a_user(dsn: Dsn, name: str, roles: str = "{}", *, disabled: bool = False) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.users (username, canonical, roles, disabled_at) "
        "VALUES (%s, %s, %s, CASE WHEN %s THEN now() END)",
        name,
        name.lower(),
        roles,
        disabled,
    )


# ------------------------------------------------------------------------------------------------- adding


def test_the_first_administrator_comes_from_the_shell(run: Run, dsn: Dsn, tmp_path: Path) -> None:
    added = run("add", "Ada", "--role", "admin", "--role", "editor", "--password-stdin", stdin=PASSWORD + "\n")
    assert said(added) == "Added Ada.\n"
    assert rows(dsn, "SELECT username, canonical, roles FROM gatepost.users") == [("Ada", "ada", ["admin", "editor"])]
    assert rows(dsn, "SELECT kind, actor_id, ip, detail FROM gatepost.events") == [
        ("user_created", None, None, {"by": "operator", "roles": ["admin", "editor"]})
    ]
    with running(tmp_path, **environment_of(dsn)) as process:
        token = process.request("POST", "/user", {"username": "ada", "password": PASSWORD})[1]["session_id"]
        assert process.request("GET", "/admin/users", token=token)[0] == 200


def test_with_reset_a_code_is_printed_once_and_the_owner_chooses_the_password(
    run: Run, dsn: Dsn, tmp_path: Path
) -> None:
    printed = said(run("add", "ada", "--reset")).splitlines()
    assert printed[0] == "Added ada."
    assert re.fullmatch(r"[0-9a-f]{32}", printed[-1])
    assert rows(dsn, "SELECT kind, detail FROM gatepost.events ORDER BY id") == [
        ("user_created", {"by": "operator"}),
        ("authn_password_reset_started", {"by": "operator"}),
    ]
    assert printed[-1] not in repr(rows(dsn, "SELECT r::text FROM gatepost.password_resets r"))
    with running(tmp_path, **environment_of(dsn)) as process:
        body = {"code": printed[-1], "new": PASSWORD}
        assert process.request("POST", "/account/password/redeem", body)[0] == 200
        assert process.request("POST", "/user", {"username": "ada", "password": PASSWORD})[0] == 200


def test_as_json_an_added_user_comes_with_its_code(run: Run) -> None:
    document = answer(run("add", "Ada", "--reset", "--role", "b", "--role", "a", "--role", "b", "--json"))
    assert set(document) == {"user", "reset"}
    assert (document["user"]["username"], document["user"]["roles"]) == ("Ada", ["a", "b"])
    left = datetime.fromisoformat(document["reset"]["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=58) < left < timedelta(minutes=62)
    document = answer(run("add", "bob", "--password-stdin", "--json", stdin=PASSWORD))
    assert set(document) == {"user"}
    assert document["user"]["has_password"] is True


def test_a_user_is_added_with_an_address_found_by_it_and_shown_with_it(run: Run) -> None:
    added = answer(run("add", "ada", "--email", "Ada@Example.org", "--password-stdin", "--json", stdin=PASSWORD))
    assert added["user"]["emails"] == [{"address": "Ada@example.org", "verified": True, "primary": True}]
    run("add", "bob", "--password-stdin", stdin=PASSWORD)
    assert [user["username"] for user in answer(run("list", "--email", "ada@example.ORG", "--json"))["users"]] == [
        "ada"
    ]
    assert "Ada@example.org (primary)" in run("show", "ada").stdout
    for address, said in (
        ("ada@example.org", "belongs to another account"),
        ("ada", "--email: must be a mail address"),
    ):
        refused = run("add", "eve", "--email", address, "--reset")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert said in refused.stderr


def test_a_name_that_is_taken_is_said_to_be_so(run: Run) -> None:
    run("add", "ada", "--password-stdin", stdin=PASSWORD)
    for arguments in (["--password-stdin"], ["--reset"]):
        again = run("add", "ADA", *arguments, stdin=PASSWORD)
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr == "gatepost: An account of this name exists already.\n"


def type_passwords(dsn: Dsn, cwd: Path, *typed: str) -> tuple[int, str]:
    """`gatepost user add ada` at a terminal: what stood on it in the end, and the exit code."""
    return at_a_terminal(dsn, cwd, ["add", "ada"], *typed)


def at_a_terminal(dsn: Dsn, cwd: Path, arguments: list[str], *typed: str) -> tuple[int, str]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "gatepost", "user", *arguments],
            environment(**environment_of(dsn), TERM="dumb", COLUMNS="100"),
        )
    screen, answers, deadline = b"", list(typed), time.monotonic() + 180
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            screen += os.read(terminal, 4096)
        except OSError:  # the other side is gone
            break
        # The space comes once the echo is off and earlier input has been thrown away.
        if answers and screen.count(b": ") > len(typed) - len(answers):
            os.write(terminal, answers.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen.decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_a_password_is_asked_for_twice_without_echo(dsn: Dsn, tmp_path: Path) -> None:
    code, screen = type_passwords(dsn, tmp_path, PASSWORD, PASSWORD)
    assert code == 0
    assert "Added ada." in screen
    assert PASSWORD not in screen
    assert screen.count("Password:") == screen.count("Repeat for confirmation:") == 1


# ------------------------------------------------------------------------------------------------- seeing


def test_users_are_listed_and_filtered(run: Run, dsn: Dsn) -> None:
    a_user(dsn, "Anna", "{editor}")
    a_user(dsn, "Anno", disabled=True)
    a_user(dsn, "bert", "{editor,admin}", disabled=True)

    def names(*arguments: str) -> list[str]:
        document = answer(run("list", "--json", *arguments))
        return [user["username"] for user in document["users"]]

    assert names() == ["Anna", "Anno", "bert"]
    assert names("--prefix", "ANN") == ["Anna", "Anno"]
    assert names("--role", "editor") == ["Anna", "bert"]
    assert names("--disabled") == ["Anno", "bert"]
    assert names("--enabled") == ["Anna"]
    assert names("--role", "editor", "--disabled", "--prefix", "b") == ["bert"]
    assert names("--limit", "0") == names("--limit", "3") == names()
    assert answer(run("list", "--json", "--limit", "2"))["more"] is True
    table = said(run("list"))
    assert re.search(
        r"^ *bert +[0-9a-f-]{36} +editor admin +\d{4}-\d\d-\d\dT\S+ +\d{4}-\d\d-\d\dT\S+ *$", table, re.MULTILINE
    )
    assert re.search(r"^ *username +id +email +roles +created +disabled *$", table, re.MULTILINE)
    some = run("list", "--limit", "2")
    assert (some.returncode, some.stderr) == (0, "There are more than 2: see --limit and --prefix.\n")


def test_a_list_is_longer_than_one_query(run: Run, dsn: Dsn) -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.users (username, canonical) SELECT n, n FROM "
        "(SELECT 'u' || lpad(i::text, 5, '0') AS n FROM generate_series(1, 2500) AS i) AS u",
    )
    everybody = [f"u{n:05}" for n in range(1, 2501)]
    for limit, more in ((0, False), (2500, False), (2499, True), (1000, True)):
        document = answer(run("list", "--json", "--limit", str(limit)))
        assert [user["username"] for user in document["users"]] == everybody[: limit or None]
        assert document["more"] is more


def test_a_user_is_shown_under_every_spelling_of_the_name(run: Run, dsn: Dsn) -> None:
    a_user(dsn, "Zoë", "{editor}")
    document = answer(run("show", "ZOE\u0308", "--json"))
    assert document["user"]["username"] == "Zoë"
    assert document["user"]["has_password"] is False
    table = said(run("show", "zoë"))
    assert re.search(r"^ *username +Zoë *$", table, re.MULTILINE)
    assert re.search(r"^ *roles +editor *$", table, re.MULTILINE)


async def test_sessions_are_listed_without_tokens_and_ended(run: Run, client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    tokens = [await log_in(client) for _ in range(2)]
    sessions = answer(run("sessions", "ada", "--json"))["sessions"]
    keys = {"handle", "created_at", "last_seen_at", "expires_at", "ip", "user_agent", "amr", "authenticated_at"}
    assert set(sessions[0]) == keys
    table = said(run("sessions", "ada"))
    assert all(session["handle"] in table for session in sessions)
    assert not any(token in table + json.dumps(sessions) for token in tokens)
    assert said(run("sign-out", "Ada")) == "Ended 2 sessions.\n"
    assert [await status_of(client, token) for token in tokens] == [401, 401]
    assert answer(run("sign-out", "ada", "--json")) == {"ended": 0}
    revoked = rows(dsn, "SELECT actor_id, detail FROM gatepost.events WHERE kind = 'session_revoked'")
    assert revoked == [(None, {"reason": "admin", "by": "operator"})] * 2


def test_neither_names_nor_user_agents_can_steer_the_operators_terminal(run: Run, dsn: Dsn) -> None:
    a_user(dsn, "x")
    rows(dsn, "UPDATE gatepost.users SET username = %s, roles = %s", "[red]x[/red]\x1b[2J", ["\u202e\x9b2J"])
    rows(
        dsn,
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at, user_agent) "
        "SELECT sha256('x'), id, 1, now() + interval '1 h', %s FROM gatepost.users",
        "[b]agent\x9b31m\x1b[0m",
    )
    listed = said(run("list")) + said(run("show", "x")) + said(run("sessions", "x")) + said(run("roles", "x"))
    listed += said(run("disable", "x"))
    assert "[red]x[/red]" in listed
    assert "[b]agent" in listed
    assert not {c for c in listed if unicodedata.category(c) in {"Cc", "Cf"}} - {"\n"}
    as_json = run("list", "--json").stdout + run("sessions", "x", "--json").stdout
    assert as_json.isascii()
    assert plain("Zoë 中") == "Zoë 中"


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")
def test_a_table_fits_the_terminal(dsn: Dsn, tmp_path: Path) -> None:
    a_user(dsn, "x" * 300)
    code, screen = at_a_terminal(dsn, tmp_path, ["list"])
    assert code == 0
    assert max(len(line) for line in screen.splitlines()) <= 100


# ----------------------------------------------------------------------------------------------- changing


def test_disabling_ends_every_session_of_a_running_server_until_enabled(dsn: Dsn, run: Run, tmp_path: Path) -> None:
    run("add", "ada", "--password-stdin", stdin=PASSWORD)
    with running(tmp_path, **environment_of(dsn)) as process:
        credentials = {"username": "ada", "password": PASSWORD}
        token = process.request("POST", "/user", credentials)[1]["session_id"]
        assert said(run("disable", "ADA")) == "Disabled ada; all sessions have ended.\n"
        assert process.request("GET", "/user", token=token)[0] == 401
        assert process.request("POST", "/user", credentials)[0] == 401
        assert said(run("enable", "ada")) == "Enabled ada.\n"
        assert process.request("GET", "/user", token=token)[0] == 401
        assert process.request("POST", "/user", credentials)[0] == 200
    assert rows(dsn, "SELECT kind, detail FROM gatepost.events WHERE kind LIKE '%%ed' ORDER BY id") == [
        ("user_created", {"by": "operator"}),
        ("user_disabled", {"by": "operator"}),
        ("session_revoked", {"by": "operator", "reason": "user_disabled"}),
        ("user_enabled", {"by": "operator"}),
    ]


async def test_roles_are_set_as_a_whole_which_ends_sessions_and_only_shown_without_any(
    run: Run, client: Client, dsn: Dsn
) -> None:
    await register(client, "ada")
    assert said(run("roles", "ada")) == "ada: no roles\n"
    token = await log_in(client)
    assert said(run("roles", "ada", "editor", "admin")) == "ada: admin editor\n"
    assert await status_of(client, token) == 401
    token = await log_in(client)
    assert said(run("roles", "ada")) == said(run("roles", "ada", "admin", "editor")) == "ada: admin editor\n"
    assert await status_of(client, token) == 200
    a_user(dsn, "other", "{admin}")
    assert answer(run("roles", "ada", "--none", "--json"))["user"]["roles"] == []
    assert await status_of(client, token) == 401
    changes = rows(
        dsn,
        "SELECT actor_id, detail FROM gatepost.events WHERE kind = 'privilege_permissions_changed' ORDER BY id",
    )
    assert changes == [
        (None, {"by": "operator", "old": [], "new": ["admin", "editor"]}),
        (None, {"by": "operator", "old": ["admin", "editor"], "new": []}),
    ]


async def test_a_reset_is_started_without_ending_anything(run: Run, client: Client) -> None:
    await register(client, "ada")
    token = await log_in(client)
    code = said(run("reset", "ada")).splitlines()[-1]
    assert re.fullmatch(r"[0-9a-f]{32}", code)
    again = answer(run("reset", "ada", "--json"))["reset"]
    assert set(again) == {"code", "expires_at"}
    assert await status_of(client, token) == 200

    async def redeem(code: str) -> int:
        body = {"code": code, "new": "a completely new password"}
        async with client.post("/account/password/redeem", json=body) as response:
            return response.status

    assert [await redeem(code), await redeem(again["code"])] == [403, 200]
    await log_in(client, password="a completely new password")


def test_deleting_asks_unless_told_not_to(run: Run, dsn: Dsn) -> None:
    a_user(dsn, "Ada")
    for typed in ("n\n", "", "\n"):
        refused = run("delete", "ada", stdin=typed)
        assert refused.returncode == 1
        assert "Delete Ada" in refused.stderr
        assert rows(dsn, "SELECT count(*) FROM gatepost.users") == [(1,)]
    assert run("delete", "ada", stdin="y\n").stdout.strip() == "Deleted Ada."
    a_user(dsn, "bob")
    assert answer(run("delete", "bob", "--yes", "--json")) == {"status": "success"}
    assert rows(dsn, "SELECT count(*) FROM gatepost.users") == [(0,)]
    events = rows(dsn, "SELECT kind, detail FROM gatepost.events")
    assert events == [("user_deleted", {"by": "operator"})] * 2


@pytest.mark.parametrize(
    "arguments", [["delete", "--yes"], ["disable"], ["roles", "--none"], ["roles", "editor"]], ids=" ".join
)
def test_the_last_admin_stays_for_the_shell_too(run: Run, dsn: Dsn, arguments: list[str]) -> None:
    a_user(dsn, "root", "{admin}")
    a_user(dsn, "gone", "{admin}", disabled=True)
    command, *rest = arguments
    done = run(command, "root", *rest)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "gatepost: This is the last administrator: make another one first.\n"
    assert rows(dsn, "SELECT roles, disabled_at FROM gatepost.users WHERE canonical = 'root'") == [(["admin"], None)]
    assert rows(dsn, "SELECT 1 FROM gatepost.events") == []


# ----------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nobody"], "there is no user 'nobody'"),
        (["disable", "nobody"], "there is no user 'nobody'"),
        (["enable", "nobody"], "there is no user 'nobody'"),
        (["roles", "nobody", "editor"], "there is no user 'nobody'"),
        (["delete", "nobody", "--yes"], "there is no user 'nobody'"),
        (["reset", "nobody"], "there is no user 'nobody'"),
        (["sessions", "nobody"], "there is no user 'nobody'"),
        (["sign-out", "nobody"], "there is no user 'nobody'"),
        (["show", "nobody", "--json"], "there is no user 'nobody'"),
        (["show", "a b"], "gatepost: the username must not contain SPACE"),
        (["show", "\udcff"], "must not contain"),
        (["add", "a b", "--reset"], "username: must not contain SPACE"),
        (["add", "ada", "--reset", "--role", "no role"], "'no role' is no role"),
        (["roles", "nobody", "admin\n"], "'admin\\n' is no role"),
        (["roles", "nobody", *(f"r{n}" for n in range(33))], "at most 32 roles"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["add ada --password-stdin", "import -"])
def test_a_standard_input_that_is_closed_is_one_line(dsn: Dsn, tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m gatepost user {command} <&-"],
        cwd=tmp_path,
        env=environment(**environment_of(dsn)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "gatepost: there is no standard input\n")


@pytest.mark.parametrize("option", ["--prefix", "--role"])
@pytest.mark.parametrize("value", ["'", "a' OR true --", "\udcff", "\\"])
def test_what_is_looked_for_can_be_anything(run: Run, dsn: Dsn, option: str, value: str) -> None:
    a_user(dsn, "ada")
    assert answer(run("list", option, value, "--json")) == {"users": [], "more": False}


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "ada", "--reset", "--password-stdin"],
        ["add", "ada", "a password as an argument"],
        ["roles", "ada", "editor", "--none"],
        ["list", "--limit", "-1"],
        ["delete"],
        ["nonsense"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr
