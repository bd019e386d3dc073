"""Figures, as a table for people and as JSON for programs."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gatepost.security.credentials import cores

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Target:
    """What a figure has to reach."""

    value: float
    at_most: bool = False
    aim: float | None = None

    def met_by(self, value: float) -> bool:
        """Whether the figure reaches it."""
        return value <= self.value if self.at_most else value >= self.value


@dataclass(frozen=True)
class Figure:
    """One figure: what was measured in each round. Its value is the median."""

    name: str
    what: str
    values: Sequence[float]
    unit: str = ""
    digits: int = 2
    target: Target | None = None

    @property
    def median(self) -> float:
        """The middle of all rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return self.target.met_by(self.median) if self.target else None

    def text(self, value: float) -> str:
        """A value of this figure, for people."""
        return f"{value:,.{self.digits}f}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        target = self.target
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "median": round(self.median, 4),
            "min": round(min(self.values), 4),
            "max": round(max(self.values), 4),
            "values": [round(value, 4) for value in self.values],
            "target": {"at_most" if target.at_most else "at_least": target.value} if target else None,
            "met": self.met,
        }


def show(groups: dict[str, list[Figure]], notes: Sequence[str]) -> None:
    """Print the table."""
    machine = _machine()
    table = Table(title="Gatepost", caption=f"{machine['cores']} cores, {machine['cpu']}, Python {machine['python']}")
    table.add_column("what")
    table.add_column("median", justify="right")
    table.add_column("min … max", justify="right", style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("target")
    for title, figures in groups.items():
        table.add_section()
        table.add_row(f"[bold]{title}[/]")
        for figure in figures:
            several = len(figure.values) > 1
            spread = f"{figure.text(min(figure.values))} … {figure.text(max(figure.values))}" if several else ""
            table.add_row(f"  {figure.what}", figure.text(figure.median), spread, figure.unit, _verdict(figure))
    # A table that is cut off in a pipe or a narrow CI log would be of no use.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for note in notes:
        console.print(f"[yellow]Note:[/] {note}")


def _verdict(figure: Figure) -> str:
    target = figure.target
    if target is None:
        return ""
    bound = f"{'≤' if target.at_most else '≥'} {figure.text(target.value)}"
    aim = f" (aim {figure.text(target.aim)})" if target.aim is not None else ""
    return f"[green]{bound}{aim} met[/]" if figure.met else f"[red]{bound}{aim} MISSED[/]"


def save(groups: dict[str, list[Figure]], notes: Sequence[str], options: dict[str, int], extra: Path | None) -> Path:
    """Write the results, also to ``extra`` if given; return the file."""
    now = datetime.now(UTC)
    text = json.dumps(
        {
            "at": now.isoformat(timespec="seconds"),
            "machine": _machine(),
            "options": options,
            "notes": list(notes),
            "figures": [figure.as_json() for figures in groups.values() for figure in figures],
        },
        indent=2,
        ensure_ascii=False,
    )
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    for path in (file, RESULTS / "latest.json", *([extra] if extra else [])):
        path.write_text(text + "\n", "utf-8")
    return file


def _machine() -> dict[str, Any]:
    """What the figures depend on; nothing that says whose machine it is."""
    return {
        "cores": cores(),
        "cpu": _cpu_model(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gatepost": version("gatepost"),
        "aiohttp": version("aiohttp"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return platform.processor()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
