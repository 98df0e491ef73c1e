"""COCO: `results.json` for `loadRes` and COCOeval, `instances.json` as a dataset that shows and evaluates them.

Both say what the model said: boxes are not clipped, masks are RLE with their holes and parts. `images` holds the
answered pictures, those without a detection too; a picture that was not answered is not there.

Source: cocodataset.org, format-data and format-results; pycocotools 2.0.11: an item with a box makes `loadRes` expect
one in every item, `iscrowd` 1 is ignored as ground truth, annotation id 0 means "unmatched".
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
import orjson
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, Record
from foundry_pipeline.exports.format import Exporter
from foundry_pipeline.exports.tally import Loss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.rows.data_uris import is_data_uri
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, MASKS, POLYGONS, TABLE_OF_KIND, TableSpec

HELD = (BOXES, MASKS, POLYGONS)
NO_SCORE = 1.0  # COCOeval sorts by score and has no word for "unknown"

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What must be known before the first picture: categories by feature, names taken twice, and whether boxes and
    masks meet in one file."""

    category_ids: Mapping[str, int]
    taken_twice: frozenset[int]
    mixed: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    """One detection's geometry: the box left, top, width, height in pixels, its area, and its segmentation twice.

    `dataset_segmentation` is what the model said (RLE, flat polygons, or nothing for a box); `result_segmentation`
    is RLE, which alone `loadRes` can measure, or None for a box.
    """

    ltwh: tuple[float, float, float, float]
    area: float
    dataset_segmentation: object
    result_segmentation: Item | None


def write(run: Run, store: Store, rows: Iterator[AnnotatedRow], folder: Path, tally: Tally) -> None:
    """Write the two files into `folder`. Memory holds one data row, and 16 bytes for each of the dataset's rows."""
    plan = _plan(run, store)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in ("instances.json", "results.json")]
        annotations: BinaryIO = stack.enter_context(TemporaryFile(dir=folder))
        _write_rows(run, plan, rows, (files[0], annotations, files[1]), tally)


def _write_rows(
    run: Run, plan: _Plan, rows: Iterator[AnnotatedRow], files: tuple[BinaryIO, BinaryIO, BinaryIO], tally: Tally
) -> None:
    """`files` are the dataset, its annotations on their way there, and the results."""
    dataset, annotations, results = files
    images, items, found = _Array(dataset), _Array(annotations), _Array(results)
    dataset.write(_head(run, plan))
    results.write(b"[")
    for annotated in rows:
        detections = list(_detections(annotated, tally))
        if not (annotated.answered and annotated.row.media_type == "image"):
            continue
        image_id = images.length + 1
        images.add(_image(image_id, annotated, plan))
        for prediction, shape in detections:
            category_id = plan.category_ids[prediction.feature]
            found.add(_result(image_id, category_id, prediction, shape, plan, tally))
            if shape.area > 0:
                items.add(_annotation(items.length + 1, image_id, category_id, prediction, shape))
            else:
                tally.change(Loss.ZERO_SIZE_ONLY_IN_RESULTS)
    results.write(b"\n]\n")
    dataset.write(b'\n],"annotations":[')
    annotations.seek(0)
    shutil.copyfileobj(annotations, dataset, 1 << 20)
    dataset.write(b"\n]}\n")


