"""The short way for replies that hold boxes and scores alone: several times as fast as item by item.

Replies are collected optimistically, a block at a time, and checked as arrays. A reply with anything unusual in it is
handed back, to be read the long way (`objects.py`), so this module decides nothing: it only recognises what is plainly
fine. A test holds that both ways give the same tables.
"""

from __future__ import annotations

import itertools
import struct
from array import array

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foundry_pipeline.decoding.features import MAX_NAME_CHARS
from foundry_pipeline.decoding.geometry import MAX_COORDINATE
from foundry_pipeline.decoding.item_columns import Part, RowBlock, Runs, part_of_table
from foundry_pipeline.decoding.prediction_ids import Places, list_name
from foundry_pipeline.tables import BOXES

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_BOX = struct.Struct("4d")
_NAN = float("nan")


class QuickBoxes:
    """Collects box replies of one block of data rows. `names` are the features that are rectangles, None for all."""

    def __init__(self, names: frozenset[str] | None, max_objects_per_row: int) -> None:
        self._names = names
        self._limit = max_objects_per_row
        self._clear()

    def _clear(self) -> None:
        self._replies: dict[int, str] = {}
        self._coordinates = bytearray()
        self._scores = array("d")
        self._runs: list[tuple[int, int, str]] = []
        """(row, items, feature)"""

    @property
    def count(self) -> int:
        """Boxes collected."""
        return len(self._scores)

    def take(self, row: int, reply: str, document: dict[str, object]) -> bool:
        """Collect a reply, unless it holds anything but boxes and scores. `document` is what orjson makes of it."""
        runs: list[tuple[int, int, str]] = []
        boxes: list[list[float]] = []
        scores: list[float] = []
        members = len(document)
        known = self._names
        for name, value in document.items():
            if type(value) is not dict or not (len(name) <= MAX_NAME_CHARS if known is None else name in known):
                return False
            items, beside = value.get("boxes"), value.get("scores")
            if type(items) is not list:
                return False
            if type(beside) is list and len(value) == 2 and len(beside) == len(items):
                scores += beside
            elif beside is None and len(value) == 1:
                scores += [_NAN] * len(items)
            else:
                return False
            boxes += items
            members += len(value)
            if items:
                runs.append((row, len(items), name))
        # A member that the text has and the document has not is a duplicate key.
        if members != reply.count(":") or len(boxes) > self._limit or not self._take_numbers(boxes, scores):
            return False
        self._runs += runs
        self._replies[row] = reply
        return True

    def _take_numbers(self, boxes: list[list[float]], scores: list[float]) -> bool:
        try:
            packed = b"".join(itertools.starmap(_BOX.pack, boxes))
            self._scores.fromlist(scores)
        except (struct.error, TypeError):  # not four numbers a box, not a number each score
            return False
        self._coordinates += packed
        return True

    def settle(self, rows: RowBlock) -> tuple[Part | None, int, dict[int, str]]:
        """The boxes, how many the replies said, and the replies that must be read the long way, by the row's number."""
        row_of_run, counts = (np.array([run[place] for run in self._runs], np.int64) for place in (0, 1))
        row_of_item = np.repeat(row_of_run, counts)
        coordinates, scores = np.frombuffer(self._coordinates), np.frombuffer(self._scores)
        refused = self._refused(row_of_item, coordinates, scores)
        boxes, kept_runs = coordinates.reshape(-1, 4), np.ones(len(counts), bool)
        if refused:
            kept_runs = ~np.isin(row_of_run, refused)
            kept = np.repeat(kept_runs, counts)
            boxes, scores = boxes[kept], scores[kept]
        part = self._part(rows, row_of_run, counts, kept_runs, boxes, scores)
        handed_back = {row: self._replies[row] for row in refused}
        self._clear()
        return part, int(counts[kept_runs].sum()), handed_back

    def _refused(self, row_of_item: Places, coordinates: Floats, scores: Floats) -> list[int]:
        """Rows with anything that is not plainly fine.

        `true` became 1 and `false` 0 on the way into the array, so rows with such numbers are looked at again.
        """
        bad = row_of_item[np.flatnonzero(~(np.abs(coordinates) < MAX_COORDINATE)) // 4].tolist()
        bad += row_of_item[(coordinates[2::4] < 0) | (coordinates[3::4] < 0) | (scores < 0) | (scores > 1)].tolist()
        doubtful = row_of_item[np.flatnonzero((coordinates == 0) | (coordinates == 1)) // 4].tolist()
        doubtful += row_of_item[(scores == 0) | (scores == 1)].tolist()
        booleans = (row for row in set(doubtful) if "true" in self._replies[row] or "false" in self._replies[row])
        return sorted({*bad, *booleans})

    def _part(
        self, rows: RowBlock, row_of_run: Places, counts: Places, kept: Bools, boxes: Floats, scores: Floats
    ) -> Part | None:
        if not len(scores):
            return None
        features = [run[2] for run in itertools.compress(self._runs, kept)]
        names = {feature: list_name(BOXES.name, None, None, feature) for feature in set(features)}
        ends = counts[kept].cumsum()
        nothing = [None] * len(features)
        runs = Runs(
            rows=row_of_run[kept].tolist(),
            starts=(ends - counts[kept]).tolist(),
            first_index=[0] * len(features),
            names=[names[feature] for feature in features],
            features=features,
            frames=[*nothing],
            messages=[*nothing],
        )
        own = {name: pa.array(boxes[:, place]) for place, name in enumerate(("left", "top", "width", "height"))}
        return part_of_table(BOXES, rows, runs, pa.array(scores, mask=np.isnan(scores)), own)
