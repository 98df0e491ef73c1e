"""The short way for replies that hold boxes and scores alone: several times as fast as item by item.

Replies are collected optimistically, a block at a time, and checked as arrays. A reply with anything unusual in it is
handed back, to be read the long way (`objects.py`), so this module decides nothing: it only recognises what is plainly
fine. A test holds that both ways give the same tables.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foundry_pipeline.decoding.features import MAX_NAME_BYTES
from foundry_pipeline.decoding.findings import Limits
from foundry_pipeline.decoding.geometry import MAX_COORDINATE
from foundry_pipeline.decoding.item_columns import Part, RowBlock, Runs, part_of_table
from foundry_pipeline.decoding.places import frame_number
from foundry_pipeline.decoding.prediction_ids import Places, list_name
from foundry_pipeline.tables import BOXES

Floats = npt.NDArray[np.float64]

_BOX = struct.Struct("4d")
_NAN = float("nan")
_MAX_NAME_CHARS = MAX_NAME_BYTES // 4
"""Whatever the characters, these fit."""


_Parts = Sequence[tuple[int | None, dict[str, object]]]
"""(frame, None for the whole data row; what is said about it)"""


class QuickBoxes:
    """Collects box replies of one block of data rows. `names` are the features that are rectangles, None for all."""

    def __init__(self, names: frozenset[str] | None, limits: Limits, has_frames: bool) -> None:
        self._names, self._limits, self._has_frames = names, limits, has_frames
        self._clear()

    def _clear(self) -> None:
        self._replies: dict[int, str] = {}
        self._coordinates = bytearray()
        self._scores = array("d")
        self._rows: list[int] = []
        self._counts: list[int] = []
        self._features: list[str] = []
        self._frames: list[int | None] = []

    @property
    def count(self) -> int:
        """Boxes collected."""
        return len(self._scores)

    def take(self, row: int, reply: str, document: dict[str, object]) -> bool:
        """Collect a reply, unless it holds anything but boxes and scores. `document` is what orjson makes of it."""
        if not self._has_frames or "frames" not in document:
            return self._take_parts(row, reply, ((None, document),), 0)
        parts = _frames_of(document)
        return parts is not None and self._take_parts(row, reply, parts, 1 + len(parts))

    def _take_parts(self, row: int, reply: str, parts: _Parts, members: int) -> bool:
        """`members` are those of the objects around the parts."""
        counts: list[int] = []
        features: list[str] = []
        frames: list[int | None] = []
        boxes: list[list[float]] = []
        scores: list[float] = []
        known = self._names
        for frame, part in parts:
            before = len(boxes)
            members += len(part)
            for name, value in part.items():
                if type(value) is not dict or not (len(name) <= _MAX_NAME_CHARS if known is None else name in known):
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
                    counts.append(len(items))
                    features.append(name)
                    frames.append(frame)
            if len(boxes) - before > self._limits.objects_a_frame:
                return False
        # A member that the text has and the document has not is a duplicate key.
        if members != reply.count(":") or len(boxes) > self._limits.objects_a_reply:
            return False
        if not self._take_numbers(boxes, scores):
            return False
        self._replies[row] = reply
        self._rows += [row] * len(counts)
        self._counts += counts
        self._features += features
        self._frames += frames
        return True

    def _take_numbers(self, boxes: list[list[float]], scores: list[float]) -> bool:
        coordinates, pack = self._coordinates, _BOX.pack
        before = len(coordinates)
        try:
            for left, top, width, height in boxes:
                coordinates += pack(left, top, width, height)
            self._scores.fromlist(scores)
        except (struct.error, TypeError, ValueError):  # not four numbers a box, not a number each score
            del coordinates[before:]
            return False
        return True

    def settle(self, rows: RowBlock) -> tuple[Part | None, int, dict[int, str]]:
        """The boxes, how many they are, and the replies that must be read the long way, by the row's number."""
        boxes, scores = np.frombuffer(self._coordinates).reshape(-1, 4), np.frombuffer(self._scores)
        row_of_item = np.repeat(np.array(self._rows, np.int64), self._counts)
        refused = self._refused(row_of_item, boxes, scores)
        if refused:
            kept = ~np.isin(row_of_item, list(refused))
            boxes, scores = boxes[kept], scores[kept]
            self._drop_runs(refused)
        part = self._part(rows, boxes, scores) if self._rows else None
        handed_back = {row: self._replies[row] for row in sorted(refused)}
        self._clear()
        return part, len(boxes), handed_back

    def _drop_runs(self, refused: set[int]) -> None:
        kept = [row not in refused for row in self._rows]
        self._rows = list(itertools.compress(self._rows, kept))
        self._counts = list(itertools.compress(self._counts, kept))
        self._features = list(itertools.compress(self._features, kept))
        self._frames = list(itertools.compress(self._frames, kept))

    def _refused(self, row_of_item: Places, boxes: Floats, scores: Floats) -> set[int]:
        """Rows with anything that is not plainly fine.

        `true` became 1 and `false` 0 on the way into the array, so rows with such numbers are looked at again.
        """
        flat = boxes.ravel()
        bad = row_of_item[np.flatnonzero(~(np.abs(flat) < MAX_COORDINATE)) // 4].tolist()
        bad += row_of_item[(flat[2::4] < 0) | (flat[3::4] < 0) | (scores < 0) | (scores > 1)].tolist()
        doubtful = row_of_item[np.flatnonzero((flat == 0) | (flat == 1)) // 4].tolist()
        doubtful += row_of_item[(scores == 0) | (scores == 1)].tolist()
        booleans = {row for row in set(doubtful) if "true" in self._replies[row] or "false" in self._replies[row]}
        return booleans | set(bad)

    def _part(self, rows: RowBlock, boxes: Floats, scores: Floats) -> Part:
        lists = list(zip(self._frames, self._features, strict=True))
        names = {(frame, name): list_name(BOXES.name, frame, None, name) for frame, name in set(lists)}
        runs = Runs(
            rows=self._rows,
            starts=(np.cumsum(self._counts) - self._counts).tolist(),
            first_index=[0] * len(lists),
            names=list(map(names.__getitem__, lists)),
            features=self._features,
            frames=self._frames,
            messages=[None] * len(lists),
        )
        columns = np.ascontiguousarray(boxes.T)
        own = {name: pa.array(columns[place]) for place, name in enumerate(("left", "top", "width", "height"))}
        unknown = np.isnan(scores)
        known_scores = pa.array(scores, mask=unknown) if unknown.any() else pa.array(scores)
        return part_of_table(BOXES, rows, runs, known_scores, own)


def _frames_of(document: dict[str, object]) -> _Parts | None:
    """The frames of a reply that holds nothing else; None where it does, or where one has no number."""
    frames = document["frames"]
    if type(frames) is not dict or len(document) > 1:
        return None
    parts = [(frame_number(key), part) for key, part in frames.items()]
    return parts if all(frame is not None and type(part) is dict for frame, part in parts) else None
