"""What is counted, for Prometheus. docs/monitoring.md says what each means.

No label's value comes from a client: routes are templates, methods those that we know. A part that counts in plain
numbers (a pool, the hasher) is read at a scrape, and does not import this module.
"""

import collections
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

# Not prometheus_client here: what it is depends on the environment when it is imported (see `share`).
if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_PREFIX, _LOCK, _READERS = "gatepost-metrics-", "lock", "readers"
_SUMMED = ("counter", "histogram")
_OF_THE_LIVING = ("gauge_livesum", "gauge_livemax", "gauge_livemostrecent")

# Seconds. A check takes 1 to 5 ms, a login 30 to 100; 50 ms is what a check may take under a flood of logins, 0.5 s
# the wait for a connection, 2 s that for the database.
BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

# nginx' code for a client that hung up before its answer. It is never sent.
ABANDONED = 499

Outcome = Literal["won", "continued", "lost", "throttled", "unavailable", "abandoned", "malformed"]
OUTCOMES: dict[int, Outcome] = {
    200: "won",
    303: "won",  # on a page, which then leads on
    401: "lost",
    429: "throttled",
    503: "unavailable",
    ABANDONED: "abandoned",
}
"""How a login ended, by its answer's status; with any other it was ``malformed``. It is ``continued`` where a second
factor is asked for. Never by the reason: what tells an unknown name from a wrong password would tell it to all who
can read a metric."""


class Durations:
    """Seconds that requests of one kind took, in plain numbers; from time to time they go into the histogram.

    Its own `observe` takes 0.7 us, and 1.5 where processes share their metrics; this takes 0.2.
    """

    __slots__ = ("_child", "counts", "total")

    def __init__(self, child: "Histogram") -> None:
        self._child = child
        self.counts = [0] * (len(BUCKETS) + 1)
        """How many fell into each of ``BUCKETS`` and above the last: add one at ``bisect_left(BUCKETS, seconds)``."""
        self.total = 0.0

    def hand_over(self) -> None:
        """Into the histogram. It has no public way to take several at once; a test sees that this one holds."""
        for n, count in enumerate(self.counts):
            if count:
                self._child._buckets[n].inc(count)  # noqa: SLF001
                self.counts[n] = 0
        self._child._sum.inc(self.total)  # noqa: SLF001
        self.total = 0.0


