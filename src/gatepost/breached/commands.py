"""`gatepost breached`: make the file of breached passwords, and ask it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from gatepost.breached.checker import Breached
from gatepost.breached.elias_fano import BadFile, build
from gatepost.config import Config, PasswordsConfig
from gatepost.process.console import CommandError, ConfigOption, JsonOption, print_json, say, standard_input

_CHUNK = 1024 * 1024
# Lines between two steps of the progress bar.
_STEP = 100_000


def build_file(
    source: Annotated[Path, typer.Argument(help="The published list, `HASH:COUNT` in each line, ordered by hash.")],
    file: Annotated[Path, typer.Argument(help="The file to make, for passwords.breached_file.")],
) -> None:
    """Make the file for `passwords.breached = file`; it takes little memory, however long the list is."""
    try:
        with source.open("rb") as lines, _progress(source.stat().st_size) as advance:
            entries = _count(lines)
            lines.seek(0)
            build(_keys(lines, advance), entries, file)
    except BadFile as error:
        raise CommandError(f"{source}: {error}") from None
    say(f"Wrote {entries:,} hashes to {file} ({file.stat().st_size:,} bytes).")


def check(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Read a password from standard input, and say whether it is known from a breach; exit code 1 if it is."""
    settings = Config.load(config).passwords
    if settings.breached == "off":
        raise CommandError("passwords.breached is off: it says whom to ask")
    password = standard_input().readline().rstrip("\r\n")
    known = asyncio.run(_ask(settings, password))
    if as_json:
        print_json({"breached": known})
    else:
        say({True: "It is known from a breach.", False: "It is not known.", None: "That cannot be found out."}[known])
    if known is not False:
        raise typer.Exit(1)


async def _ask(settings: PasswordsConfig, password: str) -> bool | None:
    breached = Breached.open(settings)
    try:
        return await breached.check(password)
    finally:
        await breached.close()


def _count(file: BinaryIO) -> int:
    count, last = 0, b"\n"
    while chunk := file.read(_CHUNK):
        count, last = count + chunk.count(b"\n"), chunk[-1:]
    return count + (last != b"\n")


def _keys(file: BinaryIO, advance: Callable[[int], None]) -> Iterator[int]:
    """The first 64 bits of each hash. Raises BadFile, naming the line."""
    for number, line in enumerate(file, 1):
        digest, _, count = line.partition(b":")
        try:
            if len(digest.rstrip()) != 40 or (count and not count.strip().isdigit()):
                raise ValueError
            int(digest, 16)
            yield int(digest[:16], 16)
        except ValueError:
            raise BadFile(f"line {number} is no `HASH:COUNT` with a SHA-1 of 40 digits") from None
        if number % _STEP == 0:
            advance(file.tell() if file.seekable() else 0)
    advance(-1)


@contextlib.contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console  # noqa: PLC0415 (2 MB)
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=size)
        yield lambda position: progress.update(task, completed=size if position < 0 else position)


def register(root: typer.Typer) -> None:
    """Add `gatepost breached`."""
    breached = typer.Typer(help="Passwords known from breaches: the file of them.", no_args_is_help=True)
    breached.command("build")(build_file)
    breached.command("check")(check)
    root.add_typer(breached, name="breached")
