"""One slice of a run: which calls have a good answer, which are to be made, and the commit of all of them.

A row takes one call, a video or a conversation perhaps several (`asks.py`, `turns.py`). A good answer is one for the
same request, from the committed `responses` or from the ledger. A slice is committed when every call has a final
outcome and few enough failed; then its calls leave the ledger. Replies are held a few at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry_pipeline.asks import Ask, asks_of
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.turns import asks_of_turns
from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.store import Store, Write, reading
from foundry_pipeline.tables import DATA_ROWS, RESPONSES, build

CHUNK_ROWS = 64
GROUP_BYTES = 8 * 1024 * 1024
GROUP_ROWS = 8192
GOOD = ("ok", "rejected_by_model")
"""Outcomes that say what the model thinks of the row."""
ASKED_AGAIN: Mapping[str, tuple[str, ...]] = {
    "failed": ("failed", "not_sent"),
    "rejected": ("failed", "not_sent", "rejected_by_model"),
    "none": (),
}


@dataclass(frozen=True, slots=True)
class CallOptions:
    """`refresh` calls every row again; `retry` names what is asked again beside rows without an answer:
    "failed" (failed and not_sent; the default), "rejected" (those, and rejected_by_model), "none"."""

    refresh: bool = False
    retry: str = "failed"

    def __post_init__(self) -> None:
        if self.retry not in ASKED_AGAIN:
            raise ValueError(f"retry: expected one of {', '.join(ASKED_AGAIN)}; got {self.retry!r}")

    def keeps(self, outcome: str) -> bool:
        """True where an earlier outcome stands without another call."""
        return not self.refresh and outcome not in ASKED_AGAIN[self.retry]


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """What a call is about, its identity, and where its answer is.

    `committed_at` is the answer's place in the committed file, None where it is, or will be, in the ledger. `kept` is
    the outcome of an answer that stands without a call. `good_at` is the place of a committed good answer to the same
    request: it stays where a refresh fails.
    """

    ask: Ask
    call_id: str
    committed_at: int | None
    kept: str | None = None
    good_at: int | None = None

    @property
    def row(self) -> DataRow:
        """The data row that it is about, or about a part of."""
        return self.ask.row


@dataclass(slots=True)
class SliceWork:
    """A slice under its lease. `rows` are those of its data rows that are planned."""

    run: Run
    slice_key: str
    store: Store
    ledger: Ledger
    requests: FoundryRequests
    options: CallOptions
    rows: Sequence[DataRow]
    turns: Mapping[str, Sequence[str]]
    """global key -> the messages that wait for an answer, of the conversations that are to be continued."""
    committed: Mapping[str, tuple[int, str]]
    """call_id -> (place in the committed `responses`, outcome)."""
    in_ledger: dict[str, str]
    """call_id -> outcome, of the answers there that stand."""
    planned: Sequence[PlannedCall] = ()
    to_call: Mapping[str, Ask] = field(default_factory=dict)
    """call_id -> the first ask that needs it; the same request is one call."""
    settled: set[str] = field(default_factory=set)
    """Calls that were made now: their outcome stands, whatever `options` say."""

    @property
    def places_sharing(self) -> Counter[str]:
        """call_id -> places in `responses` that its answer fills."""
        return Counter(p.call_id for p in self.planned)

    @property
    def repeated(self) -> int:
        """Calls, made now or to be made, whose outcome an earlier process never learned."""
        return len(self.ledger.unknown & (self.to_call.keys() | self.settled))

    @property
    def reused(self) -> int:
        """Calls whose answer was already there."""
        return sum(1 for p in self.planned if p.kept is not None and p.call_id not in self.settled)

    def answers(self) -> dict[str, Answer]:
        """global key -> answer with its reply, of every planned row that has one. For a few rows, not a slice; of a row
        with several calls, the first call's."""
        old = _CommittedReplies(self.store, self.run.name, self.slice_key)
        fresh = self.ledger.answers({p.call_id for p in self.planned if p.committed_at is None})
        found: dict[str, Answer] = {}
        for p in self.planned:
            if p.committed_at is not None:
                found.setdefault(p.row.global_key, _answer(p.call_id, old.at(p.committed_at)))
            elif p.call_id in fresh:
                found.setdefault(p.row.global_key, fresh[p.call_id])
        return found

    def plan(self, outcomes: Mapping[str, str] | None = None, *, first_only: bool = False) -> None:
        """Decide what to call; again, after calls were settled with these outcomes, where conversations go on."""
        self.settled |= (outcomes or {}).keys()
        self.in_ledger |= outcomes or {}
        replies = _Replies(self)
        planned = [self._planned(ask) for row in self.rows for ask in self._asks(row, replies, first_only)]
        to_call: dict[str, Ask] = {}
        for p in planned:
            if p.kept is None:
                to_call.setdefault(p.call_id, p.ask)
        self.planned, self.to_call = planned, to_call

    def _asks(self, row: DataRow, replies: _Replies, first_only: bool) -> Sequence[Ask]:
        turns = self.turns.get(row.global_key)
        asks = asks_of_turns(self.run, row, turns, replies.said) if turns else asks_of(self.run, row)
        return list(islice(asks, 1 if first_only else None))

    def _planned(self, ask: Ask) -> PlannedCall:
        """The ledger's answer is newer than the committed one."""
        call_id = self.requests.call_id(ask)
        at, outcome = self.committed.get(call_id, (None, ""))
        good_at = at if outcome in GOOD else None
        if call_id in self.in_ledger:
            return PlannedCall(ask, call_id, None, self.in_ledger[call_id], good_at)
        if at is not None and self.options.keeps(outcome):
            return PlannedCall(ask, call_id, at, outcome, good_at)
        return PlannedCall(ask, call_id, None, None, good_at)


