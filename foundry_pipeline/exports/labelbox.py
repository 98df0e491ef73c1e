"""Labelbox annotation import NDJSON: one annotation a line, ready for model runs, pre-labels and ground truth.

`annotations-00001.ndjson` and further hold at most 1,000 data rows and 100 MB each; a relationship and its endpoints
are in one file. `data_rows.jsonl`, which is not to be imported, says of every data row whether it was answered and
how many lines it has: NDJSON itself cannot tell "found nothing" from "never answered".

Written here and not by the SDK, which drops a confidence of 0.0: the platform then reads 1.

Source: Labelbox documentation, reference/import-*-annotations and reference/upload-*-predictions; what the SDK
`labelbox` 7.17.0 reads.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, Record, rle_of
from foundry_pipeline.exports.format import ALL_MEDIA, Export, Exporter, Rendered, no_plan
from foundry_pipeline.exports.in_project import placed
from foundry_pipeline.exports.pictures import Ltwh, clip_box, ltwh_of
from foundry_pipeline.exports.shards import Shards
from foundry_pipeline.exports.tally import Change, Loss, RowLoss, Tally
from foundry_pipeline.exports.units import Unit, units_of, within_limit
from foundry_pipeline.home import Run
from foundry_pipeline.png import colour_png, rle_png
from foundry_pipeline.rle import to_dense

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


def render(export: Export, _plan: None, annotated: AnnotatedRow) -> Rendered:
    """The import lines of one data row, and the line about it: every data row has one."""
    lines = list(lines_of(export.run, annotated, export.tally))
    _count_row(annotated, lines, export.tally)
    contents = (b"".join(map(_json_line, lines)), _json_line(_about(annotated, len(lines))))
    return Rendered(annotated.split, contents, {})


def write(_run: Run, _plan: None, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files of one export into `folder`."""
    files = Shards(folder, "annotations", ".ndjson")
    with files, (folder / "data_rows.jsonl").open("wb") as about_rows:
        for rendered in rows:
            lines, about = rendered.contents
            if lines:
                files.add(lines)
            about_rows.write(about)


def _count_row(annotated: AnnotatedRow, lines: Sequence[Line], tally: Tally) -> None:
    """NDJSON has no line for a data row without annotations, whatever `keep_empty` says."""
    if lines:
        tally.write_row(annotated)
    else:
        tally.leave_row_out(annotated, RowLoss.NOTHING_WRITTEN if annotated.answered else RowLoss.NOT_ANSWERED)


def lines_of(run: Run, annotated: AnnotatedRow, tally: Tally) -> Iterator[Line]:
    """The import lines of one data row; what Labelbox cannot hold is counted in `tally`."""
    row = annotated.row
    importable = _importable(row, annotated.predictions, tally)
    units = within_limit(_joined_frames(units_of(importable)), tally)
    written = {p.values["prediction_id"] for unit in units for p in unit if p.table in OBJECTS}
    for unit in units:
        first = unit[0]
        if first.table == "edges" and not {first.values["source_id"], first.values["target_id"]} <= written:
            tally.leave_out(first, Loss.RELATIONSHIP_ENDPOINT_MISSING)
        else:
            line = _line(run, row, unit, tally)
            project = run.project
            yield line if project is None else placed(project, row.media_type, first.table, line, tally.unfit.add)


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


def _clipped_ltwh(row: DataRow, values: Record) -> Ltwh:
    """The part of a box inside the picture, or inside the one the model saw where the data row has no size."""
    for size in ((row.width, row.height), (values["image_width"], values["image_height"])):
        if size[0] is not None and size[1] is not None:
            return clip_box(ltwh_of(values), (size[0], size[1]))
    return ltwh_of(values)


def _joined_frames(units: Iterable[Unit]) -> list[Unit]:
    """Answers about single frames of a video, where neighbouring frames have the same: one unit for the range of
    frames, where it begins. What is nested under an answer keeps it apart."""
    joined: list[list[Prediction]] = []
    open_ranges: dict[object, list[Prediction]] = {}
    for unit in units:
        key = _what_is_said(unit)
        before = open_ranges.get(key)
        if key is not None and before is not None and before[-1].values["frame"] + 1 == unit[0].values["frame"]:
            before.extend(unit)
        else:
            joined.append(list(unit))
            open_ranges[key] = joined[-1]
    return [tuple(unit) for unit in joined]


