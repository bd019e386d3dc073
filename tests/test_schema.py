"""Migrations: what they make is what the code expects, and each can be walked up, down and up."""

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gatepost.postgres import schema
from gatepost.postgres.database import Dsn
from gatepost.postgres.tables import SCHEMA, metadata
from tests.conftest import PostgresServer, rows

ROOT = Path(__file__).parent.parent
REVISIONS = [s.revision for s in ScriptDirectory(str(schema.migrations_folder())).walk_revisions()][::-1]


@pytest.fixture
def empty(postgres: PostgresServer) -> Iterator[Dsn]:
    """A database without a schema."""
    with postgres.database() as dsn:
        yield dsn


def test_the_revisions_form_one_line_and_are_numbered() -> None:
    assert [f"{n:04}" for n in range(1, len(REVISIONS) + 1)] == REVISIONS
    assert schema.newest() == REVISIONS[-1]


def test_the_migrated_database_is_what_the_tables_say(dsn: Dsn) -> None:
    with schema._connect(dsn) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table_schema": SCHEMA,
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_the_checks_in_the_database_are_those_of_the_tables(dsn: Dsn) -> None:
    """Alembic does not compare CHECK constraints."""
    found = rows(
        dsn,
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'gatepost'::regnamespace",
    )
    expected = {
        c.name
        for table in metadata.tables.values()
        for c in table.constraints
        if type(c).__name__ == "CheckConstraint"
    }
    assert {name for (name,) in found} == expected


def test_every_migration_goes_up_down_and_up_again(empty: Dsn) -> None:
    before = ["base", *REVISIONS]
    for below, revision in zip(before, REVISIONS, strict=False):
        schema.migrate(empty, revision)
        assert schema.current(empty) == revision
        schema.migrate(empty, below)
        assert schema.current(empty) == (None if below == "base" else below)
        schema.migrate(empty, revision)
        assert schema.current(empty) == revision
    schema.check(empty)


def test_going_down_to_base_leaves_no_table_and_no_function(empty: Dsn) -> None:
    schema.migrate(empty)
    schema.migrate(empty, "base")
    left = rows(
        empty,
        "SELECT relname FROM pg_class WHERE relnamespace = 'gatepost'::regnamespace AND relkind = 'r' "
        "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'gatepost'::regnamespace",
    )
    assert left == [("alembic_version",)]


def test_migrating_twice_changes_nothing(dsn: Dsn) -> None:
    schema.migrate(dsn)
    schema.check(dsn)


