"""The command line: serving, and what operators do from a shell."""

import asyncio
import sys
from typing import Annotated, NoReturn

import typer

from gatepost.config import Config, ConfigError
from gatepost.errors import MissingSecret, Problem, UnsupportedLibrary
from gatepost.ops import openapi
from gatepost.postgres import schema
from gatepost.postgres.connection import wait_for
from gatepost.postgres.database import reach
from gatepost.postgres.embedded import EmbeddedError
from gatepost.process.console import CommandError, ConfigOption, complain, print_table
from gatepost.process.sockets import StartError
from gatepost.routes import FEATURES, ROUTES, TAGS
from gatepost.security import names
from gatepost.server import WebServer
from gatepost.telemetry import logs

app = typer.Typer(
    help="A self-hosted sign-in service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
user = typer.Typer(help="Users: see them, add, change and delete them, import and export.", no_args_is_help=True)
app.add_typer(user, name="user")
for feature in FEATURES:
    if feature.user_commands:
        feature.user_commands(user)
    if feature.commands:
        feature.commands(app)


def main() -> NoReturn:
    """Run a command. Whatever can be foreseen ends in one line on stderr and exit code 1, not in a traceback."""
    try:
        app()
    except (
        CommandError,
        ConfigError,
        EmbeddedError,
        MissingSecret,
        UnsupportedLibrary,
        StartError,
        schema.SchemaError,
        Problem,
    ) as error:
        complain(f"gatepost: {error}")
    except OSError as error:  # for example a full disk under standard output
        complain(f"gatepost: {str(error) or repr(error)}")
    except names.InvalidName as error:
        complain(f"gatepost: the username {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(1)


@app.command()
def run(
    config: ConfigOption = None,
    *,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema up to date first.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes; default: webserver.workers.", show_default=False)
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""

    def load() -> Config:
        return Config.load(config, workers=workers)

    settings = load()
    with logs.to_stderr(settings.log):
        if settings.webserver.workers == 1:
            WebServer(settings, migrate=migrate).run()
            return
        # Imported here: a single process needs none of it (1.5 MB).
        from gatepost.workers import Workers  # noqa: PLC0415

        Workers(settings, load, migrate=migrate).run()


@app.command()
def migrate(config: ConfigOption = None) -> None:
    """Bring the database's schema up to date."""
    settings = Config.load(config)
    with reach(settings.db) as dsn:
        with logs.to_stderr(settings.log):
            asyncio.run(wait_for(dsn, settings.db.start_timeout))
        schema.migrate(dsn)
        print(f"{dsn.database} is at revision {schema.current(dsn)}.")  # noqa: T201


@app.command()
def routes() -> None:
    """Print the whole route table."""
    rows = [(route.method, route.path, (route.handler.__doc__ or "").split("\n")[0]) for route in ROUTES]
    print_table(["method", "path", "what it does"], rows)


@app.command("openapi")
def print_document() -> None:
    """Print the OpenAPI document."""
    print(openapi.render(ROUTES, TAGS, indent=2))  # noqa: T201