def _what_is_said(unit: Unit) -> object:
    """The same for answers that may stand for each other; None where they may not."""
    if unit[0].table not in ANSWERS or unit[0].values["frame"] is None or any(p.nested for p in unit):
        return None
    is_text = unit[0].table == "texts"
    answers = tuple((p.values["answer"], None if is_text else p.values["score"]) for p in unit)
    return unit[0].table, unit[0].feature, answers


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
    if prediction.table == "boxes":
        return {"bbox": _bbox(row, prediction, tally)}
    return GEOMETRY[prediction.table](prediction.values)


def _bbox(row: DataRow, prediction: Prediction, tally: Tally) -> Line:
    values = prediction.values
    left, top, width, height = clipped = _clipped_ltwh(row, values)
    if clipped != ltwh_of(values):
        tally.change(prediction, Change.CLIPPED_TO_PICTURE)
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
    _lose_score(unit[0], tally)
    tally.leave_out_all(unit[0].nested, Loss.KIND_NOT_REPRESENTABLE)
    ends = {"source": values["source_id"], "target": values["target_id"], "type": values["type"]}
    return _head(run, row, unit) | {"relationship": ends}


def _video_line(run: Run, row: DataRow, unit: Unit, tally: Tally) -> Line:
    """An object in one frame: a segment of one key frame, so that nothing is interpolated. No place for a score."""
    first = unit[0]
    _lose_score(first, tally)
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


def _lose_score(prediction: Prediction, tally: Tally) -> None:
    if prediction.values["score"] is not None:
        tally.change(prediction, Change.SCORE_NOT_REPRESENTABLE)


def _nested(predictions: Iterable[Prediction], tally: Tally) -> Line:
    answers = [{"name": unit[0].feature} | _answer(unit, tally) for unit in units_of(predictions)]
    return {"classifications": answers} if answers else {}


def _answer(unit: Unit, tally: Tally) -> Line:
    """The answer to one question, with its confidence where this kind of answer has it, and its frames in a video."""
    first, frames = unit[0], _frames(unit)
    if first.table == "texts":
        return _text_answer(unit, frames, tally)
    of_first_frame = [p for p in unit if p.values["frame"] == first.values["frame"]]
    chosen = [{"name": p.values["answer"]} | _confidence(p.values) | _nested(p.nested, tally) for p in of_first_frame]
    answer = chosen if first.values["kind"] == "checklist" else chosen[0]
    return {"answer": answer} | ({"frames": frames} if frames else {})


def _text_answer(unit: Unit, frames: list[dict[str, int]], tally: Tally) -> Line:
    prediction, answer = unit[0], unit[0].values["answer"]
    if not frames:
        return {"answer": answer} | _confidence(prediction.values) | _nested(prediction.nested, tally)
    for of_frame in unit:
        _lose_score(of_frame, tally)
    tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
    return {"answer": [{"value": answer, "frames": frames}]}


def _frames(unit: Unit) -> list[dict[str, int]]:
    """The range of frames of an answer; none for the whole video, and none nested: it is in its parent's frame."""
    first, last = unit[0].values, unit[-1].values
    if first.get("parent_id") or first["frame"] is None:
        return []
    return [{"start": first["frame"], "end": last["frame"]}]


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
        **({} if annotated.split is None else {"split": annotated.split}),
    }


EXPORTER = Exporter(
    name="labelbox",
    version=2,
    media_types=ALL_MEDIA,
    conventions={
        "offset_unit": "codepoint",
        "entity_start": "inclusive, from 0",
        "entity_end": "inclusive",
        "bbox": "top, left, height, width in pixels of the picture as displayed, clipped to the picture",
        "polygon": "one outer ring, closed: the last point repeats the first",
        "polygon, line, point": "x, y in pixels of the picture as displayed, not clipped",
        "mask": "8-bit grey PNG of the picture's size, samples 0 and 1",
        "video_mask": "RGB PNG, white on black, one line a mask",
        "frames": "numbered as in the request, both ends inclusive; equal answers of neighbouring frames are one line",
        "limits": "5,000 annotations of one feature on one data row: those of the highest scores",
        "confidence": "left out where the model gave none, which Labelbox reads as 1; kept by model-run imports only",
        "uuid": "prediction_id; of a checklist a uuid5 of run, dataset, global key, question, frame and message",
        "relationships": "pre-label imports only",
    },
    split="in data_rows.jsonl alone: an import has no place for it; a model run takes it with the data rows",
    plan=no_plan,
    render=render,
    write=write,
)
