"""What is counted, and that no label's value is a client's."""

import asyncio
import fcntl
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from gatepost.admin import retention
from gatepost.config import Config, ThrottleConfig
from gatepost.ops import instruments
from gatepost.postgres.database import Database, Dsn
from gatepost.routes import ROUTES
from gatepost.security.credentials import hashing
from gatepost.security.credentials.hashing import Derived
from gatepost.security.credentials.kinds import Kind
from gatepost.security.throttle import Limit, Throttle
from gatepost.server import WebServer
from gatepost.sessions import upkeep
from gatepost.telemetry.metrics import BUCKETS, Metrics, worker_ended
from tests.conftest import (
    PASSWORD,
    Client,
    CountRoundTrips,
    PostgresServer,
    StartServer,
    log_in,
    register,
    rows,
    status_of,
    with_mail,
)
from tests.test_factors import add_phone, begin, finish
from tests.visitor import Visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable

DOCS = Path(__file__).parent.parent / "docs" / "monitoring"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Every sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client: Client) -> Samples:
    async with client.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return parse(await answer.text())


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def requests(samples: Samples, route: str, method: str, status: str) -> float | None:
    return value(samples, "gatepost_request_duration_seconds_count", route=route, method=method, status=status)


def labels_of(samples: Samples, name: str) -> set[str]:
    """Values of this label, of our own metrics."""
    return {
        dict(labels)[name] for metric, labels in samples if metric.startswith("gatepost") and name in dict(labels)
    }


async def test_requests_are_counted_by_template_method_and_class_of_status(client: Client) -> None:
    await register(client, "ada")
    token = await log_in(client)
    for _ in range(3):
        assert await status_of(client, token) == 200
    assert await status_of(client, "nonsense") == 401
    for handle in ("a", "b"):
        await client.delete(f"/sessions/{handle}", headers={"Authorization": token})
    await client.head("/ping")
    samples = await scrape(client)
    assert requests(samples, "/user", "GET", "2xx") == 3
    assert requests(samples, "/user", "GET", "4xx") == 1
    assert requests(samples, "/sessions/{handle}", "DELETE", "4xx") == 2
    assert requests(samples, "/ping", "HEAD", "2xx") == 1
    took = value(samples, "gatepost_request_duration_seconds_sum", route="/user", method="POST", status="2xx")
    assert took is not None
    assert 0.001 < took < 30
    assert requests(samples, "/metrics", "GET", "2xx") is None
    assert requests(await scrape(client), "/metrics", "GET", "2xx") == 1


def test_a_duration_falls_into_the_bucket_that_the_library_would_choose() -> None:
    metrics, reference = Metrics(), Metrics()
    ours = metrics.requests("/user", "GET", "2xx")
    theirs = reference._requests.labels("/user", "GET", "2xx")
    for seconds in (
        0.0,
        1e-9,
        *BUCKETS,
        *(bound * 1.001 for bound in BUCKETS),
        *(bound / 1.001 for bound in BUCKETS),
        1e9,
    ):
        for _ in range(2):
            ours.counts[bisect_left(BUCKETS, seconds)] += 1
            ours.total += seconds
            theirs.observe(seconds)
        metrics.look()

    def shown(of: Metrics) -> Samples:
        return {key: round(number, 3) for key, number in parse(of.render().decode()).items() if "request" in key[0]}

    assert len(shown(metrics)) == len(BUCKETS) + 3
    assert shown(metrics) == shown(reference)


async def test_what_clients_make_up_is_one_value_of_a_label(client: Client) -> None:
    for n in range(50):
        await client.get(f"/{n}/secret")
        await client.request("PURGE", f"/{n}")
        await client.request("PROPFIND", "/user")
        await client.request("OPTIONS", f"/user?{n}")
    samples = await scrape(client)
    assert requests(samples, "unmatched", "GET", "4xx") == 50
    assert requests(samples, "unmatched", "other", "4xx") == 50
    assert requests(samples, "/user", "other", "4xx") == 50
    assert labels_of(samples, "route") <= {route.path for route in ROUTES} | {"unmatched"}
    assert labels_of(samples, "method") <= {"GET", "OPTIONS", "other"}
    assert labels_of(samples, "status") == {"2xx", "4xx"}


