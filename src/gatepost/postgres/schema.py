"""The schema's version: migrating it, and refusing to serve on one that this code cannot serve.

`gatepost migrate` and `alembic upgrade head` both end in `run_migrations`. Alembic is imported by those who migrate
only: it is 30 MB that a serving process does without.

Each migration says in ``serves_from`` how old code may be and still serve the schema it makes. The database keeps
that, so that a node of the release before can start again while a new one is rolled out.
"""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg2
import sqlalchemy as sa

from gatepost.config import Config, ConfigError
from gatepost.errors import DatabaseUnavailable
from gatepost.postgres.connection import Dsn, cannot_connect, is_pooled, wait_for
from gatepost.postgres.database import reach
from gatepost.postgres.embedded import EmbeddedError
from gatepost.postgres.tables import SCHEMA, metadata

# All other statements queue behind a migration that waits for a table, and time out. The migration gives up before
# they do, and is run again later.
LOCK_TIMEOUT = "1s"
# Two nodes started with --migrate: the second waits here, then finds nothing left to do.
_ADVISORY_LOCK = 0x67617465_706F7374 & 0x7FFFFFFFFFFFFFFF  # "gatepost"
# The comment on Alembic's own table: it needs no table or grant of its own, and pg_dump takes it along.
_SERVES_FROM = "Code of revision {} or later can serve this schema."


class SchemaError(Exception):
    """The database's schema is not the one this code needs; the message says which and what to do."""


def migrations_folder() -> Path:
    """Where the migrations lie: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "migrations"
    return installed if installed.is_dir() else package.parent.parent / "migrations"


def newest() -> str:
    """The revision this code is written for. They are numbered 0001, 0002, … and form one line."""
    return max(path.name[:4] for path in (migrations_folder() / "versions").glob("[0-9]*_*.py"))


def check(dsn: Dsn) -> None:
    """Raise SchemaError unless this code can serve the database: it is at this code's revision, or at a later one
    that says so.
    """
    found = current(dsn)
    if found is None:
        raise SchemaError(f"the database {dsn.database} is not migrated: run `gatepost migrate`")
    if found > newest() and (_served_from(dsn) or found) > newest():
        raise SchemaError(
            f"the schema in {dsn.database} is at revision {found}, newer than this Gatepost ({newest()}) can serve: "
            "install the newer release"
        )
    if found < newest():
        raise SchemaError(
            f"the schema in {dsn.database} is at revision {found}, this Gatepost needs {newest()}: "
            "run `gatepost migrate`"
        )


def current(dsn: Dsn) -> str | None:
    """The revision that the database is at; None before its first migration."""
    with _reading(dsn) as connection:
        table = connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.alembic_version"})
        if table.scalar() is None:
            return None
        revision: str | None = connection.execute(
            sa.text(f"SELECT version_num FROM {SCHEMA}.alembic_version")
        ).scalar()
        return revision


def _served_from(dsn: Dsn) -> str | None:
    """The oldest revision whose code can serve the schema, as its last migration recorded it. None if nothing is
    recorded.
    """
    with _reading(dsn) as connection:
        comment = connection.execute(
            sa.text("SELECT obj_description(to_regclass(:name), 'pg_class')"), {"name": f"{SCHEMA}.alembic_version"}
        ).scalar()
    found = re.fullmatch(_SERVES_FROM.replace(".", "[.]").format(r"(\d{4})"), comment or "")
    return found[1] if found else None


def migrate(dsn: Dsn, revision: str = "head") -> None:
    """Bring the schema to a revision, by default the newest. A newer one that this code can serve is left alone.

    Raises SchemaError.
    """
    from alembic import command, util  # noqa: PLC0415 (see the module's docstring)
    from alembic.config import Config as AlembicConfig  # noqa: PLC0415

    found = current(dsn)
    if found is not None and found > newest():
        check(dsn)
        return
    config = AlembicConfig()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _connect(dsn) as connection:
        config.attributes["connection"] = connection
        try:
            if found is not None and (revision == "base" or revision < found):
                command.downgrade(config, revision)
            else:
                command.upgrade(config, revision)
        except (util.CommandError, sa.exc.DBAPIError) as error:
            raise SchemaError(f"the migration failed: {_one_line(error)}") from error


def bring_up_to_date(dsn: Dsn) -> None:
    """`migrate`, by a process of its own, and only if there is something to do: for one that goes on to serve.

    Raises SchemaError, DatabaseUnavailable.
    """
    if (current(dsn) or "") >= newest():
        return
    done = subprocess.run(
        [sys.executable, "-m", "gatepost.postgres.schema"],
        input=json.dumps(asdict(dsn)),  # through a pipe: other users can see arguments and environments
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SchemaError(done.stderr.strip().rpartition("\n")[2] or "the migration failed")


async def make_ready(dsn: Dsn, patience: float, *, migrate: bool) -> None:
    """Wait up to ``patience`` seconds for the database, migrate it if asked to, and see that we can serve on it.

    Raises DatabaseUnavailable, SchemaError.
    """
    await wait_for(dsn, patience)
    if migrate:
        await asyncio.to_thread(bring_up_to_date, dsn)
    await asyncio.to_thread(check, dsn)


def run_migrations(context: Any) -> None:
    """What ``migrations/env.py`` does, for `migrate` (which brings a connection) and for the `alembic` command.

    ``context``: `alembic.context`, or its EnvironmentContext.
    """
    settings: dict[str, Any] = {
        "target_metadata": metadata,
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        "transaction_per_migration": True,
        "compare_server_default": True,
        "on_version_apply": _leave_word,
    }
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", literal_binds=True, **settings)
        with context.begin_transaction():
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            context.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
            context.run_migrations()
        return
    given: sa.Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _run_on(given, context, settings)
        return
    try:
        with reach(Config.load().db) as dsn, _connect(dsn) as connection:
            _run_on(connection, context, settings)
    except (ConfigError, DatabaseUnavailable, EmbeddedError, SchemaError, sa.exc.DBAPIError) as error:
        from alembic.util import CommandError  # noqa: PLC0415 (see the module's docstring)

        # Errors that the `alembic` command prints in one line.
        raise CommandError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    """What is wrong; of a database's error without SQLAlchemy's additions."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def _leave_word(*, ctx: Any, step: Any, **_: Any) -> None:
    """In a migration's own transaction: from which revision on code can serve what it has made."""
    for reached in step.destination_revisions:  # one, or none on the way down to nothing
        word = _SERVES_FROM.format(reached.module.serves_from)
        ctx.execute(f"COMMENT ON TABLE {SCHEMA}.alembic_version IS '{word}'")


