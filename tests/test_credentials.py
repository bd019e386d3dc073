"""How a password is kept and checked."""

import asyncio
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import argon2
import pytest
from pydantic import SecretStr

from gatepost.config import PasswordsConfig
from gatepost.errors import Overloaded, Unavailable
from gatepost.postgres.database import Database, Dsn
from gatepost.security.credentials import (
    Credentials,
    InvalidPassword,
    MissingPepper,
    Setting,
    Stored,
    cores,
    hashing,
    prepare,
    refuse_missing_pepper,
)
from gatepost.security.credentials import password as module
from gatepost.security.credentials.kinds import Kind, with_salt
from tests.conftest import CHEAP, PASSWORD, eventually, rows

KEY = b"k" * 32


@pytest.fixture
def credentials() -> Iterator[Credentials]:
    it = Credentials(CHEAP, KEY)
    yield it
    it.close()


async def test_what_is_stored_is_argon2id_as_any_other_library_computes_it(credentials: Credentials) -> None:
    stored = await credentials.create(PASSWORD)
    assert re.fullmatch(r"\$argon2id\$v=19\$m=8192,t=1,p=1\$[A-Za-z0-9+/]{22}", stored.setting.phc)
    import base64

    whole = stored.setting.phc + "$" + base64.b64encode(stored.digest).rstrip(b"=").decode()
    assert argon2.PasswordHasher().verify(whole, PASSWORD)


async def test_the_defaults_are_owasps() -> None:
    it = Credentials(PasswordsConfig(), KEY)
    assert (await it.create(PASSWORD)).setting.phc.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    it.close()


async def test_two_users_with_one_password_have_nothing_in_common(credentials: Credentials) -> None:
    one, two = await credentials.create(PASSWORD), await credentials.create(PASSWORD)
    assert one.setting != two.setting
    assert one.digest != two.digest


async def test_the_right_password_gives_the_digest_and_no_other_does(credentials: Credentials) -> None:
    stored = await credentials.create(PASSWORD)
    assert await credentials.digest(stored.setting, PASSWORD) == stored.digest
    for wrong in (PASSWORD + " ", PASSWORD.upper(), PASSWORD[:-1], "", "-", "\x00", "x" * 5000):
        assert await credentials.digest(stored.setting, wrong) != stored.digest


async def test_text_that_cannot_be_a_password_never_matches_even_a_digest_of_its_stand_in(
    credentials: Credentials,
) -> None:
    setting = (await credentials.create(PASSWORD)).setting
    stand_in = await credentials.digest(setting, "-")
    for impossible in ("", "\x07", "x" * 2000):
        assert await credentials.digest(setting, impossible) != stand_in


async def test_a_long_password_is_not_cut_off(credentials: Credentials) -> None:
    stored = await credentials.create("x" * 1024)
    assert await credentials.digest(stored.setting, "x" * 1023) != stored.digest
    assert await credentials.digest(stored.setting, "x" * 1024) == stored.digest


async def test_composition_and_odd_spaces_do_not_tell_passwords_apart(credentials: Credentials) -> None:
    stored = await credentials.create("Ångström über alles 1")
    assert await credentials.digest(stored.setting, "A\u030angstro\u0308m\u00a0u\u0308ber alles 1") == stored.digest


@pytest.mark.parametrize("text", ["plain ascii 123 ~!", "with\u3000wide space", "ü" * 20])
def test_prepare_agrees_with_the_profile_it_takes_a_short_cut_around(text: str) -> None:
    assert prepare(text) == module._opaque.enforce(text).encode()


def test_the_profile_refuses_every_character_of_ascii_that_is_refused_without_asking_it() -> None:
    for character in [*map(chr, range(32)), "\x7f"]:
        with pytest.raises(InvalidPassword):
            prepare(f"correct{character}horse")
        assert module.secret_bytes(f"correct{character}horse", "opaque", 1024) is None


@pytest.mark.parametrize("text", ["", "\x00", "tab\tin it", "new\nline", "\x7f", "\u200b\u2028"])
def test_what_opaque_string_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidPassword) as error:
        prepare(text)
    assert text == "" or text not in str(error.value)


def test_an_unknown_name_looks_the_same_every_time_and_on_every_node(credentials: Credentials) -> None:
    other_node, stranger = Credentials(CHEAP, KEY), Credentials(CHEAP, b"x" * 32)
    assert credentials.dummy("nobody") == credentials.dummy("nobody") == other_node.dummy("nobody")
    assert credentials.dummy("nobody") != credentials.dummy("somebody")
    assert credentials.dummy("nobody") != stranger.dummy("nobody")
    for it in (other_node, stranger):
        it.close()


