"""What commands have in common: the configured database, tables for people and JSON for scripts."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TextIO, TypeVar

import typer

from gatepost.config import Config
from gatepost.postgres import schema
from gatepost.postgres.database import Database, reach

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="JSON file; otherwise $GATEPOST_CONFIG or ./config.json.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]


class CommandError(Exception):
    """A command cannot do what was asked; the message is one line that says why."""


def standard_input() -> TextIO:
    """Standard input. Raises CommandError if it is closed, as a shell or a service manager can do."""
    if sys.stdin is None:
        raise CommandError("there is no standard input")
    return sys.stdin


def with_database(settings: Config, work: Callable[[Database], Awaitable[T]]) -> T:
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


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, heading: bool = True) -> None:
    """Print a table: fitted to the width of a terminal, with whole lines into a pipe."""
    # Imported here: a process that serves prints no table (2 MB).
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(*columns, box=None, show_header=heading)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def print_json(document: object) -> None:
    """Print one JSON document and nothing else."""
    print(json_for(sys.stdout, json.dumps(document, indent=2)))  # noqa: T201


def say(line: str) -> None:
    """A line for people."""
    print(plain(line))  # noqa: T201


def complain(line: str) -> None:
    """A line on stderr, which may quote a file or an error of another's."""
    print("\n".join(map(plain, line.splitlines())) if sys.stderr.isatty() else line, file=sys.stderr)  # noqa: T201


def json_for(stream: TextIO, text: str) -> str:
    """The same JSON without control characters for a terminal, and unchanged for a file or a pipe."""
    if not stream.isatty():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else json.dumps(c).strip('"').replace("\x7f", "\\u007f") for c in text
    )


def plain(text: str) -> str:
    """The text without control characters: a user agent, for example, comes from a stranger."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
