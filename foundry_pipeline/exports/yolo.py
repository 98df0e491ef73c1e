"""YOLO labels as Ultralytics trains on: `labels/<picture>.txt`, a line an object, coordinates as shares of the picture.

`data.yaml` names the classes and lists the pictures, `images.txt`, by the name that their labels have; pictures are not
copied: put or link each one into `images/`, where `images.jsonl` says where it comes from. Where the run has a split,
its parts are folders in `images/` and `labels/`, as `data.yaml` then says. A picture in which nothing
was found has an empty file; no file means "not labelled". Scores stand in `scores.jsonl`: a sixth column is what
`yolo predict` writes, but its trainer leaves a picture out whose labels have one.

Written here: supervision makes an object of each part of a mask and loses scores, datumaro drops masks without a word.
Source: Ultralytics' documentation, datasets/detect and datasets/segment; its loader refuses a picture with coordinates
outside 0 to 1, with other than five columns, or with an odd number of a polygon's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import orjson
import yaml

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, rle_of
from foundry_pipeline.exports.file_names import PictureNames, stem_of
from foundry_pipeline.exports.format import PICTURES, Export, Exporter, Rendered, parts_of
from foundry_pipeline.exports.outlines import outlines
from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.pictures import (
    Ring,
    Size,
    about_picture,
    box_in_picture,
    is_answered_picture,
    mask_obstacle,
    picture_size,
    ring_in_picture,
)
from foundry_pipeline.exports.tally import Change, Loss, RowLoss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.tables import BOXES, MASKS, POLYGONS, TABLES

DECIMALS = 8
"""Of a share: a hundred-thousandth of a pixel in a picture of 1,000."""

LinesOf = Callable[[Prediction, Size, Tally], list[str] | Loss]
"""What follows the class in each line: shares of the picture's width and height."""
Labels = list[tuple[Prediction, str]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The classes in the order of their numbers, and how pictures are called."""

    class_ids: Mapping[str, int]
    names: PictureNames


def _planner(tables: Iterable[str]) -> Callable[[Run, Overview], _Plan]:
    def plan(_run: Run, overview: Overview) -> _Plan:
        classes = overview.feature_names([TABLES[table] for table in tables])
        return _Plan({name: i for i, name in enumerate(classes)}, overview.picture_names)

    return plan


def _renderer(lines_of: Mapping[str, LinesOf]) -> Callable[[Export, _Plan, AnnotatedRow], Rendered | None]:
    """The function that renders these tables."""

    def render(export: Export, plan: _Plan, annotated: AnnotatedRow) -> Rendered | None:
        if not is_answered_picture(annotated, export.tally):
            return None
        labels = _labels(export, annotated, lines_of)
        return None if labels is None else _rendered(annotated, plan, labels)

    return render


def write(run: Run, plan: _Plan, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`, which gets a file a picture."""
    for part in parts_of(run):
        (folder / "labels" / (part or "")).mkdir(parents=True)
    (folder / "data.yaml").write_bytes(_data_yaml(run, plan))
    with ExitStack() as stack:
        of_all = ("images.txt", "images.jsonl", "scores.jsonl")
        listing, about, scores = (stack.enter_context((folder / name).open("wb")) for name in of_all)
        for rendered in rows:
            label_lines, about_line, score_lines = rendered.contents
            (folder / rendered.about["label_file"]).write_bytes(label_lines)
            listing.write(f"./images/{rendered.about['file_name']}\n".encode())
            about.write(about_line)
            scores.write(score_lines)


def _labels(export: Export, annotated: AnnotatedRow, lines_of: Mapping[str, LinesOf]) -> Labels | None:
    """The lines of one picture, or None where it has no file: its size is not known, or it is not to be kept."""
    size, tally = picture_size(annotated), export.tally
    if size is None and annotated.predictions:
        tally.leave_row_out(annotated, RowLoss.PICTURE_SIZE_UNKNOWN, Loss.PICTURE_SIZE_UNKNOWN)
        return None
    labels: Labels = []
    for prediction in annotated.predictions:
        assert size is not None
        of_table = lines_of.get(prediction.table)
        lines = Loss.KIND_NOT_REPRESENTABLE if of_table is None else of_table(prediction, size, tally)
        if isinstance(lines, Loss):
            tally.leave_out(prediction, lines)
        else:
            tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
            labels += ((prediction, line) for line in lines)
    return labels if export.takes(annotated, written=bool(labels)) else None


def _rendered(annotated: AnnotatedRow, plan: _Plan, labels: Labels) -> Rendered:
    folder = "" if annotated.split is None else f"{annotated.split}/"
    file_name = folder + plan.names.file_of(annotated.row)
    label_file = f"labels/{stem_of(file_name)}.txt"
    lines = [f"{plan.class_ids[prediction.feature]} {shares}\n" for prediction, shares in labels]
    scores = [_score(label_file, line, prediction) for line, (prediction, _) in enumerate(labels, 1)]
    contents = ("".join(lines).encode(), about_picture(annotated.row, file_name), b"".join(scores))
    return Rendered(annotated.split, contents, {"file_name": file_name, "label_file": label_file})


def _score(label_file: str, line: int, prediction: Prediction) -> bytes:
    said = {"prediction_id": prediction.values["prediction_id"], "score": prediction.values["score"]}
    return orjson.dumps({"file": label_file, "line": line, **said}, option=orjson.OPT_APPEND_NEWLINE)


def _number(share: float) -> str:
    """A share of the picture, never outside 0 to 1 by a rounding."""
    return f"{min(max(share, 0.0), 1.0):.{DECIMALS}f}".rstrip("0").rstrip(".")


def _data_yaml(run: Run, plan: _Plan) -> bytes:
    """Without `path`, everything is looked for beside this file. A trainer needs both `train` and `val`."""
    names = dict(enumerate(plan.class_ids))
    places = {part: f"images/{part}" for part in run.split.parts} if run.split else {"train": "images.txt"}
    first = next(iter(places.values()))
    data = {"train": first, "val": first, **places, "names": names}
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return text.encode()


def _box(prediction: Prediction, size: Size, tally: Tally) -> list[str] | Loss:
    """Centre, width and height of a box, or of the box around another shape."""
    if prediction.table == MASKS.name and (why := mask_obstacle(prediction, size)):
        return why
    ltwh = box_in_picture(prediction, size, tally)
    if isinstance(ltwh, Loss):
        return ltwh
    if prediction.table != BOXES.name:
        tally.change(prediction, Change.REDUCED_TO_BOX)
    left, top, width, height = ltwh
    shares = ((left + width / 2) / size[0], (top + height / 2) / size[1], width / size[0], height / size[1])
    return [" ".join(map(_number, shares))]


def _polygon(prediction: Prediction, size: Size, tally: Tally) -> list[str] | Loss:
    ring = ring_in_picture(prediction, size, tally)
    return ring if isinstance(ring, Loss) else [" ".join(map(_number, (ring / size).ravel().tolist()))]


def _mask(prediction: Prediction, size: Size, tally: Tally) -> list[str] | Loss:
    """A polygon a part, which fills its holes."""
    if why := mask_obstacle(prediction, size):
        return why
    found = outlines(rle_of(prediction.values))
    parts = [outline.ring for outline in found if not outline.is_hole]
    if len(parts) < len(found):
        tally.change(prediction, Change.HOLES_FILLED)
    if len(parts) > 1:
        tally.change(prediction, Change.SPLIT_INTO_PARTS)
    return [_pixel_shares(ring, size) for ring in parts]


def _pixel_shares(ring: Ring, size: Size) -> str:
    """The corners of a ring along pixels, which are whole numbers: each is written once for all masks."""
    x, y = _ticks(size[0]), _ticks(size[1])
    return " ".join([f"{x[int(column)]} {y[int(row)]}" for column, row in ring.tolist()])


@lru_cache(maxsize=16)
def _ticks(side_px: int) -> list[str]:
    """The share of every pixel's edge."""
    return [_number(place / side_px) for place in range(side_px + 1)]


SHARED = {
    "classes": "numbered from 0 in the order of the ontology; names in data.yaml",
    "coordinates": "shares of the width and height of the picture as displayed, clipped to it",
    "empty_file": "the picture was answered and nothing was found",
    "pictures": "not copied: put or link each into images/ under the name in images.txt; images.jsonl: where it is",
    "score": "in scores.jsonl, by label file and line from 1: trainers leave out pictures that have a sixth column",
    "without_split": "train and val are the same list",
}
SPLIT = "folders of their own, images/train and labels/train and so on, which data.yaml names"

DETECT_TABLES: Mapping[str, LinesOf] = {BOXES.name: _box, MASKS.name: _box, POLYGONS.name: _box}
DETECT = Exporter(
    name="yolo_detect",
    version=1,
    media_types=PICTURES,
    conventions={"line": "class, centre x, centre y, width, height"} | SHARED,
    split=SPLIT,
    plan=_planner(DETECT_TABLES),
    render=_renderer(DETECT_TABLES),
    write=write,
    renders_classes=True,
    renders_names=True,
)
SEGMENT_TABLES: Mapping[str, LinesOf] = {MASKS.name: _mask, POLYGONS.name: _polygon}
SEGMENT = Exporter(
    name="yolo_segment",
    version=1,
    media_types=PICTURES,
    conventions={"line": "class, x1, y1, x2, y2, ...: one outer ring, along the pixels' edges"} | SHARED,
    split=SPLIT,
    plan=_planner(SEGMENT_TABLES),
    render=_renderer(SEGMENT_TABLES),
    write=write,
    renders_classes=True,
    renders_names=True,
)
