"""`make timing`: can failures be told apart by how long they take?

A real server answers thousands of requests of each kind, in random order, so that whatever else the machine does
falls on all kinds alike. For each pair of kinds, the AUC of the Mann-Whitney rank test is the chance that a request
of the one takes longer than one of the other: 0.5 where time tells nothing. With 3,000 of each kind its standard
error is 0.0075. Hashes are the cheapest that can be configured: nothing else is hidden behind them.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from bench.service import Service, ServiceError
from bench.simultaneous import AT_ONCE, COMMIT, delay_commits, measure_together
from gatepost.config import PasswordsConfig
from gatepost.mail.codes import hash_link
from gatepost.security.credentials import Credentials, Stored, foreign

LOWEST, HIGHEST = 0.47, 0.53
AT_ONCE_TITLE = f"{AT_ONCE} guesses at one name at once, each commit {COMMIT // 1000} ms late"
# More than hash at once on a small machine, so that every thread is busy and some wait.
CLIENTS = 8
NAMES = 50
CONFIGURATION = {
    "GATEPOST_PASSWORDS__MEMORY_KIB": "8192",
    "GATEPOST_PASSWORDS__ITERATIONS": "1",
    "GATEPOST_THROTTLE__MAIL_BURST": "1000000",
    "GATEPOST_THROTTLE__RECOVERY_BURST": "1000000",
}
# Of all limits the account's alone, and that is reached at once.
ONE_GUESS = {"GATEPOST_THROTTLE__ACCOUNT_BURST": "1", "GATEPOST_THROTTLE__ACCOUNT_EVERY": "86400"}
CHEAP = PasswordsConfig(memory_kib=8192, iterations=1)
BCRYPT = "$2b$06$X8c2tl5RM6wb9JFIqNFIfOqmUJIBkafdJPipifXm2DkHZiZPh6W4G"
PBKDF2 = "$pbkdf2-sha256$12000$KGWstXaO8X7PmRMCoPR.zw$fkp93WoIn.OBuAaJcjhksQlEpWvsCTDmPFliiMFGfb4"

RIGHT = "and this is the right"

# Makes the body of one more request of a kind.
Kind = Callable[[], dict[str, str]]


@dataclass(frozen=True)
class Group:
    """Kinds of request to one path that have to be alike. ``used_up``: prefixes of names that have no guess left."""

    title: str
    path: str
    kinds: Mapping[str, Kind]
    used_up: Sequence[str] = ()


def auc(one: Sequence[float], other: Sequence[float]) -> float:
    """The chance that a value of ``other`` is greater than one of ``one``; a tie counts half."""
    ordered = sorted(one)
    below = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in other)
    return below / 2 / len(one) / len(other)


# ------------------------------------------------------------------------------------------------ kinds


def _name(prefix: str) -> str:
    return f"{prefix}{random.randrange(NAMES):04}"


def _login(prefix: str, password: str = "not the right one %d") -> Kind:
    def kind() -> dict[str, str]:
        return {"username": _name(prefix), "password": password.replace("%d", f"{random.randrange(1000):03}")}

    return kind


def _address(prefix: str, password: str = "not the right one %d") -> Kind:
    login = _login(prefix, password)
    return lambda: (given := login()) | {"username": f"{given['username']}@example.org"}


def ours() -> Group:
    """Every stored hash is Gatepost's own."""
    kinds = {
        "unknown name": _login("nobody"),
        "wrong password": _login("person"),
        "disabled user, right password": _login("banned", RIGHT),
        "user without a password": _login("barred"),
        "impossible name": _login("no bod"),
        "impossible password": _login("person", "not the right\a %d"),
        "over-long password": _login("person", "x" * 3500),
        "unknown address": _address("nobody"),
        "address, wrong password": _address("person"),
        "unverified address": _address("barred"),
        "disabled user's address, right password": _address("banned", RIGHT),
    }
    return Group("Logins, every hash Gatepost's own", "/user", kinds)


def imported() -> Group:
    """Users were imported with hashes that take other times."""
    kinds = {
        "unknown name": _login("nobody"),
        "wrong password, own hash": _login("person"),
        "wrong password, bcrypt": _login("bcrypt"),
        "wrong password, PBKDF2": _login("pbkdf2"),
        "disabled user, bcrypt": _login("barcry"),
        "impossible name": _login("no bod"),
    }
    return Group("Logins, imported hashes of other kinds among Gatepost's own", "/user", kinds)