class _Array:
    """A JSON array on its way into a file, one item a line; brackets are the caller's."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = 0

    def add(self, item: Item) -> None:
        """Write one item."""
        self._file.write((b",\n" if self.length else b"\n") + orjson.dumps(item))
        self.length += 1


def _head(run: Run, plan: _Plan) -> bytes:
    categories = [{"id": i, "name": name, "supercategory": ""} for name, i in plan.category_ids.items()]
    about = f"Predictions of run {run.name}: model {run.model.name} on dataset {run.dataset.name}"
    head = orjson.dumps({"info": {"description": about}, "licenses": [], "categories": categories})
    return head[:-1] + b',"images":['


def _plan(run: Run, store: Store) -> _Plan:
    seen = {spec.name: _features(run, store, spec) for spec in HELD}
    names = dict.fromkeys([*_ontology_features(run), *sorted(set().union(*seen.values()))])
    mixed = bool(seen[BOXES.name]) and bool(seen[MASKS.name] or seen[POLYGONS.name])
    return _Plan({name: i for i, name in enumerate(names, 1)}, _names_taken_twice(run, store), mixed)


def _ontology_features(run: Run) -> Iterator[str]:
    """Your names of what COCO can hold, in the ontology's order."""
    for feature in run.model.ontology.features() if run.model.ontology else ():
        name = run.feature_of(feature.name)
        if name is not None and TABLE_OF_KIND[feature.kind] in HELD:
            yield name


def _features(run: Run, store: Store, spec: TableSpec) -> set[str]:
    """Your names of the features that have predictions in this table, whatever their scores."""
    classes: set[str] = set()
    for _, table in store.read_all(spec, run.name, ["feature"]):
        classes.update(pc.unique(table["feature"]).to_pylist())
    return {name for name in map(run.feature_of, classes) if name is not None}


def _names_taken_twice(run: Run, store: Store) -> frozenset[int]:
    """Digests of file names that would stand for two pictures: two have that basename, or it is another's key."""
    pieces = [np.zeros(0, np.uint64)]
    for _, table in store.read_all(DATA_ROWS, run.dataset.name, ["global_key", "row_data", "media_type"]):
        rows = zip(*(table[c].to_pylist() for c in table.column_names), strict=True)
        names = ({_basename(row_data), key} for key, row_data, media in rows if media == "image")
        pieces.append(np.array([_digest(name) for of_row in names for name in of_row], np.uint64))
    digests, counts = np.unique(np.concatenate(pieces), return_counts=True)
    return frozenset(digests[counts > 1].tolist())


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def _basename(row_data: str) -> str:
    """The file's own name: of a URL the last part of its path, of a path the same."""
    if is_data_uri(row_data):
        return ""  # it has no name, and its content is none
    is_url = re.match(r"[a-z][a-z0-9+.-]*://", row_data, re.IGNORECASE)
    return posixpath.basename(unquote(urlsplit(row_data).path) if is_url else row_data)


def _image(image_id: int, annotated: AnnotatedRow, plan: _Plan) -> Item:
    row = annotated.row
    basename = _basename(row.row_data)
    width, height = _picture_size(annotated)
    return {
        "id": image_id,
        "file_name": basename if basename and _digest(basename) not in plan.taken_twice else row.global_key,
        **({"width": width, "height": height} if width and height else {}),
        "data_row_id": row.data_row_id,
        "global_key": row.global_key,
    }


def _picture_size(annotated: AnnotatedRow) -> tuple[int | None, int | None]:
    """Width and height in pixels: the data row's, else what a prediction says of the picture the model saw."""
    if annotated.row.width and annotated.row.height:
        return annotated.row.width, annotated.row.height
    for prediction in annotated.predictions:
        if prediction.table == MASKS.name:
            return prediction.values["size_w"], prediction.values["size_h"]
        if prediction.table == BOXES.name and prediction.values["image_width"]:
            return prediction.values["image_width"], prediction.values["image_height"]
    return None, None


def _detections(annotated: AnnotatedRow, tally: Tally) -> Iterator[tuple[Prediction, _Shape]]:
    """What COCO can hold of one data row; nested answers it cannot."""
    size = _picture_size(annotated)
    for prediction in annotated.predictions:
        shape = _shape(annotated.row, prediction, size)
        if isinstance(shape, Loss):
            tally.leave_out(prediction, shape)
        else:
            tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
            yield prediction, shape


