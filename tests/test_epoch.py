"""No session is valid that should not be, in whatever order the statements of several actors come.

Each actor has a connection of its own and is paused between its statements and before its COMMIT. Every order of
those steps is run; a step that has to wait for another actor's lock is left waiting while the others go on.
"""

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gatepost.accounts import password_queries as passwords
from gatepost.accounts import queries as accounts
from gatepost.admin.access_queries import remove_factors
from gatepost.admin.actor import OPERATOR
from gatepost.errors import InvalidCode, LoginExpired, Problem, Unauthorized
from gatepost.factors import proving_queries as proving
from gatepost.factors import queries as factors
from gatepost.factors.totp import Factor, Match
from gatepost.factors.vault import Sealed
from gatepost.mail.codes import hash_link
from gatepost.postgres.database import Connection, Database, Dsn
from gatepost.recovery import queries as recovery
from gatepost.security.credentials import Credentials, Setting
from gatepost.security.identifier import Identifier
from gatepost.security.throttle import KEY_BYTES, Bucket, Limit, Taken
from gatepost.sessions import queries as sessions
from gatepost.sessions.current_password import Current, Origin, find_secret
from gatepost.sessions.session import hash_token
from tests.conftest import CHEAP, PASSWORD, rows

NEW = "a better horse and battery"
Step = Callable[[], Awaitable[Any]]


@dataclass
class World:
    """One user with one session, and what each actor needs."""

    dsn: Dsn
    database: Database
    credentials: Credentials
    user_id: str
    mine: str
    stack: contextlib.AsyncExitStack
    tokens: dict[str, str] = field(default_factory=dict)

    async def connection(self) -> Connection:
        """A connection of an actor's own; its deadline is this test's."""
        raw = await self.database.pool.acquire()
        self.stack.callback(self.database.pool.give_back, raw)
        return Connection(raw, self.database.engine)

    def token(self, name: str) -> str:
        return self.tokens.setdefault(name, str(uuid.uuid4()))


async def setting_of_ada(connection: Connection) -> Setting:
    """A login's first statement; how many may be tried is another test's business."""
    plenty = Bucket(b"a" * KEY_BYTES, Limit("account", burst=1_000_000, every=1))
    setting, _ = await sessions.find_setting(connection, sessions.Entry(ADA, None, [plenty]))
    assert setting is not None
    return setting


async def run(connection: Connection, sql: str) -> None:
    cursor = await connection.connection.cursor()
    await cursor.execute(sql)


ADA = Identifier("ada")
ACTIVITY = Bucket(b"u".ljust(16), Limit("activity", 1000, 10))


async def handle_of(world: World) -> str:
    return str(rows(world.dsn, "SELECT handle FROM gatepost.sessions ORDER BY created_at LIMIT 1")[0][0])


async def a_login(world: World, name: str = "login", password: str = PASSWORD) -> list[Step]:
    """Statement 1; statement 2; COMMIT."""
    connection = await world.connection()
    held: dict[str, Any] = {}

    async def find() -> None:
        held["setting"] = await setting_of_ada(connection)

    async def open_session() -> None:
        setting = held["setting"]
        digest = await world.credentials.digest(setting, password)
        attempt = sessions.Attempt(ADA, setting, digest, hash_token(world.token(name)), ACTIVITY, None, None)
        await run(connection, "BEGIN")
        with contextlib.suppress(sessions.SettingChanged):
            await sessions.open_session(connection, attempt, lifetime=1000, max_per_user=10)

    return [find, open_session, lambda: run(connection, "COMMIT")]


async def a_password_change(world: World) -> list[Step]:
    connection = await world.connection()
    secret, _ = await find_secret(connection, world.user_id, [])
    assert secret
    assert secret.setting
    setting = secret.setting
    digest, new = await world.credentials.digest(setting, PASSWORD), await world.credentials.create(NEW)
    origin = Origin(await handle_of(world), None, None)

    async def change() -> None:
        await run(connection, "BEGIN")
        with contextlib.suppress(Problem, sessions.SettingChanged):
            await passwords.change_password(
                connection,
                world.user_id,
                origin,
                current=Current(setting, digest, fresh=600),
                new=new,
                token_hash=hash_token(world.token("changed")),
            )

    return [change, lambda: run(connection, "COMMIT")]


