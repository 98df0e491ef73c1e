"""Predictions and rejects of many replies, collected data row by data row and given out as Arrow tables.

What is legal is decided by the readers (`objects.py`, `entities.py`, `answers.py`); how columns are kept is
`item_columns.py`'s matter, what they are is in `tables.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decoding.features import MAX_NAME_BYTES
from foundry_pipeline.decoding.item_columns import ItemColumns, ItemRows, Part, RowBlock
from foundry_pipeline.decoding.places import Place, json_path
from foundry_pipeline.decoding.prediction_ids import item_ids
from foundry_pipeline.decoding.rejects import Fault, cut, value_seen
from foundry_pipeline.errors import check_sums
from foundry_pipeline.tables import REJECTS, TABLES, TableSpec, build

FLUSH_ITEMS = 32_768
FLUSH_CHARS = 16 * 1024 * 1024
"""Replies of one block. It bounds the memory of masks and texts, and so do `FLUSH_ITEMS` that of numbers."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many objects, answers and entities one reply may have, and one frame of a video's reply.

    Beyond them are floods, not pictures. What the limits leave out is told in one reject, and stays in the reply.
    """

    objects_a_frame: int = 10_000
    """Also what a reply may have outside frames."""
    objects_a_reply: int = 100_000
    rejects_a_reply: int = 10_000


class Findings:
    """Collects the predictions and rejects of one run's replies.

    A block is the data rows since the last flush. It bounds what is held as Python objects.
    """

    def __init__(self, run: str, model: str, dataset: str, specs: Iterable[TableSpec], limits: Limits) -> None:
        self._limits = limits
        self._of_run = (run, model, dataset)
        self._columns = {spec.name: ItemColumns(spec) for spec in specs if spec is not REJECTS}
        self._rejects = _Rejects()
        self._done: dict[str, list[pa.Table]] = {name: [] for name in (*self._columns, REJECTS.name)}
        self.done_bytes = 0
        """Size of the tables since they were last taken."""
        self.said = 0
        """Items of all lists in the replies, and single answers: each ends in a table, or is refused."""
        self.refused = 0
        """Of `said`: those that no table takes."""
        self._taken = 0
        self._begin_block()

    def _begin_block(self) -> None:
        self.rows_of_block = RowBlock(*self._of_run)
        self._row = -1
        self._left_in_reply = self._left_in_frame = self._rejects_left = 0
        self._pending = self._pending_chars = 0

    @property
    def is_full(self) -> bool:
        """Whether the block should be flushed before the next data row."""
        return self._pending >= FLUSH_ITEMS or self._pending_chars >= FLUSH_CHARS

    def add_row(self, row: DataRow, call_id: str, reply_chars: int) -> int:
        """The next data row. Gives its number in the block."""
        self.rows_of_block.add(row, call_id)
        self._pending_chars += reply_chars
        return len(self.rows_of_block) - 1

    def open_row(self, number: int) -> None:
        """What follows is said about this data row of the block, about which nothing was said yet."""
        self._row = number
        self._rejects.begin_row()
        self._rejects_left = self._limits.rejects_a_reply + 1  # the last one says that there are more
        self._left_in_reply = self._limits.objects_a_reply
        self.open_frame()

    def open_frame(self) -> None:
        """What follows is said about another frame, or about the whole data row."""
        self._left_in_frame = self._limits.objects_a_frame

    def admit(self, place: Place, items: list[object]) -> list[object]:
        """As many of the items as this part of the reply may still have; the others are rejected together."""
        left = min(self._left_in_frame, self._left_in_reply)
        self.said += len(items)
        if len(items) > left:
            self.refused += len(items) - left - 1  # and one with the reject
            limits = f"{self._limits.objects_a_frame} a frame and {self._limits.objects_a_reply} a reply"
            fault = Fault("too_large", f"{len(items)} items, {left} more fit the limits of {limits}")
            self.reject(place.at(left), fault, items[left], left)
            items = items[:left]
        self._left_in_frame -= len(items)
        self._left_in_reply -= len(items)
        self._pending += len(items)
        return items

    def rows(self, spec: TableSpec, place: Place) -> ItemRows:
        """Where the items of one list go. `place` names its feature."""
        return ItemRows(self._columns[spec.name], self.rows_of_block, self._row, place)

    def reject(self, place: Place, fault: Fault, value: object, index: int | None = None) -> None:
        """A part of the reply that no table takes. `index` is the item's place in its list, None for other parts."""
        self.refused += index is not None
        if self._rejects_left == 0:
            return
        self._rejects_left -= 1
        self._pending += 1
        if self._rejects_left == 0:
            place, value, index = Place(), None, None
            fault = Fault(
                "too_large",
                f"more than {self._limits.objects_a_frame} rejects; the others are only in the stored reply",
            )
        self._rejects.add(self._row, place, fault, value, index)

    def flush(self, aside: Part | None = None) -> None:
        """Turn the block into tables. `aside` are boxes of it that were collected elsewhere."""
        for name, columns in self._columns.items():
            parts = [columns.drain(self.rows_of_block)]
            if aside is not None and name == "boxes":
                parts.append(aside)
            self._keep(name, parts)
        self._keep(REJECTS.name, [self._rejects.drain(self.rows_of_block)])
        self._begin_block()

    def _keep(self, name: str, parts: Iterable[Part | None]) -> None:
        for table in _in_order(parts):
            self._done[name].append(table)
            self.done_bytes += table.nbytes

    def take(self) -> dict[str, pa.Table]:
        """All tables by name, rejects last, of the blocks that were flushed and not taken yet; rows in the order of
        the data rows, then as they were found."""
        taken = {
            name: pa.concat_tables(tables) if tables else TABLES[name].schema.empty_table()
            for name, tables in self._done.items()
        }
        for tables in self._done.values():
            tables.clear()
        self.done_bytes = 0
        self._taken += sum(table.num_rows for name, table in taken.items() if name != REJECTS.name)
        return taken

    def check_sums(self) -> None:
        """Once all is taken: raises AccountingError where an item is in no table and was not refused."""
        check_sums("predictions said", self.said, {"in tables": self._taken, "refused": self.refused})


