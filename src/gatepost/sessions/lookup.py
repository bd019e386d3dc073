"""Session checks, gathered: those that arrive while a query is under way go together in the next one.

Nothing waits for a timer and nothing is kept. A query begins after every check in it has arrived, so a revocation
that was acknowledged before a check was sent is seen by it, on every node.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from gatepost.postgres.connection import ANSWER_TIMEOUT
from gatepost.postgres.database import LOOKUP_CONNECTIONS, Database
from gatepost.postgres.pool import ACQUIRE_TIMEOUT
from gatepost.sessions import queries
from gatepost.sessions.session import Session

# Enough for any burst that two connections can turn over; keeps one statement's text below 100 KB.
MAX_BATCH = 1000

# A query beside the one under way begins for this many: each costs 40 us here, whatever it asks for (measured: 0 to
# 8 % more checks a second).
WORTH_A_QUERY = 8


@dataclass(slots=True)
class _Waiting:
    """The checks of one token that no query has taken yet."""

    since: float
    answers: "list[asyncio.Future[Session | None]]" = field(default_factory=list)

    def still_awaited(self) -> "list[asyncio.Future[Session | None]]":
        """All but those whose own request was cancelled."""
        return [answer for answer in self.answers if not answer.done()]


class Lookup:
    """Finds live sessions by token hash over ``database``, whose connections nothing else uses.

    ``idle_timeout``: seconds without a request after which a session no longer counts. ``two_factors_for``: the roles
    that demand two factors.
    """

    def __init__(self, database: Database, idle_timeout: int, two_factors_for: Sequence[str] = ()) -> None:
        self.database = database
        self._how = idle_timeout, two_factors_for
        self._waiting: dict[bytes, _Waiting] = {}  # who has waited longest comes first
        self._workers: set[asyncio.Task[None]] = set()
        self.queries = self.tokens = 0
        """How many there were, and how many tokens they asked for together."""
        self._under_way = 0

    async def find(self, token_hash: bytes) -> Session | None:
        """The live session with this token hash, or None. Raises DatabaseUnavailable."""
        answer = self._wait_for(token_hash)
        self._begin()
        return await answer

    async def find_all(self, hashes: Iterable[bytes]) -> dict[bytes, Session]:
        """The live sessions with these token hashes. Raises DatabaseUnavailable."""
        # Not `find` for each: gather would make a task of each, which took a third of the node's time (measured).
        waiting = [self._wait_for(token_hash) for token_hash in set(hashes)]
        self._begin()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return {session.token_hash: session for session in answers if isinstance(session, Session)}

    def _wait_for(self, token_hash: bytes) -> "asyncio.Future[Session | None]":
        answer: asyncio.Future[Session | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(token_hash)
        if waiting is None:
            waiting = self._waiting[token_hash] = _Waiting(time.monotonic())
        waiting.answers.append(answer)
        return answer

    def _begin(self) -> None:
        """Begin a query for those who wait, if it is worth one."""
        if self._worth_another():
            self._under_way += 1
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def _worth_another(self) -> bool:
        """Whether to begin a query: at once if none is under way, else for a batch that is worth its cost."""
        if self._under_way == 0:
            return bool(self._waiting)
        return self._under_way < LOOKUP_CONNECTIONS and len(self._waiting) >= WORTH_A_QUERY

    async def _work(self) -> None:
        while True:
            try:
                await self._ask()
            finally:
                self._under_way -= 1
            # Checks that arrived meanwhile are answered by this worker, or by the other one when its query ends.
            if not self._worth_another():
                return
            self._under_way += 1

    async def _ask(self) -> None:
        batch = self._next_batch()
        if not batch:  # another worker has taken them
            return
        self.queries += 1
        self.tokens += len(batch)
        deadline = next(iter(batch.values())).since + ANSWER_TIMEOUT
        try:
            found = await self.database.read_by(deadline, queries.live_sessions, list(batch), *self._how)
        except Exception as error:  # noqa: BLE001 (whatever it is, those who wait must hear of it)
            _fail(batch.values(), error)
            self._give_up_on_those_who_waited(error)
        except asyncio.CancelledError:
            for waiting in batch.values():
                for answer in waiting.still_awaited():
                    answer.cancel()
            raise
        else:
            for token_hash, waiting in batch.items():
                session = found.get(token_hash)
                for answer in waiting.still_awaited():
                    answer.set_result(session)

    def _give_up_on_those_who_waited(self, error: Exception) -> None:
        """Fail the checks that waited behind a query that hung: their time is over too."""
        before = time.monotonic() - ACQUIRE_TIMEOUT
        late = [token_hash for token_hash, waiting in self._waiting.items() if waiting.since < before]
        _fail([self._waiting.pop(token_hash) for token_hash in late], error)

    def _next_batch(self) -> dict[bytes, _Waiting]:
        if len(self._waiting) <= MAX_BATCH:
            batch, self._waiting = self._waiting, {}
            return batch
        return {token_hash: self._waiting.pop(token_hash) for token_hash in list(islice(self._waiting, MAX_BATCH))}


def _fail(waiting: Iterable[_Waiting], error: Exception) -> None:
    for one in waiting:
        for answer in one.still_awaited():
            answer.set_exception(error)
