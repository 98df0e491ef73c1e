"""The ledger of one run's slice: every call's intent before it is sent, every answer before it counts.

One database per run and slice with one writer, SQLite in WAL mode with synchronous=FULL. Writes of a few milliseconds
share one commit, and a write's future resolves only after that commit returned. SQLite has no checksums of its own
data, so each answer carries its sha256: one that no longer fits is asked again, never decoded.

After a commit that failed nothing more is sent, and that connection is not used again, since the kernel may have
dropped its pages. Answers still under way go to a new file beside it, which the next opening takes in.
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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from foundry_pipeline.calls.ballast import Ballast
from foundry_pipeline.decoding.places import is_text
from foundry_pipeline.errors import SliceBusy, StorageError

GROUP_S = 0.001
"""How long a write waits for company, where no commit keeps it waiting anyway: at most this and two commits."""
GROUP_MOST = 256
EVIDENCE_BYTES = 64 * 1024
_LATEST_US = 253_402_300_800_000_000
"""The year 10000, the first that Python's datetime does not know."""

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
    sa.Column("sha256", sa.LargeBinary),
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

    def __init__(self, path: Path, ballast: Ballast | None = None) -> None:
        """Open or make the database at `path`; `ballast` is given up where a write fails.

        Raises StorageError where it cannot be read or written.
        """
        self.path = path
        self._spare = path.with_suffix(".spare.sqlite")
        self._ballast = ballast
        _make_folder(path.parent)
        self._engine = _engine(path)
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self.failed: StorageError | None = None
        """The first write that failed: from then on nothing more may be sent."""
        self.damaged = 0
        """Answers that are not what was written, so as good as never given."""
        self._closed = False
        with self._translated():
            _metadata.create_all(self._engine)
            self._take_in_spare()
            self.unknown = self._settle_unknown()
        self._writer: threading.Thread | None = None

    def _settle_unknown(self) -> frozenset[str]:
        """Call ids that an earlier process sent, or was about to send, without learning the outcome."""
        with self._engine.begin() as connection:
            found = connection.execute(sa.select(CALLS.c.call_id).where(CALLS.c.in_flight, CALLS.c.outcome.is_(None)))
            return frozenset(found.scalars())

    def outcomes(self) -> dict[str, str]:
        """call_id -> outcome of every call that has one, without the replies."""
        return dict(self.each_outcome())

    def each_outcome(self) -> Iterator[tuple[str, str]]:
        """`outcomes`, one by one. Damaged answers are counted and dropped, once all were asked for."""
        damaged = []
        with self._translated(), self._engine.begin() as connection:
            for answer, is_whole in _answers(connection):
                if is_whole:
                    yield answer.call_id, answer.outcome
                else:
                    damaged.append(answer.call_id)
        # A damaged id may be anything; one that is no id finds nothing.
        self.forget(call_id for call_id in damaged if isinstance(call_id, str) and call_id.isascii())
        self.damaged += len(damaged)

    def reply_sizes(self, call_ids: Iterable[str]) -> dict[str, int]:
        """call_id -> bytes of its reply."""
        length = sa.select(CALLS.c.call_id, sa.func.length(CALLS.c.reply)).where(CALLS.c.reply.is_not(None))
        with self._translated(), self._engine.begin() as connection:
            found = connection.execute(length.where(CALLS.c.call_id.in_(list(call_ids))))
            return {call_id: size for call_id, size in found}  # noqa: C416  # a result is no mapping, though dict() thinks so

    def answers(self, call_ids: Iterable[str]) -> dict[str, Answer]:
        """The final outcomes of these calls, replies included. Ask for a few at a time."""
        found = {}
        with self._translated(), self._engine.begin() as connection:
            for answer, is_whole in _answers(connection, CALLS.c.call_id.in_(list(call_ids))):
                if not is_whole:
                    raise StorageError(f"ledger {self.path}: an answer is damaged; run again and it is asked again")
                found[answer.call_id] = answer
        return found

    async def write(self, entry: Entry) -> None:
        """Return once `entry` is durable. Raises StorageError where it cannot be made so.

        After a failure answers are still taken, as long as there is any place for them.
        """
        await self.queue(entry)

    def queue(self, entry: Entry) -> asyncio.Future[None]:
        """`write` without waiting. Entries become durable in the order in which they were queued."""
        if self.failed is not None and not isinstance(entry, Answer):
            raise self.failed
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
        _delete(self.path)

    def _take_in_spare(self) -> None:
        """Answers that found no place here, when a write had failed. Safe to repeat."""
        if not self._spare.exists():
            return
        spare = _engine(self._spare)
        with spare.connect() as source, self._engine.begin() as connection:
            _metadata.create_all(source)
            for answer, is_whole in _answers(source):
                if is_whole:
                    _apply(connection, [answer])
        spare.dispose()
        _delete(self._spare)

    def _write_groups(self) -> None:
        """The one writer: takes what is queued, commits it as a group, then resolves its futures."""
        database = _Writer(self.path)
        while (first := self._queue.get()) is not None:
            group = self._gather(first)
            if self.failed is None:
                self.failed = database.commit([entry for entry, _, _ in group])
                if self.failed is not None:
                    database = self._begin_spare(database)
            if self.failed is None:
                _resolve([future for _, future, _ in group], None)
            else:
                self._rescue(database, group)
        database.close()

    def _begin_spare(self, failed: _Writer) -> _Writer:
        failed.close()
        if self._ballast is not None:
            self._ballast.free()
        return _Writer(self._spare)

    def _rescue(self, spare: _Writer, group: Sequence[_Queued]) -> None:
        """Keep the group's answers elsewhere; those who want to send more are told of the failure."""
        answers = [entry for entry, _, _ in group if isinstance(entry, Answer)]
        lost = self.failed if answers and spare.commit(answers) is not None else None
        _resolve([future for entry, future, _ in group if isinstance(entry, Answer)], lost)
        _resolve([future for entry, future, _ in group if not isinstance(entry, Answer)], self.failed)

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

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as err:
            raise _storage_error(self.path, err) from err