async def test_a_dummy_is_like_a_stored_setting_in_all_but_its_salt(credentials: Credentials) -> None:
    real = (await credentials.create(PASSWORD)).setting
    dummy = credentials.dummy("nobody")
    assert real.phc.rpartition("$")[0] == dummy.phc.rpartition("$")[0]
    assert len(real.phc) == len(dummy.phc)
    assert real.pepper == dummy.pepper


@pytest.mark.parametrize(
    ("m", "t", "p", "weaker"),
    [(8192, 1, 1, True), (9000, 2, 1, False), (9000, 1, 1, True), (8192, 5, 1, False), (20000, 3, 1, False)],
)
def test_only_a_hash_with_a_lower_cost_and_no_higher_one_is_rehashed(m: int, t: int, p: int, weaker: bool) -> None:
    it = Credentials(PasswordsConfig(memory_kib=9000, iterations=2), KEY)
    assert it.is_weaker(Setting(f"$argon2id$v=19$m={m},t={t},p={p}$c29tZXNhbHRzb21lc2FsdA", None)) is weaker
    it.close()


async def test_a_pepper_changes_the_digest_and_an_unknown_one_is_unavailable(credentials: Credentials) -> None:
    peppered = Credentials(CHEAP.model_copy(update={"peppers": {"1": SecretStr("a pepper, long enough")}}), KEY)
    stored = await peppered.create(PASSWORD)
    assert stored.setting.pepper == "1"
    unpeppered = await credentials.digest(Setting(stored.setting.phc, None), PASSWORD)
    assert unpeppered != stored.digest
    with pytest.raises(Unavailable):
        await credentials.digest(stored.setting, PASSWORD)
    peppered.close()


async def test_a_pepper_that_is_still_needed_and_missing_is_said_at_start(dsn: Dsn, database: Database) -> None:
    rows(
        dsn,
        "WITH u AS (INSERT INTO gatepost.users (username, canonical) VALUES ('a', 'a') RETURNING id) "
        "INSERT INTO gatepost.passwords (user_id, setting, digest, norm, pepper) "
        "SELECT id, '$argon2id$v=19$m=8192,t=1,p=1$c29tZXNhbHRzb21lc2FsdA', sha256(''), 'opaque', '2019' FROM u",
    )
    with pytest.raises(MissingPepper, match="'2019'"):
        await refuse_missing_pepper(CHEAP, database)


async def test_all_nodes_share_one_deployment_key(dsn: Dsn, database: Database) -> None:
    nodes = await asyncio.gather(*(Credentials.open(CHEAP, database) for _ in range(4)))
    assert len({node.dummy("nobody") for node in nodes}) == 1
    assert rows(dsn, "SELECT name, octet_length(key) FROM gatepost.deployment_keys") == [("unknown names", 32)]
    for node in nodes:
        node.close()


async def test_hashing_has_no_more_threads_than_cores_and_they_are_nice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = Credentials(CHEAP.model_copy(update={"threads": 64}), KEY)
    niceness = []
    honest = hashing.derive

    def listen(kind: Kind, secret: Callable[[], bytes]) -> hashing.Derived:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", listen)
    before = threading.active_count()
    await asyncio.gather(*(it.create(PASSWORD) for _ in range(20)))
    assert threading.active_count() - before <= cores()
    assert len(niceness) == 20
    if sys.platform == "linux":
        assert set(niceness) == {19}
        assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19
    it.close()