def _shape(row: DataRow, prediction: Prediction, size: tuple[int | None, int | None]) -> _Shape | Loss:
    if prediction.table not in SHAPES:
        return Loss.KIND_NOT_REPRESENTABLE
    if row.media_type != "image":
        return Loss.NOT_IMPORTABLE_FOR_MEDIA
    return SHAPES[prediction.table](prediction.values, *size)


def _box_shape(values: Record, _width: int | None, _height: int | None) -> _Shape:
    ltwh = _ltwh(values)
    return _Shape(ltwh, ltwh[2] * ltwh[3], [], None)


def _mask_shape(values: Record, width: int | None, height: int | None) -> _Shape | Loss:
    if (values["size_w"], values["size_h"]) != (width, height):
        return Loss.MASK_SIZE_DIFFERS
    rle = {"size": [values["size_h"], values["size_w"]], "counts": values["counts"]}
    return _Shape(_ltwh(values), float(values["area"]), rle, rle)


def _polygon_shape(values: Record, width: int | None, height: int | None) -> _Shape | Loss:
    """RLE for the results by pycocotools, as COCOeval turns the dataset's polygon into one, so that both agree."""
    xy = np.array([(point["x"], point["y"]) for point in values["points"]], float)
    if width is None or height is None:
        return Loss.PICTURE_SIZE_UNKNOWN
    if len(xy) < 3:
        return Loss.TOO_FEW_POINTS
    if not _near_picture(xy, width, height):
        return Loss.OUTSIDE_PICTURE
    flat = [xy.ravel().tolist()]
    rle = coco_mask.frPyObjects(flat, height, width)[0]
    (left, top), (right, bottom) = xy.min(axis=0).tolist(), xy.max(axis=0).tolist()
    result = {"size": [height, width], "counts": rle["counts"].decode("ascii")}
    return _Shape((left, top, right - left, bottom - top), float(coco_mask.area(rle)), flat, result)


def _near_picture(xy: NDArray[np.float64], width: int, height: int) -> bool:
    """pycocotools draws no polygon safely that runs far outside: memory and time grow with its length."""
    size = np.array([width, height])
    return bool((xy >= -size).all() and (xy <= 2 * size).all())


def _ltwh(values: Record) -> tuple[float, float, float, float]:
    return values["left"], values["top"], values["width"], values["height"]


SHAPES: Mapping[str, Callable[[Record, int | None, int | None], _Shape | Loss]] = {
    BOXES.name: _box_shape,
    MASKS.name: _mask_shape,
    POLYGONS.name: _polygon_shape,
}


def _result(image_id: int, category_id: int, prediction: Prediction, shape: _Shape, plan: _Plan, tally: Tally) -> Item:
    """One item of the results: a box or a segmentation. Where a run has both, a segmentation carries its box too,
    or `loadRes` could not read the file; COCOeval then sorts it into small, medium, large by that box."""
    score = prediction.values["score"]
    if score is None:
        tally.change(Loss.SCORE_MISSING_WRITTEN_AS_1)
    item: Item = {"image_id": image_id, "category_id": category_id}
    if shape.result_segmentation is None or plan.mixed:
        item["bbox"] = shape.ltwh
    if shape.result_segmentation is not None:
        item["segmentation"] = shape.result_segmentation
    return item | {"score": NO_SCORE if score is None else score}


def _annotation(annotation_id: int, image_id: int, category_id: int, prediction: Prediction, shape: _Shape) -> Item:
    score = prediction.values["score"]
    return {
        "id": annotation_id,
        "image_id": image_id,
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
    file_names=re.compile(r"(instances|results)\.json"),
    conventions={
        "bbox": "left, top, width, height in pixels of the picture as displayed, not clipped",
        "segmentation": "RLE for masks; one flat ring for polygons in instances.json, RLE in results.json",
        "images": "answered pictures only, with and without detections",
        "file_name": "the picture's basename; its global key where two pictures share the basename",
        "score": "also in instances.json; in results.json 1.0 where the model gave none",
        "ids": "from 1, in the order of the data rows",
    },
    write=write,
)
