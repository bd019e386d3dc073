"""`gatepost user sessions`, `sign-out`, `unlock`: list and end a user's sessions, refill the throttles."""

import typer

from gatepost.admin import access_queries
from gatepost.admin.actor import OPERATOR
from gatepost.admin.commands import NameArgument, find, unknown
from gatepost.admin.user import Managed
from gatepost.config import Config
from gatepost.postgres.database import Database
from gatepost.process.console import ConfigOption, JsonOption, print_json, print_table, say, with_database
from gatepost.security.throttle import Throttle
from gatepost.sessions.queries import Revocation, end_all_sessions_of, sessions_of
from gatepost.sessions.session import SessionDocument

_REVOCATION = Revocation("admin", OPERATOR.id, OPERATOR.ip, OPERATOR.user_agent, OPERATOR.by)


def list_sessions(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List a user's live sessions, the newest first."""
    settings = Config.load(config)

    async def work(database: Database) -> list[SessionDocument]:
        user = await find(database, name)
        return await database.read(sessions_of, user.id, settings.sessions.idle_timeout)

    sessions = with_database(settings, work)
    if as_json:
        print_json({"sessions": sessions})
        return
    rows = [
        (
            s["handle"],
            s["created_at"][:19],
            s["last_seen_at"][:19],
            s["expires_at"][:19],
            s["ip"] or "",
            s["user_agent"] or "",
        )
        for s in sessions
    ]
    print_table(["handle", "created", "last seen", "expires", "ip", "user agent"], rows)


def sign_out(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """End every session of a user, also one that is just being opened."""
    settings = Config.load(config)

    async def work(database: Database) -> int:
        user = await find(database, name)
        return await database.write(end_all_sessions_of, user.id, _REVOCATION)

    ended = with_database(settings, work)
    if as_json:
        print_json({"ended": ended})
    else:
        say(f"Ended {ended} session{'' if ended == 1 else 's'}.")


def unlock(name: NameArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Let a user try again at once whose attempts at a password are used up."""
    settings = Config.load(config)

    async def work(database: Database) -> Managed:
        user = await find(database, name)
        ranges = (await Throttle.open(settings.throttle, database)).of_account(user.subjects, user.id)
        if not await database.write(access_queries.unlock, user.id, ranges, OPERATOR):
            raise unknown(name)
        return user

    user = with_database(settings, work)
    if as_json:
        print_json({"status": "success"})
    else:
        say(f"{user.username} can try again.")


def register(user: typer.Typer) -> None:
    """Add the commands to `gatepost user`."""
    user.command("sessions")(list_sessions)
    user.command("sign-out")(sign_out)
    user.command("unlock")(unlock)
