"""A million users: how fast they are brought along, and what a page of them costs."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg2.extensions

from bench.report import Figure, Target
from bench.service import Service, ServiceError
from gatepost.admin import queries as admin
from gatepost.postgres.database import Statement
from gatepost.sessions import queries as sessions

# Of one password, in the form and at the costs of our own.
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$" + "A" * 43
REPEATS = 5


def import_users(service: Service, folder: Path, count: int) -> list[Figure]:
    """Users a second, and the greatest memory of the process that imports."""
    file = folder / "users.jsonl"
    with file.open("w") as lines:
        for number in range(count):
            roles = ["editor"] if number % 1000 == 0 else []
            lines.write(json.dumps({"username": f"{number * 2654435761 % 2**32:08x}", "hash": HASH, "roles": roles}))
            lines.write("\n")
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "gatepost", "user", "import", str(file)],
        env=service.environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ServiceError(f"the import ended with {process.returncode}: {said[-300:]!r}")
    megabytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return [
        Figure("import_rate", f"users a second ({count:,} in one file)", [count / seconds], "/s", 0, Target(20_000)),
        Figure("import_memory", "the importing process at most (RSS)", [megabytes], "MB", 0),
    ]


def pages(service: Service) -> list[Figure]:
    """Milliseconds in Postgres (planning and execution) of each list, which must not read a whole table."""
    with service.connected() as cursor:
        cursor.execute("UPDATE gatepost.users SET disabled_at = now() WHERE canonical < '002'")
        cursor.execute("VACUUM ANALYZE gatepost.users, gatepost.passwords, gatepost.sessions, gatepost.events")
        cursor.execute("SELECT user_id::text FROM gatepost.sessions GROUP BY 1 ORDER BY count(*), 1 LIMIT 1")
        (holder,) = cursor.fetchone()
        cursor.execute(
            "DELETE FROM gatepost.sessions WHERE user_id = %s AND token_hash NOT IN "
            "(SELECT token_hash FROM gatepost.sessions WHERE user_id = %s LIMIT 10)",
            [holder, holder],
        )
        return [
            *(_figure(cursor, f"50 users, {name}", admin._PAGE, **given) for name, given in _PAGES.items()),
            _figure(cursor, "10 sessions of one user", sessions._SESSIONS_OF, user_id=holder, idle_timeout=10**6),
        ]


_ALL: dict[str, Any] = {"after": "", "prefix": "", "role": None, "disabled": None, "most": 51}
_PAGES: dict[str, dict[str, Any]] = {
    "the first": _ALL,
    "from the middle": _ALL | {"after": "8"},
    "by prefix": _ALL | {"prefix": "abc"},
    "with a role": _ALL | {"role": "editor"},
    "disabled": _ALL | {"disabled": True},
}


def _figure(cursor: psycopg2.extensions.cursor, what: str, statement: Statement, **parameters: Any) -> Figure:
    values = []
    for _ in range(REPEATS):
        cursor.execute("EXPLAIN (ANALYZE) " + statement.sql, {**statement._defaults, **parameters})
        plan = "\n".join(row[0] for row in cursor.fetchall())
        if "Seq Scan" in plan:
            raise ServiceError(f"{what}: a whole table is read:\n{plan}")
        values.append(sum(float(ms) for ms in re.findall(r"(?:Planning|Execution) Time: ([\d.]+)", plan)))
    return Figure("page_" + re.sub(r"\W+", "_", what), what, values, "ms", target=Target(5.0, at_most=True))
