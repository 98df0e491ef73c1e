"""The ledger of one run's slice: every call's intent before it is sent, every answer before it counts.

One database per run and slice with one writer, SQLite in WAL mode with synchronous=FULL. Writes of a few milliseconds
share one commit, and a write's future resolves only after that commit returned. SQLite has no checksums of its own
data, so each reply carries its sha256: a reply that no longer fits is asked again, never decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import queue
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from foundry_pipeline.errors import SliceBusy, StorageError

GROUP_S = 0.001
"""How long a write waits for company, where no commit keeps it waiting anyway: at most this and two commits."""
GROUP_MOST = 256
EVIDENCE_BYTES = 64 * 1024

_metadata = sa.MetaData()
CALLS = sa.Table(
    "calls",
    _metadata,
    sa.Column("call_id", sa.String(64), primary_key=True),
    sa.Column("global_key", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("in_flight", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.String(24)),
    sa.Column("http_status", sa.Integer),
    sa.Column("sent_us", sa.BigInteger),
    sa.Column("latency_ms", sa.Float),
    sa.Column("reply", sa.LargeBinary),
    sa.Column("reply_sha256", sa.LargeBinary),
    sa.Column("error", sa.Text),
    sa.Column("message", sa.Text),
)
ATTEMPTS = sa.Table(
    "attempts",
    _metadata,
    sa.Column("call_id", sa.String(64), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("sent_us", sa.BigInteger, nullable=False),
    sa.Column("http_status", sa.Integer),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("evidence", sa.LargeBinary),
)


@dataclass(frozen=True, slots=True)
class Intent:
    """A request that is about to be sent. `sent_us` is microseconds of the UTC epoch."""

    call_id: str
    global_key: str
    sent_us: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request that brought no final outcome. `evidence` is what came of the body, cut at 64 KiB."""

    call_id: str
    sent_us: int
    error: str
    message: str
    http_status: int | None = None
    evidence: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """The final outcome of a call; see `tables.RESPONSES` for the fields."""

    call_id: str
    outcome: str
    attempts: int = 0
    http_status: int | None = None
    sent_us: int | None = None
    latency_ms: float | None = None
    reply: bytes | None = field(default=None, repr=False)
    error: str | None = None
    message: str | None = None

    def without_reply(self) -> Answer:
        """The same, for those who only count."""
        return Answer(
            self.call_id,
            self.outcome,
            self.attempts,
            self.http_status,
            self.sent_us,
            self.latency_ms,
            None,
            self.error,
            self.message,
        )


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A declared call that was not sent after all."""

    call_id: str


Entry = Intent | Attempt | Answer | Withdrawal
_Queued = tuple[Entry, asyncio.Future[None], float]
"""What to write, whom to tell, and since when it waits (monotonic seconds)."""


class Lease:
    """The right to work on one slice: `flock` on a file that says who holds it. A dead holder's lock is free."""

    def __init__(self, path: Path, run: str) -> None:
        """Take the lease now, or raise SliceBusy naming its holder."""
        self._path = path
        _make_folder(path.parent)
        while True:
            try:
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as err:
                raise StorageError(f"ledger {path}: {err.strerror or err}") from err
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = os.pread(self._descriptor, 1024, 0).decode(errors="replace")
                os.close(self._descriptor)
                raise SliceBusy(f"another process works on {path.stem} of {run}: {other or 'just starting'}") from None
            if self._is_current():
                break
            os.close(self._descriptor)
        holder = {"run": run, "pid": os.getpid(), "host": socket.gethostname(), "since": _now_text()}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def _is_current(self) -> bool:
        """False where the file was removed by its last holder between our open and our lock."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the slice free. The file goes while the lock is still held, so that none is left behind."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


class Ledger:
    """The calls of one slice. Open it under the slice's Lease; remove it once its answers are elsewhere."""

    def __init__(self, path: Path) -> None:
        """Open or make the database at `path`. Raises StorageError where it cannot be read or written."""
        self.path = path
        _make_folder(path.parent)
        self._engine = sa.create_engine(f"sqlite+pysqlite:///{path}", poolclass=sa.pool.NullPool)
        sa.event.listen(self._engine, "connect", _durable)
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._failed: StorageError | None = None
        self._closed = False
        with self._translated():
            _metadata.create_all(self._engine)
            self.unknown = self._settle_unknown()
        self._writer: threading.Thread | None = None

    def _settle_unknown(self) -> frozenset[str]:
        """Call ids that an earlier process sent, or was about to send, without learning the outcome."""
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(CALLS.c.call_id).where(CALLS.c.in_flight, CALLS.c.outcome.is_(None)))
            return frozenset(found.scalars())

    def outcomes(self) -> dict[str, str]:
        """call_id -> outcome of every call that has one whose reply is whole, without the replies."""
        return dict(self.each_outcome())

    def each_outcome(self) -> Iterator[tuple[str, str]]:
        """`outcomes`, one by one."""
        columns = (CALLS.c.call_id, CALLS.c.outcome, CALLS.c.reply, CALLS.c.reply_sha256)
        answered = sa.select(*columns).where(CALLS.c.outcome.is_not(None))
        with self._translated(), self._engine.begin() as connection:
            for call_id, outcome, reply, digest in connection.execution_options(yield_per=16).execute(answered):
                if reply is None or hashlib.sha256(reply).digest() == digest:
                    yield call_id, outcome

    def reply_sizes(self, call_ids: Iterable[str]) -> dict[str, int]:
        """call_id -> bytes of its reply."""
        length = sa.select(CALLS.c.call_id, sa.func.length(CALLS.c.reply)).where(CALLS.c.reply.is_not(None))
        with self._translated(), self._engine.begin() as connection:
            found = connection.execute(length.where(CALLS.c.call_id.in_(list(call_ids))))
            return {call_id: size for call_id, size in found}  # noqa: C416  # a result is no mapping, though dict() thinks so

    def answers(self, call_ids: Iterable[str]) -> dict[str, Answer]:
        """The final outcomes of these calls, replies included. Ask for a few at a time."""
        wanted = list(call_ids)
        columns = [CALLS.c[name] for name in _ANSWER_COLUMNS]
        with self._translated(), self._engine.begin() as connection:
            found = connection.execute(sa.select(*columns, CALLS.c.reply_sha256).where(CALLS.c.call_id.in_(wanted)))
            return {record.call_id: self._answer(record) for record in found if record.outcome is not None}

    def _answer(self, record: Any) -> Answer:
        if record.reply is not None and hashlib.sha256(record.reply).digest() != record.reply_sha256:
            raise StorageError(f"ledger {self.path}: a reply is damaged; run again and it is asked again")
        return Answer(*record[: len(_ANSWER_COLUMNS)])

    async def write(self, entry: Entry) -> None:
        """Return once `entry` is durable. Raises StorageError where it cannot be made so."""
        await self.queue(entry)

    def queue(self, entry: Entry) -> asyncio.Future[None]:
        """`write` without waiting. Entries become durable in the order in which they were queued."""
        if self._failed:
            raise self._failed
        if self._closed:
            raise StorageError(f"ledger {self.path}: closed; {type(entry).__name__} of {entry.call_id} is not written")
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
            with self._translated(), self._engine.begin() as connection:
                connection.execute(sa.delete(CALLS).where(CALLS.c.call_id.in_(some)))
                connection.execute(sa.delete(ATTEMPTS).where(ATTEMPTS.c.call_id.in_(some)))

    def answered(self) -> int:
        """Calls that have an outcome."""
        with self._translated(), self._engine.begin() as connection:
            found = connection.execute(sa.select(sa.func.count()).where(CALLS.c.outcome.is_not(None)))
            return int(found.scalar_one())

    def is_empty(self) -> bool:
        """True where no answered call is left: the file may go."""
        return self.answered() == 0

    def close(self) -> None:
        """Make everything queued durable and close the database."""
        self._closed = True
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        self._engine.dispose()

    def remove(self) -> None:
        """Close the database and delete its files."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _write_groups(self) -> None:
        """The one writer: takes what is queued, commits it as a group, then resolves its futures."""
        try:
            connection = self._engine.connect()
        except sa.exc.DBAPIError as err:
            self._failed = _storage_error(self.path, err)
            connection = None
        while (first := self._queue.get()) is not None:
            group = self._gather(first)
            if connection is not None and self._failed is None:
                self._commit(connection, [entry for entry, _, _ in group])
            _resolve([future for _, future, _ in group], self._failed)
        if connection is not None:
            connection.close()

    def _gather(self, first: _Queued) -> list[_Queued]:
        waited_s = time.monotonic() - first[2]
        if waited_s < GROUP_S:
            time.sleep(GROUP_S - waited_s)
        group = [first]
        while len(group) < GROUP_MOST and not self._queue.empty():
            item = self._queue.get()
            if item is None:
                self._queue.put(None)
                break
            group.append(item)
        return group

    def _commit(self, connection: sa.Connection, entries: list[Entry]) -> None:
        try:
            with connection.begin():
                _apply(connection, entries)
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, ValueError) as err:
            # Whatever it is, those who wait must hear of it: a writer that dies in silence hangs the run.
            self._failed = _storage_error(self.path, err)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as err:
            raise _storage_error(self.path, err) from err


def requests_in(folder: Path) -> int:
    """Requests that the ledgers of a folder record, which others may be writing. Raises StorageError."""
    total = 0
    for path in sorted(folder.glob("*.sqlite")):
        try:
            with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
                connection.execute("PRAGMA busy_timeout=10000")
                if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
                    total += connection.execute("SELECT COALESCE(SUM(attempts), 0) FROM calls").fetchone()[0]
        except sqlite3.Error as err:
            if path.exists():  # else its slice has just been committed
                raise _storage_error(path, err) from err
    return total


_ANSWER_COLUMNS = (
    "call_id",
    "outcome",
    "attempts",
    "http_status",
    "sent_us",
    "latency_ms",
    "reply",
    "error",
    "message",
)

_ATTEMPT_VALUES = ("sent_us", "http_status", "error", "message", "evidence")
_fresh_intent = insert(CALLS).values(attempts=1, in_flight=True)
# An earlier answer stays until a newer one takes its place: a refresh that fails loses nothing.
_INTENT = _fresh_intent.on_conflict_do_update(
    index_elements=[CALLS.c.call_id],
    set_={"attempts": CALLS.c.attempts + 1, "in_flight": True, "sent_us": _fresh_intent.excluded.sent_us},
)
_fresh_answer = insert(CALLS).values(attempts=0, in_flight=False, global_key="")
_ANSWER = _fresh_answer.on_conflict_do_update(
    index_elements=[CALLS.c.call_id],
    set_={
        "in_flight": False,
        "sent_us": sa.func.coalesce(_fresh_answer.excluded.sent_us, CALLS.c.sent_us),
        **{
            name: _fresh_answer.excluded[name]
            for name in ("outcome", "http_status", "latency_ms", "reply", "reply_sha256", "error", "message")
        },
    },
    where=sa.or_(
        CALLS.c.outcome.is_(None),
        CALLS.c.outcome != "ok",
        _fresh_answer.excluded.outcome == "ok",
        _fresh_answer.excluded.outcome == "rejected_by_model",
    ),
)
_LANDED = sa.update(CALLS).where(CALLS.c.call_id == sa.bindparam("b_call_id")).values(in_flight=False)
_WITHDRAWAL = _LANDED.values(attempts=CALLS.c.attempts - 1)
_ATTEMPT = sa.insert(ATTEMPTS).from_select(
    ["call_id", "attempt", "sent_us", "http_status", "error", "message", "evidence"],
    sa.select(
        CALLS.c.call_id,
        CALLS.c.attempts,
        *(sa.bindparam(f"b_{name}", type_=ATTEMPTS.c[name].type) for name in _ATTEMPT_VALUES),
    ).where(CALLS.c.call_id == sa.bindparam("b_call_id")),
)


def _apply(connection: sa.Connection, entries: list[Entry]) -> None:
    """Write a group, one statement a kind: a call never has two entries in one group, since each waits for the last."""
    kinds: dict[type, list[Any]] = {Intent: [], Attempt: [], Answer: [], Withdrawal: []}
    for entry in entries:
        kinds[type(entry)].append(entry)
    if intents := kinds[Intent]:
        connection.execute(_INTENT, [_intent_values(intent) for intent in intents])
    if withdrawn := kinds[Withdrawal]:
        connection.execute(_WITHDRAWAL, [{"b_call_id": entry.call_id} for entry in withdrawn])
    if attempts := kinds[Attempt]:
        connection.execute(_ATTEMPT, [_attempt_values(attempt) for attempt in attempts])
        connection.execute(_LANDED, [{"b_call_id": attempt.call_id} for attempt in attempts])
    if answers := kinds[Answer]:
        connection.execute(_ANSWER, [_answer_values(answer) for answer in answers])


def _intent_values(intent: Intent) -> dict[str, Any]:
    return {"call_id": intent.call_id, "global_key": intent.global_key, "sent_us": intent.sent_us}


def _answer_values(answer: Answer) -> dict[str, Any]:
    return {
        "call_id": answer.call_id,
        "outcome": answer.outcome,
        "http_status": answer.http_status,
        "sent_us": answer.sent_us,
        "latency_ms": answer.latency_ms,
        "reply": answer.reply,
        "reply_sha256": None if answer.reply is None else hashlib.sha256(answer.reply).digest(),
        "error": answer.error,
        "message": answer.message,
    }


def _attempt_values(attempt: Attempt) -> dict[str, Any]:
    values = {f"b_{name}": getattr(attempt, name) for name in _ATTEMPT_VALUES}
    return {**values, "b_call_id": attempt.call_id, "b_evidence": attempt.evidence[:EVIDENCE_BYTES]}


def _durable(connection: sqlite3.Connection, _record: object) -> None:
    """Every connection: write-ahead log, every commit on the disk before it returns."""
    connection.execute("PRAGMA busy_timeout=10000")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _resolve(futures: list[asyncio.Future[None]], error: StorageError | None) -> None:
    """Hand the outcome to the event loop the futures belong to; one that has gone wants none."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, some in by_loop.items():
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, some, error)


def _settle(futures: list[asyncio.Future[None]], error: StorageError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _storage_error(path: Path, err: Exception) -> StorageError:
    cause = next(iter(str(getattr(err, "orig", None) or err).splitlines()), type(err).__name__)
    return StorageError(f"ledger {path}: {cause}; what it holds is kept, nothing more is sent")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StorageError(f"ledger folder {folder}: {err.strerror or err}") from err


def _now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