def refused() -> Group:
    """Names that have no guess left: nothing is hashed that could hide a difference."""
    # An impossible name is seen to be one by its sender: without a hash, it is the time of looking at its text.
    prefixes = {
        "unknown name": "nobody",
        "known name": "person",
        "disabled user": "banned",
        "user without a password": "barred",
    }
    kinds = {kind: _login(prefix) for kind, prefix in prefixes.items()}
    return Group("Logins that a throttle refuses", "/user", kinds, tuple(prefixes.values()))


def recovery(what: str, domain: str) -> Group:
    """Asking for a way back, whoever that is for."""

    def asking(prefix: str) -> Kind:
        return lambda: {"identifier": _name(prefix) + domain}

    kinds = {
        f"unknown {what}": asking("nobody"),
        f"{what} of a user with a verified address": asking("person"),
        f"{what} of a disabled user": asking("banned"),
        f"{what} of a user whose address is not verified": asking("barred"),
    }
    return Group(f"Asking for a way back, by {what}", "/account/recovery", kinds)


def codes() -> Group:
    """Codes for a new password that are worth nothing."""

    def code(prefix: str) -> Kind:
        return lambda: {"code": _name(prefix), "new": "a password for the time to come"}

    # Whoever has a code that is still good is told apart from a guesser: he has no need to guess.
    kinds = {"never issued": code("nobody"), "expired": code("person")}
    return Group("Codes for a new password", "/account/password/redeem", kinds)


# ------------------------------------------------------------------------------------------------- people


def plant(service: Service, hashes: Mapping[str, Stored | None]) -> None:
    """``NAMES`` users for each prefix, with this password, an expired code and an address; those of "banned" and
    "barcry" are disabled, and the addresses of "barred" are not verified.
    """
    dsn = service.dsn
    with closing(psycopg2.connect(**dsn.parameters(dsn.hosts[0]))) as connection, connection:
        cursor = connection.cursor()
        for prefix, stored in hashes.items():
            names = [f"{prefix}{number:04}" for number in range(NAMES)]
            disabled = prefix in {"banned", "barcry"}
            for name in names:
                cursor.execute(
                    "INSERT INTO gatepost.users (username, canonical, disabled_at) "
                    "VALUES (%s, %s, CASE WHEN %s THEN now() END) RETURNING id",
                    (name, name, disabled),
                )
                [(user,)] = cursor.fetchall()
                cursor.execute(
                    "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at) "
                    "VALUES (%s, %s, now() - interval '1 day')",
                    (user, hash_link(name)),
                )
                cursor.execute(
                    "INSERT INTO gatepost.emails (user_id, address, canonical, verified_at, is_primary) "
                    "VALUES (%s, %s, %s, CASE WHEN %s THEN now() END, %s)",
                    (user, f"{name}@example.org", f"{name}@example.org", prefix != "barred", prefix != "barred"),
                )
                if stored is not None:
                    cursor.execute(
                        "INSERT INTO gatepost.passwords (user_id, setting, digest, norm) VALUES (%s, %s, %s, %s)",
                        (user, stored.setting.phc, stored.digest, stored.norm),
                    )
        cursor.execute("ANALYZE")


async def _own_hash() -> Stored:
    credentials = Credentials(CHEAP, bytes(32))
    try:
        return await credentials.create(RIGHT)
    finally:
        credentials.close()


# ----------------------------------------------------------------------------------------------- requests