def test_a_database_that_is_not_migrated_or_is_newer_is_refused(empty: Dsn) -> None:
    with pytest.raises(schema.SchemaError, match="not migrated: run `gatepost migrate`"):
        schema.check(empty)
    schema.migrate(empty)
    rows(empty, "UPDATE gatepost.alembic_version SET version_num = '9999'")
    for word in (
        None,
        "Code of revision 9998 or later can serve this schema.",
        "Somebody's own comment, revision 0001",
    ):
        rows(empty, "COMMENT ON TABLE gatepost.alembic_version IS %s", word)
        with pytest.raises(schema.SchemaError, match=r"9999, newer than this Gatepost \(0...\) can serve: install"):
            schema.check(empty)
        with pytest.raises(schema.SchemaError, match="9999, newer than this Gatepost"):
            schema.migrate(empty)
    rows(empty, "UPDATE gatepost.alembic_version SET version_num = '0000'")
    with pytest.raises(schema.SchemaError, match="0000, this Gatepost needs"):
        schema.check(empty)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_keep_every_name_is_refused(postgres: PostgresServer, encoding: str) -> None:
    name = f"test_{encoding}".lower()
    postgres.admin(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        for act in (schema.check, schema.migrate):
            with pytest.raises(schema.SchemaError, match=f"{name} has the encoding {encoding}: make another one"):
                act(replace(postgres.dsn, database=name))
    finally:
        postgres.admin(f"DROP DATABASE {name}")


def test_a_newer_schema_that_this_code_can_serve_is_served_and_left_alone(
    dsn: Dsn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(dsn, "UPDATE gatepost.alembic_version SET version_num = '9999'")
    rows(
        dsn,
        f"COMMENT ON TABLE gatepost.alembic_version IS 'Code of revision {schema.newest()} or later can serve this "
        "schema.'",
    )
    schema.check(dsn)
    schema.migrate(dsn)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("there is nothing to do"))
    schema.bring_up_to_date(dsn)
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-m", "gatepost", "migrate"],
        env=alembic_environment(dsn),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert done.stdout == f"{dsn.database} is at revision 9999.\n"
    assert schema.current(dsn) == "9999"


def test_the_database_says_which_code_can_serve_it_as_its_last_migration_does(empty: Dsn) -> None:
    scripts = ScriptDirectory(str(schema.migrations_folder()))
    declared = {revision: scripts.get_revision(revision).module.serves_from for revision in REVISIONS}
    for revision in [*REVISIONS, *REVISIONS[-2::-1]]:  # up, and down again
        schema.migrate(empty, revision)
        assert schema._served_from(empty) == declared[revision]


def test_what_one_migration_took_away_no_later_one_gives_back() -> None:
    scripts = ScriptDirectory(str(schema.migrations_folder()))
    declared = [scripts.get_revision(revision).module.serves_from for revision in REVISIONS]
    assert declared == sorted(declared)
    assert all(since <= revision for since, revision in zip(declared, REVISIONS, strict=True))


def test_a_new_migration_starts_by_letting_the_code_before_it_serve(tmp_path: Path) -> None:
    shutil.copytree(schema.migrations_folder(), tmp_path / "migrations")
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    number = f"{int(REVISIONS[-1]) + 1:04}"
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", "alembic.ini", "revision", "-m", "try", "--rev-id", number],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    [made] = (tmp_path / "migrations" / "versions").glob(f"{number}_*.py")
    assert f'serves_from = "{REVISIONS[-1]}"' in made.read_text("utf-8").replace("'", '"')


def test_a_migration_gives_up_on_a_lock_instead_of_queueing_everybody(
    dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        holder.cursor().execute(f"LOCK {', '.join(metadata.tables)} IN ACCESS SHARE MODE")
        with monkeypatch.context() as patch:
            patch.setattr(schema, "LOCK_TIMEOUT", "100ms")
            with pytest.raises(schema.SchemaError, match="lock timeout"):
                schema.migrate(dsn, "base")
        holder.rollback()  # a connection that is only closed gives its locks back a little later
    finally:
        holder.close()
    schema.migrate(dsn)  # it stands at a whole revision, from which one goes on
    schema.check(dsn)


def test_two_that_migrate_at_once_both_succeed(empty: Dsn, tmp_path: Path) -> None:
    environment = alembic_environment(empty)
    both = [
        subprocess.Popen([sys.executable, "-m", "gatepost", "migrate"], env=environment, cwd=tmp_path)
        for _ in range(2)
    ]
    assert [process.wait(180) for process in both] == [0, 0]
    schema.check(empty)


def alembic_environment(dsn: Dsn) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "GATEPOST_DB__HOST": dsn.hosts[0],
        "GATEPOST_DB__PORT": str(dsn.port),
        "GATEPOST_DB__USER": dsn.user,
        "GATEPOST_DB__PASSWORD": dsn.password,
        "GATEPOST_DB__DATABASE": dsn.database,
    }


def test_alembic_upgrade_head_is_gatepost_migrate(empty: Dsn) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env=alembic_environment(empty),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Running upgrade  -> 0001" in done.stderr
    schema.check(empty)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("GATEPOST_DB__PORT", "1", "cannot connect to Postgres"),
        ("GATEPOST_DB__PORT", "70000", "environment variable GATEPOST_DB__PORT: db.port: "),
        ("GATEPOST_DB__USER", "{role}", "permission denied for database"),
    ],
)
def test_alembic_says_in_a_line_what_is_wrong(empty: Dsn, variable: str, value: str, said: str) -> None:
    role = f"{empty.database}_role"
    rows(empty, f"CREATE ROLE {role} LOGIN PASSWORD %s", empty.password)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT,
            env=alembic_environment(empty) | {variable: value.format(role=role)},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    finally:
        rows(empty, f"DROP ROLE {role}")
    assert done.returncode != 0
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == f"FAILED: {done.stderr}"  # which is Alembic's way


