"""Buckets of attempts in Postgres: exact whoever takes at once, by the database's clock, and bounded in space."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.config import ThrottleConfig
from gatepost.errors import TooManyAttempts
from gatepost.postgres.database import Connection, Database, Dsn, Statement
from gatepost.security import throttle
from gatepost.security.throttle import Bucket, Limit, Taken, Throttle
from tests.conftest import eventually, rows

DAY = 86400
HOUR = Limit("hour", 3, 3600)


def bucket(name: str, limit: Limit = HOUR) -> Bucket:
    return Bucket(hashlib.sha256(name.encode()).digest()[:16], limit)


async def passes(database: Database, *buckets: Bucket) -> bool:
    try:
        await database.read(throttle.take, buckets)
    except TooManyAttempts:
        return False
    return True


def later(dsn: Dsn, seconds: float) -> None:
    """As if this much time had passed: what is kept is a moment, so moving it back is the same."""
    rows(dsn, "UPDATE gatepost.throttles SET due = due - make_interval(secs => %s)", seconds)


@pytest.fixture
async def other_node(dsn: Dsn) -> AsyncIterator[Database]:
    database = await Database.open(dsn, 8)
    yield database
    await database.close()


async def test_a_burst_passes_and_then_one_each_interval(database: Database, dsn: Dsn) -> None:
    assert [await passes(database, bucket("a")) for _ in range(5)] == [True] * 3 + [False] * 2
    later(dsn, 3500)
    assert not await passes(database, bucket("a"))
    later(dsn, 100)
    assert [await passes(database, bucket("a")) for _ in range(2)] == [True, False]
    later(dsn, 10 * DAY)
    assert [await passes(database, bucket("a")) for _ in range(5)] == [True] * 3 + [False] * 2


async def test_by_default_20_pass_at_once_and_never_more_than_100_in_any_day(database: Database, dsn: Dsn) -> None:
    limit = Throttle(ThrottleConfig(), b"k").account
    passed: list[int] = []
    for minute in range(0, 2 * 24 * 60, 9):
        while await passes(database, bucket("a", limit)):
            passed.append(minute)
        later(dsn, 9 * 60)
    assert passed.count(0) == 20
    in_a_day = [sum(begin <= minute <= begin + 24 * 60 for minute in passed) for begin in range(24 * 60)]
    assert max(in_a_day) == 100


async def test_by_default_an_account_gets_five_names_at_once_and_then_one_a_day(database: Database, dsn: Dsn) -> None:
    passed: list[int] = []
    for hour in range(4 * 24):
        while await passes(database, *Throttle(ThrottleConfig(), b"k").for_rename("1")):
            passed.append(hour)
        later(dsn, 3600)
    assert passed == [0] * 5 + [24, 48, 72]


async def test_a_refused_attempt_writes_nothing_and_says_how_long_it_is(database: Database, dsn: Dsn) -> None:
    began = time.monotonic()
    await passes(database, bucket("a"), bucket("b"))
    while await passes(database, bucket("a")):
        pass
    before = rows(dsn, "SELECT xmin, xmax, ctid, * FROM gatepost.throttles ORDER BY key")
    with pytest.raises(TooManyAttempts) as refused:
        await database.read(throttle.take, [bucket("a"), bucket("b"), bucket("never seen")])
    assert rows(dsn, "SELECT xmin, xmax, ctid, * FROM gatepost.throttles ORDER BY key") == before
    assert began - time.monotonic() <= refused.value.seconds - 3600 <= 0
    assert refused.value.headers["Retry-After"] == str(refused.value.seconds)
    assert refused.value.headers["RateLimit"] == f'"hour";r=0;t={refused.value.seconds}'
    assert refused.value.headers["RateLimit-Policy"] == '"hour";q=3;w=10800'


async def test_of_two_refusing_buckets_the_longer_wait_is_reported(database: Database) -> None:
    short = Limit("short", 3, 600)
    while await passes(database, bucket("a"), bucket("b", short)):
        pass
    with pytest.raises(TooManyAttempts) as refused:
        await database.read(throttle.take, [bucket("b", short), bucket("a")])
    assert '"hour"' in refused.value.headers["RateLimit"]


async def test_many_at_once_through_two_nodes_get_exactly_what_there_is(
    database: Database, other_node: Database
) -> None:
    limit = Limit("x", 7, 3600)
    took = await asyncio.gather(*(passes(node, bucket("a", limit)) for node in (database, other_node) * 20))
    assert sum(took) == 7


async def test_who_is_refused_by_one_bucket_takes_nothing_from_another_also_when_all_come_at_once(
    database: Database, other_node: Database, dsn: Dsn
) -> None:
    """Each account has plenty; what they share has 5."""
    shared, own = bucket("shared", Limit("shared", 5, 3600)), Limit("own", 1000, 3600)
    names = [f"account {number % 4}" for number in range(40)]
    took = await asyncio.gather(
        *(passes((database, other_node)[n % 2], bucket(name, own), shared) for n, name in enumerate(names))
    )
    assert sum(took) == 5
    # The hours that each is ahead: all that was taken.
    taken = "SELECT sum(round(extract(epoch FROM due - now()) / 3600)) FROM gatepost.throttles WHERE key <> %s"
    assert rows(dsn, taken, shared.key) == [(5,)]


async def test_attempts_that_share_buckets_do_not_deadlock(database: Database, other_node: Database) -> None:
    many = Limit("many", 10_000, 1)
    buckets = [bucket(str(number), many) for number in range(6)]
    shares = [sorted(buckets[n % 6 :] + buckets[: n % 3]) for n in range(60)]
    took = await asyncio.gather(*(passes((database, other_node)[n % 2], *share) for n, share in enumerate(shares)))
    assert all(took)


@given(name=st.text(), place=st.none() | st.text(min_size=1), user_id=st.uuids().map(str), key=st.binary(max_size=32))
def test_buckets_come_in_the_order_of_their_keys_and_a_login_takes_from_the_accounts_own_first(
    name: str, place: str | None, user_id: str, key: bytes
) -> None:
    it = Throttle(ThrottleConfig(), key)
    login = it.for_login(name, place)
    of_user, of_place = (it.for_password, it.for_rename), (it.for_registration, it.for_code)
    for buckets in (login, *(of(user_id) for of in of_user), *(of(place) for of in of_place)):
        keys = [b.key for b in buckets]
        assert keys == sorted(set(keys))
    assert login[0].limit == it.account


async def test_what_is_given_back_can_be_taken_again(database: Database) -> None:
    _, taken = await database.read(throttle.take, [bucket("a"), bucket("b", Limit("b", 2, 600))])
    assert {b.key for b in taken.buckets} == {bucket("a").key, bucket("b").key}
    await database.write(throttle.give_back, {b.key: b.limit.every for b in taken.buckets})
    assert [await passes(database, bucket("a")) for _ in range(4)] == [True] * 3 + [False]
    assert [await passes(database, bucket("b", Limit("b", 2, 600))) for _ in range(3)] == [True] * 2 + [False]


async def test_the_attempt_that_is_the_last_knows_it(database: Database) -> None:
    for burst in (1, 2, 3):
        limit = HOUR._replace(burst=burst)
        of = [bucket(f"of {burst}", limit)]
        exhausted = [(await database.read(throttle.take, of))[1].exhausted for _ in range(burst)]
        assert exhausted == [*[[]] * (burst - 1), [limit]]


async def test_taking_does_not_wait_for_the_disk_and_what_comes_after_it_does(dsn: Dsn) -> None:
    database = await Database.open(dsn, 1)
    shown = Statement("SELECT current_setting('synchronous_commit')")
    async with database.transaction() as connection:
        await throttle.take(connection, [bucket("a")])
        assert await shown.first(connection) == ("off",)
    await database.read(throttle.take, [bucket("a")])
    assert await database.read(shown.first) == ("on",)
    await database.close()


async def test_a_take_finds_rows_by_the_key_and_updates_no_index_also_with_an_old_plan(
    dsn: Dsn,
) -> None:
    database = await Database.open(dsn, 1)
    vacuum(dsn)  # of a table that was never looked at, Postgres thinks more
    for _ in range(10):  # a plan is kept after a few
        await database.read(throttle.take, [bucket("a", Limit("x", 1000, 1))])
    fill(dsn, 20_000)
    seen = Statement(
        "SELECT pg_stat_get_xact_numscans(r), pg_stat_get_xact_tuples_updated(r), "
        "pg_stat_get_xact_tuples_hot_updated(r) FROM (SELECT CAST('gatepost.throttles' AS regclass) AS r) AS t"
    )
    async with database.transaction() as connection:
        for number in range(0, 20_000, 500):
            await throttle.take(connection, [Bucket(key(number), Limit("x", 10_000, 1))])
        whole_scans, updates, without_index = await seen.first(connection) or ()
        assert (whole_scans, updates) == (0, without_index)
        assert updates >= 40
    await database.close()


def vacuum(dsn: Dsn) -> None:
    connection = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        connection.autocommit = True
        connection.cursor().execute("VACUUM (ANALYZE) gatepost.throttles")
    finally:
        connection.close()


def key(number: int) -> bytes:
    return hashlib.md5(str(number).encode()).digest()


def fill(dsn: Dsn, count: int, ahead: str = "1 hour") -> None:
    rows(
        dsn,
        "INSERT INTO gatepost.throttles SELECT decode(md5(n::text), 'hex'), now() + %s::interval "
        "FROM generate_series(0, %s) n",
        ahead,
        count - 1,
    )


async def test_full_buckets_are_swept_in_small_batches_and_the_others_stay(
    database: Database, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(dsn, 5000, ahead="-1 second")
    for number in range(10):
        assert await passes(database, Bucket(key(number * 400), HOUR), bucket("new"))
        later_one = Bucket(key(number * 400), HOUR).key
        rows(dsn, "UPDATE gatepost.throttles SET due = now() + interval '1 hour' WHERE key = %s", later_one)
        rows(dsn, "DELETE FROM gatepost.throttles WHERE key = %s", bucket("new").key)
    statements = 0
    honest = throttle._sweep_pages

    async def counted(connection: Connection, first: int) -> tuple[int, int]:
        nonlocal statements
        statements += 1
        return await honest(connection, first)

    monkeypatch.setattr(throttle, "_sweep_pages", counted)
    monkeypatch.setattr(throttle, "PAGES", 7)
    assert await throttle.sweep(database) == 4990
    assert rows(dsn, "SELECT count(*) FROM gatepost.throttles") == [(10,)]
    assert statements >= 5


async def test_a_sweep_waits_for_no_login_and_two_nodes_do_not_sweep_at_once(database: Database, dsn: Dsn) -> None:
    fill(dsn, 20, ahead="-1 second")
    holder = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        cursor = holder.cursor()
        cursor.execute("SELECT FROM gatepost.throttles WHERE key = %s FOR UPDATE", [key(3)])
        await throttle.sweep(database)
        assert rows(dsn, "SELECT key = %s FROM gatepost.throttles", key(3)) == [(True,)]
        holder.rollback()
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [throttle._LOCK])
        await throttle.sweep(database)
        assert rows(dsn, "SELECT count(*) FROM gatepost.throttles") == [(1,)]
        holder.rollback()
    finally:
        holder.close()
    await throttle.sweep(database)
    assert rows(dsn, "SELECT count(*) FROM gatepost.throttles") == [(0,)]


async def test_taking_while_the_sweep_deletes_loses_nothing(
    database: Database, other_node: Database, dsn: Dsn
) -> None:
    limit = Limit("x", 3, 3600)
    for _ in range(10):
        rows(dsn, "TRUNCATE gatepost.throttles")
        fill(dsn, 200, ahead="-1 second")
        sweeps = [asyncio.create_task(throttle.sweep(database)) for _ in range(3)]
        took = await asyncio.gather(*(passes(other_node, Bucket(key(n % 5), limit)) for n in range(40)))
        await asyncio.gather(*sweeps)
        assert sum(took) == 15
        assert rows(dsn, "SELECT count(*) FROM gatepost.throttles WHERE due > now()") == [(5,)]


async def test_every_node_of_a_deployment_has_the_same_buckets_and_another_deployment_has_others(
    database: Database, dsn: Dsn
) -> None:
    one, other = [await Throttle.open(ThrottleConfig(), database) for _ in range(2)]
    assert one.for_login("ada", "203.0.113.0/24") == other.for_login("ada", "203.0.113.0/24")
    rows(dsn, "UPDATE gatepost.deployment_keys SET key = sha256('another')")
    third = await Throttle.open(ThrottleConfig(), database)
    keys = [{b.key for b in it.for_login("ada", "203.0.113.0/24")} for it in (one, third)]
    assert keys[0].isdisjoint(keys[1])


def test_each_kind_of_attempt_and_each_subject_has_a_bucket_of_its_own() -> None:
    it, here, there = Throttle(ThrottleConfig(), b"k" * 32), "203.0.113.0/24", "198.51.100.0/24"
    buckets = [
        *(b for name in ("ada", "bob") for b in it.for_login(name, None)),
        *(b for name in ("ada", "bob") for place in (here, there) for b in it.for_login(name, place)[2:]),
        *(b for place in (here, there) for b in it.for_login("ada", place)[1:2]),
        *it.for_password("1"),
        *it.for_password("2"),
        *(b for place in (here, there) for b in [*it.for_registration(place), *it.for_code(place)]),
        *(it.for_lookup(place) for place in (here, there)),
        *it.for_rename("1"),
        *it.for_rename("2"),
    ]
    assert len({b.key for b in buckets}) == len(buckets) == 18
    assert {len(b.key) for b in buckets} == {16}
    ranges = it.of_account(["ada"], "1")
    of_ada = [b for b in buckets if any(first <= b.key <= last for first, last in ranges)]
    assert of_ada == [buckets[0], buckets[2], buckets[3], buckets[8], buckets[16]]


def test_an_exempt_address_and_a_missing_one_have_no_place() -> None:
    it = Throttle(ThrottleConfig.model_validate({"exempt": ["10.0.0.0/8", "2001:db8::/32"]}), b"k")
    assert it.place_of("203.0.113.5") == "203.0.113.0/24"
    assert it.place_of("::ffff:203.0.113.5") == "203.0.113.0/24"
    for ip in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", None):
        assert it.place_of(ip) is None
    assert it.for_registration(None) == it.for_code(None) == []
    assert [b.limit.name for b in it.for_login("ada", None)] == ["account"]


async def test_charging_after_the_fact_tells_which_are_empty_and_for_how_long(database: Database) -> None:
    limit = Limit("x", 10, 3600)
    one, two, three = key(1), key(2), key(3)
    assert await database.write(throttle.charge, limit, {one: 9, two: 10, three: 500}) == pytest.approx(
        {two: 3600, three: 3600}, abs=100
    )
    assert await database.write(throttle.charge, limit, {one: 1, three: 1}) == pytest.approx(
        {one: 3600, three: 3600}, abs=100
    )


async def test_nothing_to_take_is_no_statement(database: Database) -> None:
    assert await database.read(throttle.take, []) == (None, Taken())


async def test_a_bucket_that_was_emptied_while_its_lock_was_waited_for_refuses(database: Database, dsn: Dsn) -> None:
    """Both found room; the second had to wait for the first, and then there was none."""
    once, began = Limit("once", 1, 3600), time.monotonic()
    holder = psycopg2.connect(**dsn.parameters(dsn.hosts[0]))
    try:
        cursor = holder.cursor()
        taken = "SELECT refusing, taken FROM gatepost.take(ARRAY[%s], ARRAY[1], ARRAY[3600])"
        cursor.execute(taken, [bucket("z", once).key])
        assert cursor.fetchall() == [(None, [1])]
        first = Bucket(bytes(16), Limit("first", 5, 3600))
        waiting = asyncio.create_task(database.read(throttle.take, [first, bucket("z", once)]))
        await eventually(lambda: bool(rows(dsn, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")))
        holder.commit()
    finally:
        holder.close()
    with pytest.raises(TooManyAttempts) as refused:
        await waiting
    assert '"once"' in refused.value.headers["RateLimit"]
    assert began - time.monotonic() <= refused.value.seconds - 3600 <= 0
    assert all([await passes(database, first) for _ in range(5)]), "what was taken from the other is given back"


async def test_after_the_clock_was_set_back_a_bucket_counts_for_no_more_than_its_burst(
    database: Database, dsn: Dsn
) -> None:
    quick = Limit("quick", 2, 0.05)
    for limit in (quick, HOUR):
        await passes(database, bucket(limit.name, limit))
    later(dsn, -3600)
    # Of three an hour apart it lacks two now, as if one more had been had.
    assert [await passes(database, bucket("hour")) for _ in range(3)] == [True, False, False]
    assert not await passes(database, bucket("quick", quick))
    async with asyncio.timeout(60):
        while not await passes(database, bucket("quick", quick)):
            await asyncio.sleep(0.01)
    later(dsn, -3600)
    blocked = await database.write(throttle.charge, quick, {bucket("quick").key: 1})
    assert blocked[bucket("quick").key] <= quick.every * quick.burst
