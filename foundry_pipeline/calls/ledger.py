"""The ledger of one run's slice: every call's intent before it is sent, every answer before it counts.

One writer, in a SQLite file of the slice's own or in the rows of a PostgreSQL database: the same code and tables.
Writes of a few milliseconds share one commit, and a write's future resolves only after that commit returned. No
database has checksums of its data by default, so each answer carries its sha256: one that no longer fits is asked
again, never decoded.

After a commit that failed nothing more is sent. Answers still under way go to another place where the database has
one, which the next opening takes in.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from foundry_pipeline.calls.ledger_tables import (
    ATTEMPTS,
    CALLS,
    EVIDENCE_BYTES,
    Answer,
    Attempt,
    Entry,
    Intent,
    Scope,
    Withdrawal,
    answered,
    apply,
    read,
    size_bytes,
)
from foundry_pipeline.calls.sqlite import SqliteFile
from foundry_pipeline.errors import FoundryError, StorageError

__all__ = ["EVIDENCE_BYTES", "Answer", "Attempt", "Database", "Entry", "Intent", "Ledger", "Withdrawal"]

T = TypeVar("T")
GROUP_S = 0.001
"""How long a write waits for company, where no commit keeps it waiting anyway: at most this and two commits."""
GROUP_MOST = 256
GROUP_BYTES = 8 * 1024 * 1024
"""Of replies in one commit; one that is larger goes alone."""
_Queued = tuple[Entry, asyncio.Future[None], float]
"""What to write, whom to tell, and since when it waits (monotonic seconds)."""


class Database(Protocol):
    """Where the rows of one slice are. Its methods raise StorageError; threads may share it."""

    @property
    def scope(self) -> Scope:
        """Which rows are the slice's."""

    def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Call `work` in a transaction; perhaps again, if the connection is lost, so it must bear repeating."""

    def pages(self, calls: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """The rows of a selection from `calls` whose first column is the call id, a few at a time, in any order."""

    @property
    def is_ours(self) -> bool:
        """False where another process may be writing: then nothing is to be written."""

    def begin_spare(self) -> Database | None:
        """After a commit that failed: another place for answers, if there is one. Raises StorageError."""

    def spare_left(self) -> Database | None:
        """The other place that an earlier process has begun, if it has."""

    def commit(self, work: Callable[[sa.Connection], None]) -> None:
        """Call `work`, which need not bear repeating, in a transaction that is durable on return and took place once.

        Raises SliceBusy where the slice's lease is lost; then nothing was written.
        """

    def close(self) -> None:
        """Give connections back."""

    def remove(self) -> None:
        """Delete the slice's rows, or the database itself, and close it."""