class _Rejects:
    """The rejects since the last `drain`."""

    def __init__(self) -> None:
        self._seen: Counter[bytes] = Counter()
        self._clear()

    def _clear(self) -> None:
        self._rows: list[int] = []
        self._names: list[bytes] = []
        self._ordinals: list[int] = []
        self._columns: dict[str, list[object]] = {
            name: [] for name in ("feature", "index", "frame", "message_id", "path", "reason", "message", "value")
        }

    def begin_row(self) -> None:
        self._seen.clear()

    def add(self, row: int, place: Place, fault: Fault, value: object, index: int | None) -> None:
        """The id comes from path and reason, and from an ordinal where a row has several of both."""
        path = json_path(place.path)
        name = orjson.dumps([REJECTS.name, path, fault.reason])[:-1] + b","
        self._rows.append(row)
        self._names.append(name)
        self._ordinals.append(self._seen[name])
        self._seen[name] += 1
        feature = None if place.feature is None else _shown_name(place.feature)
        cells = (feature, index, place.frame, place.message_id, path, fault.reason, fault.message, value_seen(value))
        for column, cell in zip(self._columns.values(), cells, strict=True):
            column.append(cell)

    def drain(self, rows: RowBlock) -> Part | None:
        """Take the rejects out, as a table."""
        if not self._rows:
            return None
        numbers = np.array(self._rows)
        ids = item_ids(rows.row_ids(), numbers, self._names, np.arange(len(self._names)), np.array(self._ordinals))
        columns: dict[str, Sequence[object] | pa.Array] = rows.columns(numbers, REJECTS)
        columns |= {"prediction_id": ids, "score": pa.nulls(len(ids), pa.float64())} | self._columns
        self._clear()
        return Part(build(REJECTS, columns), numbers)


def _shown_name(name: str) -> str:
    return cut(name.encode(errors="backslashreplace").decode(), MAX_NAME_BYTES)


def _in_order(parts: Iterable[Part | None]) -> list[pa.Table]:
    """One table, by data row: some were collected aside, or had to be read a second time after later ones."""
    found = [part for part in parts if part is not None]
    if not found:
        return []
    table = pa.concat_tables([part.table for part in found])
    row_of_item = np.concatenate([part.row_of_item for part in found])
    if (np.diff(row_of_item) >= 0).all():
        return [table]
    return [table.take(pa.array(np.argsort(row_of_item, kind="stable")))]