class _Replies:
    """What became of single calls, as it will be committed."""

    def __init__(self, work: SliceWork) -> None:
        self._work = work
        self._old = _CommittedReplies(work.store, work.run.name, work.slice_key)

    def said(self, ask: Ask) -> tuple[str, str | None] | None:
        """(outcome, reply) of a call; None where it is still to be made."""
        planned = self._work._planned(ask)
        if planned.kept is None:
            return None
        fresh = self._work.ledger.answers([planned.call_id]) if planned.committed_at is None else {}
        record = _record_of(planned, fresh, self._old)
        return record["outcome"], record["reply"]


def plan_slice(
    run: Run,
    slice_key: str,
    store: Store,
    ledger_path: Path,
    requests: FoundryRequests,
    options: CallOptions,
    turns: Mapping[str, Sequence[str]],
    only: frozenset[str] | None = None,
) -> SliceWork:
    """Read the slice and decide what to call.

    `turns` are the messages that wait for an answer, by global key, of conversations that are to be continued. `only`
    limits the plan to the first call of some rows, by their global keys, and then it is not to be committed. Raises
    StorageError where the slice has no data rows or cannot be read.
    """
    rows = [row for row in read_rows(run, slice_key, store) if only is None or row.global_key in only]
    committed = _committed_answers(store, run.name, slice_key, options)
    ledger = Ledger(ledger_path)
    try:
        in_ledger = {call_id: outcome for call_id, outcome in ledger.outcomes().items() if options.keeps(outcome)}
        work = SliceWork(run, slice_key, store, ledger, requests, options, rows, turns, committed, in_ledger)
        work.plan(first_only=only is not None)
    except BaseException:
        ledger.close()
        raise
    return work


def read_rows(run: Run, slice_key: str, store: Store) -> list[DataRow]:
    """The slice's data rows. Raises StorageError where there are none to be read."""
    rows = store.read(DATA_ROWS, run.dataset.name, slice_key)
    if rows is None:
        name = run.dataset.name
        raise StorageError(f"slice {slice_key} of {name} has no data rows: materialize [{name}, data_rows] first")
    return list(rows_of(rows))


def _committed_answers(store: Store, run: str, slice_key: str, options: CallOptions) -> dict[str, tuple[int, str]]:
    """call_id -> (place in the committed `responses`, outcome).

    A damaged file is refused, and its rows are asked again only on request: with `refresh`.
    """
    try:
        table = store.read(RESPONSES, run, slice_key, ["call_id", "outcome"])
    except StorageError:
        if options.refresh:
            return {}
        raise
    if table is None:
        return {}
    pairs = zip(table["call_id"].to_pylist(), table["outcome"].to_pylist(), strict=True)
    return {call_id: (at, outcome) for at, (call_id, outcome) in enumerate(pairs)}


def outcome_counts(work: SliceWork, settled: Mapping[str, Answer]) -> tuple[Counter[str], Counter[str]]:
    """(outcome -> calls that will be committed with it, error code -> calls that ended so now)."""
    outcomes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for planned in work.planned:
        answer = settled.get(planned.call_id)
        if answer is not None and answer.error:
            errors[answer.error] += 1
        if planned.kept is not None and planned.call_id not in work.settled:
            outcomes[planned.kept] += 1
        elif answer is not None:
            outcomes["ok" if answer.outcome not in GOOD and planned.good_at is not None else answer.outcome] += 1
    return outcomes, errors


def commit_slice(work: SliceWork, about: Mapping[str, object]) -> tuple[Counter[str], int, str]:
    """Write `responses`, then take its calls out of the ledger. Gives (outcome -> calls, empty answers, sha256).

    Where every answer was committed before, for the same rows in the same order, the file stays as it is.
    """
    tally = _Tally()
    if unchanged := _unchanged(work, tally):
        return tally.outcomes, tally.empty, unchanged
    tally = _Tally()
    written = work.store.commit(work.run.name, work.slice_key, {RESPONSES.name: _writer(work, tally)}, about)
    work.ledger.forget(p.call_id for p in work.planned)
    return tally.outcomes, tally.empty, written[RESPONSES.name].sha256


@dataclass(slots=True)
class _Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    empty: int = 0

    def add(self, outcome: str, reply: str | None) -> None:
        self.outcomes[outcome] += 1
        if outcome == "ok" and reply is not None and reply.strip() in _EMPTY_REPLIES:
            self.empty += 1


