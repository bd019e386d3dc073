"""`python -m bench`."""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from bench import mail, measures, overload, population, report, rows, seed, verifier, workers, wrk
from bench.report import Figure
from bench.service import Service, ServiceError


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=4, help="of one round of load (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of rounds of each kind (default: 5)")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test of some 20 seconds; its figures mean little"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there as well")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 1, 2
    if options.seconds < 1 or options.rounds < 1:
        parser.error("--seconds and --rounds must be at least 1")
    return options


def _measure(seconds: int, rounds: int, *, quick: bool) -> tuple[dict[str, list[Figure]], list[str]]:
    # Not below a folder that only root can enter, since Postgres runs as somebody else then.
    with tempfile.TemporaryDirectory(prefix="gatepost-bench-") as name:
        folder = Path(name)
        _say("start-up …")
        start = measures.start_up(folder, first=1 if quick else 3, later=1 if quick else 5)
        (home := folder / "loaded").mkdir()
        with Service(home):
            pass
        with Service(home) as service:
            memory = measures.memory(service, "at rest")
            planted = seed.plant(service)
            _say("session checks …")
            checks, notes = measures.checks(service, planted, folder, rounds=rounds, seconds=seconds)
            _say("logins …")
            logins, more = measures.logins(service, planted, folder, rounds=rounds, seconds=seconds)
            memory += measures.memory(service, "after the load")
            _say("a flood of logins …")
            flood, still_more = overload.overload(service, planted, folder)
        with Service(home, verifier.ROOM) as service:
            _say("services behind it …")
            listeners = 100 if quick else verifier.LISTENERS
            behind, notes_behind = verifier.verifiers(
                service, planted, folder, rounds=rounds, seconds=seconds, listeners=listeners
            )
        _say("two workers …")
        several, and_more = workers.checks(home, planted, folder, rounds=rounds, seconds=seconds)
        count = 20_000 if quick else 1_000_000
        with mail.sink() as port, Service(home, mail.variables(port)) as service:
            _say("mail …")
            sent = mail.mail(service, planted, folder, count=500 if quick else mail.MAILS)
        with Service(home) as service:
            _say("row-level security …")
            policies = rows.policies(service, planted, rounds=rounds, count=count)
            _say("a million users …")
            imported = population.import_users(service, folder, count)
            pages = population.pages(service)
    groups = {
        f"Session checks ({measures.CHECK_CONNECTIONS} connections, {seed.SESSIONS:,} tokens)": checks,
        f"Logins ({measures.LOGIN_CONNECTIONS} connections)": logins,
        f"Under a flood of logins ({overload.STEADY_RATE} checks/s beside it)": flood,
        f"Two workers ({workers.CONNECTIONS} connections, {seed.SESSIONS:,} tokens)": several,
        **behind,
        f"Mail, through an SMTP server beside it ({mail.STEADY_RATE} checks/s meanwhile)": sent,
        f"Row-level security ({count:,} rows)": policies,
        "Memory": memory,
        "Import": imported,
        f"Lists, in Postgres ({count:,} users)": pages,
        "Start-up": start,
    }
    return groups, [*notes, *more, *still_more, *notes_behind, *and_more]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _terminated(_signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)  # through every `finally`: nothing is left running


def main() -> int:
    """Measure, print, save. Figures that miss their target are shown, and are no failure of the benchmark."""
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    os.umask(0o077)
    try:
        wrk.require()
        groups, notes = _measure(options.seconds, options.rounds, quick=options.quick)
    except (wrk.MissingTool, ServiceError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.quick:
        notes.append("a quick run: these figures say that the benchmark works, and little else")
    report.show(groups, notes)
    chosen = {"seconds": options.seconds, "rounds": options.rounds}
    print(f"Saved: {report.save(groups, notes, chosen, options.json)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