class Metrics:
    """The metrics of one server, in a registry of its own.

    With ``PROMETHEUS_MULTIPROC_DIR`` in the environment (`share`), those of all processes that have it together.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        import prometheus_client as prometheus  # noqa: PLC0415

        # The ``_created`` series would be half of all lines.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._library = prometheus
        self.shared = _FOLDER in os.environ
        if self.shared:
            _make_files(Path(os.environ[_FOLDER]))
        self._registry = prometheus.CollectorRegistry()
        self._followed: list[Callable[[], None]] = []
        self._by_name: dict[str, Counter | Gauge] = {}
        self._requests = prometheus.Histogram(
            "gatepost_request_duration_seconds",
            "Requests, by how long they took until the answer was ready.",
            ["route", "method", "status"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._logins = self._counter("gatepost_logins", "Logins, by how they ended.", ["outcome"])
        self.logins = {outcome: self._logins.labels(outcome) for outcome in get_args(Outcome)}
        self.throttled = self._counter(
            "gatepost_throttled", "Requests refused by a throttle, by what was throttled.", ["what"]
        )
        self._swept = self._counter("gatepost_swept_rows", "Rows that a sweep has removed.", ["table"])
        self._swept_at = self.gauge(
            "gatepost_sweep_last_success_timestamp_seconds",
            "When a sweep last came to its end; 0 before the first.",
            ["table"],
            across="max",
        )
        self.gauge("gatepost_build_info", "Always 1; the version is a label.", ["version"], across="max").labels(
            version("gatepost")
        ).set(1)
        if not self.shared:  # these collectors know one process only
            for collector in (
                prometheus.ProcessCollector,
                prometheus.PlatformCollector,
                prometheus.GCCollector,
            ):
                collector(registry=self._registry)

    def requests(self, route: str, method: str, status: str) -> Durations:
        """Where to count requests of this kind; to be asked for once a kind."""
        durations = Durations(self._requests.labels(route, method, status))
        self._followed.append(durations.hand_over)
        return durations

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> "Counter":
        return self._library.Counter(name, text, labels, registry=self._registry)

    def gauge(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        across: Literal["sum", "max", "mostrecent"] = "sum",
    ) -> "Gauge":
        """A gauge to set. ``across``: what becomes of the values of several processes."""
        modes: dict[str, Literal["livesum", "livemax", "livemostrecent"]] = {
            "sum": "livesum",
            "max": "livemax",
            "mostrecent": "livemostrecent",
        }
        return self._library.Gauge(name, text, labels, registry=self._registry, multiprocess_mode=modes[across])

    def follow(
        self,
        name: str,
        text: str,
        read: Callable[[], float],
        *,
        across: Literal["sum", "max", "mostrecent"] = "sum",
        **labels: str,
    ) -> None:
        """Show a number that somebody else keeps: a counter when the name ends in ``_total``, else a gauge.

        Of one name there may be several, told apart by ``labels``. ``across``: as `gauge` has it.
        """
        make = self._counter if name.endswith("_total") else partial(self.gauge, across=across)
        metric = self._by_name.get(name) or make(name, text, list(labels))
        self._by_name[name] = metric
        child = metric.labels(**labels) if labels else metric
        if isinstance(child, self._library.Gauge):
            self._followed.append(lambda: child.set(read()))
            return
        counted = 0.0

        def count() -> None:
            nonlocal counted
            now = read()
            child.inc(now - counted)
            counted = now

        self._followed.append(count)

    def look(self) -> None:
        """Ask those that are followed."""
        for ask in self._followed:
            ask()

    def sweeping(self, table: str, sweep: Callable[[], Awaitable[int]]) -> Callable[[], Awaitable[None]]:
        """The same sweep, counted. ``sweep`` returns how many rows it has removed."""
        rows, at = self._swept.labels(table), self._swept_at.labels(table)

        async def sweep_and_count() -> None:
            rows.inc(await sweep())
            at.set_to_current_time()

        sweep_and_count.__qualname__ = f"sweep of {table}"
        return sweep_and_count

    def render(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self.look()
        registry = self._registry
        if self.shared:
            from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

            registry = self._library.CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            with _locked(Path(os.environ[_FOLDER]), fcntl.LOCK_SH):
                return self._library.generate_latest(registry)
        return self._library.generate_latest(registry)


# -------------------------------------------------------------------------------------- several processes


def share() -> Path:
    """Make a folder in which the processes forked from now on keep their metrics together, and return it.

    Before the first `Metrics`, since prometheus_client looks once. It is for the caller to remove (`forget`); if all
    of them are killed, for whoever starts next.
    """
    memory = Path("/dev/shm")  # noqa: S108 (mkdtemp below makes a folder that is ours alone)
    parent = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    _forget_the_dead(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    # Under another name until it is locked: a Gatepost that starts at the same moment would remove it as left over.
    unlocked = folder / "unlocked"
    descriptor = os.open(unlocked, os.O_CREAT | os.O_RDONLY, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # for as long as this process lives, or one forked from it
    unlocked.rename(folder / _LOCK)
    os.environ[_FOLDER] = str(folder)
    return folder


def _forget_the_dead(parent: Path) -> None:
    """Remove what processes that were killed have left there: it is memory."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # it belongs to another user, or is gone
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # a process that uses it is alive
            pass
        finally:
            os.close(descriptor)


def _make_files(folder: Path) -> None:
    """Make the files of this process that prometheus_client would make at its first number of each kind.

    It makes them empty and fills them then: a scrape in between fails (measured: one of 300 while a worker starts).
    """
    from prometheus_client.mmap_dict import MmapedDict  # noqa: PLC0415

    for kind in (*_SUMMED, *_OF_THE_LIVING):
        unfinished = folder / f"{kind}_{os.getpid()}.new"
        finished = unfinished.with_suffix(".db")
        if not finished.exists():
            MmapedDict(unfinished).close()  # type: ignore[no-untyped-call]
            unfinished.rename(finished)


def worker_ended(pid: int) -> None:
    """A process that shares its metrics has ended: its gauges no longer count; what it has counted stays, in one file
    for all that have ended.

    Raises BlockingIOError while somebody reads; its own files stay then, and count as before. Call it again later.
    """
    from prometheus_client.mmap_dict import MmapedDict  # noqa: PLC0415
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
    folder = Path(os.environ[_FOLDER])
    # A scrape in between would count it twice, and Prometheus would take the next, lower total for a restart.
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for kind in _SUMMED:
            theirs, all_dead, merged = (folder / f"{kind}_{name}" for name in (f"{pid}.db", "dead.db", "dead.new"))
            if not theirs.exists():
                continue
            totals: dict[str, float] = collections.defaultdict(float)
            for file in filter(Path.exists, (all_dead, theirs)):
                for key, value, *_ in MmapedDict.read_all_values_from_file(file):  # type: ignore[no-untyped-call]
                    totals[key] += value
            merged.unlink(missing_ok=True)
            written = MmapedDict(merged)  # type: ignore[no-untyped-call]
            for key, value in totals.items():
                written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
            written.close()  # type: ignore[no-untyped-call]
            merged.rename(all_dead)
            theirs.unlink()


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    descriptor = os.open(folder / _READERS, os.O_CREAT | os.O_RDONLY, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def forget(folder: Path) -> None:
    """Remove what `share` has made."""
    os.environ.pop(_FOLDER, None)
    shutil.rmtree(folder, ignore_errors=True)
