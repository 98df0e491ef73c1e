"""A prediction table under construction: a list per column, and the columns that neighbours share kept once a run.

A run is items at consecutive places of one list of one reply. `Runs` says what they share, `RowBlock` what the data
rows behind them share; `part_of_table` spreads both over the items.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decoding.places import Place
from foundry_pipeline.decoding.prediction_ids import Bytes, Places, item_id, item_ids, list_name, row_id, row_ids
from foundry_pipeline.tables import TableSpec, build

_RUN_COLUMNS = ("run", "model", "dataset")
_ROW_COLUMNS = ("data_row_id", "global_key", "call_id")
_SIZE_COLUMNS = ("image_width", "image_height")
_ITEM_COLUMNS = ("prediction_id", "feature", "index", "score", "frame", "message_id")
_SHARED = {*_RUN_COLUMNS, *_ROW_COLUMNS, *_SIZE_COLUMNS, *_ITEM_COLUMNS}


class RowBlock:
    """Some data rows in a sequence, numbered from 0, and the columns that their predictions share."""

    def __init__(self, run: str, model: str, dataset: str) -> None:
        self._run, self._model, self._dataset = run, model, dataset
        self._data_row_ids: list[str] = []
        self._global_keys: list[str] = []
        self._call_ids: list[str] = []
        self._widths: list[int | None] = []
        self._heights: list[int | None] = []
        self._row_ids: Bytes = np.empty((0, 16), np.uint8)

    def __len__(self) -> int:
        return len(self._global_keys)

    def add(self, row: DataRow, call_id: str) -> None:
        """The next row."""
        self._data_row_ids.append(row.data_row_id)
        self._global_keys.append(row.global_key)
        self._call_ids.append(call_id)
        self._widths.append(row.width)
        self._heights.append(row.height)

    def image_hw(self, number: int) -> tuple[int, int] | None:
        """(height, width) of a row's picture, where it is known."""
        width, height = self._widths[number], self._heights[number]
        return None if width is None or height is None else (height, width)

    def row_id(self, number: int) -> bytes:
        """What the ids of a row's predictions start from."""
        return row_id(self._run, self._dataset, self._global_keys[number])

    def row_ids(self) -> Bytes:
        """`row_id` of all rows, (rows, 16) bytes; for when the last row is there."""
        if len(self._row_ids) != len(self):
            self._row_ids = row_ids(self._run, self._dataset, self._global_keys)
        return self._row_ids

    def columns(self, row_of_item: Places, spec: TableSpec) -> dict[str, Sequence[object] | pa.Array]:
        """The columns of `spec` that a data row's predictions share, spread over items."""
        take = pa.array(row_of_item)
        spread: dict[str, Sequence[object] | pa.Array] = {}
        for name, text in zip(_RUN_COLUMNS, (self._run, self._model, self._dataset), strict=True):
            spread[name] = pa.repeat(pa.scalar(text, pa.string()), len(row_of_item))
        ids = {"data_row_id": self._data_row_ids, "global_key": self._global_keys, "call_id": self._call_ids}
        for name, values in ids.items():
            spread[name] = pa.array(values, pa.string()).take(take)
        for name, sizes in (("image_width", self._widths), ("image_height", self._heights)):
            if name in spec.schema.names:
                spread[name] = pa.array(sizes, pa.int32()).take(take)
        return spread


