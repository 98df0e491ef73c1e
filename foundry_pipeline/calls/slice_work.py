"""One slice of a run: which rows have a good answer, which need a call, and the commit of all of them.

A good answer is one for the same request, from the committed `responses`, from `superseded` or from the ledger. A slice
is committed when every row has a final outcome and few enough failed; then its calls leave the ledger, and good answers
that no row uses any more go to `superseded`, since they were paid for. Replies are held a few rows at a time.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry_pipeline.calls.ballast import Ballast
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.errors import StorageError, check_sums
from foundry_pipeline.home import Run
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.store import Store, Write, reading
from foundry_pipeline.tables import DATA_ROWS, OUTCOMES, RESPONSES, SUPERSEDED, build

CHUNK_ROWS = 64
GROUP_BYTES = 8 * 1024 * 1024
GROUP_ROWS = 8192
COMMITTED = (RESPONSES, SUPERSEDED)
"""The tables that hold answers."""
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
class PlannedRow:
    """A data row, its call, and where its answer is.

    `committed_at` is the answer's place among the committed ones (`_CommittedReplies`), None where it is, or will be,
    in the ledger. `kept` is the outcome of an answer that stands without a call. `good_at` is the place of a committed
    good answer to the same request: it stays where a refresh fails.
    """

    row: DataRow
    call_id: str
    committed_at: int | None
    kept: str | None = None
    good_at: int | None = None


@dataclass(slots=True)
class SliceWork:
    """A slice under its lease."""

    run: Run
    slice_key: str
    store: Store
    ledger: Ledger
    planned: Sequence[PlannedRow] = ()
    to_call: Mapping[str, DataRow] = field(default_factory=dict)
    """call_id -> the first row that needs it; rows with the same request share one call."""
    repeated: int = 0
    rows_in: int = 0
    """Data rows that the slice has."""
    unused: Sequence[int] = ()
    """Places of committed good answers to other requests than the planned ones."""

    @property
    def rows_sharing(self) -> Counter[str]:
        """call_id -> rows that wait for its answer."""
        return Counter(p.call_id for p in self.planned)

    def answers(self) -> dict[str, Answer]:
        """global key -> answer with its reply, of every planned row that has one. For a few rows, not a slice."""
        old = _CommittedReplies(self.store, self.run.name, self.slice_key)
        fresh = self.ledger.answers({p.call_id for p in self.planned if p.committed_at is None})
        found = {}
        for p in self.planned:
            if p.committed_at is not None:
                found[p.row.global_key] = _answer(p.call_id, old.at(p.committed_at))
            elif p.call_id in fresh:
                found[p.row.global_key] = fresh[p.call_id]
        return found

    @property
    def reused(self) -> int:
        """Rows whose answer was already there."""
        return sum(1 for p in self.planned if p.kept is not None)


def plan_slice(
    run: Run,
    slice_key: str,
    store: Store,
    ledger_path: Path,
    requests: FoundryRequests,
    options: CallOptions,
    only: frozenset[str] | None = None,
    ballast: Ballast | None = None,
) -> SliceWork:
    """Read the slice and decide what to call; `only` limits it to some global keys, and then it is not to be committed.

    Raises StorageError where the slice has no data rows or cannot be read.
    """
    rows = store.read(DATA_ROWS, run.dataset.name, slice_key)
    if rows is None:
        name = run.dataset.name
        raise StorageError(f"slice {slice_key} of {name} has no data rows: materialize [{name}, data_rows] first")
    committed = _committed_answers(store, run.name, slice_key, options)
    ledger = Ledger(ledger_path, ballast)
    try:
        in_ledger = {call_id: outcome for call_id, outcome in ledger.outcomes().items() if options.keeps(outcome)}
    except BaseException:
        ledger.close()
        raise
    work = SliceWork(run, slice_key, store, ledger)
    planned: list[PlannedRow] = []
    to_call: dict[str, DataRow] = {}
    for row in rows_of(rows):
        if only is not None and row.global_key not in only:
            continue
        call_id = requests.call_id(row)
        planned.append(_planned(row, call_id, in_ledger.get(call_id), committed.get(call_id), options))
        if planned[-1].kept is None:
            to_call.setdefault(call_id, row)
    work.planned, work.to_call, work.rows_in = planned, to_call, rows.num_rows
    used = {p.call_id for p in planned}
    work.unused = sorted(at for call_id, (at, outcome) in committed.items() if outcome in GOOD and call_id not in used)
    work.repeated = len(ledger.unknown & to_call.keys())
    return work


def _planned(
    row: DataRow, call_id: str, in_ledger: str | None, committed: tuple[int, str] | None, options: CallOptions
) -> PlannedRow:
    """The ledger's answer is newer than the committed one."""
    at, outcome = committed or (None, "")
    good_at = at if outcome in GOOD else None
    if in_ledger is not None:
        return PlannedRow(row, call_id, None, in_ledger, good_at)
    if at is not None and options.keeps(outcome):
        return PlannedRow(row, call_id, at, outcome, good_at)
    return PlannedRow(row, call_id, None, None, good_at)