class Ledger:
    """The calls of one slice. Open it under the slice's lease; remove it once its answers are elsewhere."""

    def __init__(self, place: Database | Path) -> None:
        """A path is a SQLite file of one's own. Raises StorageError where it cannot be read or written."""
        self._database = SqliteFile(place) if isinstance(place, Path) else place
        self._scope = self._database.scope
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self.failed: Exception | None = None
        """The first write that failed: from then on nothing more may be sent."""
        self.damaged = 0
        """Answers that are not what was written, so as good as never given."""
        self._closed = False
        self._writer: threading.Thread | None = None
        self._take_in_spare()
        self.unknown = self._database.run(self._unknown)

    def _unknown(self, connection: sa.Connection) -> frozenset[str]:
        """Call ids that an earlier process sent, or was about to send, without learning the outcome."""
        open_calls = sa.and_(self._scope.of(CALLS), CALLS.c.in_flight, CALLS.c.outcome.is_(None))
        return frozenset(connection.execute(sa.select(CALLS.c.call_id).where(open_calls)).scalars())

    def outcomes(self) -> dict[str, str]:
        """call_id -> outcome of every call that has one whose reply is whole, without the replies."""
        return dict(self.each_outcome())

    def each_outcome(self) -> Iterator[tuple[str, str]]:
        """`outcomes`, one by one. Damaged answers are counted and dropped, once all were asked for."""
        damaged = []
        for page in self._database.pages(answered(self._scope)):
            for answer, is_whole in map(read, page):
                if is_whole:
                    yield answer.call_id, answer.outcome
                else:
                    damaged.append(answer.call_id)
        self.damaged += len(damaged)
        if self._database.is_ours:
            # A damaged id may be anything; one that is no id finds nothing.
            self.forget(call_id for call_id in damaged if isinstance(call_id, str) and call_id.isascii())

    def reply_sizes(self, call_ids: Iterable[str]) -> dict[str, int]:
        """call_id -> bytes of its reply."""
        ours = sa.and_(self._scope.of(CALLS), CALLS.c.reply.is_not(None), CALLS.c.call_id.in_(list(call_ids)))
        length = sa.select(CALLS.c.call_id, sa.func.length(CALLS.c.reply)).where(ours)
        found = self._database.run(lambda connection: connection.execute(length).all())
        return {call_id: size for call_id, size in found}  # noqa: C416  # a row is no pair to mypy

    def answers(self, call_ids: Iterable[str]) -> dict[str, Answer]:
        """The final outcomes of these calls, replies included. Ask for a few at a time."""
        wanted = answered(self._scope, CALLS.c.call_id.in_(list(call_ids)))
        found = {}
        for answer, is_whole in map(read, self._database.run(lambda connection: connection.execute(wanted).all())):
            if not is_whole:
                raise StorageError(f"ledger {self._database}: an answer is damaged; run again and it is asked again")
            found[answer.call_id] = answer
        return found

    async def write(self, entry: Entry) -> None:
        """Return once `entry` is durable. Raises StorageError where it cannot be made so, SliceBusy where the slice is
        another process's by now.

        After a failure answers are still taken, as long as there is any place for them.
        """
        await self.queue(entry)

    def queue(self, entry: Entry) -> asyncio.Future[None]:
        """`write` without waiting. Entries become durable in the order in which they were queued."""
        if self.failed is not None and not isinstance(entry, Answer):
            raise self.failed
        if self._closed:
            what = f"{type(entry).__name__} of {entry.call_id}"
            raise StorageError(f"ledger {self._database}: closed; {what} is not written")
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_groups, name="ledger", daemon=True)
            self._writer.start()
        done = asyncio.get_running_loop().create_future()
        self._queue.put((entry, done, time.monotonic()))
        return done

    def forget(self, call_ids: Iterable[str]) -> None:
        """Drop calls whose answers are durable elsewhere."""
        left = iter(call_ids)
        while some := list(islice(left, 500)):
            self._database.commit(lambda connection, some=some: self._drop(connection, some))  # type: ignore[misc]

    def _drop(self, connection: sa.Connection, call_ids: Sequence[str]) -> None:
        for table in (CALLS, ATTEMPTS):
            connection.execute(sa.delete(table).where(self._scope.of(table), table.c.call_id.in_(call_ids)))

    def answered(self) -> int:
        """Calls that have an outcome."""
        count = sa.select(sa.func.count()).where(self._scope.of(CALLS), CALLS.c.outcome.is_not(None))
        return int(self._database.run(lambda connection: connection.execute(count).scalar_one()))

    def is_empty(self) -> bool:
        """True where no answered call is left: it may go."""
        return self.answered() == 0

    def close(self) -> None:
        """Make everything queued durable and close the database."""
        self._closed = True
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self._database.close()

    def remove(self) -> None:
        """Close the ledger and delete it."""
        self.close()
        self._database.remove()

    def _write_groups(self) -> None:
        """The one writer: takes what is queued, commits it as a group, then resolves its futures."""
        spare: Database | None = None
        while (first := self._queue.get()) is not None:
            group = self._gather(first)
            if self.failed is None:
                self.failed = self._commit(self._database, [entry for entry, _, _ in group])
            if self.failed is None:
                _resolve([future for _, future, _ in group], None)
            else:
                spare = spare or self._begin_spare()
                self._rescue(spare, group)
        if spare is not None:
            spare.close()

    def _begin_spare(self) -> Database | None:
        try:
            return self._database.begin_spare()
        except StorageError:
            return None  # why the ledger itself failed is the better story

    def _rescue(self, spare: Database | None, group: Sequence[_Queued]) -> None:
        """Keep the group's answers elsewhere; those who want to send more are told of the failure."""
        answers = [entry for entry, _, _ in group if isinstance(entry, Answer)]
        is_kept = not answers or (spare is not None and self._commit(spare, answers) is None)
        _resolve([f for entry, f, _ in group if isinstance(entry, Answer)], None if is_kept else self.failed)
        _resolve([f for entry, f, _ in group if not isinstance(entry, Answer)], self.failed)

    def _take_in_spare(self) -> None:
        """Answers that found no place here, when a write had failed. Safe to repeat."""
        spare = self._database.spare_left() if self._database.is_ours else None
        if spare is None:
            return
        for page in spare.pages(answered(spare.scope)):
            whole = [answer for answer, is_whole in map(read, page) if is_whole]
            self._database.commit(partial(apply, scope=self._scope, entries=whole))
        spare.remove()

    def _gather(self, first: _Queued) -> list[_Queued]:
        waited_s = time.monotonic() - first[2]
        if waited_s < GROUP_S:
            time.sleep(GROUP_S - waited_s)
        group, weight = [first], size_bytes(first[0])
        while len(group) < GROUP_MOST and weight < GROUP_BYTES and not self._queue.empty():
            item = self._queue.get()
            if item is None:
                self._queue.put(None)
                break
            group.append(item)
            weight += size_bytes(item[0])
        return group

    def _commit(self, database: Database, entries: Sequence[Entry]) -> Exception | None:
        """Write a group; or say why not, whatever it is: a writer that dies in silence hangs the run."""
        try:
            database.commit(partial(apply, scope=database.scope, entries=entries))
        except (FoundryError, sa.exc.SQLAlchemyError, ArithmeticError, ValueError) as err:
            return err
        return None


def _resolve(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    """Hand the outcome to the event loop the futures belong to; one that has gone wants none."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, some in by_loop.items():
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, some, error)


def _settle(futures: list[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
