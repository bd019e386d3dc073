"""When a login is answered, by what is stored. Nothing here is timed against the wall: that is `make timing`."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from bench import timing
from bench.service import ServiceError

from gatepost.config import Config, ThrottleConfig
from gatepost.postgres.database import Database, Dsn
from gatepost.security.credentials import Credentials, Setting, Stored, foreign, hashing
from gatepost.security.credentials.hashing import Derived, Hasher
from gatepost.security.credentials.kinds import parse, setting_of, with_salt
from gatepost.security.credentials.population import Population, stored_schemes
from tests.conftest import CHEAP, PASSWORD, UNLIMITED, Client, StartServer, log_in, register, rows
from tests.test_imported_hashes import MADE, TYPED, put

OURS = "$argon2id$v=19$m=8192,t=1,p=1"
BCRYPT, SLOWER_BCRYPT = "$2b$04", "$2b$05"
PBKDF2 = "$pbkdf2-sha256$1000"


@pytest.fixture
def population() -> Population:
    return Population(b"k" * 32, with_salt(OURS, bytes(16)))


@pytest.fixture
def hasher() -> Iterator[Hasher]:
    it = Hasher(1, 10, 2)
    yield it
    it.close()


def slow(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Hashes that take as long as is said, without taking it."""

    def derive(kind: object, _secret: Callable[[], bytes]) -> Derived:
        return Derived(bytes(32), 1000.0, seconds[kind.scheme])  # type: ignore[attr-defined]

    monkeypatch.setattr(hashing, "derive", derive)


async def test_nothing_is_delayed_while_all_hashes_are_ours_and_of_the_current_costs(
    population: Population, hasher: Hasher
) -> None:
    ours = population.dummy("nobody")
    for schemes in ({}, {OURS: 1_000_000}):
        await population.learn(schemes, hasher)
        assert population.dummy("nobody") == ours
        assert population.failure_due(ours, Derived(bytes(32), 1000.0, 0.3)) == 0


async def test_dummies_are_spread_as_the_stored_kinds_are_and_each_name_keeps_its_own(
    population: Population, hasher: Hasher
) -> None:
    await population.learn({OURS: 500, BCRYPT: 300, PBKDF2: 200}, hasher)
    drawn = {name: population.dummy(name) for name in map(str, range(3000))}
    share = Counter(kind.scheme for kind in drawn.values())
    assert share.keys() == {OURS, BCRYPT, PBKDF2}
    assert 1350 < share[OURS] < 1650
    assert 780 < share[BCRYPT] < 1020
    other_node = Population(b"k" * 32, with_salt(OURS, bytes(16)))
    await other_node.learn({PBKDF2: 200, BCRYPT: 300, OURS: 500}, hasher)
    assert all(other_node.dummy(name) == kind for name, kind in drawn.items())
    assert len({kind.salt for kind in drawn.values()}) == len(drawn)