def _committed_answers(store: Store, run: str, slice_key: str, options: CallOptions) -> dict[str, tuple[int, str]]:
    """call_id -> (place among the committed answers, outcome).

    A damaged file is refused, and its rows are asked again only on request: with `refresh`, which sets it aside.
    """
    found: dict[str, tuple[int, str]] = {}
    start = 0
    for spec in COMMITTED:
        try:
            table = store.read(spec, run, slice_key, ["call_id", "outcome"])
            if table is not None:
                store.check_intact(spec, run, slice_key)
        except StorageError as err:
            if not options.refresh:
                raise StorageError(f"{err}; with `refresh` its rows are asked again") from err
            store.set_aside(spec, run, slice_key)
            continue
        if table is not None:
            pairs = zip(table["call_id"].to_pylist(), table["outcome"].to_pylist(), strict=True)
            for at, (call_id, outcome) in enumerate(pairs, start):
                found.setdefault(call_id, (at, outcome))
            start += table.num_rows
    return found


def outcome_counts(work: SliceWork, settled: Mapping[str, Answer]) -> tuple[Counter[str], Counter[str]]:
    """(outcome -> rows that will be committed with it, error code -> rows whose call ended so now)."""
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
    """Write `responses`, then take its calls out of the ledger. Gives (outcome -> rows, empty answers, sha256).

    Where every answer was committed before, for the same rows in the same order, the file stays as it is.
    """
    tally = _Tally()
    if unchanged := _unchanged(work, tally):
        return tally.outcomes, tally.empty, unchanged
    tally = _Tally()
    tables = _superseded(work) | {RESPONSES.name: _writer(work, tally)}
    written = work.store.commit(work.run.name, work.slice_key, tables, about)
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


def _same_rows(file: pq.ParquetFile, planned: Sequence[PlannedRow]) -> bool:
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
        check_sums("data rows", work.rows_in, {name: tally.outcomes[name] for name in OUTCOMES})

    return write


def _superseded(work: SliceWork) -> dict[str, Write]:
    """The table of answers that no row uses, where there are or were any."""
    if not work.unused and work.store.open(SUPERSEDED, work.run.name, work.slice_key) is None:
        return {}

    def write(writer: pq.ParquetWriter) -> None:
        old = _CommittedReplies(work.store, work.run.name, work.slice_key)
        for start in range(0, len(work.unused), CHUNK_ROWS):
            records = [old.at(place) for place in work.unused[start : start + CHUNK_ROWS]]
            columns = {name: [record[name] for record in records] for name in SUPERSEDED.schema.names}
            writer.write_table(build(SUPERSEDED, columns))

    return {SUPERSEDED.name: write}


def _chunk_table(work: SliceWork, planned: Sequence[PlannedRow], old: _CommittedReplies, tally: _Tally) -> pa.Table:
    answers = work.ledger.answers({p.call_id for p in planned if p.committed_at is None})
    columns: dict[str, list[Any]] = {name: [] for name in RESPONSES.schema.names}
    for p in planned:
        record = _record_of(p, answers, old)
        record |= {"data_row_id": p.row.data_row_id, "global_key": p.row.global_key, "call_id": p.call_id}
        tally.add(record["outcome"], record["reply"])
        for name, values in columns.items():
            values.append(record[name])
    return build(RESPONSES, columns)


def _record_of(p: PlannedRow, answers: Mapping[str, Answer], old: _CommittedReplies) -> dict[str, Any]:
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
    """Random access to the committed answers: the rows of `responses`, then those of `superseded`, counted on.

    One row group is held at a time.
    """

    def __init__(self, store: Store, run: str, slice_key: str) -> None:
        self._groups: list[tuple[int, pq.ParquetFile, int, str]] = []
        """(first place, file, its row group, its path)"""
        start = 0
        for spec in COMMITTED:
            file = store.open(spec, run, slice_key)
            for group in range(file.num_row_groups if file else 0):
                assert file is not None
                self._groups.append((start, file, group, store.path(spec, run, slice_key)))
                start += file.metadata.row_group(group).num_rows
        self._held: tuple[int, list[dict[str, Any]]] = (-1, [])

    def at(self, place: int) -> dict[str, Any]:
        start, file, group, path = self._groups[bisect.bisect_right(self._groups, place, key=itemgetter(0)) - 1]
        if self._held[0] != start:
            with reading(path):
                self._held = (start, file.read_row_group(group).to_pylist())
        return dict(self._held[1][place - start])