def _run_on(connection: sa.Connection, context: Any, settings: dict[str, Any]) -> None:
    if is_pooled(connection.connection.driver_connection):
        raise SchemaError(
            "a pooler stands before this database: a migration needs a session of its own, so migrate with the "
            "host and the port of Postgres itself (db.host, db.port)"
        )
    # The lock is polled. A statement that waits for it would hold a snapshot, and the CREATE INDEX CONCURRENTLY of
    # the migration that has the lock would wait for that snapshot to end.
    while not connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}).scalar():
        connection.commit()
        time.sleep(0.1)
    connection.execute(sa.text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    connection.commit()
    context.configure(connection=connection, **settings)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


@contextlib.contextmanager
def _reading(dsn: Dsn) -> Iterator[sa.Connection]:
    """A connection, for looking at the schema. Raises SchemaError, DatabaseUnavailable."""
    with _connect(dsn) as connection:
        try:
            yield connection
        except sa.exc.DBAPIError as error:
            raise SchemaError(f"{dsn.user} cannot read the schema in {dsn.database}: {_one_line(error)}") from error


# Overrides the role's timeouts, which are meant for nodes: an index on a large table takes longer than any request.
_OPTIONS = "-c search_path=pg_catalog -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"


def _connect(dsn: Dsn) -> sa.Connection:
    """A connection of its own; its session, and the advisory lock with it, ends when it is closed.

    Raises DatabaseUnavailable, and SchemaError for a database that cannot keep every name.
    """
    engine = sa.create_engine(
        "postgresql+psycopg2://",
        poolclass=sa.NullPool,
        creator=lambda: psycopg2.connect(connect_timeout=5, options=_OPTIONS, **dsn.parameters(",".join(dsn.hosts))),
    )
    try:
        connection = engine.connect()
    except sa.exc.OperationalError as error:
        raise cannot_connect(dsn, error.orig) from error
    driver: Any = connection.connection.driver_connection
    if (encoding := driver.info.parameter_status("server_encoding")) != "UTF8":
        connection.close()
        raise SchemaError(
            f"the database {dsn.database} has the encoding {encoding}: "
            f"make another one, CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    return connection


if __name__ == "__main__":
    try:
        migrate(Dsn(**json.load(sys.stdin)))
    except (SchemaError, DatabaseUnavailable) as problem:
        sys.exit(str(problem))