def test_alembic_can_print_the_sql_instead(empty: Dsn) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head", "--sql"],
        cwd=ROOT,
        env=alembic_environment(empty),
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "SET lock_timeout" in done.stdout
    connection = psycopg2.connect(**empty.parameters(empty.hosts[0]))
    try:
        connection.autocommit = True
        for statement in done.stdout.split(";\n\n"):  # one by one, as psql does: some run in no transaction
            if statement.strip():
                connection.cursor().execute(statement)
    finally:
        connection.close()
    schema.check(empty)
    assert schema._served_from(empty) is not None


def test_no_migration_locks_a_table_while_it_goes_through_its_rows(tmp_path: Path) -> None:
    """An index is built CONCURRENTLY, a CHECK is added NOT VALID and then validated; new tables have no rows."""
    for below, revision in itertools.pairwise(REVISIONS):
        sql = subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", f"{below}:{revision}", "--sql"],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        ).stdout
        new = set(re.findall(r"CREATE TABLE (\S+)", sql))
        for index in re.finditer(r"CREATE (?:UNIQUE )?INDEX .* ON (\S+)", sql):
            assert "CONCURRENTLY" in index[0] or index[1] in new, index[0]
        for altered in re.finditer(r"ALTER TABLE (\S+)[^;]* ADD CONSTRAINT [^;]*", sql):
            assert "NOT VALID" in altered[0] or altered[1] in new, altered[0]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO gatepost.users (username, canonical) VALUES ('', '')",
        "INSERT INTO gatepost.users (username, canonical, profile) VALUES ('a', 'a', '[]')",
        "INSERT INTO gatepost.users (username, canonical, profile) VALUES ('a', 'a', to_jsonb(repeat('x', 9000)))",
        "INSERT INTO gatepost.deployment_keys (name, key) VALUES ('k', 'short')",
        "INSERT INTO gatepost.events (kind) VALUES ('Not A Kind')",
        "INSERT INTO gatepost.passwords (user_id, setting, digest, norm) "
        "SELECT gen_random_uuid(), 'plaintext', sha256(''), 'opaque'",
        "INSERT INTO gatepost.sessions (token_hash, user_id, epoch, expires_at) "
        "SELECT 'short', gen_random_uuid(), 1, now() + interval '1 h'",
    ],
)
def test_the_database_itself_refuses_what_makes_no_sense(dsn: Dsn, sql: str) -> None:
    with pytest.raises(psycopg2.errors.CheckViolation):
        rows(dsn, sql.replace("%", "%%"))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT 1 FROM gatepost.sessions WHERE token_hash = ANY ('{}'::bytea[])", "sessions_pkey"),
        ("SELECT 1 FROM gatepost.users WHERE canonical = 'ada'", "users_canonical_key"),
        ("SELECT 1 FROM gatepost.sessions WHERE handle = gen_random_uuid()", "sessions_handle_key"),
        (
            "SELECT 1 FROM gatepost.sessions WHERE user_id = '00000000-0000-4000-8000-000000000000' "
            "ORDER BY created_at DESC",
            "sessions_user_id_created_at_idx",
        ),
    ],
)
def test_the_queries_on_the_path_of_a_login_have_their_index(dsn: Dsn, query: str, index: str) -> None:
    plan = rows(dsn, f"SET enable_seqscan = off; EXPLAIN {query}")
    assert any(index in line or "Seq Scan" in line for (line,) in plan)
    assert not any("Seq Scan" in line for (line,) in plan)
