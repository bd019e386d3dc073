"""Row-level security with `gatepost.user_id()`, beside the same policy with a constant."""

import time

import psycopg2.extensions

from bench.report import Figure, Target
from bench.seed import Seed
from bench.service import Service

OWNERS = 1000
# Each beside a policy with a constant: how often it is asked in a round, and what.
_QUERIES = {
    "all": (1, "all rows, without an index", "SELECT count(*) FROM public.{table} WHERE text <> ''"),
    "own": (30, "one's own, 1 in 1,000 rows", "SELECT count(*) FROM public.{table} WHERE text <> ''"),
    "few": (300, "one's own newest 20 rows", "SELECT id, text FROM public.{table} ORDER BY id DESC LIMIT 20"),
}

_TABLES = ("constant", "signed_in")
# FORCE: the policies hold for the tables' owner too, who asks here.
_FILL = """
CREATE TABLE public.constant AS
    SELECT n AS id, owners[1 + n %% cardinality(owners)] AS owner, 'note ' || n AS text
    FROM generate_series(1, %(count)s) AS n, (
        SELECT ARRAY[%(me)s::uuid] || array_agg(gen_random_uuid()) AS owners FROM generate_series(2, %(owners)s)
    ) AS given;
CREATE TABLE public.signed_in AS TABLE public.constant;
CREATE POLICY own ON public.constant USING (owner = %(me)s::uuid);
CREATE POLICY own ON public.signed_in USING (owner = (SELECT gatepost.user_id()));
ALTER TABLE public.constant ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE public.signed_in ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
"""


def policies(service: Service, planted: Seed, *, rounds: int, count: int) -> list[Figure]:
    """What a query takes under each policy, in turns, over ``count`` rows."""
    token = planted.tokens[0]
    with service.connected() as cursor:
        cursor.execute("SET search_path = public")
        cursor.execute("SELECT gatepost.sign_in_as(%s)", [token])
        (me,) = cursor.fetchone()
        cursor.execute(_FILL, {"me": me, "count": count, "owners": OWNERS})
        for table in _TABLES:
            cursor.execute(f"VACUUM ANALYZE public.{table}")
        figures = [_ratio(cursor, token, "all", rounds)]
        for table in _TABLES:
            cursor.execute(f"CREATE INDEX ON public.{table} (owner, id)")
        figures += [_ratio(cursor, token, name, rounds) for name in ("own", "few")]
        signing = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(200):
                cursor.execute("BEGIN")
                cursor.execute("SELECT gatepost.sign_in_as(%s)", [token])
                cursor.execute("COMMIT")
            signing.append((time.perf_counter() - began) / 200 * 1000)
        figures.append(Figure("sign_in_as", "a transaction with nothing but sign_in_as", signing, "ms"))
        cursor.execute("DROP TABLE public.constant, public.signed_in")
    return figures


def _ratio(cursor: psycopg2.extensions.cursor, token: str, name: str, rounds: int) -> Figure:
    times, what, sql = _QUERIES[name]
    ratios = []
    for number in range(rounds + 1):
        seconds = [_seconds(cursor, token, sql.format(table=table), times) for table in _TABLES]
        if number:  # the first fills caches
            ratios.append(seconds[1] / seconds[0])
    return Figure(f"policy_{name}", f"user_id() / a constant: {what}", ratios, target=Target(1.1, at_most=True))


def _seconds(cursor: psycopg2.extensions.cursor, token: str, sql: str, times: int) -> float:
    cursor.execute("BEGIN")
    cursor.execute("SELECT gatepost.sign_in_as(%s)", [token])
    began = time.perf_counter()
    for _ in range(times):
        cursor.execute(sql)
        assert cursor.fetchone() is not None
    seconds = time.perf_counter() - began
    cursor.execute("ROLLBACK")
    return seconds
