"""`gatepost user …`: administration from a shell, and how the first administrator comes to be.

The query functions are those of the API; in events the actor is ``{"by": "operator"}``.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer

from gatepost.accounts import policy
from gatepost.admin import access_queries, queries
from gatepost.admin.actor import OPERATOR
from gatepost.admin.user import EmailRecord, Managed, canonical_prefix, in_order, new_code, readable
from gatepost.breached.checker import Breached
from gatepost.config import Config
from gatepost.mail.mailer import parse_field
from gatepost.postgres.database import Database
from gatepost.process.console import (
    CommandError,
    ConfigOption,
    JsonOption,
    complain,
    print_json,
    print_table,
    say,
    standard_input,
    with_database,
)
from gatepost.security.credentials import Credentials
from gatepost.security.email import canonical as canonical_address
from gatepost.security.names import MAX_ROLES, ROLE, canonical
from gatepost.sessions.session import timestamp

_BATCH = 1000

NameArgument = Annotated[str, typer.Argument(help="The username.")]


def add(
    name: NameArgument,
    config: ConfigOption = None,
    *,
    role: Annotated[
        list[str] | None, typer.Option(help="Give this role; can be repeated. Administrators: admin.")
    ] = None,
    email: Annotated[
        str | None, typer.Option(help="The user's mail address; you vouch for it.", show_default=False)
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="No password: print a code with which the user chooses one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a user; asks for the password twice."""
    settings = Config.load(config)
    roles = _judged(role or [])
    if reset and password_stdin:
        raise typer.BadParameter("--reset and --password-stdin exclude each other")
    address = parse_field("--email", email) if email is not None else None
    password = None if reset else _read_password(from_stdin=password_stdin)
    if password is None:
        username, compared = policy.judge_username(name)
    else:
        username, compared = policy.judge(name, password, settings.passwords)
    policy.refuse_address_as_name(username, settings)
    new = queries.NewUser(username, compared, roles, {}, address)
    started = _new_reset(settings) if reset else None

    async def work(database: Database) -> tuple[Managed, datetime | None]:
        if password is None:
            return await database.write(queries.create, new, OPERATOR, reset=started)
        await _refuse_breached(settings, password)
        credentials = await Credentials.open(settings.passwords, database)
        try:
            stored = await credentials.create(password)
        finally:
            credentials.close()
        return await database.write(queries.create, new, OPERATOR, password=stored)

    user, expires_at = with_database(settings, work)
    if as_json:
        print_json({"user": user.record()} | _reset_document(started, expires_at))
        return
    say(f"Added {user.username}.")
    _say_reset(user.username, started, expires_at)


async def _refuse_breached(settings: Config, password: str) -> None:
    breached = Breached.open(settings.passwords)
    try:
        await breached.refuse("password", password)
    finally:
        await breached.close()


def _read_password(*, from_stdin: bool) -> str:
    try:
        if from_stdin:
            # The line's end comes from the shell and is no part of the password.
            return standard_input().readline().rstrip("\r\n")
        password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    except UnicodeDecodeError as error:
        raise CommandError(f"the password is no text in {error.encoding}") from None
    return password