async def a_disabling(world: World) -> list[Step]:
    connection = await world.connection()

    async def disable() -> None:
        await run(connection, "BEGIN")
        await run(
            connection,
            "UPDATE gatepost.users SET disabled_at = clock_timestamp(), epoch = epoch + 1 WHERE canonical = 'ada'",
        )

    return [disable, lambda: run(connection, "COMMIT")]


async def a_sign_out_everywhere(world: World) -> list[Step]:
    connection = await world.connection()

    async def end() -> None:
        await run(connection, "BEGIN")
        await sessions.end_all_sessions_of(connection, world.user_id, sessions.Revocation("user", None, None, None))

    return [end, lambda: run(connection, "COMMIT")]


async def a_rehash(world: World) -> list[Step]:
    """What a login with the old password does once it has won, if the hash is weak."""
    connection = await world.connection()
    setting = await setting_of_ada(connection)
    assert setting is not None
    digest, stronger = await world.credentials.digest(setting, PASSWORD), await world.credentials.create(PASSWORD)
    user_id = uuid.UUID(world.user_id)

    async def rehash() -> None:
        await run(connection, "BEGIN")
        await sessions.rehash(connection, user_id, digest, stronger)

    return [rehash, lambda: run(connection, "COMMIT")]


async def a_login_in_steps(world: World) -> list[Step]:
    """The two statements of the password and the COMMIT; those of the code and theirs."""
    connection = await world.connection()

    async def find() -> None:
        with contextlib.suppress(LoginExpired):
            await proving.find_ticket(connection, hash_token(world.token("login")), [])

    async def finish() -> None:
        await run(connection, "BEGIN")
        with contextlib.suppress(Problem):
            await proving.finish_login(connection, a_finish(world, "stepped"), lifetime=1000, max_per_user=10)

    return [*await a_login(world), find, finish, lambda: run(connection, "COMMIT")]


def a_finish(world: World, name: str, ticket: str = "login") -> proving.Finish:
    """The last step, with a right code of step 7."""
    proof = proving.Proof(Match(Factor(FACTOR, Sealed(b"", None), 0), 7))
    guesses = Bucket(b"f".ljust(16), Limit("factor", 1000, 10))
    new = hash_token(world.token(name))
    return proving.Finish(hash_token(world.token(ticket)), proof, new, guesses, None, None, None, Taken())


FACTOR = "00000000-0000-4000-8000-00000000000f"


def give_a_factor(world: World) -> None:
    """And the session has proved it."""
    sql = (
        "INSERT INTO gatepost.totp_factors (id, user_id, name, sealed, confirmed_at) "
        "VALUES (%s, %s, 'Phone', %s, now()) RETURNING 1"
    )
    rows(world.dsn, sql, FACTOR, world.user_id, bytes(48))
    rows(world.dsn, "UPDATE gatepost.sessions SET amr = '{mfa,otp,pwd}' RETURNING 1")


async def a_removal_by_an_operator(world: World) -> list[Step]:
    connection = await world.connection()

    async def remove() -> None:
        await run(connection, "BEGIN")
        assert await remove_factors(connection, world.user_id, OPERATOR, None) == 1

    return [remove, lambda: run(connection, "COMMIT")]


async def a_removal_by_the_user(world: World) -> list[Step]:
    connection, origin = await world.connection(), Origin(await handle_of(world), None, None)

    async def remove() -> None:
        await run(connection, "BEGIN")
        await run(connection, f"SELECT FROM gatepost.users WHERE id = '{world.user_id}' FOR NO KEY UPDATE")
        await factors.remove(connection, world.user_id, FACTOR, origin, two_factors_for=(), language=None)

    return [remove, lambda: run(connection, "COMMIT")]


def orders(lengths: list[int]) -> Iterator[list[int]]:
    """Every order of the actors' steps, each actor's own in sequence."""
    slots = [actor for actor, length in enumerate(lengths) for _ in range(length)]
    yield from map(list, sorted(set(itertools.permutations(slots))))


