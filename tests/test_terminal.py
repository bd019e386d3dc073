"""What goes to a terminal steers it nowhere, whoever wrote it; what goes to a file is what it is."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gatepost.cli import app
from gatepost.postgres.database import Dsn
from tests.conftest import Client, log_in, register, rows
from tests.gatepost_process import environment, gatepost
from tests.test_server import environment_of

# Set colours, clear the screen, write right to left, end a line, delete.
HOSTILE = "a\x1b[2J\x9b31m\x85\x7f\u202eb\u2028\u2066\x07\x0c"
BYTES = [c.encode() for c in HOSTILE if not c.isprintable()]

COMMANDS: dict[str, tuple[str, ...]] = {
    "list": ("list",),
    "show": ("show", "ada"),
    "roles": ("roles", "ada"),
    "disable": ("disable", "ada"),
    "enable": ("enable", "ada"),
    "sessions": ("sessions", "ada"),
    "sign-out": ("sign-out", "ada"),
    "reset": ("reset", "ada"),
    "unlock": ("unlock", "ada"),
    "factors": ("factors", "ada"),
    "import": ("import", "users.csv"),
    "export": ("export",),
    "add": ("add", HOSTILE, "--reset"),
    "delete": ("delete", HOSTILE, "--yes"),
}


def in_a_terminal(*arguments: str, cwd: Path, **variables: str) -> bytes:
    """All that one command writes, to a pseudo-terminal without colours."""
    ours, theirs = pty.openpty()
    settings = environment(NO_COLOR="1", TERM="dumb", **variables)
    command = [sys.executable, "-m", "gatepost", *arguments]
    with subprocess.Popen(command, cwd=cwd, env=settings, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # how Linux says that the other end is closed
            pass
        process.wait(60)
    os.close(ours)
    return written


@pytest.fixture
async def hostile(client: Client, dsn: Dsn, tmp_path: Path) -> dict[str, Any]:
    """A user whose every text is hostile, as far as the database takes it, and a file that is."""
    user = await register(client, "ada")
    async with client.post(
        "/user", json={"username": "ada", "password": "wrong"}, headers={"User-Agent": "x\x9b31my\u202e"}
    ) as answer:
        assert answer.status == 401
    await log_in(client)
    rows(dsn, "UPDATE gatepost.users SET profile = %s", json.dumps({HOSTILE: HOSTILE}))
    rows(dsn, "UPDATE gatepost.users SET username = %s", f"Ada{HOSTILE}")
    rows(
        dsn,
        "INSERT INTO gatepost.totp_factors (user_id, name, sealed) SELECT id, %s, %s FROM gatepost.users",
        HOSTILE,
        bytes(48),
    )
    rows(dsn, "UPDATE gatepost.sessions SET user_agent = %s", HOSTILE)
    (tmp_path / "users.csv").write_text(f"username,hash\n{HOSTILE},{HOSTILE}\nbob,{HOSTILE}\n", "utf-8")
    return user


def test_every_command_of_user_is_tried() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands["user"].commands) == set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS.values(), ("list", "--json"), ("show", "ada", "--json")], ids=" ".join)
def test_nothing_steers_a_terminal(
    command: tuple[str, ...], hostile: dict[str, Any], dsn: Dsn, tmp_path: Path
) -> None:
    written = in_a_terminal("user", *command, cwd=tmp_path, **environment_of(dsn))
    assert [byte for byte in BYTES if byte in written] == [], written
    assert b"Traceback" not in written


def test_an_export_says_the_same_to_a_terminal_and_a_file_is_not_touched(
    hostile: dict[str, Any], dsn: Dsn, tmp_path: Path
) -> None:
    shown = in_a_terminal("user", "export", cwd=tmp_path, **environment_of(dsn)).decode()
    piped = gatepost("user", "export", cwd=tmp_path, **environment_of(dsn)).stdout
    assert json.loads(shown.splitlines()[0]) == json.loads(piped)
    assert "\u202e" in piped
    assert gatepost("user", "export", "--output", "all.jsonl", cwd=tmp_path, **environment_of(dsn)).returncode == 0
    assert (tmp_path / "all.jsonl").read_text("utf-8") == piped