def list_users(
    config: ConfigOption = None,
    *,
    prefix: Annotated[str, typer.Option(help="Only names that begin so.", show_default=False)] = "",
    role: Annotated[str | None, typer.Option(help="Only users with this role.", show_default=False)] = None,
    disabled: Annotated[
        bool | None, typer.Option("--disabled/--enabled", help="Only those who are, or are not.", show_default=False)
    ] = None,
    email: Annotated[str | None, typer.Option(help="Only users with this address.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many at most; 0 for all.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List users by name."""
    settings = Config.load(config)
    address = None if email is None else (canonical_address(readable(email)) or "")
    which = queries.Filter(canonical_prefix(prefix), role and readable(role), disabled, address)

    async def work(database: Database) -> list[Managed]:
        found: list[Managed] = []
        while True:
            most = _BATCH if not limit else min(_BATCH, limit + 1 - len(found))
            after = found[-1].canonical if found else ""
            batch = await database.read(queries.page, which, after=after, most=most)
            found += batch
            if len(batch) < most or len(found) > limit > 0:
                return found

    found = with_database(settings, work)
    shown = found[:limit] if limit else found
    if as_json:
        print_json({"users": [user.record() for user in shown], "more": len(found) > len(shown)})
        return
    rows = [
        (u.username, u.id, _mailbox(u), " ".join(u.roles), _when(u.created_at), _when(u.disabled_at)) for u in shown
    ]
    print_table(["username", "id", "email", "roles", "created", "disabled"], rows)
    if len(found) > len(shown):
        complain(f"There are more than {limit}: see --limit and --prefix.")


def show(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Show a user."""
    settings = Config.load(config)
    user = with_database(settings, lambda database: find(database, name))
    if as_json:
        print_json({"user": user.record()})
        return
    apart = {"roles", "emails", "disabled_at"}
    lines = [(key, str(value)) for key, value in user.record().items() if key not in apart]
    lines += [("email", _described(email)) for email in user.emails]
    lines += [("roles", " ".join(user.roles) or "none"), ("disabled_at", _when(user.disabled_at) or "no")]
    print_table(["", ""], lines, heading=False)


def _mailbox(user: Managed) -> str:
    return next((email["address"] for email in user.emails if email["primary"]), "")


def _described(email: EmailRecord) -> str:
    return email["address"] + (" (primary)" if email["primary"] else "" if email["verified"] else " (not verified)")


def set_roles(
    name: NameArgument,
    roles: Annotated[
        list[str] | None, typer.Argument(help="Every role the user is to have.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    *,
    none: Annotated[bool, typer.Option("--none", help="Take every role away.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Set a user's roles, which ends all sessions; without any, show them."""
    if roles and none:
        raise typer.BadParameter("either roles or --none")
    settings = Config.load(config)
    if roles or none:
        user = _change(settings, name, queries.Change(roles=_judged(roles or [])))
    else:
        user = with_database(settings, lambda database: find(database, name))
    if as_json:
        print_json({"user": user.record()})
    else:
        say(f"{user.username}: {' '.join(user.roles) or 'no roles'}")


def disable(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Disable a user: every session ends, and no login succeeds any more."""
    user = _change(Config.load(config), name, queries.Change(disabled=True))
    if as_json:
        print_json({"user": user.record()})
    else:
        say(f"Disabled {user.username}; all sessions have ended.")


def enable(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Let a disabled user log in again."""
    user = _change(Config.load(config), name, queries.Change(disabled=False))
    if as_json:
        print_json({"user": user.record()})
    else:
        say(f"Enabled {user.username}.")


def delete(
    name: NameArgument,
    config: ConfigOption = None,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a user and all that belongs to it; the name becomes free. The events stay, without the name."""
    settings = Config.load(config)
    user = with_database(settings, lambda database: find(database, name))
    if not yes:
        typer.confirm(f"Delete {user.username} ({user.id})?", abort=True, err=True)
    if not with_database(settings, lambda database: database.write(queries.delete, user.id, OPERATOR)):
        raise unknown(name)
    if as_json:
        print_json({"status": "success"})
    else:
        say(f"Deleted {user.username}.")


def start_reset(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Print a code with which the user chooses a new password. It is shown once; until it is used nothing ends."""
    settings = Config.load(config)
    reset = _new_reset(settings)

    async def work(database: Database) -> tuple[Managed, datetime | None]:
        user = await find(database, name)
        return user, await database.write(access_queries.start_reset, user.id, reset, OPERATOR)

    user, expires_at = with_database(settings, work)
    if expires_at is None:
        raise unknown(name)
    if as_json:
        print_json(_reset_document(reset, expires_at))
    else:
        _say_reset(user.username, reset, expires_at)


async def find(database: Database, name: str) -> Managed:
    """The user of this name. Raises CommandError, InvalidName, DatabaseUnavailable."""
    user = await database.read(queries.find, canonical(name))
    if user is None:
        raise unknown(name)
    return user


def unknown(name: str) -> CommandError:
    """The error for a user that is not found."""
    return CommandError(f"there is no user {name!r}")


def register(user: typer.Typer) -> None:
    """Add the commands to `gatepost user`."""
    user.command("add")(add)
    user.command("list")(list_users)
    user.command("show")(show)
    user.command("roles")(set_roles)
    user.command("disable")(disable)
    user.command("enable")(enable)
    user.command("delete")(delete)
    user.command("reset")(start_reset)


def _judged(roles: Sequence[str]) -> list[str]:
    for role in roles:
        if not re.fullmatch(ROLE, role):
            raise CommandError(f"{role!r} is no role: 1 to 64 of A-Z a-z 0-9 _ . : -, a letter or a digit first")
    if len(set(roles)) > MAX_ROLES:
        raise CommandError(f"a user has at most {MAX_ROLES} roles")
    return in_order(list(roles))


def _change(settings: Config, name: str, what: queries.Change) -> Managed:
    async def work(database: Database) -> Managed | None:
        user = await find(database, name)
        return await database.write(queries.change, user.id, what, OPERATOR)

    changed = with_database(settings, work)
    if changed is None:
        raise unknown(name)
    return changed


def _new_reset(settings: Config) -> access_queries.Reset:
    return access_queries.Reset(new_code(), settings.accounts.reset_lifetime)


def _reset_document(reset: access_queries.Reset | None, expires_at: datetime | None) -> dict[str, object]:
    if reset is None or expires_at is None:
        return {}
    return {"reset": {"code": reset.code, "expires_at": timestamp(expires_at)}}


def _say_reset(username: str, reset: access_queries.Reset | None, expires_at: datetime | None) -> None:
    if reset and expires_at:
        say(f"Until {_when(expires_at)}, {username} can choose a password with this code, which is shown only now:")
        say(reset.code)


def _when(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment else ""
