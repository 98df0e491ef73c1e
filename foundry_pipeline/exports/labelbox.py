"""Labelbox annotation import NDJSON: one annotation a line, ready for model runs, pre-labels and ground truth.

`annotations-00001.ndjson` and further hold at most 1,000 data rows each; a relationship and its endpoints are in one
file. `data_rows.jsonl`, which is not to be imported, says of every data row whether it was answered and how many
lines it has: NDJSON itself cannot tell "found nothing" from "never answered".

Source: Labelbox documentation, reference/import-*-annotations and reference/upload-*-predictions; what the SDK
`labelbox` 7.17.0 reads.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, Record, rle_of
from foundry_pipeline.exports.format import Exporter
from foundry_pipeline.exports.tally import Loss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.png import colour_png, rle_png
from foundry_pipeline.rle import to_dense
from foundry_pipeline.store import Store

ROWS_PER_FILE = 1_000
LINES_PER_FEATURE = 5_000  # on one data row: more are refused by the platform's client
CHECKLIST_IDS = uuid.UUID("5c7be1de-6d0f-5c0c-9b59-1b1f8a1d6f0e")
VIDEO_MASK_RGB = (255, 255, 255)

ANSWERS = frozenset({"classifications", "texts"})
OBJECTS = frozenset({"boxes", "masks", "polygons", "lines", "points", "entities"})
IMPORTABLE: Mapping[str, frozenset[str]] = {
    "image": ANSWERS | OBJECTS - {"entities"} | {"edges"},
    "text": ANSWERS | {"entities", "edges"},
    "conversational": ANSWERS | {"entities", "edges"},
    "html": ANSWERS,
    "video": ANSWERS | OBJECTS - {"entities", "polygons"},
}

Line = dict[str, Any]
Unit = tuple[Prediction, ...]
"""What becomes one line: one prediction, or all chosen answers of one checklist."""


def write(run: Run, _store: Store, rows: Iterator[AnnotatedRow], folder: Path, tally: Tally) -> None:
    """Write the files of one export into `folder`. Memory holds the lines of one data row."""
    with _Files(folder) as files, (folder / "data_rows.jsonl").open("wb") as about_rows:
        for annotated in rows:
            lines = list(lines_of(run, annotated, tally))
            files.write(lines)
            about_rows.write(_json_line(_about(annotated, len(lines))))


def lines_of(run: Run, annotated: AnnotatedRow, tally: Tally) -> Iterator[Line]:
    """The import lines of one data row; what Labelbox cannot hold is counted in `tally`."""
    row = annotated.row
    importable = _importable(row, annotated.predictions, tally)
    units = _within_limit(_units(importable), tally)
    written = {p.values["prediction_id"] for unit in units for p in unit if p.table in OBJECTS}
    for unit in units:
        first = unit[0]
        if first.table == "edges" and not {first.values["source_id"], first.values["target_id"]} <= written:
            tally.leave_out(first, Loss.RELATIONSHIP_ENDPOINT_MISSING)
        else:
            yield _line(run, row, unit, tally)


def _importable(row: DataRow, predictions: Iterable[Prediction], tally: Tally) -> list[Prediction]:
    kept = []
    for prediction in predictions:
        if why := _obstacle(row, prediction):
            tally.leave_out(prediction, why)
        else:
            kept.append(prediction)
    return kept


def _obstacle(row: DataRow, prediction: Prediction) -> Loss | None:
    """Why a line of this prediction would be refused, or would not show."""
    table, values = prediction.table, prediction.values
    if table not in IMPORTABLE[row.media_type]:
        return Loss.NOT_IMPORTABLE_FOR_MEDIA
    if row.media_type == "video" and table in OBJECTS and values["frame"] is None:
        return Loss.FRAME_MISSING
    check = OBSTACLES.get(table)
    return check(row, values) if check else None


def _box_obstacle(row: DataRow, values: Record) -> Loss | None:
    if values["width"] == 0 or values["height"] == 0:
        return Loss.ZERO_SIZE
    _, _, width, height = _clipped_ltwh(row, values)
    return None if width > 0 and height > 0 else Loss.OUTSIDE_PICTURE


def _mask_obstacle(row: DataRow, values: Record) -> Loss | None:
    if values["area"] == 0:
        return Loss.ZERO_SIZE
    expected_hw = (row.height, row.width)
    same = None in expected_hw or expected_hw == (values["size_h"], values["size_w"])
    return None if same else Loss.MASK_SIZE_DIFFERS


def _entity_obstacle(row: DataRow, values: Record) -> Loss | None:
    if values["end"] <= values["start"]:
        return Loss.EMPTY_SPAN
    missing = row.media_type == "conversational" and values["message_id"] is None
    return Loss.MESSAGE_MISSING if missing else None


OBSTACLES: Mapping[str, Callable[[DataRow, Record], Loss | None]] = {
    "boxes": _box_obstacle,
    "masks": _mask_obstacle,
    "polygons": lambda _, values: Loss.TOO_FEW_POINTS if len(values["points"]) < 3 else None,
    "lines": lambda _, values: Loss.TOO_FEW_POINTS if len(values["points"]) < 2 else None,
    "entities": _entity_obstacle,
}


def _clipped_ltwh(row: DataRow, values: Record) -> tuple[float, float, float, float]:
    """The part of a box inside the picture, in pixels; the whole box where the picture's size is not known.

    A box beside the picture gets a width or height of 0 or less.
    """
    left, top, width, height = values["left"], values["top"], values["width"], values["height"]
    picture_width = row.width or values["image_width"]
    picture_height = row.height or values["image_height"]
    if picture_width is None or picture_height is None:
        return left, top, width, height
    if left >= 0 and top >= 0 and left + width <= picture_width and top + height <= picture_height:
        return left, top, width, height  # left + width - left is not always width in floats
    right, bottom = min(left + width, picture_width), min(top + height, picture_height)
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, right - left, bottom - top


def _units(predictions: Iterable[Prediction]) -> list[Unit]:
    """Checklist answers of one question, frame and message together, where the first of them stands."""
    units: dict[object, list[Prediction]] = defaultdict(list)
    for place, prediction in enumerate(predictions):
        values = prediction.values
        chosen = prediction.table == "classifications" and values["kind"] == "checklist"
        units[(prediction.feature, values["frame"], values["message_id"]) if chosen else place].append(prediction)
    return [tuple(unit) for unit in units.values()]


def _within_limit(units: list[Unit], tally: Tally) -> list[Unit]:
    """At most `LINES_PER_FEATURE` units of one feature: the highest scores. The platform reads no score as 1."""
    by_feature: defaultdict[str, list[int]] = defaultdict(list)
    for place, unit in enumerate(units):
        by_feature[unit[0].feature].append(place)
    surplus: set[int] = set()
    for places in by_feature.values():
        if len(places) > LINES_PER_FEATURE:
            places.sort(key=lambda place: _unit_score(units[place]), reverse=True)
            surplus.update(places[LINES_PER_FEATURE:])
    for place in sorted(surplus):
        tally.leave_out_all(units[place], Loss.TOO_MANY_PER_FEATURE)
    return [unit for place, unit in enumerate(units) if place not in surplus] if surplus else units


def _unit_score(unit: Unit) -> float:
    return max(1.0 if p.values["score"] is None else float(p.values["score"]) for p in unit)


def _line(run: Run, row: DataRow, unit: Unit, tally: Tally) -> Line:
    first = unit[0]
    if first.table in ANSWERS:
        return _head(run, row, unit) | _answer(unit, tally)
    if first.table == "edges":
        return _relationship_line(run, row, unit, tally)
    if row.media_type == "video":
        return _video_line(run, row, unit, tally)
    nested = _nested(first.nested, tally)
    confidence = _confidence(first.values)
    return _head(run, row, unit) | confidence | _geometry(row, first, tally) | nested


def _head(run: Run, row: DataRow, unit: Unit) -> Line:
    first = unit[0]
    message_id = first.values["message_id"]
    head = {"uuid": _uuid(run, row, unit), "dataRow": {"globalKey": row.global_key}, "name": first.feature}
    return head if message_id is None else head | {"messageId": message_id}


def _uuid(run: Run, row: DataRow, unit: Unit) -> str:
    """The line's identity: a second import with it replaces the first, so it must outlast a change of thresholds.

    That of a prediction is its id. That of a checklist is made from the question, not from the answers chosen.
    """
    first = unit[0]
    if first.table != "classifications" or first.values["kind"] != "checklist":
        return str(first.values["prediction_id"])
    asked = [run.name, run.dataset.name, row.global_key, first.feature]
    where = [first.values["frame"], first.values["message_id"]]
    return str(uuid.uuid5(CHECKLIST_IDS, json.dumps(asked + where)))


def _confidence(values: Record) -> Line:
    """Written wherever it is known, 0.0 too: Labelbox reads a missing confidence as 1."""
    return {} if values["score"] is None else {"confidence": values["score"]}


def _geometry(row: DataRow, prediction: Prediction, tally: Tally) -> Line:
    values = prediction.values
    if prediction.table == "boxes":
        return {"bbox": _bbox(row, values, tally)}
    return GEOMETRY[prediction.table](values)


def _bbox(row: DataRow, values: Record, tally: Tally) -> Line:
    left, top, width, height = clipped = _clipped_ltwh(row, values)
    if clipped != (values["left"], values["top"], values["width"], values["height"]):
        tally.change(Loss.CLIPPED_TO_PICTURE)
    return {"top": top, "left": left, "height": height, "width": width}


def _mask(values: Record) -> Line:
    return {"mask": {"png": _base64(rle_png(rle_of(values)))}}


def _closed(points: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    return [*points, points[0]]


GEOMETRY: Mapping[str, Callable[[Record], Line]] = {
    "masks": _mask,
    "polygons": lambda values: {"polygon": _closed(values["points"])},
    "lines": lambda values: {"line": values["points"]},
    "points": lambda values: {"point": {"x": values["x"], "y": values["y"]}},
    "entities": lambda values: {"location": {"start": values["start"], "end": values["end"] - 1}},
}


def _relationship_line(run: Run, row: DataRow, unit: Unit, tally: Tally) -> Line:
    values = unit[0].values
    _lose_score(values, tally)
    tally.leave_out_all(unit[0].nested, Loss.KIND_NOT_REPRESENTABLE)
    ends = {"source": values["source_id"], "target": values["target_id"], "type": values["type"]}
    return _head(run, row, unit) | {"relationship": ends}


def _video_line(run: Run, row: DataRow, unit: Unit, tally: Tally) -> Line:
    """An object in one frame: a segment of one key frame, so that nothing is interpolated. No place for a score."""
    first = unit[0]
    _lose_score(first.values, tally)
    if first.table == "masks":
        tally.leave_out_all(first.nested, Loss.KIND_NOT_REPRESENTABLE)
        return _video_mask_line(run, row, unit)
    key_frame = {"frame": first.values["frame"]} | _geometry(row, first, tally) | _nested(first.nested, tally)
    return _head(run, row, unit) | {"segments": [{"keyframes": [key_frame]}]}


def _video_mask_line(run: Run, row: DataRow, unit: Unit) -> Line:
    """One instance in one frame, so that masks may overlap."""
    head, values = _head(run, row, unit), unit[0].values
    picture = _base64(colour_png(to_dense(rle_of(values)), VIDEO_MASK_RGB))
    masks = {
        "frames": [{"index": values["frame"], "imBytes": picture}],
        "instances": [{"colorRGB": VIDEO_MASK_RGB, "name": head.pop("name")}],
    }
    return head | {"masks": masks}


def _lose_score(values: Record, tally: Tally) -> None:
    if values["score"] is not None:
        tally.change(Loss.SCORE_NOT_REPRESENTABLE)


def _nested(predictions: Iterable[Prediction], tally: Tally) -> Line:
    answers = [{"name": unit[0].feature} | _answer(unit, tally) for unit in _units(predictions)]
    return {"classifications": answers} if answers else {}


def _answer(unit: Unit, tally: Tally) -> Line:
    """The answer to one question, with its confidence where this kind of answer has it, and its frame in a video."""
    first = unit[0]
    frame = None if first.values.get("parent_id") else first.values["frame"]  # a nested answer is in its parent's frame
    if first.table == "texts":
        return _text_answer(first, frame, tally)
    chosen = [{"name": p.values["answer"]} | _confidence(p.values) | _nested(p.nested, tally) for p in unit]
    answer = chosen if first.values["kind"] == "checklist" else chosen[0]
    return {"answer": answer} if frame is None else {"answer": answer, "frames": [_only(frame)]}


def _text_answer(prediction: Prediction, frame: int | None, tally: Tally) -> Line:
    values = prediction.values
    if frame is None:
        return {"answer": values["answer"]} | _confidence(values) | _nested(prediction.nested, tally)
    _lose_score(values, tally)
    tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
    return {"answer": [{"value": values["answer"], "frames": [_only(frame)]}]}


def _only(frame: int) -> dict[str, int]:
    return {"start": frame, "end": frame}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _json_line(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def _about(annotated: AnnotatedRow, lines: int) -> Line:
    row = annotated.row
    return {
        "global_key": row.global_key,
        "data_row_id": row.data_row_id,
        "outcome": annotated.outcome,
        "annotations": lines,
        **({"calls_unanswered": annotated.calls_unanswered} if annotated.calls_unanswered else {}),
    }


class _Files:
    """The numbered files: a new one after `ROWS_PER_FILE` data rows with lines. No lines, no file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._rows = 0

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def write(self, lines: Sequence[Line]) -> None:
        """The lines of one data row, into one file."""
        if not lines:
            return
        if self._rows % ROWS_PER_FILE == 0:
            self._close()
            number = self._rows // ROWS_PER_FILE + 1
            self._file = (self._folder / f"annotations-{number:05}.ndjson").open("wb")
        assert self._file is not None
        self._rows += 1
        self._file.writelines(map(_json_line, lines))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


EXPORTER = Exporter(
    name="labelbox",
    version=1,
    file_names=re.compile(r"annotations-\d{5,}\.ndjson|data_rows\.jsonl"),
    conventions={
        "offset_unit": "codepoint",
        "entity_start": "inclusive, from 0",
        "entity_end": "inclusive",
        "bbox": "top, left, height, width in pixels of the picture as displayed, clipped to the picture",
        "polygon": "one outer ring, closed: the last point repeats the first",
        "polygon, line, point": "x, y in pixels of the picture as displayed, not clipped",
        "mask": "8-bit grey PNG of the picture's size, samples 0 and 1",
        "video_mask": "RGB PNG, white on black, one line a mask",
        "frames": "numbered as in the request, both ends inclusive",
        "confidence": "left out where the model gave none, which Labelbox reads as 1; kept by model-run imports only",
        "uuid": "prediction_id; of a checklist a uuid5 of run, dataset, global key, question, frame and message",
        "relationships": "pre-label imports only",
    },
    write=write,
)
