"""The ledger of one run's slice: every call's intent before it is sent, every answer before it counts.

One writer, in a SQLite file of the slice's own or in the rows of a PostgreSQL database: the same code and tables.
Writes of a few milliseconds share one commit, and a write's future resolves only after that commit returned. No
database has checksums of its data by default, so each reply carries its sha256: a reply that no longer fits is asked
again, never decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from foundry_pipeline.calls.ledger_tables import (
    ANSWER_COLUMNS,
    ATTEMPTS,
    CALLS,
    EVIDENCE_BYTES,
    Answer,
    Attempt,
    Entry,
    Intent,
    Scope,
    Withdrawal,
    apply,
    size_bytes,
)
from foundry_pipeline.calls.sqlite import SqliteFile
from foundry_pipeline.errors import FoundryError, StorageError

__all__ = ["EVIDENCE_BYTES", "Answer", "Attempt", "Database", "Entry", "Intent", "Ledger", "Withdrawal"]

T = TypeVar("T")
GROUP_S = 0.004
"""How long a commit waits for company. A write waits at most this and two commits."""
GROUP_MOST = 256
GROUP_BYTES = 8 * 1024 * 1024
"""Of replies in one commit; one that is larger goes alone."""
READ_ROWS = 64
"""Rows with their replies that are in memory at once."""


class Database(Protocol):
    """Where the rows of one slice are. Its methods raise StorageError; threads may share it."""

    @property
    def scope(self) -> Scope:
        """Which rows are the slice's."""

    def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Call `work` in a transaction; perhaps again, if the connection is lost, so it must bear repeating."""

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
        self._queue: queue.SimpleQueue[tuple[Entry, asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._failed: Exception | None = None
        self._closed = False
        self._writer: threading.Thread | None = None
        self.unknown = self._database.run(self._unknown)

    def _unknown(self, connection: sa.Connection) -> frozenset[str]:
        """Call ids that an earlier process sent, or was about to send, without learning the outcome."""
        open_calls = sa.and_(self._scope.of(CALLS), CALLS.c.in_flight, CALLS.c.outcome.is_(None))
        return frozenset(connection.execute(sa.select(CALLS.c.call_id).where(open_calls)).scalars())

    def outcomes(self) -> dict[str, str]:
        """call_id -> outcome of every call that has one whose reply is whole, without the replies."""
        damaged = set(self._damaged())
        answered = sa.and_(self._scope.of(CALLS), CALLS.c.outcome.is_not(None))
        statement = sa.select(CALLS.c.call_id, CALLS.c.outcome).where(answered)
        found = self._database.run(lambda connection: connection.execute(statement).all())
        return {call_id: outcome for call_id, outcome in found if call_id not in damaged}

    def _damaged(self) -> Iterator[str]:
        """Call ids whose reply is not what was written."""
        last = ""
        while some := self._replies_after(last):
            for record in some:
                if hashlib.sha256(record.reply).digest() != record.reply_sha256:
                    yield record.call_id
            last = some[-1].call_id

    def _replies_after(self, call_id: str) -> Sequence[Any]:
        """The next few, in the order of their call ids."""
        statement = (
            sa.select(CALLS.c.call_id, CALLS.c.reply, CALLS.c.reply_sha256)
            .where(self._scope.of(CALLS), CALLS.c.reply.is_not(None), CALLS.c.call_id > call_id)
            .order_by(CALLS.c.call_id)
            .limit(READ_ROWS)
        )
        return self._database.run(lambda connection: connection.execute(statement).all())

    def answers(self, call_ids: Iterable[str]) -> dict[str, Answer]:
        """The final outcomes of these calls, replies included. Ask for a few at a time."""
        columns = [CALLS.c[name] for name in (*ANSWER_COLUMNS, "reply_sha256")]
        wanted = sa.select(*columns).where(self._scope.of(CALLS), CALLS.c.call_id.in_(list(call_ids)))
        found = self._database.run(lambda connection: connection.execute(wanted).all())
        return {record.call_id: self._answer(record) for record in found if record.outcome is not None}

    def _answer(self, record: Any) -> Answer:
        if record.reply is not None and hashlib.sha256(record.reply).digest() != record.reply_sha256:
            raise StorageError(f"ledger {self._database}: a reply is damaged; run again and it is asked again")
        return Answer(**{name: getattr(record, name) for name in ANSWER_COLUMNS})

    async def write(self, entry: Entry) -> None:
        """Return once `entry` is durable. Raises StorageError where it cannot be made so, SliceBusy where the slice is
        another process's by now."""
        if self._failed:
            raise self._failed
        if self._closed:
            what = f"{type(entry).__name__} of {entry.call_id}"
            raise StorageError(f"ledger {self._database}: closed; {what} is not written")
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_groups, name="ledger", daemon=True)
            self._writer.start()
        done = asyncio.get_running_loop().create_future()
        self._queue.put((entry, done))
        await done

    def forget(self, call_ids: Iterable[str]) -> None:
        """Drop calls whose answers are durable elsewhere."""
        wanted = list(call_ids)

        def drop(connection: sa.Connection) -> None:
            for at in range(0, len(wanted), 500):
                for table in (CALLS, ATTEMPTS):
                    some = table.c.call_id.in_(wanted[at : at + 500])
                    connection.execute(sa.delete(table).where(self._scope.of(table), some))

        self._database.commit(drop)

    def is_empty(self) -> bool:
        """True where no answered call is left: it may go."""
        answered = sa.select(sa.func.count()).where(self._scope.of(CALLS), CALLS.c.outcome.is_not(None))
        return self._database.run(lambda connection: connection.execute(answered).scalar_one() == 0)

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
        while (first := self._queue.get()) is not None:
            group = self._gather(first)
            if self._failed is None:
                self._commit([entry for entry, _ in group])
            _resolve([future for _, future in group], self._failed)

    def _gather(self, first: tuple[Entry, asyncio.Future[None]]) -> list[tuple[Entry, asyncio.Future[None]]]:
        time.sleep(GROUP_S)
        group, weight = [first], size_bytes(first[0])
        while len(group) < GROUP_MOST and weight < GROUP_BYTES and not self._queue.empty():
            item = self._queue.get()
            if item is None:
                self._queue.put(None)
                break
            group.append(item)
            weight += size_bytes(item[0])
        return group

    def _commit(self, entries: list[Entry]) -> None:
        try:
            self._database.commit(lambda connection: apply(connection, self._scope, entries))
        except (FoundryError, sa.exc.SQLAlchemyError, ArithmeticError, ValueError) as err:
            # Whatever it is, those who wait must hear of it: a writer that dies in silence hangs the run.
            self._failed = err


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