async def test_lost_logins_of_every_kind_are_answered_at_one_moment_not_before_the_slowest(
    population: Population, hasher: Hasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {OURS: 0.02, BCRYPT: 0.1, SLOWER_BCRYPT: 0.2, PBKDF2: 0.05}
    slow(monkeypatch, seconds)
    await population.learn({OURS: 1, BCRYPT: 1, SLOWER_BCRYPT: 1, PBKDF2: 1}, hasher)
    due = {
        population.failure_due(with_salt(scheme, bytes(16)), Derived(b"", 1000.0, took))
        for scheme, took in seconds.items()
    }
    assert len(due) == 1
    assert due.pop() >= 1000.2
    # On a busy machine one takes longer than that: it too waits for a moment that is common to all.
    late = population.failure_due(with_salt(OURS, bytes(16)), Derived(b"", 1000.0, 0.3))
    assert late == pytest.approx(1000.0 + 2 * 0.25)


async def test_a_kind_imported_since_the_last_look_counts_from_its_first_login(
    population: Population, hasher: Hasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await population.learn({OURS: 1}, hasher)
    assert not population.stale
    bcrypt, ours = with_salt(BCRYPT, bytes(16)), with_salt(OURS, bytes(16))
    population.failure_due(bcrypt, Derived(b"", 1000.0, 0.1))
    assert population.stale
    assert population.failure_due(ours, Derived(b"", 1000.0, 0.02)) >= 1000.1


async def test_when_the_last_foreign_hash_is_gone_nothing_waits_any_more(
    population: Population, hasher: Hasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, {OURS: 0.02, BCRYPT: 0.1})
    ours = Derived(b"", 1000.0, 0.02)
    await population.learn({OURS: 9, BCRYPT: 1}, hasher)
    assert population.failure_due(population.dummy("x"), ours) > 1000.09
    await population.learn({OURS: 10}, hasher)
    assert population.failure_due(population.dummy("x"), ours) == 0


async def test_stored_schemes_are_found_however_rare_and_hostile_ones_are_no_dummies(
    dsn: Dsn, database: Database, population: Population, hasher: Hasher
) -> None:
    rows(dsn, "ALTER TABLE gatepost.passwords DROP CONSTRAINT passwords_setting_known_check")
    for number in range(40):
        put(dsn, f"b{number}", foreign.read(MADE["bcrypt 2b"]))
    put(dsn, "rare", foreign.read(MADE["Django scrypt"]))
    put(dsn, "hostile", Stored(Setting("$2b$31$" + "A" * 22, None), bytes(32)))
    schemes = await database.read(stored_schemes)
    assert schemes == {BCRYPT: 40, "$scrypt$ln=10,r=8,p=1,l=64": 1, "$2b$31": 1}
    await population.learn(schemes, hasher)
    assert {population.dummy(str(n)).scheme for n in range(500)} == {BCRYPT, "$scrypt$ln=10,r=8,p=1,l=64"}


async def test_many_kinds_among_many_users_are_found_by_the_index(dsn: Dsn, database: Database) -> None:
    rows(
        dsn,
        "WITH u AS (INSERT INTO gatepost.users (username, canonical) SELECT n, n FROM generate_series(1, 20000) n "
        "RETURNING id, canonical::int AS n) INSERT INTO gatepost.passwords (user_id, setting, digest, norm) "
        "SELECT id, '$pbkdf2-sha256$' || 1000 + mod(n, 150) || '$' || repeat('A', 22), sha256(''), 'raw' FROM u",
    )
    rows(dsn, "ANALYZE gatepost.passwords")
    assert len(await database.read(stored_schemes)) == 150
    plan = rows(
        dsn,
        "EXPLAIN SELECT min(substring(setting COLLATE \"C\", '^(.*)[$]')) FROM gatepost.passwords "
        "WHERE substring(setting COLLATE \"C\", '^(.*)[$]') > 'x'",
    )
    assert "passwords_scheme_idx" in str(plan)


async def test_a_server_knows_the_kinds_from_its_start_and_holds_a_lost_login_without_a_connection_or_thread(
    config: Config, start_server: StartServer, dsn: Dsn, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(dsn, "ada", foreign.read(MADE["bcrypt 2b"]))
    held: list[float] = []

    async def listen(seconds: float) -> None:
        held.append(seconds)

    client = await start_server(config)
    monkeypatch.setattr("gatepost.sessions.handlers.asyncio", SimpleNamespace(sleep=listen))
    for name in ("ada", "nobody", "a name with spaces"):
        assert (await client.post("/user", json={"username": name, "password": PASSWORD})).status == 401
    assert len(held) == 3
    assert min(held) > -10  # none is 0 minus now
    # Each was recorded before it waited: the two statements were over, the thread was free.
    assert rows(dsn, "SELECT count(*) FROM gatepost.events WHERE kind = 'authn_login_fail'") == [(3,)]


async def test_a_good_login_does_not_wait(client: Client, dsn: Dsn, monkeypatch: pytest.MonkeyPatch) -> None:
    put(dsn, "ada", foreign.read(MADE["bcrypt 2b"]))

    async def never(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds}")

    monkeypatch.setattr("gatepost.sessions.handlers.asyncio", SimpleNamespace(sleep=never))
    await log_in(client, "ada", TYPED)


def test_a_dummy_of_an_imported_kind_has_no_pepper_and_that_kinds_preparation() -> None:
    it = Credentials(CHEAP, b"k" * 32)
    setting = it._setting(with_salt(BCRYPT, bytes(16)))
    assert (setting.pepper, setting.norm) == (None, "raw")
    assert parse(setting.phc).scheme == BCRYPT
    assert setting_of(parse(setting.phc)) == setting.phc
    it.close()


def test_the_rank_test_of_make_timing_is_the_share_of_pairs_in_which_the_other_is_slower() -> None:
    one, other = [random.randrange(20) for _ in range(90)], [random.randrange(5, 25) for _ in range(110)]
    pairs = [(b > a) + (a == b) / 2 for a in one for b in other]
    assert timing.auc(one, other) == pytest.approx(sum(pairs) / len(pairs))
    assert timing.auc(one, one) == pytest.approx(0.5)
    assert timing.auc([1, 2], [3, 4]) == 1
    assert timing.auc([3, 4], [1, 2]) == 0


def test_make_timing_judges_every_pair_alone_and_at_saturation() -> None:
    alike, slow = (
        {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]},
        {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [3.0, 4.0]},
    )
    table, figures = timing.matrix(alike, slow)
    assert figures == [0.5, 0.5, 0.5, 1.0, 0.5, 1.0]
    assert "| a | 1500.00 / 1500.00 | 0.500 / 0.500 | 0.500 / 1.000 |" in table


def test_make_timing_stops_at_answers_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can read the difference need not time it."""

    class Telling:
        def __init__(self, _port: int) -> None: ...

        def close(self) -> None: ...

        def ask(self, _path: str, document: dict[str, str]) -> tuple[float, bytes]:
            return 0.1, b"401" + document["username"][:1].encode()

    monkeypatch.setattr(timing, "Connection", Telling)
    with pytest.raises(ServiceError, match="differ"):
        timing.measure(0, timing.ours(), 1, 1)


async def test_make_timing_compares_refusals_of_names_that_have_no_guess_left(
    config: Config, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "NAMES", 3)
    limits = {key.rpartition("__")[2].lower(): number for key, number in timing.ONE_GUESS.items()}
    throttle = ThrottleConfig.model_validate({**UNLIMITED.model_dump(), **limits})
    client = await start_server(config.model_copy(update={"throttle": throttle}))
    for prefix in ("person", "banned", "barred"):
        await register(client, f"{prefix}0001")
    port, group = client.server.port, timing.refused()
    assert port is not None
    await asyncio.to_thread(timing.use_up, port, group)
    seconds = await asyncio.to_thread(
        timing.measure, port, group, 10, 2
    )  # fails if one of them is not like the others
    assert {name: len(of) for name, of in seconds.items()} == dict.fromkeys(group.kinds, 10)
    for kind in group.kinds.values():
        async with client.post("/user", json=kind()) as answer:
            assert answer.status == 429