class Connection:
    """HTTP by hand, over one connection: what is timed is the server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ask(self, path: str, document: object) -> tuple[float, bytes]:
        """Seconds until the whole answer was there; its status line and body."""
        body = json.dumps(document).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: gatepost\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        began = time.perf_counter()
        self._socket.sendall(request)
        answer = b""
        while not (end := answer.find(b"\r\n\r\n") + 4) > 3 or len(answer) < end + _length(answer[:end]):
            answer += self._socket.recv(65536) or _broken_off()
        return time.perf_counter() - began, answer.split(b"\r\n", 1)[0] + answer[end:]


def _length(head: bytes) -> int:
    return int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


def _broken_off() -> bytes:
    raise ServiceError("the service closed the connection")


def use_up(port: int, group: Group) -> None:
    """Guess wrong once at each name of the group that is to have no guess left."""
    with closing(Connection(port)) as connection:
        for prefix in group.used_up:
            for number in range(NAMES):
                connection.ask("/user", {"username": f"{prefix}{number:04}", "password": "not the right one"})


def measure(port: int, group: Group, requests: int, clients: int) -> dict[str, list[float]]:
    """Seconds of each request, by kind. Raises ServiceError when two answers differ."""
    order = [name for name in group.kinds for _ in range(requests)]
    random.shuffle(order)
    turns: Iterator[str] = iter(order)
    turn = threading.Lock()
    seconds: dict[str, list[float]] = {name: [] for name in group.kinds}
    answers: set[bytes] = set()

    def client() -> None:
        with closing(Connection(port)) as connection:
            while True:
                with turn:
                    name = next(turns, None)
                if name is None:
                    return
                took, answer = connection.ask(group.path, group.kinds[name]())
                answers.add(answer)
                seconds[name].append(took)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) != 1 or len(order) != sum(map(len, seconds.values())):
        raise ServiceError(f"the answers to {group.path} differ, or some are missing: {sorted(answers)}")
    return seconds


# -------------------------------------------------------------------------------------------------- report


def matrix(alone: Mapping[str, Sequence[float]], busy: Mapping[str, Sequence[float]]) -> tuple[str, list[float]]:
    """A table in Markdown: for each pair the AUC at one client and at saturation; and all of the figures."""
    names = list(alone)
    lines = ["| | median, ms | " + " | ".join(names[1:]) + " |", "|---|---|" + "---|" * (len(names) - 1)]
    figures: list[float] = []
    for row, name in enumerate(names):
        cells = []
        for column in range(1, len(names)):
            if column <= row:
                cells.append("")
                continue
            pair = [auc(of[name], of[names[column]]) for of in (alone, busy)]
            figures += pair
            cells.append(" / ".join(f"{value:.3f}" for value in pair))
        medians = " / ".join(f"{statistics.median(of[name]) * 1000:.2f}" for of in (alone, busy))
        lines.append(f"| {name} | {medians} | " + " | ".join(cells) + " |")
    return "\n".join(lines), figures


def _run(requests: int, only: str) -> list[float]:
    own = asyncio.run(_own_hash())
    shared: dict[str, Stored | None] = {"person": own, "banned": own, "barred": None}
    others: dict[str, Stored | None] = {
        "bcrypt": foreign.read(BCRYPT),
        "pbkdf2": foreign.read(PBKDF2),
        "barcry": foreign.read(BCRYPT),
    }
    figures: list[float] = []
    print(f"{requests:,} requests of each kind: at one client / at {CLIENTS}, hashing threads all busy.")
    # Not below a folder that only root can enter, since Postgres runs as somebody else then.
    with tempfile.TemporaryDirectory(prefix="gatepost-timing-") as name:
        for hashes, limits, groups in (
            (shared, {}, [codes(), recovery("name", ""), recovery("address", "@example.org"), ours()]),
            (others, {}, [imported()]),
            ({}, ONE_GUESS, [refused()]),  # the last: its names have no guess left for a day
        ):
            variables = CONFIGURATION | {"GATEPOST_MAIL__DIRECTORY": f"{name}/mail"}
            with Service(Path(name), variables) as service:
                plant(service, hashes)
            # Started anew: which kinds are stored is learned at the start, and looked at every five minutes.
            with Service(Path(name), variables | limits) as service:
                for group in [group for group in groups if only in group.title]:
                    use_up(service.port, group)
                    measure(service.port, group, 50, CLIENTS)
                    began = time.monotonic()
                    alone, busy = (measure(service.port, group, requests, clients) for clients in (1, CLIENTS))
                    table, found = matrix(alone, busy)
                    figures += found
                    print(f"\n{group.title}\n\n{table}", flush=True)
                    print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr)
            if groups[-1].title == ours().title and only in AT_ONCE_TITLE:
                figures += _at_once(Path(name), requests)
    return figures


def _at_once(folder: Path, requests: int) -> list[float]:
    kinds = {"unknown name": _login("nobody"), "known name": _login("person"), "disabled user": _login("banned")}
    delay_commits(folder, COMMIT)
    with Service(folder, CONFIGURATION) as service:
        rounds = max(requests // AT_ONCE, 1)
        seconds = measure_together(lambda: Connection(service.port), "/user", kinds, rounds)
    delay_commits(folder, 0)
    table, figures = matrix(seconds, seconds)
    print(f"\n{AT_ONCE_TITLE} (twice the same)\n\n{table}")
    return figures


def main() -> int:
    """Measure and print; 1 when a pair can be told apart."""
    parser = argparse.ArgumentParser(prog="python -m bench.timing", description=__doc__)
    parser.add_argument("--requests", type=int, default=3000, help="of each kind (default: 3000)")
    parser.add_argument("--only", default="", help="groups whose titles contain this, for example `own`")
    options = parser.parse_args()
    try:
        figures = _run(options.requests, options.only)
    except ServiceError as error:
        print(f"timing: {error}", file=sys.stderr)
        return 1
    apart = [figure for figure in figures if not LOWEST <= figure <= HIGHEST]
    print(
        f"\n{len(figures)} figures lie between {min(figures):.3f} and {max(figures):.3f}; "
        f"{len(apart)} of them outside of {LOWEST} to {HIGHEST}."
    )
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
