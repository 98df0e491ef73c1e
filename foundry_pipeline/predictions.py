"""One slice of a run: its stored replies -> its prediction tables and rejects, committed together.

Decoding never calls the model: it reads `responses` and `data_rows`, and texts again where entities need them.
How a reply is read is `decode.py`'s matter, how tables are written `store.py`'s.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import VERSION, SliceDecoder, tables_needed
from foundry_pipeline.errors import RowUnavailable, StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.rows.conversations import parse_conversation
from foundry_pipeline.rows.media import TEXT_LIKE
from foundry_pipeline.store import Store
from foundry_pipeline.table_spool import TableSpool
from foundry_pipeline.tables import BOXES, DATA_ROWS, ENTITIES, REJECTS, RESPONSES, TableSpec

BATCH_ROWS = 128
PIECE_BYTES = 8 * 1024 * 1024
"""What is decoded goes from the decoder to the spool in pieces of at least this size."""
TELLING_SHARE = 0.8
"""Share of boxes from which on another reading of their numbers is worth a hint."""


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """What became of one slice's replies. Counts are table rows unless said otherwise."""

    slice_key: str
    rows: int
    """Replies decoded: data rows with outcome `ok`."""
    predictions: Mapping[str, int]
    """Table -> rows; rejects are not among them."""
    rejects: Mapping[str, int]
    """Reason -> rows."""
    boxes_outside: int
    """Boxes that reach past their picture's edge; pictures of unknown size are not looked at."""
    unread_texts: int
    """Data rows whose text could not be had again: their entities were rejected, nothing else."""
    hints: tuple[str, ...]
    """Readings of the numbers that fit better than ours, for people. Nothing is converted by guess."""
    data_versions: Mapping[str, str]
    """Table -> sha256 of the committed file."""
    seconds: float


def decode_slice(
    run: Run,
    slice_key: str,
    store: Store,
    read_text: Callable[[DataRow], str],
    clock: Callable[[], float] = time.monotonic,
) -> DecodeReport:
    """Decode the stored replies of one slice and commit all its prediction tables and rejects together.

    `read_text` gives a data row's text and may raise RowUnavailable: then the row's entities are rejected, the rest of
    its reply is not. Replies of rows that the dataset no longer has are left out. Raises StorageError where the slice
    has no responses or no data rows, or where either is damaged; AccountingError where what the replies say is not all
    in the tables or refused.
    """
    started = clock()
    model, dataset = run.model, run.dataset
    specs = tables_needed(model.ontology, model.allowed_feature_kinds)
    texts = _Texts(read_text, wanted=ENTITIES in specs and dataset.media_type in TEXT_LIKE)
    decoder = SliceDecoder(
        run.name, model.name, dataset.name, model.ontology, model.allowed_feature_kinds, dataset.media_type
    )
    tally = _Tally()
    with store.scratch() as folder, TableSpool(folder) as spool:
        for row, call_id, reply in _decodable(store, run, slice_key, texts.wanted):
            decoder.add(row, call_id, reply, *texts.of(row, reply))
            tally.rows += 1
            if decoder.done_bytes >= PIECE_BYTES:
                spool.add(tally.noted(decoder.take()))
        spool.add(tally.noted(decoder.finish()))
        responses = _sha256(store, RESPONSES, run.name, slice_key)
        about = {"decoder": VERSION, "rows": tally.rows, **decoder.sums, "responses": responses}
        written = store.commit(run.name, slice_key, spool.contents(), about)
    return DecodeReport(
        slice_key=slice_key,
        rows=tally.rows,
        predictions={name: file.rows for name, file in written.items() if name != REJECTS.name},
        rejects=dict(sorted(tally.rejects.items())),
        boxes_outside=tally.boxes.outside,
        unread_texts=texts.unread,
        hints=tally.boxes.hints(),
        data_versions={name: file.sha256 for name, file in written.items()},
        seconds=clock() - started,
    )


class _Texts:
    """What the entities of a data row stand in, read only where a reply may have some."""

    def __init__(self, read_text: Callable[[DataRow], str], *, wanted: bool) -> None:
        self._read_text = read_text
        self.wanted = wanted
        self.unread = 0

    def of(self, row: DataRow, reply: str) -> tuple[str | None, Mapping[str, str] | None]:
        """(text, messages of a conversation), None where there are none or they cannot be had."""
        if not self.wanted or not ("start" in reply or "\\u" in reply):
            return None, None
        try:
            text = self._read_text(row)
            if row.media_type != "conversational":
                return text, None
            return None, {message.message_id: message.content for message in parse_conversation(text)}
        except RowUnavailable:
            self.unread += 1
            return None, None


