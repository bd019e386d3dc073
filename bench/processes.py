"""What the kernel knows about processes: processor time and memory. Linux only; elsewhere `AVAILABLE` is False."""

import os
from pathlib import Path

AVAILABLE = Path("/proc/self/smaps_rollup").exists()

_TICK = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Children, their children and so on; without the process itself."""
    below = _children()
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def children(pid: int) -> list[int]:
    """Those that the process has started itself."""
    return _children().get(pid, [])


def _children() -> dict[int, list[int]]:
    """Of every process that has any."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            found.setdefault(int(fields[1]), []).append(int(entry.name))
    return found


def ancestors(pid: int) -> list[int]:
    """Parent, its parent and so on; without the process itself."""
    found: list[int] = []
    while (fields := _stat(pid)) and (pid := int(fields[1])):
        found.append(pid)
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, in user and kernel mode; 0 for one that is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICK if fields else 0.0


def waiting_seconds(pid: int) -> float:
    """How long a process' first thread has been ready to run while the processors ran others."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text("ascii").split()[1]) / 1e9


def machine_busy_seconds() -> float:
    """Processor time that was used on this machine since it started, or was taken from it by its host."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICK


def pss_mb(pid: int) -> float:
    """Memory of a process in MB: what it has alone, and its share of what it shares with others."""
    return sum(pss for _, _, pss in _mappings(pid)) * 1024 / 1e6


def pss_mb_alone(pid: int) -> float:
    """The same, were it the only Python on the machine.

    This very process loads many of the service's libraries, so what both have loaded counts in full; except for
    what its children, who are always there, have loaded too (the C library).
    """
    children = {file for child in descendants(pid) for file, _, _ in _mappings(child)}
    ours = {file for file, _, _ in _mappings(os.getpid())} - children - {""}
    return sum(rss if file in ours else pss for file, rss, pss in _mappings(pid)) * 1024 / 1e6


def _mappings(pid: int) -> list[tuple[str, int, int]]:
    """File ("" for none), Rss and Pss in KiB of each mapping; none when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text("utf-8", "replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    found: list[tuple[str, int, int]] = []
    file, rss = "", 0
    for line in lines:
        name, *values = line.split(maxsplit=5)
        if not name.endswith(":"):  # addresses, permissions, offset, device, inode, path
            file = values[4] if len(values) > 4 and values[3] != "0" else ""
        elif name == "Rss:":
            rss = int(values[0])
        elif name == "Pss:":
            found.append((file, rss, int(values[0])))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, the state first; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