LOCKED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


async def play(dsn: Dsn, actors: list[list[Step]], order: list[int]) -> None:
    """Run the steps in this order; an actor that waits for a lock is passed over until it has it."""
    running: list[asyncio.Task[Any] | None] = [None] * len(actors)

    async def after(before: asyncio.Task[Any] | None, step: Step) -> None:
        if before:
            await before
        await step()

    done = [0] * len(actors)
    for actor in order:
        step = actors[actor][done[actor]]
        done[actor] += 1
        running[actor] = asyncio.create_task(after(running[actor], step))
        while left := [task for task in running if task and not task.done()]:
            await asyncio.wait(left, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
            if rows(dsn, LOCKED) == [(len(left),)]:
                break
    await asyncio.gather(*(task for task in running if task))


@contextlib.asynccontextmanager
async def a_world(database: Database, dsn: Dsn, credentials: Credentials) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        rows(
            dsn,
            "TRUNCATE gatepost.users, gatepost.events CASCADE",
        )
        user = await database.write(accounts.create, "ada", "ada", await credentials.create(PASSWORD))
        world = World(dsn, database, credentials, str(user.id), str(uuid.uuid4()), stack)
        setting = await database.read(setting_of_ada)
        assert setting is not None
        digest = await credentials.digest(setting, PASSWORD)
        attempt = sessions.Attempt(ADA, setting, digest, hash_token(world.mine), ACTIVITY, None, None)
        assert await database.write(sessions.open_session, attempt, lifetime=1000, max_per_user=10)
        yield world


async def valid(world: World) -> set[str]:
    """Which of the tokens that were handed out count."""
    tokens = {"mine": world.mine, **world.tokens}
    hashes = {hash_token(token): name for name, token in tokens.items()}
    return {hashes[h] for h in await world.database.read(sessions.live_sessions, list(hashes), 86400)}


@pytest.fixture
async def pool_of_eight(dsn: Dsn) -> AsyncIterator[Database]:
    database = await Database.open(dsn, 8)
    yield database
    await database.close()


Actor = Callable[[World], Awaitable[list[Step]]]


@pytest.mark.parametrize(
    ("actors", "allowed"),
    [
        # After a password change only the session that changed it counts; a login with the old one never does.
        ([a_login, a_password_change], {"changed"}),
        ([a_login, a_disabling], set()),
        ([a_login, a_sign_out_everywhere], {"login"}),
        ([a_password_change, a_disabling], set()),
        ([a_password_change, a_sign_out_everywhere], {"changed"}),
        ([a_login, a_rehash, a_password_change], {"changed"}),
        ([a_login, a_password_change, a_disabling], set()),
    ],
    ids=lambda value: "+".join(a.__name__ for a in value) if isinstance(value, list) else "",
)
async def test_in_every_order_of_the_statements_no_session_is_valid_that_should_not_be(
    pool_of_eight: Database, dsn: Dsn, actors: list[Actor], allowed: set[str]
) -> None:
    credentials = Credentials(CHEAP, b"k" * 32)
    every = list(orders([3 if actor is a_login else 2 for actor in actors]))
    # Of the orders of three actors, a fair part: each takes a while, and neighbours differ little.
    for order in every if len(every) <= 20 else every[:: len(every) // 20]:
        async with a_world(pool_of_eight, dsn, credentials) as world:
            steps = [await actor(world) for actor in actors]
            await play(dsn, steps, order)
            kinds = {kind for (kind,) in rows(dsn, "SELECT kind FROM gatepost.events")}
            if a_rehash in actors and "authn_password_change" not in kinds:
                continue  # the rehash came between, and the handler would try the change again
            assert await valid(world) <= allowed, order
            if a_rehash in actors:
                setting = await pool_of_eight.read(setting_of_ada)
                assert setting is not None
                stored = bytes(rows(dsn, "SELECT digest FROM gatepost.passwords")[0][0])
                assert await credentials.digest(setting, NEW) == stored, "a rehash undid the change"
    credentials.close()


@pytest.mark.parametrize(
    ("other", "allowed"),
    [
        (a_password_change, {"changed"}),
        (a_disabling, set()),
        # After the removal the password alone signs in, and what was signed in before has ended.
        (a_removal_by_an_operator, {"login"}),
        # A session that was opened with the code stays; a ticket does not.
        (a_removal_by_the_user, {"mine", "login", "stepped"}),
    ],
)
async def test_in_every_order_a_login_in_steps_opens_only_what_the_factor_allows(
    pool_of_eight: Database, dsn: Dsn, credentials: Credentials, other: Actor, allowed: set[str]
) -> None:
    for order in orders([6, 2]):
        async with a_world(pool_of_eight, dsn, credentials) as world:
            give_a_factor(world)
            actors = [await a_login_in_steps(world), await other(world)]
            await play(dsn, actors, order)
            assert await valid(world) <= allowed, order
            opened = "SELECT count(*) FROM gatepost.sessions WHERE amr = '{pwd}' AND token_hash = %s"
            without = rows(dsn, "SELECT id FROM gatepost.totp_factors") == []
            assert without or rows(dsn, opened, hash_token(world.token("login"))) == [(0,)], order


async def test_a_code_and_a_ticket_open_one_session_in_every_order(
    pool_of_eight: Database, dsn: Dsn, credentials: Credentials
) -> None:
    async def a_last_step(world: World, name: str, ticket: str) -> list[Step]:
        connection = await world.connection()

        async def finish() -> None:
            await run(connection, "BEGIN")
            with contextlib.suppress(Problem):
                await proving.finish_login(connection, a_finish(world, name, ticket), lifetime=1000, max_per_user=10)

        return [finish, lambda: run(connection, "COMMIT")]

    for tickets in (("login", "login"), ("login", "another")):
        for order in orders([2, 2]):
            async with a_world(pool_of_eight, dsn, credentials) as world:
                give_a_factor(world)
                for ticket in set(tickets):
                    for step in await a_login(world, ticket):
                        await step()
                steps = [await a_last_step(world, f"step {n}", ticket) for n, ticket in enumerate(tickets)]
                await play(dsn, steps, order)
                assert len(await valid(world)) == 2, order  # mine, and one of them


async def test_a_login_before_and_after_everything_else_is_not_refused_for_nothing(
    pool_of_eight: Database, dsn: Dsn
) -> None:
    """The test above would pass if nothing ever were valid."""
    credentials = Credentials(CHEAP, b"k" * 32)
    async with a_world(pool_of_eight, dsn, credentials) as world:
        await play(dsn, [await a_login(world)], [0, 0, 0])
        assert await valid(world) == {"mine", "login"}
        await play(dsn, [await a_password_change(world)], [0, 0])
        assert await valid(world) == {"changed"}
        await play(dsn, [await a_login(world, "new", NEW)], [0, 0, 0])
        assert await valid(world) == {"changed", "new"}
    credentials.close()


@pytest.fixture
def credentials() -> Iterator[Credentials]:
    with contextlib.closing(Credentials(CHEAP, b"k" * 32)) as made:
        yield made


async def test_a_login_waits_for_a_disabling_that_has_begun_and_is_then_refused(
    database: Database, dsn: Dsn, credentials: Credentials
) -> None:
    async with a_world(database, dsn, credentials) as world:
        disabling, login = await world.connection(), await world.connection()
        setting = await setting_of_ada(login)
        digest = await credentials.digest(setting, PASSWORD)
        attempt = sessions.Attempt(ADA, setting, digest, hash_token(world.token("late")), ACTIVITY, None, None)
        await run(disabling, "BEGIN")
        await run(disabling, "UPDATE gatepost.users SET disabled_at = clock_timestamp(), epoch = epoch + 1")
        opening = asyncio.create_task(sessions.open_session(login, attempt, lifetime=1000, max_per_user=10))
        await until_it_waits(dsn, opening)
        await run(disabling, "COMMIT")
        assert await opening is None
        assert rows(dsn, "SELECT kind FROM gatepost.events ORDER BY id DESC LIMIT 1") == [("authn_login_fail",)]


async def test_a_password_change_waits_for_a_disabling_that_has_begun_and_is_then_refused(
    database: Database, dsn: Dsn, credentials: Credentials
) -> None:
    async with a_world(database, dsn, credentials) as world:
        disable, commit = await a_disabling(world)
        connection = await world.connection()
        secret, _ = await find_secret(connection, world.user_id, [])
        assert secret is not None
        assert secret.setting is not None
        digest = await credentials.digest(secret.setting, PASSWORD)
        await disable()
        changing = asyncio.create_task(
            passwords.change_password(
                connection,
                world.user_id,
                Origin(await handle_of(world), None, None),
                current=Current(secret.setting, digest, fresh=600),
                new=await credentials.create(NEW),
                token_hash=hash_token(world.token("changed")),
            )
        )
        await until_it_waits(dsn, changing)
        await commit()
        with pytest.raises(Unauthorized):
            await changing


async def until_it_waits(dsn: Dsn, task: "asyncio.Task[Any]") -> None:
    """For a lock; or until it is done, which tells that it does not."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    while not task.done() and not await asyncio.to_thread(rows, dsn, waiting):
        await asyncio.sleep(0.01)


async def test_a_password_change_raises_the_epoch_and_deletes_the_other_sessions(
    database: Database, dsn: Dsn, credentials: Credentials
) -> None:
    """The epoch alone would refuse them, and without it their absence; code of the release before asks for either."""
    async with a_world(database, dsn, credentials) as world:
        for step in await a_login(world):
            await step()
        before = rows(dsn, "SELECT epoch FROM gatepost.users")[0][0]
        for step in await a_password_change(world):
            await step()
        assert rows(dsn, "SELECT epoch FROM gatepost.users") == [(before + 1,)]
        assert rows(dsn, "SELECT token_hash = %s FROM gatepost.sessions", hash_token(world.token("changed"))) == [
            (True,)
        ]


@pytest.mark.parametrize("change", ["epoch = epoch + 1", "disabled_at = clock_timestamp()"])
async def test_a_session_ends_with_the_epoch_and_the_user_also_by_sql_typed_by_hand(
    database: Database, dsn: Dsn, credentials: Credentials, change: str
) -> None:
    async with a_world(database, dsn, credentials) as world:
        key = hash_token(world.mine)
        assert await database.read(sessions.live_sessions, [key], 1000)
        rows(dsn, f"UPDATE gatepost.users SET {change} RETURNING 1")
        assert rows(dsn, "SELECT count(*) FROM gatepost.sessions") == [(1,)]
        assert await database.read(sessions.live_sessions, [key], 1000) == {}


async def test_a_redeemed_code_raises_the_epoch_and_one_that_expires_between_the_statements_does_nothing(
    database: Database, dsn: Dsn, credentials: Credentials
) -> None:
    async with a_world(database, dsn, credentials):
        code = hash_link("ABCD")
        rows(
            dsn,
            "INSERT INTO gatepost.password_resets (user_id, code_hash, expires_at, created_at) "
            "SELECT id, %s, clock_timestamp(), clock_timestamp() - interval '1 hour' FROM gatepost.users RETURNING 1",
            code,
        )
        new = await credentials.create(NEW)
        before = rows(dsn, "SELECT epoch, p.digest FROM gatepost.users u JOIN gatepost.passwords p ON user_id = id")
        with pytest.raises(InvalidCode):
            await database.write(recovery.redeem, code, new, ip=None, user_agent=None)
        assert before == rows(
            dsn, "SELECT epoch, p.digest FROM gatepost.users u JOIN gatepost.passwords p ON user_id = id"
        )
        rows(
            dsn, "UPDATE gatepost.password_resets SET expires_at = clock_timestamp() + interval '1 hour' RETURNING 1"
        )
        await database.write(recovery.redeem, code, new, ip=None, user_agent=None)
        assert rows(dsn, "SELECT epoch FROM gatepost.users") == [(before[0][0] + 1,)]
        assert rows(dsn, "SELECT count(*) FROM gatepost.sessions") == [(0,)]
