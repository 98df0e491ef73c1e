"""One slice of a run: which calls have a good answer, which are to be made, and the commit of all of them.

A data row takes one call, a video or a conversation perhaps several (`asks.py`, `turns.py`): a row here is one of
`responses`. A good answer is one for the same request, from the committed `responses`, from `superseded` or from the
ledger. A slice is committed when every row has a final outcome and few enough failed; then its calls leave the ledger,
and good answers that no row uses any more go to `superseded`, since they were paid for. Data rows and replies are read
a few at a time, and again where they are needed again; what is held of every row is in `plan.py`.
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundry_pipeline.asks import Ask, asks_of
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.plan import GOOD, NONE, EarlierAnswers, Ids, Numbers, Picked, Plan, ids_of
from foundry_pipeline.calls.tally import Tally, Unanswered
from foundry_pipeline.calls.turns import asks_of_turns, turns_asked
from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.errors import StorageError, check_sums
from foundry_pipeline.home import Run
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.store import Store, Write, reading
from foundry_pipeline.tables import DATA_ROWS, OUTCOMES, RESPONSES, SUPERSEDED, TableSpec, build

PAGE_ROWS = 256
GROUP_BYTES = 8 * 1024 * 1024
GROUP_ROWS = 8192
COMMITTED = (RESPONSES, SUPERSEDED)
"""The tables that hold answers."""
ASKED_AGAIN: Mapping[str, tuple[str, ...]] = {
    "failed": ("failed", "not_sent"),
    "rejected": ("failed", "not_sent", "rejected_by_model"),
    "none": (),
}


_NO_ANSWERS = EarlierAnswers()
_NO_TURNS: Mapping[str, Sequence[str]] = {}


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


class Asked(NamedTuple):
    """What was asked, and what came of it."""

    ask: Ask
    answer: Answer


class _Earlier(NamedTuple):
    """The answers that were there before, and which of their outcomes stand without another call."""

    committed: EarlierAnswers
    in_ledger: EarlierAnswers
    keeps: Callable[[str], bool]


@dataclass(slots=True)
class SliceWork:
    """A slice under its lease. `source` is the file of its data rows, as it was when it was planned.

    `turns` are the messages that wait for an answer, by global key, of conversations that are to be continued. `only`
    are the global keys that the plan is limited to, and to the first row about each. `made` are the calls that were
    made before the last planning.
    """

    run: Run
    slice_key: str
    store: Store
    ledger: Ledger
    source: pq.ParquetFile
    requests: FoundryRequests
    turns: Mapping[str, Sequence[str]]
    only: frozenset[str] | None
    earlier: _Earlier
    plan: Plan
    made: EarlierAnswers
    unused: Numbers
    """Places of committed good answers to other requests than the planned ones."""
    rows_in: int
    """Data rows that the slice has."""
    _old: _CommittedReplies | None = None

    @property
    def reused(self) -> int:
        """Rows whose answer was already there."""
        return int(np.count_nonzero(self.plan.kept != NONE))

    @property
    def has_parts(self) -> bool:
        """Whether a data row may take several calls, or one about a part of it."""
        return self.run.dataset.media_type == "video" or bool(self.turns)

    def plan_rows(self) -> None:
        """Decide what to call; again, once calls were made, where conversations go on. Raises StorageError."""
        self.made = self.plan.calls_made()
        with reading(self.store.path(DATA_ROWS, self.run.dataset.name, self.slice_key)):
            places, ids = self._identities()
        self.plan = Plan.of(places, ids, *self.earlier, self.made)
        self.unused = self.earlier.committed.good_without(ids)

    def asks(self, picked: Picked) -> Iterator[list[tuple[int, Ask]]]:
        """What the rows that are picked ask, with their numbers, a page at a time. Raises StorageError."""
        pairs = self._picked(picked)
        while page := list(islice(pairs, PAGE_ROWS)):
            yield page

    def _picked(self, picked: Picked) -> Iterator[tuple[int, Ask]]:
        plan = self.plan
        with reading(self.store.path(DATA_ROWS, self.run.dataset.name, self.slice_key)):
            for at, batch in _batches(self.source):
                first, last = np.searchsorted(plan.places, (at, at + batch.num_rows))
                places = np.unique(plan.places[first + np.flatnonzero(picked[first:last])])
                rows = rows_of(pc.take(batch, places - at)) if len(places) else ()
                for row, begin, end in zip(rows, *plan.rows_of(places), strict=True):
                    for number, ask in zip(range(begin, end), self._asks(row), strict=True):
                        if picked[number]:
                            yield number, ask

    def _identities(self) -> tuple[Numbers, Ids]:
        """(place of its data row in the file, call id) of every row that is planned."""
        places, ids = array("i"), bytearray()
        for at, batch in _batches(self.source):
            for place, row in enumerate(rows_of(batch), at):
                if self.only is None or row.global_key in self.only:
                    for ask in self._asks(row):
                        places.append(place)
                        ids += bytes.fromhex(self.requests.call_id(ask))
        return np.array(places, np.int32), ids_of(ids)

    def _asks(self, row: DataRow) -> Iterator[Ask]:
        """What is asked about a data row, as far as it is known from the calls that were made before the planning."""
        if not self.has_parts:
            return iter((Ask(row),))
        turns = self.turns.get(row.global_key)
        asks = asks_of_turns(self.run, row, turns, self._said) if turns else asks_of(self.run, row)
        return islice(asks, None if self.only is None else 1)

    def _said(self, ask: Ask) -> tuple[str, str | None] | None:
        """(outcome, reply) of a call, as they would be committed; None where it is still to be made."""
        ids = ids_of(bytes.fromhex(self.requests.call_id(ask)))
        plan = Plan.of(np.zeros(1, np.int32), ids, *self.earlier, self.made)
        if plan.final()[0] == NONE:
            return None
        self._old = self._old or _CommittedReplies(self.store, self.run.name, self.slice_key)
        result = _result_of(plan, 0, self.ledger.answers(_in_ledger(plan, [0])), self._old)
        reply = result[_REPLY]
        return result[0], reply.decode() if isinstance(reply, bytes) else reply

    def parts(self, row: DataRow) -> Iterator[_Part]:
        """(frames, message id) of the rows about a data row, in their order."""
        if turns := self.turns.get(row.global_key):
            return ((None, message_id) for message_id in turns_asked(self.run, turns))
        return ((ask.frames or None, ask.message_id) for ask in asks_of(self.run, row))

    def answers(self) -> dict[str, Asked]:
        """global key -> what the first row about it asked, and its answer with its reply, where there is one. For a
        few rows, not a slice."""
        old = _CommittedReplies(self.store, self.run.name, self.slice_key)
        fresh = self.ledger.answers(self.plan.call_ids(self.plan.committed_at == NONE))
        found: dict[str, Asked] = {}
        for page in self.asks(np.ones(len(self.plan), bool)):
            for number, ask in page:
                call_id, place = self.plan.call_id(number), int(self.plan.committed_at[number])
                if place != NONE:
                    found.setdefault(ask.row.global_key, Asked(ask, _answer(call_id, old.at(place))))
                elif call_id in fresh:
                    found.setdefault(ask.row.global_key, Asked(ask, fresh[call_id]))
        return found

    def close(self) -> None:
        """Close the files. The ledger keeps its answers."""
        self.source.close(force=True)
        self.ledger.close()

    def close_committed(self) -> None:
        """Close the files, and take the slice's calls out of the ledger: their answers are in `responses`."""
        self.source.close(force=True)
        ours = sum(1 for _ in self.plan.call_ids(self.plan.committed_at == NONE))
        if self.ledger.answered() > ours:
            self.ledger.forget(self.plan.call_ids(np.ones(len(self.plan), bool)))
            if not self.ledger.is_empty():
                self.ledger.close()
                return
        self.ledger.remove()