class Held:
    """Hashes that begin and do not end before they may; each says it took a given time for its kind."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.seconds: dict[str, float] = {}
        self.begun: list[Kind] = []

    def derive(self, kind: Kind, _secret: Callable[[], bytes]) -> hashing.Derived:
        self.begun.append(kind)
        assert self.go_on.wait(60)
        return hashing.Derived(bytes(32), 0.0, self.seconds[kind.family])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    it = Held()
    monkeypatch.setattr(hashing, "derive", it.derive)
    yield it
    it.go_on.set()


async def admitted(
    hasher: hashing.Hasher, kind: Kind, most: int = 50, *, place: str | None = None
) -> tuple[list[asyncio.Task[Any]], Overloaded]:
    """Ask for hashes until one is refused."""
    tasks: list[asyncio.Task[Any]] = []
    while len(tasks) < most:
        task = asyncio.create_task(hasher.derive(kind, bytes, place))
        await asyncio.sleep(0)
        if task.done():
            refused = task.exception()
            assert isinstance(refused, Overloaded)
            return tasks, refused
        tasks.append(task)
    raise AssertionError("nothing was refused")


async def test_a_full_queue_refuses_at_once_and_accepts_again_when_there_is_room(held: Held) -> None:
    held.seconds = {"argon2": 0.1}
    it = Credentials(CHEAP.model_copy(update={"threads": 1, "queue": 2}), KEY)
    tasks = [asyncio.create_task(it.create(PASSWORD)) for _ in range(5)]
    await asyncio.wait(tasks[3:])
    held.go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Stored] * 3 + [Overloaded] * 2
    # A caller that stops waiting does not give its place away while the work is still done.
    held.go_on.clear()
    tasks = [asyncio.create_task(it.create(PASSWORD)) for _ in range(3)]
    await eventually(lambda: len(held.begun) == 3 + 1)
    tasks[0].cancel()
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await it.create(PASSWORD)
    held.go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Stored] * 3  # what has begun is carried through
    for _ in range(5):
        await it.create(PASSWORD)
    it.close()


async def test_what_would_wait_longer_than_its_deadline_is_refused_at_once_and_told_when_to_come_back(
    held: Held,
) -> None:
    hasher = hashing.Hasher(1, 100, 2.0)
    ours, scrypt = (
        with_salt("$argon2id$v=19$m=8192,t=1,p=1", bytes(16)),
        with_salt("$scrypt$ln=14,r=8,p=1", bytes(16)),
    )
    held.seconds = {"argon2": 0.5, "scrypt": 1.5}
    held.go_on.set()
    for kind in (ours, scrypt):  # so that it is known what each takes
        await hasher.derive(kind, bytes)
    for kind, fit, retry_after in (
        (ours, 5, "3"),  # one begins, and four times half a second is not more than two
        (with_salt("$argon2id$v=19$m=16384,t=1,p=1", bytes(16)), 3, "3"),
        (scrypt, 2, "3"),
    ):
        held.go_on.clear()
        tasks, refused = await admitted(hasher, kind)
        assert (len(tasks), refused.headers["Retry-After"]) == (fit, retry_after)
        with pytest.raises(Overloaded):
            hasher.demand_room()
        held.go_on.set()
        await asyncio.gather(*tasks)
        hasher.demand_room()
        assert (hasher.waiting, hasher.wait) == (0, 0.0)
    hasher.close()


async def test_the_estimate_follows_a_machine_that_becomes_slower(held: Held) -> None:
    hasher = hashing.Hasher(1, 100, 2.0)
    ours = with_salt("$argon2id$v=19$m=8192,t=1,p=1", bytes(16))
    held.go_on.set()
    for held.seconds in [{"argon2": 0.1}, *[{"argon2": 1.0}] * 20]:
        await hasher.derive(ours, bytes)
    held.go_on.clear()
    tasks, _ = await admitted(hasher, ours)
    assert len(tasks) == 3  # and not 21: each takes a second, and the third waits for almost two
    held.go_on.set()
    await asyncio.gather(*tasks)
    hasher.close()


async def test_the_peak_is_the_most_that_have_waited_at_once_since_it_was_last_asked(held: Held) -> None:
    hasher = hashing.Hasher(1, 100, 60.0)
    held.seconds = {"argon2": 0.1}
    kind = with_salt("$argon2id$v=19$m=8192,t=1,p=1", bytes(16))
    assert hasher.take_peak() == 0
    tasks = [asyncio.create_task(hasher.derive(kind, bytes)) for _ in range(4)]
    await eventually(lambda: hasher.waiting == 3)
    assert [hasher.take_peak(), hasher.take_peak()] == [3, 3]  # they still wait
    held.go_on.set()
    await asyncio.gather(*tasks)
    assert [hasher.take_peak(), hasher.take_peak()] == [3, 0]
    hasher.close()


async def test_a_cancelled_caller_gives_its_place_away_and_is_not_hashed(held: Held) -> None:
    hasher = hashing.Hasher(1, 2, 2.0)
    held.seconds = {"argon2": 0.1}
    kinds = [with_salt(f"$argon2id$v=19$m=8192,t={t},p=1", bytes(16)) for t in (1, 2, 3, 4)]
    tasks = [asyncio.create_task(hasher.derive(kind, bytes)) for kind in kinds[:3]]
    await eventually(lambda: len(held.begun) == 1)
    with pytest.raises(Overloaded):
        hasher.demand_room()
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    tasks.append(asyncio.create_task(hasher.derive(kinds[3], bytes)))
    await asyncio.sleep(0)
    held.go_on.set()
    await asyncio.wait(tasks)
    assert held.begun == [kinds[0], kinds[2], kinds[3]]
    hasher.close()


OURS = with_salt("$argon2id$v=19$m=8192,t=1,p=1", bytes(16))


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hashes are computed when this is set, and not before."""
    it, honest = threading.Event(), hashing.derive

    def derive(kind: Kind, secret: Callable[[], bytes]) -> hashing.Derived:
        assert it.wait(60)
        return honest(kind, secret)

    monkeypatch.setattr(hashing, "derive", derive)
    yield it
    it.set()


