"""What is measured, and how: each function returns the figures of one kind."""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import processes
from bench.hashing import hashes_per_second
from bench.pacer import pacing
from bench.report import Figure, Target
from bench.seed import Seed
from bench.service import Service
from bench.wrk import Load, Round, http_request

CHECK_CONNECTIONS = 32
LOGIN_CONNECTIONS = 16
STEADY_RATE = 200
# Between rounds: what the last one left behind is finished, also hashes whose clients have hung up.
SETTLE = 0.5
# Processors kept busy by others from which on a figure is called noisy.
DISTURBED = 0.15


def start_up(folder: Path, *, first: int, later: int) -> list[Figure]:
    """Seconds from the start of the process to the first 200 of `/health/ready`, on new and on used folders."""
    firsts, laters = [], []
    used = folder
    for _ in range(first):
        used = Path(tempfile.mkdtemp(dir=folder))
        with Service(used) as service:
            firsts.append(service.seconds_to_ready)
    for _ in range(later):
        with Service(used) as service:
            laters.append(service.seconds_to_ready)
    return [
        Figure("start_later", "ready, on a set-up folder", laters, "s", target=Target(3.0, at_most=True)),
        Figure("start_first", "ready, on an empty folder (initdb, migrations)", firsts, "s"),
    ]


def memory(service: Service, when: str) -> list[Figure]:
    """PSS of everything that runs, ``when``: at rest or after the load."""
    if not processes.AVAILABLE:
        return []
    postmaster = service.postgres.pid
    postgres = [postmaster, *processes.descendants(postmaster)]
    watcher = [pid for pid in processes.descendants(service.pid) if pid not in postgres]
    key = when.replace(" ", "_")
    target = Target(75.0, at_most=True) if when == "at rest" else None
    alone, pss = processes.pss_mb_alone(service.pid), processes.pss_mb(service.pid)
    return [
        Figure(f"pss_alone_{key}", f"the process, {when} (PSS, no other Python running)", [alone], "MB", 1, target),
        Figure(f"pss_{key}", f"the process, {when} (PSS, as it was here)", [pss], "MB", 1),
        Figure(
            f"postgres_pss_{key}",
            f"embedded Postgres, {when} (PSS of its {len(postgres)} processes)",
            [sum(map(processes.pss_mb, postgres))],
            "MB",
            1,
        ),
        Figure(f"watcher_pss_{key}", f"its watcher, {when} (PSS)", [sum(map(processes.pss_mb, watcher))], "MB", 1),
    ]


@dataclass(frozen=True)
class Cpu:
    """Processor seconds used until now, or during a round."""

    server: float
    postgres: float
    server_waited: float
    """How long the server was ready to run and had no processor: wrk and Postgres need some too."""

    @classmethod
    def of(cls, service: Service) -> "Cpu":
        if not processes.AVAILABLE:
            return cls(0, 0, 0)
        backends = processes.descendants(service.postgres.pid)
        return cls(
            sum(map(processes.cpu_seconds, {service.pid, *service.worker_pids})),
            sum(map(processes.cpu_seconds, backends)),
            processes.waiting_seconds(service.pid),
        )

    def since(self, before: "Cpu") -> "Cpu":
        return Cpu(
            self.server - before.server,
            self.postgres - before.postgres,
            self.server_waited - before.server_waited,
        )