def plan_slice(
    run: Run,
    slice_key: str,
    store: Store,
    open_ledger: Callable[[], Ledger],
    requests: FoundryRequests,
    options: CallOptions,
    turns: Mapping[str, Sequence[str]] = _NO_TURNS,
    only: frozenset[str] | None = None,
) -> SliceWork:
    """Read the slice and decide what to call.

    `turns` and `only` as in SliceWork; with `only`, the slice is not to be committed. Raises StorageError where the
    slice has no data rows or cannot be read.
    """
    source = _open_rows(run, slice_key, store)
    with contextlib.ExitStack() as opened:
        opened.callback(source.close, force=True)
        committed = _committed_answers(store, run.name, slice_key, options)
        ledger = open_ledger()
        opened.callback(ledger.close)
        earlier = _Earlier(committed, EarlierAnswers(ledger.each_outcome()), options.keeps)
        nothing = Plan.of(np.empty(0, np.int32), ids_of(b""), *earlier)
        work = SliceWork(
            run,
            slice_key,
            store,
            ledger,
            source,
            requests,
            turns,
            only,
            earlier,
            plan=nothing,
            made=_NO_ANSWERS,
            unused=nothing.places,
            rows_in=source.metadata.num_rows,
        )
        work.plan_rows()
        opened.pop_all()
    if run.generate != "every":
        work.earlier = earlier._replace(committed=_NO_ANSWERS, in_ledger=_NO_ANSWERS)  # not planned again
    return work


