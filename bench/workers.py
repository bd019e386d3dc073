"""Two processes against one: how many session checks more, what they cost, and in how much memory."""

import time
from pathlib import Path

from bench import measures, processes
from bench.report import Figure, Target
from bench.seed import Seed
from bench.service import Service
from bench.wrk import Load, Round, http_request
from gatepost.security.credentials import cores

WORKERS = 2
# Twice those of the measurement of one process: each worker then has as many.
CONNECTIONS = 2 * measures.CHECK_CONNECTIONS


def checks(home: Path, seed: Seed, folder: Path, *, rounds: int, seconds: int) -> tuple[list[Figure], list[str]]:
    """`GET /user` on one process and on two workers, started in turn on the same data; also what is worth a note.

    The load generator and Postgres run on the same processors. They leave one process nearly a processor of its own,
    and two workers less than two: what the load generator takes is measured, and reckoned out in a figure of its own.
    """
    requests = [http_request("GET", "/user", Authorization=token) for token in seed.tokens]
    done: dict[int, list[tuple[Round, measures.Cpu]]] = {1: [], WORKERS: []}
    others: list[float] = []
    memory: list[Figure] = []
    for _ in range(rounds):
        for workers, results in done.items():
            with Service(home, workers=workers) as service:
                if workers > 1 and not memory:
                    memory = _memory(service)
                load = Load(service, folder / "workers.lua", requests, connections=CONNECTIONS)
                load.run(max(1, seconds // 2))  # warm
                time.sleep(measures.SETTLE)
                meanwhile = measures.Others(service)
                results.append(measures.one_round(service, load, seconds))
                others.append(meanwhile.processors())
    figures = _figures(done[1], done[WORKERS])
    return (
        figures + memory + measures.others_figures("workers", others),
        measures.others_notes("checks of two workers", others),
    )


def _figures(one: list[tuple[Round, measures.Cpu]], two: list[tuple[Round, measures.Cpu]]) -> list[Figure]:
    pairs = list(zip(one, two, strict=True))
    ratio = [b.per_second / a.per_second for (a, _), (b, _) in pairs]
    figures = [Figure("workers_ratio", "checks of two workers / of one process", ratio, "×", target=Target(1.7))]
    if processes.AVAILABLE:
        wrk = [b.cpu_seconds / b.seconds for b, _ in two]
        without = [r * cores() / (cores() - taken) for r, taken in zip(ratio, wrk, strict=True)]
        figures += [
            Figure("workers_ratio_without_wrk", "the same, had wrk a processor of its own (reckoned)", without, "×"),
            Figure("workers_wrk_share", "processors that wrk took beside two workers", wrk),
            Figure(
                "workers_postgres_share",
                "processors that Postgres took beside two workers",
                [cpu.postgres / b.seconds for b, cpu in two],
            ),
        ]
    for name, title, rows in (("one", "one process", one), ("two", "two workers", two)):
        figures += [
            Figure(f"{name}_rps", f"{title}, checks", [r.per_second for r, _ in rows], "/s", 0),
            Figure(f"{name}_p99", f"{title}, p99", [r.p99 for r, _ in rows], "ms"),
        ]
        if processes.AVAILABLE:
            cost = [cpu.server / r.requests * 1e6 for r, cpu in rows]
            figures.append(Figure(f"{name}_cpu", f"{title}, processor time of a check", cost, "µs", 0))
    return figures


def _memory(service: Service) -> list[Figure]:
    if not processes.AVAILABLE:
        return []
    each = [processes.pss_mb(pid) for pid in service.worker_pids]
    arbiter = processes.pss_mb(service.pid)
    return [
        Figure("arbiter_pss", "the process that looks after the workers, at rest (PSS)", [arbiter], "MB", 1),
        Figure("worker_pss", "a worker, at rest (PSS)", each, "MB", 1),
        Figure("workers_pss", "all three together", [arbiter + sum(each)], "MB", 1),
    ]
