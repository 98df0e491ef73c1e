"""One slice of a run: its stored replies -> its prediction tables and rejects, committed together.

Decoding never calls the model: it reads `responses` and `data_rows`, and texts again where entities need them.
How a reply is read is `decode.py`'s matter, how tables are written `store.py`'s.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import Sent, SliceDecoder, tables_needed
from foundry_pipeline.errors import RowUnavailable, StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.rendering import seen_row, seen_text
from foundry_pipeline.rows.conversations import parse_conversation
from foundry_pipeline.rows.media import TEXT_LIKE
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, ENTITIES, REJECTS, RESPONSES, TableSpec

BATCH_ROWS = 128
TELLING_SHARE = 0.8
"""Share of boxes from which on another reading of their numbers is worth a hint."""


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """What became of one slice's replies. Counts are table rows unless said otherwise."""

    slice_key: str
    rows: int
    """Replies decoded: calls with outcome `ok`."""
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
    has no responses or no data rows, or where either is damaged.
    """
    started = clock()
    model, dataset = run.model, run.dataset
    specs = tables_needed(model.ontology, model.allowed_feature_kinds)
    texts = _Texts(run, read_text, has_entities=ENTITIES in specs)
    decoder = SliceDecoder(
        run.name, model.name, dataset.name, model.ontology, model.allowed_feature_kinds, dataset.media_type
    )
    rows = 0
    known = {row.global_key: seen_row(run, row) for row in _data_rows(store, dataset.name, slice_key, texts.wanted)}
    for call_id, global_key, reply, sent in _good_replies(store, run.name, slice_key):
        if global_key in known:
            row = known[global_key]
            decoder.add(row, call_id, reply, *texts.of(row, reply), sent)
            rows += 1
    tables = decoder.finish()
    about = {"rows": rows, "responses": _sha256(store, RESPONSES, run.name, slice_key)}
    written = store.commit(run.name, slice_key, tables, about)
    outside, hints = _box_facts(tables.get(BOXES.name))
    return DecodeReport(
        slice_key=slice_key,
        rows=rows,
        predictions={name: table.num_rows for name, table in tables.items() if name != REJECTS.name},
        rejects=_counts(tables[REJECTS.name]["reason"]),
        boxes_outside=outside,
        unread_texts=texts.unread,
        hints=hints,
        data_versions={name: file.sha256 for name, file in written.items()},
        seconds=clock() - started,
    )


class _Texts:
    """What the entities of a data row stand in, or the messages its answers are about; read only where a reply may
    have some."""

    def __init__(self, run: Run, read_text: Callable[[DataRow], str], *, has_entities: bool) -> None:
        self._run = run
        self._read_text = read_text
        self._marks = ["start"] if has_entities and run.dataset.media_type in TEXT_LIKE else []
        self._marks += ["message_id"] if run.dataset.media_type == "conversational" else []
        self.wanted = bool(self._marks)
        self.unread = 0

    def of(self, row: DataRow, reply: str) -> tuple[str | None, Mapping[str, str] | None]:
        """(text, messages of a conversation), None where there are none or they cannot be had."""
        if not self.wanted or not any(mark in reply for mark in (*self._marks, "\\u")):
            return None, None
        try:
            text = seen_text(self._run, row, self._read_text(row))
            if row.media_type != "conversational":
                return text, None
            return None, {message.message_id: message.content for message in parse_conversation(text)}
        except RowUnavailable:
            self.unread += 1
            return None, None


def _data_rows(store: Store, dataset: str, slice_key: str, with_content: bool) -> Iterator[DataRow]:
    """The slice's data rows, as far as decoding needs them; `row_data` is empty unless asked for."""
    columns = ["data_row_id", "global_key", "media_type", "mime_type", "width", "height", "exif_orientation"]
    for batch in _batches(store, DATA_ROWS, dataset, slice_key, [*columns, *(["row_data"] if with_content else [])]):
        for record in batch.to_pylist():
            yield DataRow(**({"row_data": ""} | record))


def _good_replies(store: Store, run: str, slice_key: str) -> Iterator[tuple[str, str, str, Sent]]:
    """(call id, global key, reply, what was sent) of the calls whose outcome is ok."""
    calls = _calls_of_rows(store, run, slice_key)
    columns = ["call_id", "global_key", "outcome", "reply", "frames", "message_id"]
    for batch in _batches(store, RESPONSES, run, slice_key, columns):
        for call_id, global_key, outcome, reply, frames, message_id in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if outcome == "ok":
                yield call_id, global_key, reply or "", sent_of(frames, message_id, calls[global_key])


def sent_of(frames: Sequence[int] | None, message_id: str | None, calls: int) -> Sent:
    """What a call was about, of the `calls` that its data row took: see `decoding.places.Sent`."""
    if not frames:
        return Sent(message_id=message_id)
    is_whole = calls == 1 and len(frames) > 1
    return Sent(None if is_whole else frames[0], frozenset(frames))


def _calls_of_rows(store: Store, run: str, slice_key: str) -> Counter[str]:
    """global key -> its calls."""
    found: Counter[str] = Counter()
    for batch in _batches(store, RESPONSES, run, slice_key, ["global_key"]):
        found.update(batch.column(0).to_pylist())
    return found


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


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    counted = column.value_counts().to_pylist()
    return {item["values"]: item["counts"] for item in sorted(counted, key=lambda item: str(item["values"]))}


def _box_facts(boxes: pa.Table | None) -> tuple[int, tuple[str, ...]]:
    """(boxes past the edge, hints) of boxes whose picture's size is known."""
    if boxes is None:
        return 0, ()
    sized = boxes.filter(pc.and_(boxes["image_width"].is_valid(), boxes["image_height"].is_valid()))
    if not sized.num_rows:
        return 0, ()
    left, top, width, height, image_w, image_h = (
        sized[name].to_numpy() for name in ("left", "top", "width", "height", "image_width", "image_height")
    )
    begins_inside = (left >= 0) & (top >= 0)
    inside = begins_inside & (left + width <= image_w) & (top + height <= image_h)
    as_corners = begins_inside & (left <= width) & (width <= image_w) & (top <= height) & (height <= image_h) & ~inside
    tiny = (np.maximum(left, width) <= 1) & (np.maximum(top, height) <= 1) & begins_inside
    hints = []
    if as_corners.mean() > TELLING_SHARE:
        hints.append(f"boxes look like left, top, right, bottom: {as_corners.mean():.0%} fit their picture only so")
    if tiny.mean() > TELLING_SHARE and min(image_w.min(), image_h.min()) > 1:
        hints.append(f"boxes look normalised: {tiny.mean():.0%} have no number above 1")
    return int((~inside).sum()), tuple(hints)
