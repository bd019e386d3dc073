"""`gatepost user factors`: a user's second factors, listed and removed."""

from typing import Annotated

import typer

from gatepost.admin import access_queries
from gatepost.admin.actor import OPERATOR
from gatepost.admin.commands import NameArgument, find, unknown
from gatepost.config import Config
from gatepost.factors.passkey_queries import PasskeyDocument, passkeys_of
from gatepost.factors.queries import Factors, factors_of
from gatepost.postgres.database import Database
from gatepost.process.console import ConfigOption, JsonOption, print_json, print_table, say, with_database


def factors(
    name: NameArgument,
    config: ConfigOption = None,
    *,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove them all: the user has lost them. Every session ends.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List a user's second factors, or remove them."""
    settings = Config.load(config)
    if remove:
        _remove(settings, name, as_json=as_json)
        return

    async def work(database: Database) -> tuple[Factors, list[PasskeyDocument]]:
        user = await find(database, name)
        return await database.read(factors_of, user.id), await database.read(passkeys_of, user.id)

    found, passkeys = with_database(settings, work)
    if as_json:
        print_json(found.document() | {"passkeys": passkeys})
        return
    rows = [
        (f["kind"], f["name"], f["created_at"][:19], (f["confirmed_at"] or "")[:19], (f["last_used_at"] or "")[:19])
        for f in found.factors
    ]
    rows += [
        ("passkey", p["name"], p["created_at"][:19], p["created_at"][:19], (p["last_used_at"] or "")[:19])
        for p in passkeys
    ]
    print_table(["kind", "name", "created", "confirmed", "last used"], rows)
    say(f"Recovery codes left: {found.recovery_codes}.")


def _remove(settings: Config, name: str, *, as_json: bool) -> None:
    async def work(database: Database) -> int | None:
        user = await find(database, name)
        return await database.write(access_queries.remove_factors, user.id, OPERATOR, settings.notice_language)

    removed = with_database(settings, work)
    if removed is None:
        raise unknown(name)
    if as_json:
        print_json({"removed": removed})
    else:
        say(f"Removed {removed} second factor{'' if removed == 1 else 's'}.")


def register(user: typer.Typer) -> None:
    """Add the command to `gatepost user`."""
    user.command("factors")(factors)
