"""The database cluster in the data directory: how it is made, and the settings it runs with."""

import secrets
import time

from gatepost.postgres.embedded.binaries import Binaries
from gatepost.postgres.embedded.errors import EmbeddedError, last_lines
from gatepost.postgres.embedded.folder import DataFolder

PORT = 5432  # nothing listens on it: it only names the socket

# No statement, parameter or row may reach the log. Errors go to the client only, since their text quotes
# values; `terse` drops the DETAIL lines, among them the query a crashed backend was running.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "130",
    "shared_buffers": "32MB",
    "jit": "off",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_duration": "off",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}


def settings(**more: str) -> list[str]:
    """The settings as arguments of `postgres`."""
    return [argument for name, value in (_SETTINGS | more).items() for argument in ("-c", f"{name}={value}")]


def ensure_cluster(folder: DataFolder, binaries: Binaries, *, user: str, database: str, deadline: float) -> None:
    """Make the cluster when there is none yet, and see that the binaries are those it was made by.

    user, database: the ordinary role, and the database it owns.
    Raises EmbeddedError, OSError, or subprocess.TimeoutExpired after the deadline (time.monotonic()).
    """
    if not folder.exists("pgdata"):
        _make(folder, binaries, user, database, deadline)
    if (made_by := folder.read("pgdata/PG_VERSION").strip()) != binaries.major:
        raise EmbeddedError(
            f"{folder.path} was made by Postgres {made_by} and {binaries.path} is {binaries.major}: "
            "name binaries of the former, or dump and restore"
        )


def _make(folder: DataFolder, binaries: Binaries, user: str, database: str, deadline: float) -> None:
    """Make `pgdata`: complete and on disk, or not at all."""

    def run(program: str, *args: str, sql: str = "") -> None:
        done = folder.run([binaries.program(program), *args], max(deadline - time.monotonic(), 0.1), sql)
        if done.returncode != 0:
            raise EmbeddedError(f"{program} failed in {folder.path}: {last_lines(done.stdout)}")

    folder.remove_tree("pgdata.new")
    password = secrets.token_urlsafe(32)
    folder.write("password", password)
    folder.write("superuser-password", secrets.token_urlsafe(32))
    new = f"{folder.seen_as}/pgdata.new"
    names = ("--username=postgres", f"--pwfile={folder.seen_as}/superuser-password")
    auth = ("--auth-local=scram-sha-256", "--auth-host=reject")
    text = ("--encoding=UTF8", "--no-locale")
    run("initdb", "-D", new, *names, *auth, *text, "--no-instructions", "--no-sync")
    role, owned = (name.replace('"', '""') for name in (user, database))
    sql = f"""CREATE ROLE "{role}" LOGIN PASSWORD '{password}'\n"""  # a line is a statement
    sql += f"""CREATE DATABASE "{owned}" OWNER "{role}"\n"""
    run("postgres", "--single", "-D", new, *settings(exit_on_error="on"), "postgres", sql=sql)
    run("initdb", "--sync-only", "-D", new)
    folder.rename("pgdata.new", "pgdata")
