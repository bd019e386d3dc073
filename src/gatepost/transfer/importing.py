"""An import: one batch is judged here while Postgres stores the batch before."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from gatepost.postgres import blocking
from gatepost.security.credentials import cores
from gatepost.transfer import queries
from gatepost.transfer.lines import Refusal, Source
from gatepost.transfer.users import ImportedUser, Judge

# With smaller ones reader and Postgres wait for each other more often. In bytes too, since profiles may be large.
BATCH = 10_000
BATCH_BYTES = 4 * 1024 * 1024  # of the file
WRAPPED = 200  # hashes in a batch that are wrapped: a few seconds


class ImportStopped(Exception):
    """The database does not go on; the message says that the import can be run again."""


@dataclass(slots=True)
class Counts:
    """How far an import is."""

    added: int = 0
    existing: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Batch:
    """``position``: where in the file it begins, and once it is handed over, where it ends. ``ids``: of ``users`` and
    of those whose hashes are being wrapped.
    """

    users: list[queries.Row] = field(default_factory=list)
    wrapping: "list[Future[ImportedUser]]" = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    refusals: list[Refusal] = field(default_factory=list)
    position: int = 0

    def __len__(self) -> int:
        return len(self.users) + len(self.wrapping) + len(self.refusals)


@dataclass(slots=True)
class Import:
    """One run. ``refuse`` hears of each refused line, in order; ``advanced`` of each batch that is stored."""

    connection: Any
    judge: Judge
    dry: bool
    refuse: Callable[[Refusal], None]
    advanced: Callable[[Counts, int], None]
    costs: tuple[int, int, int] = (19456, 2, 1)
    """Of the Argon2id within which fast hashes are kept: memory in KiB, passes, lanes."""
    counts: Counts = field(default_factory=Counts)
    _run: str = field(default_factory=lambda: str(uuid4()))

    def run(self, source: Source) -> Counts:
        """Import everything. Raises ImportStopped, lines.UnusableFile."""
        with self._stopping():
            queries.prepare(self.connection)
        # A thread for Postgres: it waits, and this one goes on reading. One batch is stored, one is being read.
        with (
            ThreadPoolExecutor(1, thread_name_prefix="import") as thread,
            ThreadPoolExecutor(cores(), thread_name_prefix="wrapping") as hashing,
        ):
            storing: Future[_Batch] | None = None
            batch = _Batch()
            for record in source.records():
                judged = record if isinstance(record, Refusal) else self.judge(record)
                again = isinstance(judged, ImportedUser) and judged.id in batch.ids
                full = len(batch) >= BATCH or source.position - batch.position >= BATCH_BYTES
                if again or full or len(batch.wrapping) >= WRAPPED:
                    storing = self._hand_over(thread, batch, source, storing)
                    batch = _Batch(position=source.position)
                if isinstance(judged, Refusal):
                    batch.refusals.append(judged)
                elif judged.fast is not None and not self.dry:
                    batch.wrapping.append(hashing.submit(judged.wrapped, *self.costs))
                    batch.ids.add(judged.id)
                else:
                    batch.users.append(queries.row(judged))
                    batch.ids.add(judged.id)
            self._done(self._hand_over(thread, batch, source, storing))
        with self._stopping():
            queries.finish(self.connection)
        return self.counts

    def _hand_over(
        self, thread: ThreadPoolExecutor, batch: _Batch, source: Source, before: "Future[_Batch] | None"
    ) -> "Future[_Batch]":
        batch.position = source.position
        if batch.wrapping:
            batch.users = sorted([*batch.users, *(queries.row(user.result()) for user in batch.wrapping)])
        if before is not None:
            self._done(before)
        return thread.submit(self._store, batch)

    def _done(self, storing: "Future[_Batch]") -> None:
        with self._stopping():
            batch = storing.result()
        for refusal in sorted(batch.refusals):
            self.counts.refused += 1
            self.refuse(refusal)
        self.advanced(self.counts, batch.position)

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except blocking.Gone as error:
            raise ImportStopped(
                f"{blocking.gone(error)} after {self.counts.added} users: run the import again to go on"
            ) from None

    def _store(self, batch: _Batch) -> _Batch:
        batch.refusals += self._add(batch.users)
        return batch

    def _add(self, users: list[queries.Row]) -> list[Refusal]:
        """Store users; a batch with one that Postgres refuses is halved until that one is found."""
        if not users:
            return []
        try:
            existing, refused = queries.add(self.connection, users, self._run, dry=self.dry)
        except blocking.BadRow as error:
            if len(users) > 1:
                half = len(users) // 2
                return self._add(users[:half]) + self._add(users[half:])
            constraint = error.diag.constraint_name or type(error).__name__
            return [Refusal(users[0].line, f"the database refuses it ({constraint})")]
        self.counts.added += len(users) - existing - len(refused)
        self.counts.existing += existing
        return refused
