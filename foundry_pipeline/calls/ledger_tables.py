"""The ledger's two tables and the statements that write them: the same in SQLite and in PostgreSQL.

`run` and `slice` are empty in a database that holds one slice only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from foundry_pipeline.decoding.places import is_text

EVIDENCE_BYTES = 64 * 1024
_LATEST_US = 253_402_300_800_000_000
"""The year 10000, the first that Python's datetime does not know."""


class LedgerText(sa.TypeDecorator[str]):
    """Text of any origin: what UTF-8 or PostgreSQL does not take (half a surrogate pair, NUL) is escaped."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Escape what is not storable."""
        return _storable(value)


def _storable(value: str | None) -> str | None:
    if value is None or (value.isprintable() and value.isascii()):
        return value
    return value.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


METADATA = sa.MetaData()
CALLS = sa.Table(
    "calls",
    METADATA,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("slice", sa.Text, primary_key=True),
    sa.Column("call_id", sa.Text, primary_key=True),
    sa.Column("global_key", LedgerText, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("in_flight", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("http_status", sa.Integer),
    sa.Column("sent_us", sa.BigInteger),
    sa.Column("latency_ms", sa.Double),
    sa.Column("reply", sa.LargeBinary),
    sa.Column("sha256", sa.LargeBinary),
    sa.Column("error", LedgerText),
    sa.Column("message", LedgerText),
)
ATTEMPTS = sa.Table(
    "attempts",
    METADATA,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("slice", sa.Text, primary_key=True),
    sa.Column("call_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("sent_us", sa.BigInteger, nullable=False),
    sa.Column("http_status", sa.Integer),
    sa.Column("error", LedgerText, nullable=False),
    sa.Column("message", LedgerText, nullable=False),
    sa.Column("evidence", sa.LargeBinary),
)


class Scope(NamedTuple):
    """Whose rows these are; both empty in a database of one slice."""

    run: str = ""
    slice_key: str = ""

    def of(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """The rows of `table` that are in it."""
        return sa.and_(table.c.run == self.run, table.c.slice == self.slice_key)


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

ANSWER_COLUMNS = (
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


def size_bytes(entry: Entry) -> int:
    """Roughly what an entry weighs."""
    if isinstance(entry, Answer):
        return len(entry.reply or b"")
    return len(entry.evidence) if isinstance(entry, Attempt) else 0


def apply(connection: sa.Connection, scope: Scope, entries: Sequence[Entry]) -> None:
    """Write a group, one statement a kind: a call never has two entries in one group, since each waits for the last."""
    kinds: dict[type, list[Any]] = {Intent: [], Attempt: [], Answer: [], Withdrawal: []}
    for entry in entries:
        kinds[type(entry)].append(entry)
    upserts = _upserts(connection.dialect.name)
    if intents := kinds[Intent]:
        connection.execute(upserts.intent, [_intent_values(scope, intent) for intent in intents])
    if withdrawn := kinds[Withdrawal]:
        changed = {"in_flight": False, "attempts": CALLS.c.attempts - 1}
        connection.execute(_of_calls(sa.update(CALLS), scope, withdrawn).values(changed))
    if attempts := kinds[Attempt]:
        connection.execute(_ATTEMPT, [_attempt_values(scope, attempt) for attempt in attempts])
        connection.execute(_of_calls(sa.update(CALLS), scope, attempts).values(in_flight=False))
    if answers := kinds[Answer]:
        connection.execute(upserts.answer, [_answer_values(scope, answer) for answer in answers])


def _of_calls(update: sa.Update, scope: Scope, entries: Sequence[Attempt | Withdrawal]) -> sa.Update:
    return update.where(scope.of(CALLS), CALLS.c.call_id.in_([entry.call_id for entry in entries]))


def _intent_values(scope: Scope, intent: Intent) -> dict[str, Any]:
    return {
        "run": scope.run,
        "slice": scope.slice_key,
        "call_id": intent.call_id,
        "global_key": intent.global_key,
        "sent_us": intent.sent_us,
    }


def _answer_values(scope: Scope, answer: Answer) -> dict[str, Any]:
    return {
        "run": scope.run,
        "slice": scope.slice_key,
        "call_id": answer.call_id,
        "outcome": answer.outcome,
        "http_status": answer.http_status,
        "sent_us": answer.sent_us,
        "latency_ms": answer.latency_ms,
        "reply": answer.reply,
        "sha256": sha256_of(answer),
        "error": answer.error,
        "message": answer.message,
    }


def answered(scope: Scope, *which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The columns of every call that has an outcome, as the database gives them; `read` takes them."""
    columns = (sa.type_coerce(CALLS.c[name], sa.types.NullType()) for name in (*ANSWER_COLUMNS, "sha256"))
    return sa.select().add_columns(*columns).where(scope.of(CALLS), CALLS.c.outcome.is_not(None), *which)


def read(row: Sequence[Any]) -> tuple[Answer, bool]:
    """(answer, whether it is what was written) from a row of `answered`."""
    *values, digest = row
    answer = Answer(*values)
    return answer, _is_whole(answer, digest)


def sha256_of(answer: Answer) -> bytes:
    """Over what the answer says, and of which call: a damaged id or outcome would mislead as well."""
    said = (answer.call_id, answer.outcome, answer.http_status, answer.latency_ms, _storable(answer.error))
    digest = hashlib.sha256(repr(said).encode())
    digest.update(answer.reply or b"")
    return digest.digest()


def _is_whole(answer: Answer, digest: object) -> bool:
    """SQLite gives a damaged value as any type. What the sha256 leaves out must at least be possible."""
    attempts, sent_us, message = answer.attempts, answer.sent_us, answer.message
    if type(attempts) is not int or not 0 <= attempts < 2**31 or type(answer.reply) not in (bytes, type(None)):
        return False
    if sent_us is not None and (type(sent_us) is not int or not 0 <= sent_us < _LATEST_US):
        return False
    if message is not None and (type(message) is not str or not is_text(message)):
        return False
    return sha256_of(answer) == digest


class _Upserts(NamedTuple):
    intent: sa.Insert
    answer: sa.Insert


@cache
def _upserts(dialect: str) -> _Upserts:
    """The two statements that most rows are written by.

    RETURNING, whose result nobody reads, makes SQLAlchemy send a group as one statement to PostgreSQL; without it a
    group of 256 is 768 round trips. (`use_insertmanyvalues_wo_returning` would say so, but is not heeded beside ON
    CONFLICT.)
    """
    if dialect == "postgresql":
        made = _upserts_by(postgresql.insert)
        return _Upserts(made.intent.returning(CALLS.c.call_id), made.answer.returning(CALLS.c.call_id))
    return _upserts_by(sqlite.insert)


def _upserts_by(insert: Callable[[sa.Table], Any]) -> _Upserts:
    key = [CALLS.c.run, CALLS.c.slice, CALLS.c.call_id]
    fresh = insert(CALLS).values(attempts=1, in_flight=True)
    # An earlier answer stays until a newer one takes its place: a refresh that fails loses nothing.
    intent = fresh.on_conflict_do_update(
        index_elements=key,
        set_={"attempts": CALLS.c.attempts + 1, "in_flight": True, "sent_us": fresh.excluded.sent_us},
    )
    fresh = insert(CALLS).values(attempts=0, in_flight=False, global_key="")
    replaced = ("outcome", "http_status", "latency_ms", "reply", "sha256", "error", "message")
    answer = fresh.on_conflict_do_update(
        index_elements=key,
        set_={
            "in_flight": False,
            "sent_us": sa.func.coalesce(fresh.excluded.sent_us, CALLS.c.sent_us),
            **{name: fresh.excluded[name] for name in replaced},
        },
        where=sa.or_(
            CALLS.c.outcome.is_(None),
            CALLS.c.outcome != "ok",
            fresh.excluded.outcome == "ok",
            fresh.excluded.outcome == "rejected_by_model",
        ),
    )
    return _Upserts(intent, answer)


_ATTEMPT_VALUES = ("sent_us", "http_status", "error", "message", "evidence")
_ATTEMPT = sa.insert(ATTEMPTS).from_select(
    ["run", "slice", "call_id", "attempt", *_ATTEMPT_VALUES],
    sa.select(
        CALLS.c.run,
        CALLS.c.slice,
        CALLS.c.call_id,
        CALLS.c.attempts,
        *(sa.bindparam(f"b_{name}", type_=ATTEMPTS.c[name].type) for name in _ATTEMPT_VALUES),
    ).where(
        CALLS.c.run == sa.bindparam("b_run"),
        CALLS.c.slice == sa.bindparam("b_slice"),
        CALLS.c.call_id == sa.bindparam("b_call_id"),
    ),
)


def _attempt_values(scope: Scope, attempt: Attempt) -> Mapping[str, Any]:
    values = {f"b_{name}": getattr(attempt, name) for name in _ATTEMPT_VALUES}
    where = {"b_run": scope.run, "b_slice": scope.slice_key, "b_call_id": attempt.call_id}
    return {**values, **where, "b_evidence": attempt.evidence[:EVIDENCE_BYTES]}
