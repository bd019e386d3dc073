"""The load under which things go wrong: users who sign in and out and change their passwords, and others who ask
whose session a token is, over real HTTP; every request is written down.
"""

import asyncio
import contextlib
import itertools
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import aiohttp

from gatepost_client import NotKnown, Verifier
from tests.faults.history import Kind, Request

# A client gives up on an answer after this many seconds: far beyond any bound, so that a late answer is seen as such.
PATIENCE = 15.0
# Seconds between two requests of one client, on average: some 250 requests a second in all.
PAUSE = 0.05
# Users nobody signs out and who keep their passwords: a 401 for them is wrong whatever happens. And the others.
SETTLED, RESTLESS = 4, 4
CHECKERS = 6
# And of each verifier.
VERIFIER_CHECKERS = 3
VERIFIER = "verifier"
"""How the code of what a verifier answered begins."""
# A settled user has this many sessions, after which a new one is opened now and then only.
ENOUGH = 20

Step = Callable[[random.Random], Coroutine[Any, Any, object]]

_client: ContextVar[int] = ContextVar("client", default=0)


@dataclass
class Account:
    """What the load knows of one user: tokens and passwords by number (`Load.secrets` has them)."""

    name: str
    passwords: list[int] = field(default_factory=list)
    """The one that should be right, and those that are if a change took effect whose answer did not come."""
    tokens: list[int] = field(default_factory=list)

    @property
    def password(self) -> int:
        return self.passwords[0]

    def in_doubt(self) -> None:
        """The password was refused: try the next one."""
        self.passwords.append(self.passwords.pop(0))


