"""`gatepost service …`: services that check sessions."""

import re
from typing import Annotated

import typer

from gatepost.config import Config
from gatepost.postgres.database import Database
from gatepost.process.console import (
    CommandError,
    ConfigOption,
    JsonOption,
    print_json,
    print_table,
    say,
    with_database,
)
from gatepost.services import queries
from gatepost.services.token import new_token
from gatepost.sessions.session import hash_token, timestamp

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NameArgument = Annotated[str, typer.Argument(help="The service's name.", show_default=False)]


def add(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Add a service that may check sessions, and print its token. The token is shown once."""
    settings, token = Config.load(config), new_token()
    if not _NAME.fullmatch(name):
        raise CommandError(f"{name!r} is no service's name: 1 to 64 of a-z 0-9 . _ -, a letter or a digit first")

    async def work(database: Database) -> bool:
        return await database.write(queries.add, name, hash_token(token))

    if not with_database(settings, work):
        raise CommandError(f"there is a service {name} already; `gatepost service revoke {name}` removes it")
    if as_json:
        print_json({"service": {"name": name}, "token": token})
    else:
        say(f"Added {name}. Its token, which is shown only now:")
        say(token)


def list_services(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List the services."""

    async def work(database: Database) -> list[queries.Service]:
        return await database.read(queries.every)

    services = with_database(Config.load(config), work)
    if as_json:
        print_json({"services": [{"name": s.name, "created_at": timestamp(s.created_at)} for s in services]})
    else:
        print_table(["name", "created"], [(s.name, timestamp(s.created_at)[:19]) for s in services])


def revoke(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Remove a service: its next call is refused."""

    async def work(database: Database) -> bool:
        return await database.write(queries.revoke, name)

    if not with_database(Config.load(config), work):
        raise CommandError(f"there is no service {name!r}")
    if as_json:
        print_json({"revoked": name})
    else:
        say(f"Revoked {name}.")


def register(root: typer.Typer) -> None:
    """Add `gatepost service`."""
    service = typer.Typer(help="Services that check sessions: add, list and revoke them.", no_args_is_help=True)
    service.command("add")(add)
    service.command("list")(list_services)
    service.command("revoke")(revoke)
    root.add_typer(service, name="service")
