"""COCO: `results.json` for `loadRes` and COCOeval, `instances.json` as a dataset that shows and evaluates them.

Both say what the model said: boxes are not clipped, masks are RLE with their holes and parts. `images` holds the
answered pictures, those without a detection too; a picture that was not answered is not there.

Written here: supervision marks masks as crowds and loses scores, datumaro fills holes or marks crowds.
Source: cocodataset.org, format-data and format-results; pycocotools 2.0.11: an item with a box makes `loadRes` expect
one in every item, `iscrowd` 1 is ignored as ground truth, annotation id 0 means "unmatched".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, Record
from foundry_pipeline.exports.file_names import PictureNames
from foundry_pipeline.exports.format import PICTURES, Export, Exporter, Rendered, named, parts_of
from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.pictures import (
    Ltwh,
    Size,
    box_around,
    draw_ring,
    is_answered_picture,
    ltwh_of,
    picture_size,
    ring_of,
)
from foundry_pipeline.exports.tally import Change, Loss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.tables import BOXES, MASKS, POLYGONS

HELD = (BOXES, MASKS, POLYGONS)
NO_SCORE = 1.0  # COCOeval sorts by score and has no word for "unknown"

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What must be known before the first picture: categories by feature, how pictures are called, and whether boxes
    and masks meet in one file."""

    category_ids: Mapping[str, int]
    names: PictureNames
    mixed: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    """One detection's geometry: the box left, top, width, height in pixels, its area, and its segmentation twice.

    `dataset_segmentation` is what the model said (RLE, flat polygons, or nothing for a box); `result_segmentation`
    is RLE, which alone `loadRes` can measure, or None for a box.
    """

    ltwh: Ltwh
    area: float
    dataset_segmentation: object
    result_segmentation: Item | None


def render(export: Export, plan: _Plan, annotated: AnnotatedRow) -> Rendered | None:
    """The items of one answered picture, a line each and without their ids, which count those before them."""
    if not is_answered_picture(annotated, export.tally):
        return None
    detections = list(_detections(annotated, export.tally))
    if not export.takes(annotated, written=bool(detections)):
        return None
    results, annotations = [], []
    for prediction, shape in detections:
        category_id = plan.category_ids[prediction.feature]
        results.append(_result(category_id, prediction, shape, plan, export.tally))
        if shape.area > 0:
            annotations.append(_annotation(category_id, prediction, shape))
        else:
            export.tally.change(prediction, Change.ZERO_SIZE_ONLY_IN_RESULTS)
    contents = (_lines([_image(annotated, plan)]), _lines(annotations), _lines(results))
    return Rendered(annotated.split, contents, {})


def _lines(items: Iterable[Item]) -> bytes:
    return b"\n".join(map(orjson.dumps, items))