async def test_each_place_leaves_as_much_of_the_queue_free_as_it_uses(
    go_on: threading.Event,
) -> None:
    hasher = hashing.Hasher(1, 11, 60)
    tasks = []
    for place, fit in (("a", 6), ("b", 3), ("c", 2), ("d", 1), ("e", 0), (None, 0)):
        if fit:
            hasher.demand_room(place)
        of_place, _ = await admitted(hasher, OURS, place=place)
        with pytest.raises(Overloaded):
            hasher.demand_room(place)
        assert len(of_place) == fit, place
        tasks += of_place
    go_on.set()
    assert {derived.digest for derived in await asyncio.gather(*tasks)} == {OURS.derive(b"")}
    assert hasher._of_places == {}
    hasher.close()


async def test_what_a_place_has_had_or_given_up_counts_no_longer(go_on: threading.Event) -> None:
    hasher = hashing.Hasher(1, 11, 60)
    for _ in range(2):
        go_on.clear()
        tasks, _ = await admitted(hasher, OURS, place="a")
        assert len(tasks) == 6
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks[1:])
        more, _ = await admitted(hasher, OURS, place="a")
        assert len(more) == 5
        go_on.set()
        await asyncio.gather(tasks[0], *more)
    hasher.close()


async def test_who_is_no_place_may_fill_the_queue_and_an_idle_thread_is_for_whoever_comes(
    go_on: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "cores", lambda: 3)
    for threads, queue, place, fit in ((1, 11, None, 12), (3, 1, "a", 3), (3, 1, None, 4)):
        go_on.clear()
        hasher = hashing.Hasher(threads, queue, 60)
        tasks, _ = await admitted(hasher, OURS, place=place)
        assert len(tasks) == fit
        go_on.set()
        await asyncio.gather(*tasks)
        hasher.close()


async def test_a_place_uses_no_more_waiting_time_than_it_leaves_free(held: Held) -> None:
    hasher = hashing.Hasher(1, 100, 2.0)
    held.seconds = {"argon2": 0.5}
    held.go_on.set()
    await hasher.derive(OURS, bytes)
    held.go_on.clear()
    tasks = []
    for place, fit in (("a", 3), ("b", 1), (None, 1)):  # half a second each: 1.5, 0.5 and what is over
        of_place, _ = await admitted(hasher, OURS, place=place)
        assert len(of_place) == fit, place
        tasks += of_place
    held.go_on.set()
    await asyncio.gather(*tasks)
    hasher.close()


async def test_the_memory_that_hashing_may_take_counts_the_dearest_kind_that_is_stored(
    dsn: Dsn, database: Database
) -> None:
    config = CHEAP.model_copy(update={"threads": 1})
    it = await Credentials.open(config, database)
    assert it.memory_kib == 8192
    it.close()
    rows(
        dsn,
        "WITH u AS (INSERT INTO gatepost.users (username, canonical) VALUES ('a', 'a') RETURNING id) "
        "INSERT INTO gatepost.passwords (user_id, setting, digest, norm) "
        "SELECT id, '$scrypt$ln=15,r=8,p=1$c29tZXNhbHRzb21lc2FsdA', sha256(''), 'raw' FROM u",
    )
    it = await Credentials.open(config, database)
    assert it.memory_kib == 32 * 1024 + 1
    it.close()


async def test_a_stored_password_shows_no_digest(credentials: Credentials) -> None:
    stored = await credentials.create(PASSWORD)
    assert str(stored.digest) not in repr(stored)