async def test_logins_are_counted_by_how_they_ended_and_never_by_why(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    await register(client, "bob")
    rows(dsn, "UPDATE gatepost.users SET disabled_at = now() WHERE canonical = 'bob'")
    await log_in(client)
    for username, password in (("ada", "wrong"), ("nobody", PASSWORD), ("bob", PASSWORD), ("a b", PASSWORD)):
        await client.post("/user", json={"username": username, "password": password})
    await client.post("/user", data=b"{")
    samples = await scrape(client)
    counted = {name: value(samples, "gatepost_logins_total", outcome=name) for name in labels_of(samples, "outcome")}
    others = {"continued": 0, "throttled": 0, "unavailable": 0, "abandoned": 0}
    assert counted == {"won": 1, "lost": 4, "malformed": 1, **others}


async def test_a_login_in_steps_is_counted_as_what_it_is_also_on_a_page(client: Client, dsn: Dsn) -> None:
    await register(client, "ada")
    phone = await add_phone(client, await log_in(client))  # won
    ticket = await begin(client)  # continued
    assert (await finish(client, ticket, totp="000000"))[0] == 403  # lost
    assert (await finish(client, ticket, totp=phone.code()))[0] == 200  # won
    assert (await Visitor(client).sign_in("ada", PASSWORD)).status == 401  # continued
    assert (await Visitor(client).sign_in("ada", "wrong")).status == 401  # lost
    samples = await scrape(client)
    counted = {name: value(samples, "gatepost_logins_total", outcome=name) for name in ("won", "continued", "lost")}
    assert counted == {"won": 2, "continued": 2, "lost": 2}


async def test_hashing_is_counted_and_timed(client: Client) -> None:
    await register(client, "ada")
    before = await scrape(client)
    await asyncio.gather(*(log_in(client) for _ in range(6)))
    after = await scrape(client)

    def more(name: str) -> float:
        return (value(after, name) or 0) - (value(before, name) or 0)

    assert more("gatepost_hashes_total") == 6
    assert more("gatepost_hashing_seconds_total") > 0
    assert more("gatepost_hashing_waiting_seconds_total") > 0
    assert value(after, "gatepost_hashing_running") == value(after, "gatepost_hashing_waiting") == 0


async def test_hashes_under_way_and_waiting_are_seen_while_they_last(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, honest = threading.Event(), hashing.derive

    def wait(kind: Kind, secret: Callable[[], bytes]) -> Derived:
        assert go_on.wait(60)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", wait)
    config = config.model_copy(update={"passwords": config.passwords.model_copy(update={"threads": 1})})
    server = WebServer(config)
    await server.initializer()
    try:
        from gatepost.http.app import CREDENTIALS

        hashes = [asyncio.create_task(server.app[CREDENTIALS].create(PASSWORD)) for _ in range(5)]
        await asyncio.sleep(0)
        samples = parse(server.metrics.render().decode())
        assert value(samples, "gatepost_hashing_running") == 1
        assert value(samples, "gatepost_hashing_waiting") == 4
        go_on.set()
        await asyncio.gather(*hashes)
    finally:
        go_on.set()
        await server._resources.aclose()


async def test_session_checks_are_counted_by_query_and_by_token(client: Client) -> None:
    await register(client, "ada")
    tokens = [await log_in(client) for _ in range(3)]
    await asyncio.gather(*(status_of(client, token) for token in tokens for _ in range(10)))
    samples = await scrape(client)
    queries = value(samples, "gatepost_session_check_queries_total")
    asked = value(samples, "gatepost_session_check_tokens_total")
    assert queries is not None
    assert asked is not None
    assert 1 <= queries < 30
    assert max(3, queries) <= asked <= 30


@pytest.mark.deadlines
async def test_the_pools_are_seen_and_waiting_in_vain_is_counted(client: Client, config: Config) -> None:
    from gatepost.http.app import DATABASE

    assert client.app is not None
    database = client.app[DATABASE]
    size = config.db.pool_size - 2
    held = [await database.pool.acquire() for _ in range(size)]
    try:
        await register_in_vain(client)
        samples = await scrape(client)
    finally:
        for connection in held:
            database.pool.give_back(connection)
    assert value(samples, "gatepost_database_connections", pool="requests", state="used") == size
    assert value(samples, "gatepost_database_connections_max", pool="requests") == size
    assert value(samples, "gatepost_database_connections_max", pool="checks") == 2
    assert value(samples, "gatepost_database_up") == 0
    # The registration's, and the scrape's own question.
    assert value(samples, "gatepost_database_acquire_timeouts_total", pool="requests") == 2
    assert value(samples, "gatepost_database_acquire_timeouts_total", pool="checks") == 0
    samples = await scrape(client)
    assert value(samples, "gatepost_database_connections", pool="requests", state="idle") == size


async def register_in_vain(client: Client) -> None:
    async with client.post("/account", json={"username": "ada", "password": PASSWORD}) as answer:
        assert answer.status == 503


@pytest.mark.deadlines
async def test_without_a_database_metrics_are_answered_and_say_so(
    client: Client, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruments, "EVERY", 0.0)
    assert value(await scrape(client), "gatepost_database_up") == 1
    postgres.freeze()
    try:
        samples = await scrape(client)
    finally:
        postgres.thaw()
    assert value(samples, "gatepost_database_up") == 0
    assert math.isnan(value(samples, "gatepost_table_rows", table="sessions") or 0)
    async with asyncio.timeout(60):
        while value(await scrape(client), "gatepost_database_up") != 1:
            pass


async def test_rows_are_estimated_without_counting_and_asked_for_once_in_a_while(
    client: Client, dsn: Dsn, monkeypatch: pytest.MonkeyPatch, count_round_trips: CountRoundTrips
) -> None:
    await register(client, "ada")
    for _ in range(4):
        await log_in(client)
    rows(dsn, "ANALYZE gatepost.sessions")
    assert instruments.EVERY >= 5
    monkeypatch.setattr(instruments, "EVERY", 3600.0)  # however long this takes
    with count_round_trips() as sent:
        samples = await scrape(client)
        for _ in range(20):
            await scrape(client)
    assert value(samples, "gatepost_table_rows", table="sessions") == 4
    assert len(sent) == 1
    assert "count(" not in sent[0]
    monkeypatch.setattr(instruments, "EVERY", 0.0)
    with count_round_trips() as sent:
        await scrape(client)
    assert len(sent) == 1


@pytest.mark.parametrize("what", ["sessions", "events"])
async def test_sweeps_are_counted_with_their_last_success(database: Database, dsn: Dsn, what: str) -> None:
    metrics = Metrics()
    sweeps: dict[str, Callable[[], Awaitable[int]]] = {
        "sessions": lambda: upkeep.sweep(database),
        "events": lambda: retention.sweep(database, 3600),
    }
    rows(
        dsn,
        """
        INSERT INTO gatepost.users (username, canonical) VALUES ('ada', 'ada');
        INSERT INTO gatepost.sessions (token_hash, user_id, epoch, created_at, expires_at)
            SELECT sha256(i::text::bytea), id, 1, now() - interval '2 h', now() - interval '1 h'
            FROM gatepost.users, generate_series(1, 2300) i;
        INSERT INTO gatepost.events (kind, at) SELECT 'x', now() - interval '2 h' FROM generate_series(1, 2300)
        """,
    )
    work = metrics.sweeping(what, sweeps[what])
    before = parse(metrics.render().decode())
    assert value(before, "gatepost_sweep_last_success_timestamp_seconds", table=what) == 0
    await work()
    after = parse(metrics.render().decode())
    assert value(after, "gatepost_swept_rows_total", table=what) == 2300
    last = value(after, "gatepost_sweep_last_success_timestamp_seconds", table=what)
    assert last is not None
    assert last > 1.7e9
    await database.close()
    with pytest.raises(Exception):  # noqa: B017, PT011
        await work()
    assert (
        value(parse(metrics.render().decode()), "gatepost_sweep_last_success_timestamp_seconds", table=what) == last
    )


async def test_two_servers_in_one_process_count_apart(config: Config, start_server: StartServer) -> None:
    one, other = await start_server(config), await start_server(config)
    await one.get("/ping")
    assert requests(await scrape(one), "/ping", "GET", "2xx") == 1
    assert requests(await scrape(other), "/ping", "GET", "2xx") is None


def test_processes_that_share_their_metrics_are_shown_together() -> None:
    script = """
import json, os, sys
from gatepost.telemetry import metrics
folder = metrics.share()
assert os.stat(folder).st_mode & 0o777 == 0o700
workers = []
for n in (1, 2):
    if not (pid := os.fork()):
        its = metrics.Metrics()
        its.requests("/user", "GET", "2xx").counts[1] += 1
        its.throttled.labels("login").inc(n)
        its.follow("gatepost_hashing_waiting", "x", lambda: n)
        its.follow("gatepost_hashes_total", "x", lambda: 10 * n)
        its.look(); its.look()
        os._exit(0)
    os.waitpid(pid, 0)
    workers.append(pid)
both = metrics.Metrics().render().decode()
metrics.worker_ended(workers[1])
one = metrics.Metrics().render().decode()
metrics.forget(folder)
print(json.dumps([both, one, folder.exists()]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    both, one, left = json.loads(done.stdout)
    assert not left
    for text, waiting in ((both, 3), (one, 1)):
        samples = parse(text)
        assert requests(samples, "/user", "GET", "2xx") == 2
        assert value(samples, "gatepost_throttled_total", what="login") == 3
        assert value(samples, "gatepost_hashes_total") == 30
        assert value(samples, "gatepost_hashing_waiting") == waiting


def test_a_scrape_while_a_process_begins_to_count_reads_no_file_that_is_half_made() -> None:
    script = """
import os
from gatepost.telemetry import metrics
folder = metrics.share()
from prometheus_client import CollectorRegistry, mmap_dict, multiprocess
class Os:  # a scrape comes in each time that a file has been opened and is empty yet
    @staticmethod
    def fstat(descriptor):
        list(multiprocess.MultiProcessCollector(CollectorRegistry()).collect())
        print("scraped")
        return os.fstat(descriptor)
mmap_dict.os = Os
its = metrics.Metrics()
its.requests("/user", "GET", "2xx").counts[1] += 1
its.throttled.labels("login").inc()
for across in ("sum", "max", "mostrecent"):
    its.gauge(across, "x", across=across).set(1)
its.look()
metrics.forget(folder)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.stdout.count("scraped") >= 5  # a file for each kind


def test_what_killed_processes_have_shared_is_removed_at_the_next_start_and_that_of_a_living_one_is_not() -> None:
    # One forked is as good as the first, whose end it outlives.
    script = """
import os, sys
from gatepost.telemetry import metrics
folder = metrics.share()
if os.fork():
    os._exit(0)
print(folder, os.getpid(), flush=True)
sys.stdin.read()
metrics.forget(folder)
"""

    def start() -> tuple[subprocess.Popen[str], Path, int]:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        return process, Path(folder), int(pid)

    killed, living = start(), start()
    os.kill(killed[2], signal.SIGKILL)
    killed[0].communicate(timeout=60)
    third = start()
    assert [folder.exists() for _, folder, _ in (killed, living, third)] == [False, True, True]
    for process, folder, _ in (living, third):
        process.communicate(timeout=60)
        assert not folder.exists()


# ------------------------------------------------------------------------------ the dashboard and the alerts

# A metric's name, a function's or a label's: whatever is not the former is left to Prometheus.
NAME = re.compile(r"\b(?:gatepost|process|python)_[a-z_]+\b")


def expressions(thing: Any) -> list[str]:
    """Every PromQL expression in a document."""
    if isinstance(thing, dict):
        own = [
            text for key, text in thing.items() if key in {"expr", "query", "definition"} and isinstance(text, str)
        ]
        return own + expressions(list(thing.values()))
    return [one for item in thing for one in expressions(item)] if isinstance(thing, list) else []


@pytest.fixture
async def names(client: Client) -> set[str]:
    """The name of every sample in a real answer, after one request of each kind that is asked about."""
    await register(client, "ada")
    await log_in(client)
    return {name for name, _ in await scrape(client)} | {"gatepost_throttled_total"}


def document_of(file: str) -> Any:
    text = (DOCS / file).read_text("utf-8")
    return json.loads(text) if file.endswith("json") else yaml.safe_load(text)


@pytest.mark.parametrize("file", ["dashboard.json", "alerts.yml"])
def test_the_files_for_grafana_and_prometheus_are_sound(file: str) -> None:
    document = document_of(file)
    if file == "alerts.yml":
        rules = [rule for group in document["groups"] for rule in group["rules"]]
        assert len({rule["alert"] for rule in rules}) == len(rules)
        for rule in rules:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert set(rule["annotations"]) == {"summary", "description"}
            assert re.fullmatch(r"\d+[smh]", rule["for"])
    else:
        panels = document["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert all(
            panel["title"] and panel["gridPos"] and (panel["type"] == "row" or panel["targets"]) for panel in panels
        )
        assert all(target["expr"] for panel in panels for target in panel.get("targets", []))


@pytest.mark.parametrize("file", ["dashboard.json", "alerts.yml"])
async def test_they_ask_for_metrics_that_there_are(names: set[str], file: str) -> None:
    asked = expressions(document_of(file))
    assert len(asked) >= 5
    wanted = {name for one in asked for name in NAME.findall(one)}
    assert len(wanted) >= 5
    assert wanted <= names


async def test_every_metric_of_ours_is_in_the_docs_and_no_other(
    config: Config, tmp_path: Path, start_server: StartServer
) -> None:
    client = await start_server(with_mail(config, tmp_path / "mail"))
    text = (DOCS.parent / "monitoring.md").read_text("utf-8")
    async with client.get("/metrics") as answer:
        there = set(re.findall(r"^# TYPE (gatepost_\w+)", await answer.text(), re.MULTILINE))
    assert set(re.findall(r"^\| `(gatepost_\w+)", text, re.MULTILINE)) == there


def test_every_limit_that_can_be_counted_is_in_the_docs() -> None:
    text = (DOCS.parent / "monitoring.md").read_text("utf-8")
    [row] = re.findall(r"^\| `gatepost_throttled_total` .*$", text, re.MULTILINE)
    limits = [limit for limit in vars(Throttle(ThrottleConfig(), bytes(32))).values() if isinstance(limit, Limit)]
    assert set(re.findall(r"`(\w+)`", row)) - {"gatepost_throttled_total", "what"} == {limit.name for limit in limits}


def test_what_processes_that_have_ended_counted_is_kept_in_one_file_and_nobody_who_reads_counts_it_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    keys = {
        "counter": mmap_key("logins", "logins_total", ["outcome"], ["won"], "x"),
        "histogram": mmap_key("seconds", "seconds_bucket", ["le"], ["1.0"], "x"),
    }

    def totals() -> dict[str, float]:
        collect: Any = MultiProcessCollector(None, str(tmp_path)).collect  # type: ignore[no-untyped-call]
        metrics = collect()
        return {sample.name: sample.value for metric in metrics for sample in metric.samples}

    for pid in (1, 2, 3):
        for kind, key in keys.items():
            file: Any = MmapedDict(str(tmp_path / f"{kind}_{pid}.db"))  # type: ignore[no-untyped-call]
            file.write_value(key, float(pid), 0.0)
            file.close()
    before = totals()
    assert before["logins_total"] == before["seconds_bucket"] == 6
    for pid in (1, 2, 2):
        worker_ended(pid)
        assert totals() == before
    with (tmp_path / "readers").open() as reading:
        fcntl.flock(reading, fcntl.LOCK_SH)
        with pytest.raises(BlockingIOError):
            worker_ended(3)
    assert totals() == before
    assert {file.name for file in tmp_path.glob("counter_*")} == {"counter_dead.db", "counter_3.db"}
    worker_ended(3)
    assert totals() == before
    assert {file.name for file in tmp_path.iterdir()} == {"counter_dead.db", "histogram_dead.db", "readers"}