class Others:
    """What other programs do meanwhile: an idle machine is rare, and noise should be seen as such."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._began, self._busy = time.perf_counter(), self._used()

    def processors(self) -> float:
        """How many processors they kept busy since this object was made."""
        return max(0.0, self._used() - self._busy) / (time.perf_counter() - self._began)

    def _used(self) -> float:
        if not processes.AVAILABLE:
            return 0.0
        ours, cpu = os.times(), Cpu.of(self._service)
        load = ours.user + ours.system + ours.children_user + ours.children_system
        return processes.machine_busy_seconds() - load - cpu.server - cpu.postgres


def others_figures(name: str, processors: list[float]) -> list[Figure]:
    """What `Others` saw in each round."""
    what = "processors that other programs kept busy"
    return [Figure(f"{name}_others", what, processors)] if processes.AVAILABLE else []


def others_notes(during: str, processors: list[float]) -> list[str]:
    """What to say about it, if it was much."""
    if max(processors) < DISTURBED:
        return []
    return [
        f"other programs kept up to {max(processors):.2f} processors busy during the {during}: "
        "those figures are noisy"
    ]


def one_round(service: Service, load: Load, seconds: int) -> tuple[Round, Cpu]:
    before = Cpu.of(service)
    done = load.run(seconds)
    return done, Cpu.of(service).since(before)


def checks(
    service: Service, seed: Seed, folder: Path, *, rounds: int, seconds: int
) -> tuple[list[Figure], list[str]]:
    """`GET /user` against `/ping`, in turn; also what is worth a note."""
    ping = Load(service, folder / "ping.lua", [http_request("GET", "/ping")], connections=CHECK_CONNECTIONS)
    requests = [http_request("GET", "/user", Authorization=token) for token in seed.tokens]
    check = Load(service, folder / "check.lua", requests, connections=CHECK_CONNECTIONS)
    for load in (ping, check):
        load.run(max(1, seconds // 2))  # warm
    pings: list[tuple[Round, Cpu]] = []
    looks: list[tuple[Round, Cpu]] = []
    others = []
    for _ in range(rounds):
        meanwhile = Others(service)
        for load, results in ((ping, pings), (check, looks)):
            time.sleep(SETTLE)
            results.append(one_round(service, load, seconds))
        others.append(meanwhile.processors())

    def ratios(of: str) -> list[float]:
        return [getattr(c, of) / getattr(p, of) for (p, _), (c, _) in zip(pings, looks, strict=True)]

    figures = [
        Figure("check_ratio", "checks / pings, per second", ratios("per_second"), "×", target=Target(0.7, aim=0.8)),
        Figure("check_p99_ratio", "p99 of a check / of a ping", ratios("p99"), "×", target=Target(2.0, at_most=True)),
    ]
    if processes.AVAILABLE:
        per_ping = [cpu.server / p.requests for p, cpu in pings]
        per_check = [cpu.server / c.requests for c, cpu in looks]
        cpu_ratio = [p / c for p, c in zip(per_ping, per_check, strict=True)]
        figures.append(Figure("check_cpu_ratio", "the same by the server's processor time", cpu_ratio, "×"))
    for name, rows in (("ping", pings), ("check", looks)):
        figures += [
            Figure(f"{name}_rps", f"{name}s", [r.per_second for r, _ in rows], "/s", 0),
            Figure(f"{name}_p50", f"{name}, p50", [r.p50 for r, _ in rows], "ms"),
            Figure(f"{name}_p99", f"{name}, p99", [r.p99 for r, _ in rows], "ms"),
        ]
        if processes.AVAILABLE:
            figures += [
                Figure(f"{name}_{who}_cpu", f"{name}, processor time of {title}", values, "µs", 0)
                for who, title, values in (
                    ("server", "the server", [cpu.server / r.requests * 1e6 for r, cpu in rows]),
                    ("postgres", "Postgres", [cpu.postgres / r.requests * 1e6 for r, cpu in rows]),
                    ("wrk", "wrk", [r.cpu_seconds / r.requests * 1e6 for r, _ in rows]),
                )
            ]
            waited = [cpu.server_waited / r.seconds * 100 for r, cpu in rows]
            figures.append(
                Figure(f"{name}_waited", f"{name}s, the server waited for a processor", waited, "% of time", 0)
            )
    return figures + others_figures("check", others), others_notes("session checks", others)


def logins(
    service: Service, seed: Seed, folder: Path, *, rounds: int, seconds: int
) -> tuple[list[Figure], list[str]]:
    """`POST /user` beside a steady load of checks, against threads that only hash; in turn."""
    requests = [
        http_request("POST", "/user", {"username": username, "password": password})
        for username, password in seed.logins
    ]
    login = Load(service, folder / "login.lua", requests, connections=LOGIN_CONNECTIONS)
    tokens = folder / "tokens"
    tokens.write_text("\n".join(seed.tokens), "ascii")
    login.run(1)  # warm
    bare, beside, done, steady, others = [], [], [], [], []
    for _ in range(rounds):
        meanwhile = Others(service)
        time.sleep(SETTLE)
        bare.append(hashes_per_second(seconds))
        time.sleep(SETTLE)
        # The steady load takes processor time too, its generator most of all: what is left of it for hashing.
        with pacing(service.port, tokens, rate=STEADY_RATE, seconds=seconds) as pacer:
            beside.append(hashes_per_second(seconds))
            pacer.result()
        time.sleep(SETTLE)
        with pacing(service.port, tokens, rate=STEADY_RATE, seconds=seconds) as pacer:
            done.append(login.run(seconds))
            steady.append(pacer.result())
        others.append(meanwhile.processors())

    def steady_ms(of: str, percent: int) -> list[float]:
        return [statistics.quantiles(getattr(s, of), n=100)[percent - 1] for s in steady]

    ratio = [r.per_second / b for r, b in zip(done, bare, strict=True)]
    fair = [r.per_second / b for r, b in zip(done, beside, strict=True)]
    under = f"{STEADY_RATE} checks/s beside the logins"
    figures = [
        Figure("login_ratio", "logins / bare Argon2id, both beside the checks", fair, "×", target=Target(0.9)),
        Figure("login_ratio_alone", "logins beside the checks / bare Argon2id alone", ratio, "×"),
        Figure(
            "steady_p99",
            f"{under}, p99 from when due",
            steady_ms("latencies", 99),
            "ms",
            target=Target(10.0, at_most=True),
        ),
        Figure("steady_p50", f"{under}, p50", steady_ms("latencies", 50), "ms"),
        Figure("steady_lateness_p99", "of which the generator itself was late, p99", steady_ms("lateness", 99), "ms"),
        Figure("hash_rps_beside", "bare Argon2id beside the checks", beside, "/s", 0),
        Figure("hash_rps", "bare Argon2id alone", bare, "/s", 0),
        Figure("login_rps", "logins", [r.per_second for r in done], "/s", 0),
        Figure("login_p50", "login, p50", [r.p50 for r in done], "ms", 0),
        Figure("login_p99", "login, p99", [r.p99 for r in done], "ms", 0),
    ]
    return figures + others_figures("login", others), others_notes("logins", others)