def _decodable(store: Store, run: Run, slice_key: str, with_content: bool) -> Iterator[tuple[DataRow, str, str]]:
    """(data row, call id, reply) of the good replies, in their order, without those whose data row is gone.

    Replies and data rows stand in the same order, as a rule: only where they do not, rows are held until their reply.
    """
    rows = _data_rows(store, run.dataset.name, slice_key, with_content)
    waiting: dict[str, DataRow] = {}
    for call_id, global_key, outcome, reply in _responses(store, run.name, slice_key):
        while global_key not in waiting and (row := next(rows, None)) is not None:
            waiting[row.global_key] = row
        found = waiting.pop(global_key, None)
        if found is not None and outcome == "ok":
            yield found, call_id, reply or ""


def _data_rows(store: Store, dataset: str, slice_key: str, with_content: bool) -> Iterator[DataRow]:
    """The slice's data rows, as far as decoding needs them; `row_data` is empty unless asked for."""
    columns = ["data_row_id", "global_key", "media_type", "mime_type", "width", "height"]
    for batch in _batches(store, DATA_ROWS, dataset, slice_key, [*columns, *(["row_data"] if with_content else [])]):
        for record in batch.to_pylist():
            yield DataRow(**({"row_data": ""} | record))


def _responses(store: Store, run: str, slice_key: str) -> Iterator[tuple[str, str, str, str | None]]:
    """(call id, global key, outcome, reply) of the slice's rows."""
    for batch in _batches(store, RESPONSES, run, slice_key, ["call_id", "global_key", "outcome", "reply"]):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _batches(store: Store, spec: TableSpec, owner: str, slice_key: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """A slice's table, a few rows at a time, with the columns in the order asked for."""
    file = store.open(spec, owner, slice_key)
    path = store.path(spec, owner, slice_key)
    if file is None:
        raise StorageError(f"{path}: there is no such file: {spec.name} of this slice must be made first")
    with file:
        yield from _read(file, path, columns)


def _read(file: pq.ParquetFile, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            yield batch.select(columns)
    except (OSError, pa.ArrowException) as err:
        raise StorageError(f"{path}: damaged: {err}") from err


def _sha256(store: Store, spec: TableSpec, owner: str, slice_key: str) -> str | None:
    record = store.record(owner, slice_key, spec.name)
    return None if record is None else str(record["sha256"])


@dataclass(slots=True)
class _BoxFacts:
    """What is seen of the boxes in pictures of known size."""

    sized: int = 0
    outside: int = 0
    """Boxes past their picture's edge."""
    as_corners: int = 0
    tiny: int = 0
    smallest_side: int | None = None

    def add(self, boxes: pa.Table) -> None:
        sized = boxes.filter(pc.and_(boxes["image_width"].is_valid(), boxes["image_height"].is_valid()))
        if not sized.num_rows:
            return
        left, top, width, height, image_w, image_h = (
            sized[name].to_numpy() for name in ("left", "top", "width", "height", "image_width", "image_height")
        )
        begins_inside = (left >= 0) & (top >= 0)
        inside = begins_inside & (left + width <= image_w) & (top + height <= image_h)
        corners = begins_inside & (left <= width) & (width <= image_w) & (top <= height) & (height <= image_h)
        tiny = (np.maximum(left, width) <= 1) & (np.maximum(top, height) <= 1) & begins_inside
        self.sized += sized.num_rows
        self.outside += int((~inside).sum())
        self.as_corners += int((corners & ~inside).sum())
        self.tiny += int(tiny.sum())
        smallest = int(min(image_w.min(), image_h.min()))
        self.smallest_side = smallest if self.smallest_side is None else min(smallest, self.smallest_side)

    def hints(self) -> tuple[str, ...]:
        """Readings of the numbers that fit better than ours."""
        hints = []
        if self.sized and (share := self.as_corners / self.sized) > TELLING_SHARE:
            hints.append(f"boxes look like left, top, right, bottom: {share:.0%} fit their picture only so")
        if self.sized and (share := self.tiny / self.sized) > TELLING_SHARE and (self.smallest_side or 0) > 1:
            hints.append(f"boxes look normalised: {share:.0%} have no number above 1")
        return tuple(hints)


@dataclass(slots=True)
class _Tally:
    """What a slice's tables hold, counted while they grow."""

    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    boxes: _BoxFacts = field(default_factory=_BoxFacts)

    def noted(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        """The same tables, once they are counted."""
        for item in tables[REJECTS.name]["reason"].value_counts().to_pylist():
            self.rejects[item["values"]] += item["counts"]
        if BOXES.name in tables:
            self.boxes.add(tables[BOXES.name])
        return tables