def write(run: Run, plan: _Plan, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`: two, or two for each part of the run's split."""
    with ExitStack() as stack:
        head = _head(run, plan)
        parts = {part: stack.enter_context(_Part(folder, part, head)) for part in parts_of(run)}
        for rendered in rows:
            parts[rendered.split].add(*rendered.contents)


class _Part:
    """The dataset and the results of one part of the split, with the ids counted from 1. Use as a context manager."""

    def __init__(self, folder: Path, part: str | None, head: bytes) -> None:
        self._files = ExitStack()
        names = (f"{named('instances', part)}.json", f"{named('results', part)}.json")
        self._dataset, self._results_file = (self._files.enter_context((folder / name).open("wb")) for name in names)
        annotations = TemporaryFile(dir=folder)  # noqa: SIM115, the next line sees to it
        self._annotations_file: BinaryIO = self._files.enter_context(annotations)
        self._dataset.write(head)
        self._results_file.write(b"[")
        self._images, self._results = _Array(self._dataset), _Array(self._results_file)
        self._annotations = _Array(self._annotations_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._files:
            if kind is None:
                self._finish()

    def add(self, image: bytes, annotations: bytes, results: bytes) -> None:
        """One picture's items as `render` makes them."""
        image_id = self._images.length + 1
        self._images.add(b'"id":%d,' % image_id, image)
        for item in annotations.splitlines():
            self._annotations.add(b'"id":%d,"image_id":%d,' % (self._annotations.length + 1, image_id), item)
        for item in results.splitlines():
            self._results.add(b'"image_id":%d,' % image_id, item)

    def _finish(self) -> None:
        self._results_file.write(b"\n]\n")
        self._dataset.write(b'\n],"annotations":[')
        self._annotations_file.seek(0)
        shutil.copyfileobj(self._annotations_file, self._dataset, 1 << 20)
        self._dataset.write(b"\n]}\n")


class _Array:
    """A JSON array on its way into a file, one item a line; brackets are the caller's."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = 0

    def add(self, first_keys: bytes, item: bytes) -> None:
        """Write one item, an object, with these keys before its own."""
        self._file.write((b",\n{" if self.length else b"\n{") + first_keys + item[1:])
        self.length += 1


def _head(run: Run, plan: _Plan) -> bytes:
    categories = [{"id": i, "name": name, "supercategory": ""} for name, i in plan.category_ids.items()]
    about = f"Predictions of run {run.name}: model {run.model.name} on dataset {run.dataset.name}"
    head = orjson.dumps({"info": {"description": about}, "licenses": [], "categories": categories})
    return head[:-1] + b',"images":['


def _plan(_run: Run, overview: Overview) -> _Plan:
    boxes, *outlines = (bool(overview.features_seen(spec)) for spec in HELD)
    ids = {name: i for i, name in enumerate(overview.feature_names(HELD), 1)}
    return _Plan(ids, overview.picture_names, boxes and any(outlines))


def _image(annotated: AnnotatedRow, plan: _Plan) -> Item:
    row, size = annotated.row, picture_size(annotated)
    return {
        "file_name": plan.names.path_of(row),
        **({} if size is None else {"width": size[0], "height": size[1]}),
        "data_row_id": row.data_row_id,
        "global_key": row.global_key,
    }


def _detections(annotated: AnnotatedRow, tally: Tally) -> Iterator[tuple[Prediction, _Shape]]:
    """What COCO can hold of one picture; nested answers it cannot."""
    size = picture_size(annotated)
    for prediction in annotated.predictions:
        shape_of = SHAPES.get(prediction.table)
        shape = Loss.KIND_NOT_REPRESENTABLE if shape_of is None else shape_of(prediction.values, size)
        if isinstance(shape, Loss):
            tally.leave_out(prediction, shape)
        else:
            tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
            yield prediction, shape


def _box_shape(values: Record, _size: Size | None) -> _Shape:
    ltwh = ltwh_of(values)
    return _Shape(ltwh, ltwh[2] * ltwh[3], [], None)


def _mask_shape(values: Record, size: Size | None) -> _Shape | Loss:
    if (values["size_w"], values["size_h"]) != size:
        return Loss.MASK_SIZE_DIFFERS
    rle = {"size": [values["size_h"], values["size_w"]], "counts": values["counts"]}
    return _Shape(ltwh_of(values), float(values["area"]), rle, rle)


def _polygon_shape(values: Record, size: Size | None) -> _Shape | Loss:
    """RLE for the results as COCOeval turns the dataset's polygon into one, so that both agree."""
    if size is None:
        return Loss.PICTURE_SIZE_UNKNOWN
    ring = ring_of(values)
    rle = draw_ring(ring, size)
    if isinstance(rle, Loss):
        return rle
    result = {"size": list(rle.size_hw), "counts": rle.counts}
    return _Shape(box_around(ring), float(rle.area), [ring.ravel().tolist()], result)


SHAPES: Mapping[str, Callable[[Record, Size | None], _Shape | Loss]] = {
    BOXES.name: _box_shape,
    MASKS.name: _mask_shape,
    POLYGONS.name: _polygon_shape,
}


def _result(category_id: int, prediction: Prediction, shape: _Shape, plan: _Plan, tally: Tally) -> Item:
    """One item of the results: a box or a segmentation. Where a run has both, a segmentation carries its box too,
    or `loadRes` could not read the file; COCOeval then sorts it into small, medium, large by that box."""
    score = prediction.values["score"]
    if score is None:
        tally.change(prediction, Change.SCORE_MISSING_WRITTEN_AS_1)
    item: Item = {"category_id": category_id}
    if shape.result_segmentation is None or plan.mixed:
        item["bbox"] = shape.ltwh
    if shape.result_segmentation is not None:
        item["segmentation"] = shape.result_segmentation
    return item | {"score": NO_SCORE if score is None else score}


def _annotation(category_id: int, prediction: Prediction, shape: _Shape) -> Item:
    score = prediction.values["score"]
    return {
        "category_id": category_id,
        "bbox": shape.ltwh,
        "area": shape.area,
        "iscrowd": 0,
        "segmentation": shape.dataset_segmentation,
        **({} if score is None else {"score": score}),
    }


EXPORTER = Exporter(
    name="coco",
    version=1,
    media_types=PICTURES,
    conventions={
        "bbox": "left, top, width, height in pixels of the picture as displayed, not clipped",
        "segmentation": "RLE for masks; one flat ring for polygons in instances.json, RLE in results.json",
        "images": "answered pictures only, with and without detections",
        "file_name": "the picture's basename; its global key where two pictures share the basename; made safe",
        "score": "also in instances.json; in results.json 1.0 where the model gave none",
        "ids": "from 1, in the order of the data rows",
    },
    split="files of their own: instances_train.json and results_train.json, and so on; ids count in each",
    plan=_plan,
    render=render,
    write=write,
    renders_classes=True,
    renders_names=True,
)
