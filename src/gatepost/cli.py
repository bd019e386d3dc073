"""The command line: serving, and what operators do from a shell."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gatepost import names, schema
from gatepost.accounts import policy, queries
from gatepost.config import Config, ConfigError
from gatepost.credentials import Credentials, MissingPepper
from gatepost.db import Database, reach
from gatepost.embedded import EmbeddedError
from gatepost.errors import Problem
from gatepost.ops import openapi
from gatepost.server import ROUTES, StartError, WebServer
from gatepost.transfer import commands as transfer

T = TypeVar("T")


class CommandError(Exception):
    """A command cannot do what was asked; the message is one line that says why."""


app = typer.Typer(
    help="A self-hosted sign-in service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
user = typer.Typer(help="Users: add, list, disable.", no_args_is_help=True)
app.add_typer(user, name="user")
transfer.register(user)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="JSON file; otherwise $GATEPOST_CONFIG or ./config.json.", show_default=False),
]
NameArgument = Annotated[str, typer.Argument(help="The username.")]


def main() -> NoReturn:
    """Run a command. Whatever can be foreseen ends in one line on stderr and exit code 1, not in a traceback."""
    try:
        app()
    except (
        CommandError,
        ConfigError,
        EmbeddedError,
        names.InvalidName,
        MissingPepper,
        StartError,
        schema.SchemaError,
        transfer.TransferError,
        Problem,
    ) as error:
        print(f"gatepost: {error}", file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1)


@app.command()
def run(
    config: ConfigOption = None,
    *,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema up to date first.")] = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    WebServer(Config.load(config), migrate=migrate).run()


@app.command()
def migrate(config: ConfigOption = None) -> None:
    """Bring the database's schema up to date."""
    with reach(Config.load(config).db) as dsn:
        schema.migrate(dsn)
        print(f"{dsn.database} is at revision {schema.newest()}.")  # noqa: T201


@app.command()
def routes() -> None:
    """Print the whole route table."""
    table = Table("method", "path", "what it does", box=None)
    for route in ROUTES:
        summary = (route.handler.__doc__ or "").split("\n")[0]
        table.add_row(route.method, route.path, summary)
    _print(table)


@app.command("openapi")
def print_document() -> None:
    """Print the OpenAPI document."""
    print(openapi.render(ROUTES, indent=2))  # noqa: T201


@user.command("add")
def add_user(
    name: NameArgument,
    config: ConfigOption = None,
    *,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
) -> None:
    """Add a user; asks for the password twice."""
    settings = Config.load(config)
    password = _read_password(from_stdin=password_stdin)
    username, canonical = policy.judge(name, password, settings.passwords)

    async def add(database: Database) -> None:
        credentials = await Credentials.open(settings.passwords, database)
        try:
            stored = await credentials.create(password)
        finally:
            credentials.close()
        await database.write(queries.create, username, canonical, stored)

    _with_database(settings, add)
    print(f"Added {username}.")  # noqa: T201


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        # The line's end is the shell's, not the password's.
        return sys.stdin.readline().rstrip("\r\n")
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    return password


@user.command("list")
def list_users(config: ConfigOption = None) -> None:
    """List all users."""
    users = _with_database(Config.load(config), lambda database: database.read(queries.list_users))
    table = Table("username", "id", "roles", "created", "disabled", box=None)
    for entry in users:
        disabled = entry.disabled_at.isoformat(timespec="seconds") if entry.disabled_at else ""
        created = entry.created_at.isoformat(timespec="seconds")
        table.add_row(Text(entry.username), str(entry.id), Text(" ".join(entry.roles)), created, disabled)
    _print(table)


def _print(table: Table) -> None:
    # Fitted to a terminal; whole lines into a pipe.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


@user.command("disable")
def disable_user(name: NameArgument, config: ConfigOption = None) -> None:
    """Disable a user: every session ends, and no login succeeds any more."""
    canonical = names.canonical(name)
    if not _with_database(Config.load(config), lambda database: database.write(queries.disable, canonical)):
        raise CommandError(f"there is no user {name!r}")
    print(f"Disabled {name}; all sessions have ended.")  # noqa: T201


def _with_database(settings: Config, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something with the configured database, which must be migrated."""
    with reach(settings.db) as dsn:
        if settings.db.embedded:
            schema.migrate(dsn)
        schema.check(dsn)

        async def session() -> T:
            database = await Database.open(dsn, 1)
            try:
                return await work(database)
            finally:
                await database.close()

        return asyncio.run(session())