def _open_rows(run: Run, slice_key: str, store: Store) -> pq.ParquetFile:
    source = store.snapshot(DATA_ROWS, run.dataset.name, slice_key)
    if source is None:
        name = run.dataset.name
        raise StorageError(f"slice {slice_key} of {name} has no data rows: materialize [{name}, data_rows] first")
    return source


def pages_of(run: Run, slice_key: str, store: Store) -> Iterator[list[DataRow]]:
    """The slice's data rows, a page at a time. Raises StorageError where there are none to be read."""
    source = _open_rows(run, slice_key, store)
    try:
        with reading(store.path(DATA_ROWS, run.dataset.name, slice_key)):
            for _, batch in _batches(source):
                yield list(rows_of(batch))
    finally:
        source.close(force=True)


def _batches(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(place of the first row, some rows), with the columns in the order asked for."""
    at = 0
    for batch in file.iter_batches(PAGE_ROWS, columns=columns):
        yield at, batch if columns is None else batch.select(columns)
        at += batch.num_rows


def _records(file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The file's rows, as tuples of these columns."""
    for _, batch in _batches(file, columns):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _committed_answers(store: Store, run: str, slice_key: str, options: CallOptions) -> EarlierAnswers:
    """The answers in the committed tables, their places counted on from one to the next.

    A damaged file is refused, and its rows are asked again only on request: with `refresh`, which sets it aside.
    """
    for spec in COMMITTED:
        try:
            _check_whole(store, spec, run, slice_key)
        except StorageError as err:
            if not options.refresh:
                raise StorageError(f"{err}; with `refresh` its rows are asked again") from err
            store.set_aside(spec, run, slice_key)
    pairs = (_committed_pairs(store, spec, run, slice_key) for spec in COMMITTED)
    return EarlierAnswers(itertools.chain.from_iterable(pairs))


def _check_whole(store: Store, spec: TableSpec, run: str, slice_key: str) -> None:
    file = store.open(spec, run, slice_key)
    if file is None:
        return
    file.close()
    if store.check_intact(spec, run, slice_key) is None:
        for _ in _committed_pairs(store, spec, run, slice_key):
            pass  # what has no record must at least be readable


def _committed_pairs(store: Store, spec: TableSpec, run: str, slice_key: str) -> Iterator[tuple[Any, ...]]:
    """(call id, outcome) of a table's rows in their order; nothing where there is no table."""
    file = store.open(spec, run, slice_key)
    if file is not None:
        with file, reading(store.path(spec, run, slice_key)):
            yield from _records(file, ["call_id", "outcome"])


def commit_slice(work: SliceWork, about: Mapping[str, object], check_lease: Callable[[], None]) -> tuple[Tally, str]:
    """Write `responses`. Gives what the file holds, and its sha256.

    `check_lease` is called right before the commit and raises where the slice is another process's by now. Where every
    answer was committed before, for the same rows in the same order, the file stays as it is.
    """
    tally = Tally()
    if unchanged := _unchanged(work, tally):
        return tally, unchanged
    tally = Tally()
    tables = _superseded(work) | {RESPONSES.name: _writer(work, tally)}
    written = work.store.commit(work.run.name, work.slice_key, tables, about, before_commit=check_lease)
    return tally, written[RESPONSES.name].sha256


def _unchanged(work: SliceWork, tally: Tally) -> str | None:
    """The committed file's sha256 where it already says exactly this."""
    file = work.store.open(RESPONSES, work.run.name, work.slice_key)
    if file is None:
        return None
    with file, reading(work.store.path(RESPONSES, work.run.name, work.slice_key)):
        same = file.metadata.num_rows == len(work.plan) and bool(np.all(work.plan.committed_at != NONE))
        same = same and file.schema_arrow.equals(RESPONSES.schema)
        if not same or not _same_rows(file, work):
            return None
        for key, *result in _records(file, ["global_key", *_RESULT]):
            _tell(tally, key, result)
    record = work.store.record(work.run.name, work.slice_key, RESPONSES.name)
    return None if record is None else str(record["sha256"])


def _same_rows(file: pq.ParquetFile, work: SliceWork) -> bool:
    """Whether a file of as many rows has the same ones, with the same requests, in the same order."""
    theirs = _records(file, ["call_id", "global_key", "data_row_id"])
    ours = ((work.plan.call_id(number), key, data_row_id) for number, data_row_id, key, _ in _rows(work))
    return all(one == other for one, other in zip(theirs, ours, strict=True))


_Part = tuple[Sequence[int] | None, str | None]
"""(frames, message id) that a row is about."""
_Row = tuple[int, str, str, _Part]
"""(number, data row id, global key, part) of a row."""
_WHOLE: _Part = (None, None)
_FACTS = ("data_row_id", "global_key", "media_type", "frame_count", "frames_per_second")
"""Of a data row: on these it depends which parts it has."""


def _rows(work: SliceWork) -> Iterator[_Row]:
    """Every row, in order."""
    if not work.has_parts:
        for at, batch in _batches(work.source, ["data_row_id", "global_key"]):
            yield from zip(count(at), *(column.to_pylist() for column in batch.columns), repeat(_WHOLE))
        return
    facts = [name for name in _FACTS if name in work.source.schema_arrow.names]
    for at, batch in _batches(work.source, facts):
        begins, ends = work.plan.rows_of(np.arange(at, at + batch.num_rows))
        for of_row, begin, end in zip(batch.to_pylist(), begins.tolist(), ends.tolist(), strict=True):
            row = DataRow(**of_row, row_data="")
            for number, part in zip(range(begin, end), work.parts(row), strict=True):
                yield number, row.data_row_id, row.global_key, part


def _writer(work: SliceWork, tally: Tally) -> Write:
    def write(writer: pq.ParquetWriter) -> None:
        group: list[pa.Table] = []
        for table in _tables(work, tally):
            group.append(table)
            if sum(t.nbytes for t in group) >= GROUP_BYTES or sum(t.num_rows for t in group) >= GROUP_ROWS:
                writer.write_table(pa.concat_tables(group))
                group = []
        if group or not len(work.plan):
            writer.write_table(pa.concat_tables(group) if group else RESPONSES.schema.empty_table())
        further = len(work.plan) - len(np.unique(work.plan.places))
        what = "calls about the data rows" if further else "data rows"
        check_sums(what, work.rows_in + further, {name: tally.outcomes[name] for name in OUTCOMES})

    return write


def _superseded(work: SliceWork) -> dict[str, Write]:
    """The table of answers that no row uses, where there are or were any."""
    if not len(work.unused) and work.store.open(SUPERSEDED, work.run.name, work.slice_key) is None:
        return {}

    def write(writer: pq.ParquetWriter) -> None:
        old = _CommittedReplies(work.store, work.run.name, work.slice_key)
        records: list[_Record] = []
        held = 0
        for place in work.unused.tolist():
            records.append(old.record(place))
            held += len(records[-1][_KEYS + _REPLY] or "")
            if held >= GROUP_BYTES or len(records) >= GROUP_ROWS:
                writer.write_table(_table_of(records))
                records, held = [], 0
        writer.write_table(_table_of(records))

    return {SUPERSEDED.name: write}


def _table_of(records: Sequence[_Record]) -> pa.Table:
    """Whole rows of `responses`, or of `superseded`, which has the same schema."""
    if not records:
        return RESPONSES.schema.empty_table()
    return build(RESPONSES, dict(zip(RESPONSES.schema.names, zip(*records, strict=True), strict=True)))


def _tables(work: SliceWork, tally: Tally) -> Iterator[pa.Table]:
    """The slice's `responses`, a few rows at a time."""
    old = _CommittedReplies(work.store, work.run.name, work.slice_key)
    rows = _rows(work)
    while page := list(islice(rows, PAGE_ROWS)):
        first = page[0][0]
        for numbers in _portions(work, range(first, first + len(page))):
            answers = work.ledger.answers(_in_ledger(work.plan, numbers))
            records = []
            for number in numbers:
                _, data_row_id, global_key, part = page[number - first]
                call_id, result = work.plan.call_id(number), _result_of(work.plan, number, answers, old)
                _tell(tally, global_key, result)
                if _older_stays(work.plan, number, answers):
                    tally.add_older(_unanswered(global_key, _result(answers[call_id])))
                records.append((call_id, data_row_id, global_key, *result, *part))
            yield _table_of(records)


def _portions(work: SliceWork, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """The rows in portions whose answers may be held at once."""
    sizes = work.ledger.reply_sizes(_in_ledger(work.plan, numbers))
    begin, held = 0, 0
    for at, number in enumerate(numbers):
        size = sizes.get(work.plan.call_id(number), 0)
        if at > begin and held + size > GROUP_BYTES:
            yield numbers[begin:at]
            begin, held = at, 0
        held += size
    yield numbers[begin:]


def _in_ledger(plan: Plan, numbers: Sequence[int]) -> set[str]:
    """The calls of these rows whose answers are in the ledger."""
    return {plan.call_id(number) for number in numbers if plan.committed_at[number] == NONE}


_RESULT = ("outcome", "http_status", "attempts", "sent_at", "latency_ms", "reply", "error", "message")
"""What a row of `responses` says of the call's end, in the table's order: behind the keys, before what it is about."""
_REPLY = _RESULT.index("reply")
_KEYS = RESPONSES.schema.names.index(_RESULT[0])
"""Columns of the table before those."""
_Result = tuple[Any, ...]
_Record = tuple[Any, ...]
"""A whole row of the table."""


def _result_of(plan: Plan, number: int, answers: Mapping[str, Answer], old: _CommittedReplies) -> _Result:
    if (place := int(plan.committed_at[number])) != NONE:
        return old.at(place)
    if _older_stays(plan, number, answers):
        return old.at(int(plan.good_at[number]))
    return _result(answers[plan.call_id(number)])


def _older_stays(plan: Plan, number: int, answers: Mapping[str, Answer]) -> bool:
    """True where the row's new call failed, and it has a good answer from before."""
    if plan.committed_at[number] != NONE or plan.good_at[number] == NONE:
        return False
    return answers[plan.call_id(number)].outcome not in GOOD


def _tell(tally: Tally, global_key: str, result: Sequence[Any]) -> None:
    if result[0] == "ok":
        tally.add_good(result[_REPLY])
    else:
        tally.add(_unanswered(global_key, result))


def _unanswered(global_key: str, result: Sequence[Any]) -> Unanswered:
    outcome, http_status, attempts, _, _, _, error, message = result
    return Unanswered(global_key, outcome, error or "", http_status, attempts, message or "")


def response_of(asked: Asked) -> dict[str, Any]:
    """The row of `responses` that says what became of an ask."""
    ask, answer = asked
    keys = {"call_id": answer.call_id, "data_row_id": ask.row.data_row_id, "global_key": ask.row.global_key}
    part = {"frames": ask.frames or None, "message_id": ask.message_id}
    return keys | dict(zip(_RESULT, _result(answer), strict=True)) | part


def _result(answer: Answer) -> _Result:
    return (
        answer.outcome,
        answer.http_status,
        answer.attempts,
        answer.sent_us,
        answer.latency_ms,
        answer.reply,
        answer.error,
        answer.message,
    )


def _answer(call_id: str, result: _Result) -> Answer:
    """A committed result as an answer."""
    outcome, http_status, attempts, sent_at, latency_ms, reply, error, message = result
    return Answer(
        call_id,
        outcome,
        attempts=attempts,
        http_status=http_status,
        sent_us=None if sent_at is None else int(sent_at.timestamp() * 1_000_000),
        latency_ms=latency_ms,
        reply=None if reply is None else reply.encode(),
        error=error,
        message=message,
    )


class _CommittedReplies:
    """Random access to the committed answers: the rows of `responses`, then those of `superseded`, counted on.

    One row group is held at a time.
    """

    def __init__(self, store: Store, run: str, slice_key: str) -> None:
        self._groups: list[tuple[pq.ParquetFile, int, str]] = []
        """(file, its row group, its path)"""
        self._starts: list[int] = []
        """The first place of each group."""
        start = 0
        for spec in COMMITTED:
            file = store.open(spec, run, slice_key)
            for group in range(file.num_row_groups if file else 0):
                assert file is not None
                self._groups.append((file, group, store.path(spec, run, slice_key)))
                self._starts.append(start)
                start += file.metadata.row_group(group).num_rows
        self._held: tuple[int, list[_Record]] = (NONE, [])

    def record(self, place: int) -> _Record:
        at = bisect_right(self._starts, place) - 1
        if self._held[0] != at:
            file, group, path = self._groups[at]
            with reading(path):
                table = _with_all_columns(file.read_row_group(group))
            self._held = (at, list(zip(*(column.to_pylist() for column in table.columns), strict=True)))
        return self._held[1][place - self._starts[at]]

    def at(self, place: int) -> _Result:
        return self.record(place)[_KEYS : _KEYS + len(_RESULT)]


def _with_all_columns(table: pa.Table) -> pa.Table:
    """The columns of `responses`. A file that was written before there was such a column knows nothing of it."""
    for name in set(RESPONSES.schema.names) - set(table.schema.names):
        table = table.append_column(name, pa.nulls(table.num_rows))
    return table.select(RESPONSES.schema.names)
