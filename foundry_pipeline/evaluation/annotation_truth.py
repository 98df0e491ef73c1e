"""Annotation NDJSON (Labelbox import lines, as our export writes them) or a Labelbox export v2 -> ground truth.

Boxes, also those of a video's key frames; masks drawn as PNG in the line; text entities; radio, checklist and free text
of data rows, frames and messages. A line says of which data row it is by global key or id. A data row without a line
has not been looked at: import lines cannot say "nothing here", a label without annotations in an export does.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import ConfigError, Problem, shown
from foundry_pipeline.evaluation.truth import TrueAnswer, TrueEntity, TrueObject, TrueTrack, Truth
from foundry_pipeline.rle import MAX_PIXELS, Rle, from_dense
from foundry_pipeline.rows.labels import has_label, lines_of_export

Line = Mapping[str, Any]
MAX_PROBLEMS = 20


def annotation_truth(lines: Iterable[str], file: str, rows: Iterable[DataRow]) -> Truth:
    """The ground truth in NDJSON lines. Raises ConfigError naming line and place; `file` names it in messages."""
    reader = _Reader(file, rows)
    for number, line in enumerate(lines, 1):
        if line.strip():
            reader.read(number, line)
    if reader.problems:
        raise ConfigError(reader.problems[:MAX_PROBLEMS])
    return reader.truth()


class _Reader:
    """Collects what the lines say, by kind."""

    def __init__(self, file: str, rows: Iterable[DataRow]) -> None:
        self._file = file
        self._keys: dict[str, str] = {}
        for row in rows:
            self._keys |= {f"id {row.data_row_id}": row.global_key, f"key {row.global_key}": row.global_key}
        self.problems: list[Problem] = []
        self._seen: set[str] = set()
        self._boxes: list[TrueObject] = []
        self._masks: list[TrueObject] = []
        self._tracks: list[TrueTrack] = []
        self._entities: list[TrueEntity] = []
        self._choices: list[TrueAnswer] = []
        self._texts: list[TrueAnswer] = []
        self._unused: Counter[str] = Counter()

    def truth(self) -> Truth:
        """All of it; features are numbered in the order of their names, data rows in that of their keys."""
        shapes: tuple[TrueObject | TrueTrack, ...] = (*self._boxes, *self._masks, *self._tracks)
        features = sorted({shape.feature for shape in shapes})
        return Truth(
            rows=frozenset(self._seen),
            boxes=tuple(self._boxes),
            masks=tuple(self._masks),
            entities=tuple(self._entities),
            choices=tuple(self._choices),
            texts=tuple(self._texts),
            category_ids={name: number for number, name in enumerate(features, 1)},
            image_ids={key: number for number, key in enumerate(sorted(self._seen), 1)},
            unused=dict(self._unused),
            tracks=tuple(self._tracks),
        )

    def read(self, number: int, text: str) -> None:
        """One line; what is wrong with it becomes a problem."""
        try:
            line = json.loads(text)
            for found in self._of_export(line) if "data_row" in line else (line,):
                self._take(found, str(found.get("uuid") or f"line {number}"))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError) as err:
            said = f"no {err} here" if isinstance(err, KeyError) else str(err)
            self.problems.append(Problem(self._file, f"not an annotation line: {shown(said, 200)}", line=number))

    def _of_export(self, line: Line) -> Iterable[Line]:
        lines, lost = lines_of_export(line)
        self._unused.update({f"label_of_an_export: {kind}": count for kind, count in lost.items()})
        place = line["data_row"]
        key = self._key_of({"globalKey": place["global_key"]} if place.get("global_key") else place)
        if key is not None and has_label(line):
            self._seen.add(key)
        return lines

    def _key_of(self, place: Line) -> str | None:
        return self._keys.get(f"key {place['globalKey']}" if "globalKey" in place else f"id {place['id']}")

    def _take(self, line: Line, truth_id: str) -> None:
        key = self._key_of(line["dataRow"])
        if key is None:
            self._unused["line_of_a_data_row_not_in_the_dataset"] += 1
            return
        self._seen.add(key)
        for field, take in self._takers().items():
            if field in line:
                take(line, truth_id, key, str(line["name"]))
                return
        self._unused["kind_that_is_not_compared"] += 1

    def _takers(self) -> Mapping[str, Callable[[Line, str, str, str], None]]:
        return {
            "bbox": self._box,
            "mask": self._mask,
            "location": self._entity,
            "answer": self._answer,
            "segments": self._track,
        }

    def _box(self, line: Line, truth_id: str, key: str, feature: str) -> None:
        box = _box_ltwh(line["bbox"])
        self._boxes.append(TrueObject(truth_id, key, feature, box, box[2] * box[3]))

    def _track(self, line: Line, truth_id: str, key: str, feature: str) -> None:
        segments = [segment["keyframes"] for segment in line["segments"]]
        if not all("bbox" in frame for frames in segments for frame in frames):
            self._unused["kind_that_is_not_compared"] += 1
            return
        boxes = (sorted((int(each["frame"]), _box_ltwh(each["bbox"])) for each in frames) for frames in segments)
        self._tracks.append(
            TrueTrack(truth_id, key, feature, tuple(tuple(of_segment) for of_segment in boxes if of_segment))
        )

    def _mask(self, line: Line, truth_id: str, key: str, feature: str) -> None:
        if "png" not in line["mask"]:
            self._unused["mask_that_is_not_in_its_line"] += 1
            return
        rle = _png_mask(line["mask"]["png"])
        self._masks.append(TrueObject(truth_id, key, feature, rle.box_ltwh, float(rle.area), rle))

    def _entity(self, line: Line, truth_id: str, key: str, feature: str) -> None:
        """The format's end is the last character's own place."""
        start, end = int(line["location"]["start"]), int(line["location"]["end"]) + 1
        self._entities.append(TrueEntity(truth_id, key, feature, start, end, line.get("messageId")))

    def _answer(self, line: Line, truth_id: str, key: str, feature: str) -> None:
        answer = line["answer"]
        ranges = tuple((int(each["start"]), int(each["end"])) for each in line.get("frames") or ())
        if isinstance(answer, str):
            self._texts.append(TrueAnswer(truth_id, key, feature, (answer,), line.get("messageId"), ranges))
            return
        chosen = answer if isinstance(answer, list) else [answer]
        names = tuple(str(option.get("name") or option["value"]) for option in chosen)
        self._choices.append(TrueAnswer(truth_id, key, feature, names, line.get("messageId"), ranges))


def _box_ltwh(box: Line) -> tuple[float, float, float, float]:
    left, top, width, height = (float(box[name]) for name in ("left", "top", "width", "height"))
    if not np.isfinite([left, top, width, height]).all() or min(width, height) < 0:
        raise ValueError("bbox: expected finite numbers, width and height not negative")
    return left, top, width, height


def _png_mask(encoded: str) -> Rle:
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ValueError("mask: its png is not base64") from None
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"mask: {image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        return from_dense(np.asarray(image.convert("L")) > 0)