@dataclass(slots=True)
class Runs:
    """What the items of each run share, one list a property. `starts` are places in the column, `first_index` in the
    reply's list; `rows` are numbers in the block, `names` as of `prediction_ids.list_name`."""

    rows: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    first_index: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    frames: list[int | None] = field(default_factory=list)
    messages: list[str | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a table, with the number of the data row that each belongs to."""

    table: pa.Table
    row_of_item: Places


def part_of_table(
    spec: TableSpec, rows: RowBlock, runs: Runs, scores: pa.Array, own: Mapping[str, Sequence[object] | pa.Array]
) -> Part:
    """The items as a table. `own` are the columns that this table has and no other."""
    starts = np.array(runs.starts, np.int64)
    run_of_item = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(scores)))
    row_of_item = np.array(runs.rows, np.int64)[run_of_item]
    index = np.arange(len(scores)) - (starts - np.array(runs.first_index, np.int64))[run_of_item]
    columns = rows.columns(row_of_item, spec) | {
        "prediction_id": item_ids(rows.row_ids(), row_of_item, runs.names, run_of_item, index),
        "feature": pa.array(runs.features, pa.string()).take(pa.array(run_of_item)),
        "index": pa.array(index.astype(np.int32)),
        "score": scores,
        "frame": _spread(runs.frames, pa.int32(), run_of_item),
        "message_id": _spread(runs.messages, pa.string(), run_of_item),
    }
    columns.update(own)
    return Part(build(spec, columns), row_of_item)


class ItemColumns:
    """One table's items since the last `drain`."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self._own_fields = [field for field in spec.schema if field.name not in _SHARED]
        self._clear()

    def _clear(self) -> None:
        self.runs = Runs()
        self.scores: list[float | None] = []
        self.own: list[list[Any]] = [[] for _ in self._own_fields]
        self.appends = [column.append for column in self.own]
        self.writer: ItemRows | None = None
        """Whose items the last run holds: lists of one table are read in turns where one is nested in the other."""

    def drain(self, rows: RowBlock) -> Part | None:
        """Take the items out, as a table."""
        if not self.scores:
            return None
        own = {
            field.name: _column(values, field.type) for field, values in zip(self._own_fields, self.own, strict=True)
        }
        part = part_of_table(self.spec, rows, self.runs, pa.array(self.scores, pa.float64()), own)
        self._clear()
        return part


class ItemRows:
    """Appends the items of one list in a reply to its table. `place` names the feature, `row` is a number in `rows`."""

    def __init__(self, columns: ItemColumns, rows: RowBlock, row: int, place: Place) -> None:
        assert place.feature is not None
        self._columns, self._rows, self._row, self._place = columns, rows, row, place
        self._feature = place.feature
        part = place.message_id if place.frame is None else place.frame
        self._name = list_name(columns.spec.name, part, place.parent_id, place.feature)
        self._next = -1

    def add(self, index: int, score: float | None, values: tuple[object, ...]) -> None:
        """One item; `values` are the table's own columns, in its order."""
        columns = self._columns
        if index != self._next or columns.writer is not self:
            self._begin_run(index)
        self._next = index + 1
        columns.scores.append(score)
        for append, value in zip(columns.appends, values, strict=True):
            append(value)

    def add_all(self, columns: Sequence[Sequence[object]], scores: Sequence[float | None]) -> None:
        """All items of the list at once, from its first place; `columns` are the table's own, in its order."""
        self._begin_run(0)
        self._next = len(scores)
        self._columns.scores.extend(scores)
        for column, values in zip(self._columns.own, columns, strict=True):
            column.extend(values)

    def _begin_run(self, index: int) -> None:
        runs = self._columns.runs
        runs.rows.append(self._row)
        runs.starts.append(len(self._columns.scores))
        runs.first_index.append(index)
        runs.names.append(self._name)
        runs.features.append(self._feature)
        runs.frames.append(self._place.frame)
        runs.messages.append(self._place.message_id)
        self._columns.writer = self

    def of_message(self, message_id: str | None) -> None:
        """The items that follow belong to this message."""
        if message_id != self._place.message_id:
            self._place = self._place._replace(message_id=message_id)
            self._next = -1

    def id_of(self, index: int) -> str:
        """The prediction_id of the item at this place."""
        return item_id(self._rows.row_id(self._row), self._name, index)


def _spread(values: Sequence[int | str | None], kind: pa.DataType, run_of_item: Places) -> pa.Array:
    if values.count(None) == len(values):
        return pa.nulls(len(run_of_item), kind)
    return pa.array(values, kind).take(pa.array(run_of_item))


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        return _points_column(values, kind)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):  # none of them may be null
        return pa.array(np.array(values, kind.to_pandas_dtype()))
    return pa.array(values, kind)


def _points_column(values: list[list[tuple[float, float]]], kind: pa.DataType) -> pa.Array:
    """Lists of (x, y), as lists of structs."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    flat: npt.NDArray[np.float64] = np.array(list(itertools.chain.from_iterable(values)), np.float64).reshape(-1, 2)
    points = pa.StructArray.from_arrays([pa.array(flat[:, 0]), pa.array(flat[:, 1])], fields=list(kind.value_type))
    offsets = np.concatenate(([0], lengths.cumsum())).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), points, type=kind)