class _Writer:
    """The one connection that writes to a database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sa.Connection | None = None

    def commit(self, entries: Sequence[Entry]) -> StorageError | None:
        """Write a group; or say why not. Never raises: a writer that dies in silence hangs the run."""
        try:
            if self._connection is None:
                self._connection = _engine(self._path).connect()
                _metadata.create_all(self._connection)
                self._connection.commit()
            with self._connection.begin():
                _apply(self._connection, entries)
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError, ValueError) as err:
            return _storage_error(self._path, err)
        return None

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sa.exc.SQLAlchemyError):  # it has failed before, which was said
                self._connection.close()


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
            for name in ("outcome", "http_status", "latency_ms", "reply", "sha256", "error", "message")
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


def _apply(connection: sa.Connection, entries: Sequence[Entry]) -> None:
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
        "sha256": _sha256(answer),
        "error": answer.error,
        "message": answer.message,
    }


def _sha256(answer: Answer) -> bytes:
    """Over what the answer says, and of which call: a damaged id or outcome would mislead as well."""
    said = (answer.call_id, answer.outcome, answer.http_status, answer.latency_ms, answer.error)
    digest = hashlib.sha256(repr(said).encode())
    digest.update(answer.reply or b"")
    return digest.digest()


def _answers(connection: sa.Connection, *which: sa.ColumnElement[bool]) -> Iterator[tuple[Answer, bool]]:
    """(answer, whether it is what was written) of every call that has one, few in memory at a time."""
    columns = [sa.type_coerce(CALLS.c[name], sa.types.NullType()) for name in (*_ANSWER_COLUMNS, "sha256")]
    statement = sa.select(*columns).where(CALLS.c.outcome.is_not(None), *which)
    for *values, digest in connection.execution_options(yield_per=64).execute(statement):
        answer = Answer(*values)
        yield answer, _is_whole(answer, digest)


def _is_whole(answer: Answer, digest: object) -> bool:
    """SQLite gives a damaged value as any type. What the sha256 leaves out must at least be possible."""
    attempts, sent_us, message = answer.attempts, answer.sent_us, answer.message
    if type(attempts) is not int or not 0 <= attempts < 2**31 or type(answer.reply) not in (bytes, type(None)):
        return False
    if sent_us is not None and (type(sent_us) is not int or not 0 <= sent_us < _LATEST_US):
        return False
    if message is not None and (type(message) is not str or not is_text(message)):
        return False
    return _sha256(answer) == digest


def _attempt_values(attempt: Attempt) -> dict[str, Any]:
    values = {f"b_{name}": getattr(attempt, name) for name in _ATTEMPT_VALUES}
    return {**values, "b_call_id": attempt.call_id, "b_evidence": attempt.evidence[:EVIDENCE_BYTES]}


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite+pysqlite:///{path}", poolclass=sa.pool.NullPool)
    sa.event.listen(engine, "connect", _durable)
    return engine


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _durable(connection: sqlite3.Connection, _record: object) -> None:
    """Every connection: write-ahead log, every commit on the disk before it returns."""
    connection.execute("PRAGMA busy_timeout=10000")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    # A damaged text is no reason to refuse all others.
    connection.text_factory = lambda raw: raw.decode("utf-8", errors="surrogateescape")


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
    original = getattr(err, "orig", None) or err
    if getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageError(f"disk full at {path}; what it holds is kept, nothing more is sent")
    cause = next(iter(str(original).splitlines()), type(err).__name__)
    return StorageError(f"ledger {path}: {cause}; what it holds is kept, nothing more is sent")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StorageError(f"ledger folder {folder}: {err.strerror or err}") from err


def _now_text() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