_EMPTY_REPLIES = frozenset({"{}", "[]", "{ }", "[ ]"})


def _unchanged(work: SliceWork, tally: _Tally) -> str | None:
    """The committed file's sha256 where it already says exactly this."""
    file = work.store.open(RESPONSES, work.run.name, work.slice_key)
    if file is None:
        return None
    with file, reading(work.store.path(RESPONSES, work.run.name, work.slice_key)):
        same = file.metadata.num_rows == len(work.planned) and all(
            planned.committed_at == at for at, planned in enumerate(work.planned)
        )
        if not same or not _same_rows(file, work.planned):
            return None
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["outcome", "reply"])
            for outcome, reply in zip(table["outcome"].to_pylist(), table["reply"].to_pylist(), strict=True):
                tally.add(outcome, reply)
    return work.store.check_intact(RESPONSES, work.run.name, work.slice_key)


def _same_rows(file: pq.ParquetFile, planned: Sequence[PlannedCall]) -> bool:
    if not file.schema_arrow.equals(RESPONSES.schema):
        return False
    keys = file.read(columns=["global_key", "data_row_id"])
    ours = [(p.row.global_key, p.row.data_row_id) for p in planned]
    return ours == list(zip(keys["global_key"].to_pylist(), keys["data_row_id"].to_pylist(), strict=True))


def _writer(work: SliceWork, tally: _Tally) -> Write:
    def write(writer: pq.ParquetWriter) -> None:
        old = _CommittedReplies(work.store, work.run.name, work.slice_key)
        group: list[pa.Table] = []
        for at in range(0, len(work.planned), CHUNK_ROWS):
            group.append(_chunk_table(work, work.planned[at : at + CHUNK_ROWS], old, tally))
            if sum(t.nbytes for t in group) >= GROUP_BYTES or sum(t.num_rows for t in group) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(group))
                group = []
        if group or not work.planned:
            writer.write_table(pa.concat_tables(group) if group else RESPONSES.schema.empty_table())

    return write


def _chunk_table(work: SliceWork, planned: Sequence[PlannedCall], old: _CommittedReplies, tally: _Tally) -> pa.Table:
    answers = work.ledger.answers({p.call_id for p in planned if p.committed_at is None})
    columns: dict[str, list[Any]] = {name: [] for name in RESPONSES.schema.names}
    for p in planned:
        record = _record_of(p, answers, old)
        record |= {"data_row_id": p.row.data_row_id, "global_key": p.row.global_key, "call_id": p.call_id}
        record |= {"frames": p.ask.frames or None, "message_id": p.ask.message_id}
        tally.add(record["outcome"], record["reply"])
        for name, values in columns.items():
            values.append(record[name])
    return build(RESPONSES, columns)


def _record_of(p: PlannedCall, answers: Mapping[str, Answer], old: _CommittedReplies) -> dict[str, Any]:
    if p.committed_at is not None:
        return old.at(p.committed_at)
    answer = answers[p.call_id]
    if answer.outcome not in GOOD and p.good_at is not None:
        return old.at(p.good_at)
    return _record(answer)


def _record(answer: Answer) -> dict[str, Any]:
    return {
        "outcome": answer.outcome,
        "http_status": answer.http_status,
        "attempts": answer.attempts,
        "sent_at": answer.sent_us,
        "latency_ms": answer.latency_ms,
        "reply": None if answer.reply is None else answer.reply.decode("utf-8"),
        "error": answer.error,
        "message": answer.message,
    }


def _answer(call_id: str, record: Mapping[str, Any]) -> Answer:
    """The inverse of `_record`."""
    reply, sent_at = record["reply"], record["sent_at"]
    return Answer(
        call_id,
        record["outcome"],
        attempts=record["attempts"],
        http_status=record["http_status"],
        sent_us=None if sent_at is None else int(sent_at.timestamp() * 1_000_000),
        latency_ms=record["latency_ms"],
        reply=None if reply is None else reply.encode(),
        error=record["error"],
        message=record["message"],
    )


class _CommittedReplies:
    """Random access to the committed file's rows, one row group held at a time."""

    def __init__(self, store: Store, run: str, slice_key: str) -> None:
        self._path = store.path(RESPONSES, run, slice_key)
        self._file = store.open(RESPONSES, run, slice_key)
        self._starts = list(_group_starts(self._file)) if self._file else []
        self._held: tuple[int, list[dict[str, Any]]] = (-1, [])

    def at(self, place: int) -> dict[str, Any]:
        assert self._file is not None
        group = max(i for i, start in enumerate(self._starts) if start <= place)
        if self._held[0] != group:
            with reading(self._path):
                self._held = (group, self._file.read_row_group(group).to_pylist())
        return dict(self._held[1][place - self._starts[group]])


def _group_starts(file: pq.ParquetFile) -> Iterator[int]:
    start = 0
    for group in range(file.num_row_groups):
        yield start
        start += file.metadata.row_group(group).num_rows