class Load:
    """Clients of one service, or of several nodes that share a database; ``history`` is what they saw.

    ``verifiers``: running ones that are asked as well, each with the seconds by which it may be out of date.
    """

    def __init__(self, urls: Sequence[str], admin_password: str, verifiers: Sequence[tuple[Verifier, float]]) -> None:
        self.history: list[Request] = []
        self.secrets: list[str] = [admin_password]
        self.settled = [Account(f"settled{n}") for n in range(SETTLED)]
        self.restless = [Account(f"restless{n}") for n in range(RESTLESS)]
        self._urls = list(urls)
        self._verifiers = list(verifiers)
        self._asked: dict[tuple[Verifier, int], asyncio.Task[Request]] = {}
        self._admin = Account("admin", passwords=[0])
        self._ids = itertools.count(1)
        self._go = asyncio.Event()
        self._go.set()
        self._busy = 0
        self._clients: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sign everybody up, then make requests for as long as the block lasts."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
            # aiohttp would send an idempotent request again over a new connection, and not tell.
            self._http._retry_connection = False
            await self._sign_up()
            steps: list[Step] = [self._check_any] * CHECKERS
            steps += [partial(self._settled_step, account) for account in self.settled]
            steps += [partial(self._owner_step, account) for account in self.restless]
            steps += [partial(self._device_step, account) for account in self.restless]
            steps.append(self._admin_step)
            for verifier in self._verifiers:
                steps += [partial(self._ask_any, *verifier)] * VERIFIER_CHECKERS
            self._clients = [asyncio.create_task(self._live(n, step)) for n, step in enumerate(steps)]
            try:
                yield
            finally:
                await self.stop()

    async def everything_happened(self) -> None:
        """Wait until each kind of request was done: a load in which nobody logs out says nothing of logouts."""
        deadline = time.monotonic() + 10 * PATIENCE
        while missing := set(get_args(Kind)) - {r.kind for r in self.history if r.done}:
            assert time.monotonic() < deadline, f"no {missing}: {Counter((r.kind, r.status) for r in self.history)}"
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Send no more; wait for the answers to what was sent."""
        for client in self._clients:
            client.cancel()
        results = await asyncio.gather(*self._clients, return_exceptions=True)
        self._clients = []
        for result in results:
            if isinstance(result, Exception):
                raise result
        while self._busy:
            await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """A while without requests."""
        self._go.clear()
        while self._busy:
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self._go.set()

    async def burst(self, count: int = 60) -> None:
        """So many at once that every connection to the database is wanted."""
        account = self.settled[0]
        token = account.tokens[0]
        every = [self.send("check", account.name, "GET", "/user", token=token) for _ in range(count)]
        every += [self.send("check", account.name, "GET", "/sessions", token=token) for _ in range(count)]
        await asyncio.gather(*every)

    async def look_again(self) -> None:
        """When all is over: ask for every token there was, and log everybody in; with old passwords too."""
        few = asyncio.Semaphore(16)

        async def one(request: Awaitable[Request]) -> None:
            async with few:
                await request

        accounts = {a.name: a for a in (*self.settled, *self.restless, self._admin)}
        born = [(r.learned, r.user) for r in self.history if r.learned is not None]
        tried = {
            (r.user, number) for r in self.history for number in (r.password, r.new_password) if number is not None
        }
        last = {
            name: {*account.passwords, *sorted(number for user, number in tried if user == name)[-3:]}
            for name, account in accounts.items()
        }
        checks = [self.send("check", user, "GET", "/user", token=token, final=True) for token, user in born]
        checks += [
            self.ask(*verifier, user, token, final=True) for verifier in self._verifiers for token, user in born
        ]
        logins = [self._log_in(accounts[name], number, final=True) for name, tail in last.items() for number in tail]
        await asyncio.gather(*map(one, [*checks, *logins]))

    # -- one request

    async def send(
        self,
        kind: Kind,
        user: str,
        method: str,
        path: str,
        body: object = None,
        *,
        token: int | None = None,
        password: int | None = None,
        new_password: int | None = None,
        final: bool = False,
        hold: asyncio.Event | None = None,
    ) -> Request:
        """Send it, wait for the whole answer and write both down. ``hold``: its last byte waits for that."""
        number = next(self._ids)
        headers = {"User-Agent": f"faults/{number}"}
        if token is not None:
            headers["Authorization"] = self.secrets[token]
        url = random.choice(self._urls) + path
        status, code, session, whole = None, "", None, 0.0

        async def held_back(text: bytes, until: asyncio.Event) -> AsyncIterator[bytes]:
            nonlocal whole
            yield text[:-1]
            await until.wait()
            whole = time.monotonic()
            yield text[-1:]

        sending: dict[str, Any] = {"json": body}
        if hold is not None:
            text = json.dumps(body).encode()
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(text))}
            sending = {"data": held_back(text, hold)}
        self._busy += 1
        sent = time.monotonic()
        try:
            patience = aiohttp.ClientTimeout(total=PATIENCE)
            async with self._http.request(method, url, headers=headers, **sending, timeout=patience) as response:
                answer = await response.json(content_type=None)
                status = response.status
                code, session = str(answer.get("code", "")), answer.get("session_id")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            code = type(error).__name__
        finally:
            self._busy -= 1
        ended = time.monotonic()
        learned = self._keep(session) if session else None
        request = Request(
            number,
            kind,
            user,
            sent,
            ended,
            status,
            token=token,
            password=password,
            new_password=new_password,
            learned=learned,
            final=final,
            client=_client.get(),
            code=code,
            whole=whole,
        )
        self.history.append(request)
        return request

    async def ask(self, verifier: Verifier, stale: float, user: str, token: int, *, final: bool = False) -> Request:
        """Ask a verifier, and write down what came of it."""
        number = next(self._ids)
        self._busy += 1
        sent = time.monotonic()
        try:
            status = 401 if await verifier.check(self.secrets[token]) is None else 200
            code = VERIFIER
        except NotKnown as error:
            status, code = 503, f"{VERIFIER}: {error}"
        finally:
            self._busy -= 1
        client = _client.get()
        request = Request(
            number,
            "check",
            user,
            sent,
            time.monotonic(),
            status,
            token=token,
            final=final,
            client=client,
            code=code,
            stale=stale,
        )
        self.history.append(request)
        return request

    def _keep(self, secret: str) -> int:
        self.secrets.append(secret)
        return len(self.secrets) - 1

    # -- what clients do

    async def _live(self, number: int, step: Step) -> None:
        rng = random.Random(number)
        _client.set(number)
        while True:
            await asyncio.sleep(PAUSE * rng.uniform(0.5, 1.5))
            await self._go.wait()
            # Ending the client does not break off its request: the answer belongs to the history.
            await asyncio.shield(asyncio.ensure_future(step(rng)))

    async def _sign_up(self) -> None:
        for account in (*self.settled, *self.restless):
            account.passwords = [self._keep(secrets.token_urlsafe(18))]
            body = {"username": account.name, "password": self.secrets[account.password]}
            done = await self.send("register", account.name, "POST", "/account", body, new_password=account.password)
            assert done.done, done
            assert (await self._log_in(account, account.password)).done
        assert (await self._log_in(self._admin, self._admin.password)).done
        headers = {"Authorization": self.secrets[self._admin.tokens[0]]}
        async with self._http.get(self._urls[0] + "/admin/users", headers=headers) as response:
            self._ids_of = {user["username"]: user["id"] for user in (await response.json())["users"]}

    async def _log_in(self, account: Account, password: int | None, *, final: bool = False) -> Request:
        given = "not the right password" if password is None else self.secrets[password]
        body = {"username": account.name, "password": given}
        r = await self.send("login", account.name, "POST", "/user", body, password=password, final=final)
        if r.learned is not None:
            account.tokens.append(r.learned)
        elif r.refused and password == account.password:
            account.in_doubt()
        return r

    async def _check(self, account: Account, token: int) -> None:
        await self.send("check", account.name, "GET", "/user", token=token)

    async def _check_any(self, rng: random.Random) -> None:
        """Any of a user's last tokens, also one that has ended."""
        account = rng.choice([*self.settled, *self.restless])
        await self._check(account, rng.choice(account.tokens[-30:]))

    async def _ask_any(self, verifier: Verifier, stale: float, rng: random.Random) -> None:
        """Many of a user's last tokens: also those whose end came while nothing told of it."""
        account = rng.choice([*self.settled, *self.restless])
        last = account.tokens[-100:]
        for token in rng.sample(last, min(20, len(last))):
            # Those that are answered from memory do not wait for the others, each of which is asked once at a time.
            if (verifier, token) not in self._asked:
                asked = asyncio.create_task(self.ask(verifier, stale, account.name, token))
                self._asked[verifier, token] = asked
                asked.add_done_callback(lambda _, key=(verifier, token): self._asked.pop(key))  # type: ignore[misc]

    async def _settled_step(self, account: Account, rng: random.Random) -> None:
        often = len(account.tokens) < ENOUGH
        if rng.random() < (0.2 if often else 0.04):
            await self._log_in(account, account.password)
        elif rng.random() < 0.01:
            await self._log_in(account, None)
        else:
            await self._check(account, rng.choice(account.tokens))

    async def _device_step(self, account: Account, rng: random.Random) -> None:
        """Log in, look, log out: at the same time as the owner does what ends sessions."""
        r = await self._log_in(account, account.password)
        if r.learned is None:
            return
        await self._check(account, r.learned)
        if rng.random() < 0.7:
            await self.send("logout", account.name, "DELETE", "/user", token=r.learned)
            await self._check(account, r.learned)

    async def _owner_step(self, account: Account, rng: random.Random) -> None:
        token = account.tokens[-1]
        chance = rng.random()
        if chance < 0.12:
            await self._change_password(account)
        elif chance < 0.16:
            body = {"profile": {"seen": time.time()}}
            await self.send("profile", account.name, "PATCH", "/account", body, token=token)
            # The same, whose last byte comes only when its session has ended.
            over = asyncio.Event()
            late = asyncio.create_task(
                self.send("profile", account.name, "PATCH", "/account", body, token=token, hold=over)
            )
            await self.send("end_all", account.name, "DELETE", "/sessions?scope=all", token=token)
            over.set()
            await late
            await self._check(account, token)
        elif chance < 0.4:
            await self._log_in(account, account.password)
        else:
            await self._check(account, token)

    async def _change_password(self, account: Account) -> None:
        mine = (await self._log_in(account, account.password)).learned
        if mine is None:
            return
        old, new = account.password, self._keep(secrets.token_urlsafe(18))
        body = {"current": self.secrets[old], "new": self.secrets[new]}
        r = await self.send(
            "change", account.name, "PUT", "/account/password", body, token=mine, password=old, new_password=new
        )
        if r.done:
            assert r.learned is not None
            account.passwords = [new]
            account.tokens.append(r.learned)
        elif r.unavailable:
            account.passwords.append(new)
        await self._check(account, mine)

    async def _admin_step(self, rng: random.Random) -> None:
        """An administrator signs somebody out, now and then."""
        token = self._admin.tokens[-1]
        if rng.random() < 0.1:
            account = rng.choice(self.restless)
            await self.send(
                "sign_out", account.name, "DELETE", f"/admin/users/{self._ids_of[account.name]}/sessions", token=token
            )
            await self._check(account, account.tokens[-1])
        else:
            await self._check(self._admin, token)
