"""One slice of a run: which calls have a good answer, which are to be made, and the commit of all of them.

A row takes one call, a video or a conversation perhaps several (`asks.py`, `turns.py`). A good answer is one for the
same request, from the committed `responses` or from the ledger. A slice is committed when every call has a final
outcome and few enough failed; then its calls leave the ledger. Replies are held a few at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry_pipeline.asks import Ask, asks_of
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.turns import Turns
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
    """A slice under its lease."""

    run: Run
    slice_key: str
    store: Store
    ledger: Ledger
    requests: FoundryRequests
    options: CallOptions
    committed: Mapping[str, tuple[int, str]]
    """call_id -> (place in the committed `responses`, outcome)."""
    in_ledger: Mapping[str, str]
    """call_id -> outcome, of the answers there that stand."""
    of_rows: list[list[PlannedCall]] = field(default_factory=list)
    """The calls of each data row, in order."""
    to_call: dict[str, Ask] = field(default_factory=dict)
    """call_id -> what to call for now, the first ask that needs it; the same request is one call."""
    turns: list[tuple[Turns, list[PlannedCall]]] = field(default_factory=list)
    """The conversations whose next calls depend on the answers to the last, and their calls so far."""
    repeated: int = 0
    """Calls to be made whose outcome an earlier process never learned."""

    @property
    def planned(self) -> list[PlannedCall]:
        """All calls, in the order of the data rows."""
        return list(chain.from_iterable(self.of_rows))

    @property
    def calls_sharing(self) -> Counter[str]:
        """call_id -> places in the table that its answer fills."""
        return Counter(p.call_id for p in self.planned)

    @property
    def reused(self) -> int:
        """Calls whose answer was already there."""
        return sum(1 for p in self.planned if p.kept is not None)

    def answers(self) -> dict[str, Answer]:
        """global key -> answer with its reply, of the first call of every planned row that has one. For a few rows,
        not a slice."""
        first = [calls[0] for calls in self.of_rows]
        old = _CommittedReplies(self.store, self.run.name, self.slice_key)
        fresh = self.ledger.answers({p.call_id for p in first if p.committed_at is None})
        found = {}
        for p in first:
            if p.committed_at is not None:
                found[p.row.global_key] = _answer(p.call_id, old.at(p.committed_at))
            elif p.call_id in fresh:
                found[p.row.global_key] = fresh[p.call_id]
        return found

    def plan(self, ask: Ask) -> PlannedCall:
        """One call, and whether its answer is there: the ledger's is newer than the committed one."""
        call_id = self.requests.call_id(ask)
        at, outcome = self.committed.get(call_id, (None, ""))
        good_at = at if outcome in GOOD else None
        if call_id in self.in_ledger:
            return PlannedCall(ask, call_id, None, self.in_ledger[call_id], good_at)
        if at is not None and self.options.keeps(outcome):
            return PlannedCall(ask, call_id, at, outcome, good_at)
        if call_id not in self.to_call:
            self.to_call[call_id] = ask
            self.repeated += call_id in self.ledger.unknown
        return PlannedCall(ask, call_id, None, None, good_at)

    def plan_next_turns(self) -> bool:
        """Go on with the conversations whose last call has been answered; False where there is nothing to call then.

        To be called when everything in `to_call` is settled.
        """
        self.to_call.clear()
        while waiting := [(turns, calls) for turns, calls in self.turns if turns.goes_on]:
            old = _CommittedReplies(self.store, self.run.name, self.slice_key)
            for at in range(0, len(waiting), CHUNK_ROWS):
                some = waiting[at : at + CHUNK_ROWS]
                fresh = self.ledger.answers({calls[-1].call_id for _, calls in some if calls[-1].committed_at is None})
                for turns, calls in some:
                    if (ask := turns.next_ask(_reply_of(calls[-1], fresh, old))) is not None:
                        calls.append(self.plan(ask))
            if self.to_call:
                return True
        return False

    async def give_up_turns(self) -> None:
        """Put on record what was never asked because no answer came before it: every turn has its row."""
        for turns, calls in self.turns:
            for ask in turns.never_asked():
                calls.append(PlannedCall(ask, self.requests.call_id(ask), None))
                answer = Answer(calls[-1].call_id, "not_sent", error="row_no_history", message=turns.NO_HISTORY)
                await self.ledger.write(answer)


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

    `turns` are the messages to be answered of each conversation that is to be continued, by global key. `only` limits
    the plan to the first call of some rows, by their global keys, and then it is not to be committed. Raises
    StorageError where the slice has no data rows or cannot be read.
    """
    rows = read_rows(run, slice_key, store)
    committed = _committed_answers(store, run.name, slice_key, options)
    ledger = Ledger(ledger_path)
    try:
        in_ledger = {call_id: outcome for call_id, outcome in ledger.outcomes().items() if options.keeps(outcome)}
    except BaseException:
        ledger.close()
        raise
    work = SliceWork(run, slice_key, store, ledger, requests, options, committed, in_ledger)
    for row in rows:
        if only is None:
            _plan_row(work, row, turns.get(row.global_key))
        elif row.global_key in only:
            _plan_row(work, row, turns.get(row.global_key), first_only=True)
    return work


def read_rows(run: Run, slice_key: str, store: Store) -> list[DataRow]:
    """The slice's data rows. Raises StorageError where there are none to be read."""
    rows = store.read(DATA_ROWS, run.dataset.name, slice_key)
    if rows is None:
        name = run.dataset.name
        raise StorageError(f"slice {slice_key} of {name} has no data rows: materialize [{name}, data_rows] first")
    return list(rows_of(rows))


def _plan_row(work: SliceWork, row: DataRow, turns: Sequence[str] | None, *, first_only: bool = False) -> None:
    if turns:
        of_row = Turns(work.run, row, turns)
        work.of_rows.append([work.plan(of_row.first_ask())])
        work.turns += [] if first_only else [(of_row, work.of_rows[-1])]
        return
    asks = asks_of(work.run, row)
    work.of_rows.append([work.plan(ask) for ask in (asks[:1] if first_only else asks)])


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
        if planned.kept is not None:
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
    planned = work.planned
    with file, reading(work.store.path(RESPONSES, work.run.name, work.slice_key)):
        same = file.metadata.num_rows == len(planned) and all(p.committed_at == at for at, p in enumerate(planned))
        if not same or not _same_rows(file, planned):
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
        planned = work.planned
        for at in range(0, len(planned), CHUNK_ROWS):
            group.append(_chunk_table(work, planned[at : at + CHUNK_ROWS], old, tally))
            if sum(t.nbytes for t in group) >= GROUP_BYTES or sum(t.num_rows for t in group) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(group))
                group = []
        if group or not planned:
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
    answer = answers.get(p.call_id)
    if p.good_at is not None and (answer is None or answer.outcome not in GOOD):
        return old.at(p.good_at)
    return _record(answers[p.call_id])


def _reply_of(p: PlannedCall, answers: Mapping[str, Answer], old: _CommittedReplies) -> str | None:
    """The reply to a call that was answered, as it will be committed; None where it was not."""
    if p.committed_at is None and p.good_at is None and p.call_id not in answers:
        return None
    record = _record_of(p, answers, old)
    reply: str | None = record["reply"]
    return reply if record["outcome"] == "ok" else None


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
