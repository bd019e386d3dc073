"""Behind PgBouncer in transaction mode: no command leaves anything in a session that others get after it."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest

from gatepost.config import Config
from gatepost.postgres import schema
from gatepost.postgres.database import Dsn
from tests.conftest import PostgresServer, StartServer, db_config, log_in, register, rows, status_of
from tests.gatepost_process import gatepost, until
from tests.test_server import environment_of

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# What docs/configuration.md asks for, and one server connection, so that everybody gets the same.
SETTINGS = """
[databases]
{database} = host={host} port={port} user={user} password='{password}'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 1
ignore_startup_parameters = options
logfile = {folder}/log
"""


@pytest.fixture
def pooled(dsn: Dsn) -> Iterator[Dsn]:
    """The database of the test, through a pooler."""
    if PGBOUNCER is None:
        if os.environ.get("REQUIRE_PGBOUNCER") == "1":
            pytest.fail("REQUIRE_PGBOUNCER=1, but there is none")
        pytest.skip("there is no pgbouncer here")
    if dsn.hosts[0].startswith("/"):
        pytest.skip("the folder of this server's socket is its owner's alone, and PgBouncer runs as somebody else")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(
            SETTINGS.format(
                database=dsn.database,
                host=dsn.hosts[0],
                port=dsn.port,
                user=dsn.user,
                password=dsn.password,
                listen=listen,
                folder=folder,
            )
        )
        command = [PGBOUNCER, str(settings)]
        if os.getuid() == 0:  # which it refuses to be
            shutil.chown(folder, "nobody")
            command[1:1] = ["-u", "nobody"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                through = replace(dsn, hosts=["127.0.0.1"], port=listen, sslmode="disable")
                until(lambda: reaches(through))
                yield through
            finally:
                process.kill()


def reaches(dsn: Dsn) -> bool:
    with contextlib.suppress(psycopg2.OperationalError):
        psycopg2.connect(**dsn.parameters(dsn.hosts[0])).close()
        return True
    return False


def left_behind(pooled: Dsn) -> list[object]:
    """What the next client finds in the session that it gets: settings, locks, tables."""
    return [
        *rows(pooled, "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name NOT IN "
              "('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')"),
        *rows(pooled, "SELECT objid FROM pg_locks WHERE locktype = 'advisory'"),
        *rows(pooled, "SELECT relname FROM pg_class WHERE relpersistence = 't'"),
    ]  # fmt: skip


def test_a_migration_asks_for_a_connection_of_its_own_each_time(pooled: Dsn, tmp_path: Path) -> None:
    for _ in range(2):
        done = gatepost("migrate", cwd=tmp_path, **environment_of(pooled))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "a pooler stands before this database" in done.stderr
        assert left_behind(pooled) == []


def test_an_import_asks_for_a_connection_of_its_own(pooled: Dsn, tmp_path: Path) -> None:
    for more in ((), ("--dry-run",)):
        done = gatepost(
            "user", "import", "-", *more, cwd=tmp_path, stdin='{"username": "ada"}\n', **environment_of(pooled)
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "a pooler stands before the database" in done.stderr
        assert left_behind(pooled) == []
        assert rows(pooled, "SHOW synchronous_commit") == [("on",)]
    assert rows(pooled, "SELECT count(*) FROM gatepost.users") == [(0,)]


@pytest.mark.parametrize(
    "command",
    [
        ("add", "bob", "--reset"),
        ("list",),
        ("show", "ada"),
        ("roles", "ada", "x"),
        ("disable", "ada"),
        ("enable", "ada"),
        ("sessions", "ada"),
        ("sign-out", "ada"),
        ("reset", "ada"),
        ("unlock", "ada"),
        ("export",),
        ("delete", "ada", "--yes"),
    ],
    ids=" ".join,
)
def test_every_other_command_leaves_nothing_behind(pooled: Dsn, tmp_path: Path, command: tuple[str, ...]) -> None:
    rows(pooled, "INSERT INTO gatepost.users (username, canonical) VALUES ('ada', 'ada')")
    done = gatepost("user", *command, cwd=tmp_path, **environment_of(pooled))
    assert done.returncode == 0, done.stderr
    assert left_behind(pooled) == []


async def test_a_node_serves_and_leaves_nothing_behind(
    config: Config, start_server: StartServer, pooled: Dsn
) -> None:
    client = await start_server(config.model_copy(update={"db": db_config(pooled)}))
    await register(client, "ada")
    token = await log_in(client)
    assert await status_of(client, token) == 200
    async with client.get("/account/export", headers={"Authorization": token}) as answer:
        assert (await answer.json())["user"]["username"] == "ada"
    async with client.delete("/user", headers={"Authorization": token}) as answer:
        assert answer.status == 200
    assert await status_of(client, token) == 401
    assert left_behind(pooled) == []


def test_a_pooler_that_takes_no_options_is_said_to_be_one(
    pooled: Dsn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "unsupported startup parameter: options"
    from gatepost.postgres.connection import cannot_connect

    told = str(cannot_connect(pooled, psycopg2.OperationalError(text)))
    assert "ignore_startup_parameters" in told


def test_a_migration_and_an_import_take_as_long_as_they_need_whatever_the_role_has_set(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    with postgres.database() as dsn:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            postgres.admin(f'ALTER ROLE "{dsn.user}" IN DATABASE {dsn.database} SET {name} = 1')
        schema.migrate(dsn)
        done = gatepost("user", "import", "-", cwd=tmp_path, stdin='{"username": "ada"}\n', **environment_of(dsn))
        assert done.returncode == 0, done.stderr
        done = gatepost("user", "export", cwd=tmp_path, **environment_of(dsn))
        assert (done.returncode, done.stdout.count("\n")) == (0, 1)


async def test_the_feed_needs_a_session_of_its_own_and_leaves_nothing_in_others(
    config: Config, start_server: StartServer, pooled: Dsn
) -> None:
    client = await start_server(config.model_copy(update={"db": db_config(pooled)}))
    await register(client, "ada")
    token = await log_in(client)
    async with client.get("/user/events", headers={"Authorization": token}) as answer:
        assert (answer.status, (await answer.json())["code"]) == (503, "database_unavailable")
    assert await status_of(client, token) == 200
    assert rows(pooled, "SELECT pg_listening_channels()") == []
