"""Fill the configured database with a month as a small company has it, to have something to look at: `make demo`.

Users have no passwords, so nobody can sign in as one of them. Never run it on a database that you need.
"""

from gatepost.config import Config
from gatepost.pages.operator.queries import count_all
from gatepost.postgres.database import Connection, Database, Statement
from gatepost.process.console import with_database

DAYS, USERS, SIGN_INS = 30, 240, 1500

_USERS = Statement("""
    WITH made AS (
        INSERT INTO gatepost.users (username, canonical, roles, created_at)
        SELECT name, name, CASE WHEN n % 20 = 0 THEN '{staff}'::text[] ELSE '{}' END,
            clock_timestamp() - make_interval(days => :days) * sqrt(n::float / :users)
        FROM (SELECT n, 'demo-' || lpad(n::text, 4, '0') AS name FROM generate_series(1, :users) AS n) AS named
        ON CONFLICT DO NOTHING RETURNING id, created_at
    )
    INSERT INTO gatepost.events (kind, user_id, at) SELECT 'user_created', id, created_at FROM made
    RETURNING 1
""")

# Most people sign in about noon, fewer at the weekend; one in twelve mistypes, and once a week somebody guesses.
_DAY = Statement("""
    WITH people AS (SELECT array_agg(id) AS ids FROM gatepost.users), day AS (
        SELECT date_trunc('day', clock_timestamp()) - make_interval(days => :day) AS begins
    ), tries AS (
        SELECT begins + interval '24 hours' * (random() + random() + random()) / 3 AS at, random() AS luck,
            people.ids[1 + floor(random() * cardinality(people.ids))::int] AS who
        FROM day, people, generate_series(1, (:number
            * CASE WHEN extract(isodow FROM begins) > 5 THEN 0.3 ELSE 1 END)::int)
    ), guesses AS (
        SELECT begins + interval '2 hours' + interval '20 minutes' * random() AS at, n
        FROM day, generate_series(1, CASE WHEN :day % 7 = 3 THEN 300 ELSE 0 END) AS n
    )
    INSERT INTO gatepost.events (kind, user_id, at, ip, detail)
    SELECT CASE WHEN luck < 0.08 THEN 'authn_login_fail' ELSE 'authn_login_success' END, who, at, inet '203.0.113.7',
        CASE WHEN luck < 0.08 THEN '{"reason": "wrong_password"}'::jsonb ELSE '{}' END
    FROM tries WHERE at < clock_timestamp()
    UNION ALL
    SELECT CASE WHEN n % 10 = 0 THEN 'authn_login_fail_max' ELSE 'authn_login_fail' END, NULL, at,
        inet '198.51.100.9', '{"reason": "unknown_user"}'::jsonb
    FROM guesses WHERE at < clock_timestamp()
    RETURNING 1
""")
# The number of sessions follows the sign-ins only slowly. Guesses make hashes wait.
_GAUGES = Statement("""
    WITH hours AS (
        SELECT h, date_trunc('hour', clock_timestamp() - make_interval(hours => h), 'UTC') AS at
        FROM generate_series(0, :days * 24) AS h
    )
    INSERT INTO gatepost.gauge_peaks (span, at, name, peak)
    SELECT 'hour', at, 'live_sessions',
        (900 - h / 2 + 120 * sin(extract(hour FROM at) / 24 * pi()) + 20 * random())::int
    FROM hours
    UNION ALL
    SELECT 'hour', at, 'hashes_waiting', (1 + 30 * random())::int
    FROM hours WHERE (h / 24) % 7 = 3 AND extract(hour FROM at) = 2
    UNION ALL
    SELECT 'minute', date_trunc('minute', clock_timestamp() - make_interval(mins => m), 'UTC'), 'live_sessions',
        (950 + 10 * random())::int
    FROM generate_series(0, 59) AS m
    ON CONFLICT (span, at, name) DO UPDATE SET peak = excluded.peak
    RETURNING 1
""")
_COUNT_ANEW = Statement("""
    WITH gone AS (DELETE FROM gatepost.event_counts)
    UPDATE gatepost.event_counts_until
    SET at = date_trunc('day', clock_timestamp() - make_interval(days => :days + 1), 'UTC')
    RETURNING 1
""")


async def _users(connection: Connection) -> None:
    await _USERS.all(connection, days=DAYS, users=USERS)


async def _day(connection: Connection, day: int) -> None:
    await _DAY.all(connection, day=day, number=SIGN_INS)


async def _gauges(connection: Connection) -> None:
    await _GAUGES.all(connection, days=DAYS)


async def _count_anew(connection: Connection) -> None:
    await _COUNT_ANEW.all(connection, days=DAYS)


async def fill(database: Database) -> None:
    """A month of users, sign-ins and guesses, counted as the overview needs it."""
    await database.write(_users)
    for day in range(DAYS + 1):
        await database.write(_day, day)
    await database.write(_gauges)
    await database.write(_count_anew)
    await count_all(database)


if __name__ == "__main__":
    with_database(Config.load(), fill)
    print(f"{DAYS} days, {USERS} users: look at /operator")  # noqa: T201
