"""`gatepost user import` and `gatepost user export`."""

import base64
import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TextIO

import typer

from gatepost.config import Config
from gatepost.postgres import blocking, schema
from gatepost.postgres.database import reach
from gatepost.process.console import CommandError, ConfigOption, complain, json_for, standard_input
from gatepost.security.credentials.foreign import Firebase
from gatepost.transfer import queries
from gatepost.transfer.importing import Counts, Import, ImportStopped
from gatepost.transfer.lines import MAX_LINE, Format, Refusal, Source, UnusableFile
from gatepost.transfer.sources import SOURCES
from gatepost.transfer.users import Judge

SHOWN = 20  # refused lines on the terminal; --report has all


def import_users(  # noqa: PLR0913 (each is an option of the command)
    file: Annotated[str, typer.Argument(help="JSON Lines or CSV; - for standard input.")],
    config: ConfigOption = None,
    *,
    format_: Annotated[
        str | None, typer.Option("--format", help="jsonl or csv; otherwise by the file's name.", show_default=False)
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="Whose export the file is: auth0, firebase, keycloak or supabase.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge every line, change nothing.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write every refused line and its reason here.", show_default=False),
    ] = None,
    firebase_signer_key_file: Annotated[
        Path | None, typer.Option(help="File with Firebase's base64_signer_key.", show_default=False)
    ] = None,
    firebase_salt_separator: Annotated[str, typer.Option(help="Firebase's base64_salt_separator.")] = "Bw==",
    firebase_rounds: Annotated[int, typer.Option(help="Firebase's rounds.")] = 8,
    firebase_mem_cost: Annotated[int, typer.Option(help="Firebase's mem_cost.")] = 14,
) -> None:
    """Import users with the hashes they have. Users who are there already are left alone: it can be run again."""
    settings = Config.load(config)
    firebase = _firebase(firebase_signer_key_file, firebase_salt_separator, firebase_rounds, firebase_mem_cost)
    judge = Judge(settings.passwords.peppers, firebase)
    convert = _convert(from_)
    passwords = settings.passwords
    costs = (passwords.memory_kib, passwords.iterations, passwords.parallelism)
    with (
        _opened(file) as source_file,
        _refusals(report) as refuse,
        _connection(settings) as connection,
        _progress(source_file) as advanced,
    ):
        source = Source(source_file, _format(file, format_, from_), convert)
        try:
            counts = Import(connection, judge, dry_run, refuse, advanced, costs).run(source)
        except (ImportStopped, UnusableFile, queries.Pooled) as error:
            raise CommandError(f"{file}: {error}") from None
    would = "would be " if dry_run else ""
    print(  # noqa: T201
        f"{counts.added} users {would}added, {counts.existing} were there already, "
        f"{counts.refused} lines {would}refused."
    )
    if counts.refused:
        raise typer.Exit(1)


def export_users(
    config: ConfigOption = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", help="A new file, readable by you alone.", show_default=False)
    ] = None,
) -> None:
    """Write every user, with hashes, as JSON Lines that `import` reads. Keep it as secret as the database."""
    settings = Config.load(config)
    count = 0
    try:
        with _connection(settings) as connection, _new_file(output) as file:
            try:
                for line in queries.users(connection):
                    file.write(json_for(file, line))
                    count += 1
            except blocking.Gone as error:
                raise CommandError(f"{blocking.gone(error)} after {count} users: the export is not whole") from None
            file.flush()
    except BrokenPipeError:
        raise  # the reader has closed the pipe
    except OSError as error:
        raise CommandError(f"{output or '-'}: cannot be written: {error.strerror}: the export is not whole") from None
    complain(f"{count} users exported.")


def register(user: typer.Typer) -> None:
    """Add the commands to `gatepost user`."""
    user.command("import")(import_users)
    user.command("export")(export_users)


@contextlib.contextmanager
def _connection(settings: Config) -> Iterator[Any]:
    with reach(settings.db) as dsn:
        if settings.db.embedded:
            schema.migrate(dsn)
        schema.check(dsn)
        connection = blocking.connect(dsn)
        try:
            yield connection
        except (*blocking.Gone, blocking.NotPermitted) as error:
            raise CommandError(f"the database: {str(error).strip().partition(chr(10))[0]}") from None
        finally:
            connection.close()


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield standard_input().buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(Path(file).open("rb"))
        except OSError as error:
            raise CommandError(f"{file}: cannot be read: {error.strerror}") from None
        yield opened


def _convert(name: str | None) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
    if name is not None and name not in SOURCES:
        raise CommandError(f"--from {name}: there are {', '.join(SOURCES)}")
    return SOURCES[name] if name else None


def _format(file: str, given: str | None, source: str | None) -> Format:
    if source in {"firebase", "keycloak"} and given is None:
        return "json"
    if source == "auth0" and given is None:
        return "jsonl"
    wanted = given or {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}.get(Path(file).suffix.lower())
    if wanted == "csv":
        return "csv"
    if wanted == "jsonl" or (wanted is None and file == "-"):
        return "jsonl"
    raise CommandError(f"{file}: say what it is: --format jsonl or --format csv")


def _new_file(path: Path | None) -> contextlib.AbstractContextManager[TextIO]:
    """Standard output, or a file that nobody else may read and that was not there before."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as `import` reads it, whatever the environment asks for
        return contextlib.nullcontext(sys.stdout)
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{path}: cannot be created: {error.strerror}") from None


def _firebase(key_file: Path | None, separator: str, rounds: int, mem_cost: int) -> Firebase | None:
    if key_file is None:
        return None
    try:
        with key_file.open("rb") as file:
            key = base64.b64decode(file.read(MAX_LINE).strip(), validate=True)
        firebase = Firebase(key, base64.b64decode(separator, validate=True), rounds, mem_cost)
    except OSError as error:
        raise CommandError(f"{key_file}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise CommandError("Firebase's signer key and salt separator must be base64") from None
    if len(key) < 32:
        raise CommandError(f"{key_file}: a signer key has at least 32 bytes")
    return firebase


@contextlib.contextmanager
def _refusals(report: Path | None) -> Iterator[Callable[[Refusal], None]]:
    """Refused lines: the first on stderr, all of them in the report."""
    with _new_file(report) if report else contextlib.nullcontext(None) as file:
        count = 0

        def refuse(refusal: Refusal) -> None:
            nonlocal count
            count += 1
            if file is not None:
                file.write(f"{refusal.line}: {refusal.reason}\n")
            if count <= SHOWN:
                complain(f"line {refusal.line}: {refusal.reason}")

        yield refuse
        if count > SHOWN:
            where = f"see {report}" if report else "--report FILE has all"
            complain(f"… and {count - SHOWN} more refused lines ({where})")


@contextlib.contextmanager
def _progress(file: BinaryIO) -> Iterator[Callable[[Counts, int], None]]:
    """A bar with rate and time left, where somebody is looking."""
    # Imported here: a process that serves shows no bar.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = [
        TextColumn("{task.fields[users]:,} users"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=_size(file), users=0, rate=0.0)

        def advanced(counts: Counts, position: int) -> None:
            users = counts.added + counts.existing + counts.refused
            elapsed = progress.tasks[0].elapsed or 0.0
            progress.update(task, completed=position, users=users, rate=users / elapsed if elapsed else 0.0)

        yield advanced


def _size(file: BinaryIO) -> int | None:
    found = os.fstat(file.fileno())
    return found.st_size if stat.S_ISREG(found.st_mode) else None
