"""Annotation NDJSON (Labelbox import lines, as our export writes them) -> ground truth.

Boxes, masks drawn as PNG in the line, text entities, radio, checklist and free text of whole data rows. A line says
of which data row it is by global key or id. A data row without a line has not been looked at: NDJSON cannot say
"nothing here".
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
from foundry_pipeline.evaluation.truth import TrueAnswer, TrueEntity, TrueObject, Truth
from foundry_pipeline.rle import MAX_PIXELS, Rle, from_dense

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
        self._entities: list[TrueEntity] = []
        self._choices: list[TrueAnswer] = []
        self._texts: list[TrueAnswer] = []
        self._unused: Counter[str] = Counter()

    def truth(self) -> Truth:
        """All of it; features are numbered in the order of their names, data rows in that of their keys."""
        features = sorted({found.feature for found in (*self._boxes, *self._masks)})
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
        )

    def read(self, number: int, text: str) -> None:
        """One line; what is wrong with it becomes a problem."""
        try:
            line = json.loads(text)
            self._take(line, str(line.get("uuid") or f"line {number}"))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError) as err:
            said = f"no {err} here" if isinstance(err, KeyError) else str(err)
            self.problems.append(Problem(self._file, f"not an annotation line: {shown(said, 200)}", line=number))

    def _take(self, line: Line, truth_id: str) -> None:
        place = line["dataRow"]
        key = self._keys.get(f"key {place['globalKey']}" if "globalKey" in place else f"id {place['id']}")
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
        return {"bbox": self._box, "mask": self._mask, "location": self._entity, "answer": self._answer}

    def _box(self, line: Line, truth_id: str, key: str, feature: str) -> None:
        left, top, width, height = (float(line["bbox"][name]) for name in ("left", "top", "width", "height"))
        if not np.isfinite([left, top, width, height]).all() or min(width, height) < 0:
            raise ValueError("bbox: expected finite numbers, width and height not negative")
        self._boxes.append(TrueObject(truth_id, key, feature, (left, top, width, height), width * height))

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
        if isinstance(answer, str):
            self._texts.append(TrueAnswer(truth_id, key, feature, (answer,)))
            return
        chosen = answer if isinstance(answer, list) else [answer]
        names = tuple(str(option.get("name") or option["value"]) for option in chosen)
        self._choices.append(TrueAnswer(truth_id, key, feature, names))


def _png_mask(encoded: str) -> Rle:
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise ValueError("mask: its png is not base64") from None
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"mask: {image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        return from_dense(np.asarray(image.convert("L")) > 0)
