"""CVAT for images 1.1: XML to upload into a task that has the pictures, and the labels to make such a task with.

A score is an attribute of its shape, and declared, or readers drop it. A question about the picture is a tag with its
`answer`; a question about an object is an attribute of it: a text, or for a checklist a tick at each chosen answer.
CVAT finds a picture by its name; `images.jsonl` says which data row has which. The labels are in every file and, as
the "raw" of CVAT's label editor, in `labels.json`.

Written here: datumaro drops scores, and runs each mask over the whole picture.
Source: CVAT's documentation, "CVAT for images 1.1"; its mask run lengths go along rows, inside the box, zeros first.
"""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, rle_of
from foundry_pipeline.exports.file_names import PictureNames
from foundry_pipeline.exports.format import PICTURES, Export, Exporter, Rendered, parts_of
from foundry_pipeline.exports.pictures import (
    Ring,
    Size,
    about_picture,
    box_in_picture,
    is_answered_picture,
    mask_obstacle,
    picture_size,
    point_in_picture,
    ring_in_picture,
    ring_of,
)
from foundry_pipeline.exports.shards import PartedShards, part_prefix
from foundry_pipeline.exports.tally import Change, Loss, Tally
from foundry_pipeline.exports.units import units_of, within_limit
from foundry_pipeline.exports.xml_text import child, count_unsafe, xml_bytes, xml_safe
from foundry_pipeline.home import Run
from foundry_pipeline.rle import Rle, to_dense
from foundry_pipeline.tables import CLASSIFICATIONS, TEXTS

HEAD = b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
TAIL = b"</annotations>\n"
IMAGE = b"  <image"
FILES = "annotations"

Geometry = dict[str, object]
"""What an element says of its place."""


@dataclass(frozen=True, slots=True)
class _Attribute:
    """What a shape or tag says beside its label. `input_type` is `text` or, for a tick, `checkbox`."""

    name: str
    value: str
    input_type: str = "text"


@dataclass(frozen=True, slots=True)
class _Shape:
    """One element of a picture: `kind` is its name."""

    prediction: Prediction
    kind: str
    geometry: Geometry
    attributes: tuple[_Attribute, ...]


class _Labels:
    """The labels of all shapes and tags, and the attributes of each, as they are met."""

    def __init__(self) -> None:
        self._input_types: dict[str, dict[str, str]] = {}

    def add(self, label: str, attributes: Mapping[str, str]) -> None:
        """There is this label, with these attributes: name -> input type."""
        self._input_types.setdefault(label, {}).update(attributes)

    def as_json(self) -> dict[str, dict[str, str]]:
        """What `add` was told: label -> its attributes."""
        return self._input_types

    def raw(self) -> list[dict[str, object]]:
        """As CVAT's label editor takes them, by alphabet."""
        return [
            {"name": name, "attributes": [_declaration(*of_one) for of_one in sorted(of_label.items())]}
            for name, of_label in sorted(self._input_types.items())
        ]

    def xml(self, run: Run, part: str | None) -> ET.Element:
        """As they stand at the head of a file of this part of the split."""
        meta = ET.Element("meta")
        task = child(meta, "task")
        child(task, "name", run.name)
        if part is not None:
            child(task, "subset", part)
        labels = child(task, "labels")
        for name, of_label in sorted(self._input_types.items()):
            label = child(labels, "label")
            child(label, "name", name)
            attributes = child(label, "attributes")
            for of_one in sorted(of_label.items()):
                declared = _declaration(*of_one)
                element = child(attributes, "attribute")
                for key in ("name", "mutable", "input_type", "default_value"):
                    child(element, key, declared[key])
                child(element, "values", declared["default_value"])
        return meta


def _declaration(name: str, input_type: str) -> dict[str, object]:
    default = "false" if input_type == "checkbox" else ""
    return {"name": name, "mutable": False, "input_type": input_type, "default_value": default, "values": [default]}


def render(export: Export, names: PictureNames, annotated: AnnotatedRow) -> Rendered | None:
    """The element of one answered picture, without its number, and the labels that it needs."""
    if not is_answered_picture(annotated, export.tally):
        return None
    shapes = list(_shapes(annotated, export.tally))
    if not export.takes(annotated, written=bool(shapes)):
        return None
    name, labels = names.path_of(annotated.row), _Labels()
    element = xml_bytes(_image(name, annotated, shapes, labels), level=1)
    contents = (element.removeprefix(IMAGE), about_picture(annotated.row, name))
    return Rendered(annotated.split, contents, {"labels": labels.as_json()})


def write(run: Run, _names: PictureNames, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`. Memory holds the labels.

    Which labels there are is known at the end only, and stands at the head: each file is written once more behind it.
    """
    labels = _Labels()
    with TemporaryDirectory(dir=folder) as bodies:
        _write_bodies(run, labels, rows, Path(bodies), folder / "images.jsonl")
        for part in parts_of(run):
            head = HEAD + xml_bytes(labels.xml(run, part), level=1)
            for body in sorted(Path(bodies).glob(f"{part_prefix(FILES, part)}-*")):
                _put_behind(head, body, folder / body.name)
    (folder / "labels.json").write_bytes(orjson.dumps(labels.raw(), option=orjson.OPT_INDENT_2))


def _write_bodies(run: Run, labels: _Labels, rows: Iterable[Rendered], bodies: Path, index: Path) -> None:
    """The files without their heads. Pictures are numbered from 0, in each part of the split."""
    numbers: Counter[str | None] = Counter()
    with PartedShards(run, bodies, FILES, ".xml", tail=TAIL, always=True) as files, index.open("wb") as about:
        for rendered in rows:
            element, about_line = rendered.contents
            files.add(IMAGE + b' id="%d"' % numbers[rendered.split] + element, rendered.split)
            numbers[rendered.split] += 1
            about.write(about_line)
            for label, attributes in rendered.about["labels"].items():
                labels.add(label, attributes)


def _put_behind(head: bytes, body: Path, target: Path) -> None:
    with body.open("rb") as source, target.open("wb") as file:
        file.write(head)
        shutil.copyfileobj(source, file, 1 << 20)
    body.unlink()


def _image(name: str, annotated: AnnotatedRow, shapes: list[_Shape], labels: _Labels) -> ET.Element:
    size = picture_size(annotated)
    image = ET.Element("image", {"name": xml_safe(name)})
    if annotated.split is not None:
        image.set("subset", annotated.split)
    if size is not None:
        image.attrib.update(width=str(size[0]), height=str(size[1]))
    for shape in shapes:
        labels.add(xml_safe(shape.prediction.feature), {xml_safe(a.name): a.input_type for a in shape.attributes})
        element = child(image, shape.kind, label=shape.prediction.feature, source="auto", **shape.geometry)
        for attribute in shape.attributes:
            child(element, "attribute", attribute.value, name=attribute.name)
    return image


def _shapes(annotated: AnnotatedRow, tally: Tally) -> Iterator[_Shape]:
    """What CVAT can hold of one picture."""
    size = picture_size(annotated)
    for unit in within_limit(units_of(annotated.predictions), tally):
        for prediction in unit:
            shape = _shape(prediction, size, tally)
            if isinstance(shape, Loss):
                tally.leave_out(prediction, shape)
                continue
            texts = [text for attribute in shape.attributes for text in (attribute.name, attribute.value)]
            count_unsafe(prediction, [prediction.feature, *texts], tally)
            yield shape


def _shape(prediction: Prediction, size: Size | None, tally: Tally) -> _Shape | Loss:
    if prediction.table in (CLASSIFICATIONS.name, TEXTS.name):
        return _Shape(
            prediction, "tag", {}, (_Attribute("answer", prediction.values["answer"]), *_about(prediction, tally))
        )
    if prediction.table not in GEOMETRIES:
        return Loss.KIND_NOT_REPRESENTABLE
    kind, geometry_of = GEOMETRIES[prediction.table]
    geometry = geometry_of(prediction, size, tally)
    if isinstance(geometry, Loss):
        return geometry
    return _Shape(prediction, kind, {"occluded": 0, **geometry, "z_order": 0}, tuple(_about(prediction, tally)))


def _about(prediction: Prediction, tally: Tally) -> Iterator[_Attribute]:
    """The score, and what is nested: the attributes of an element."""
    if prediction.values["score"] is not None:
        yield _Attribute("score", str(prediction.values["score"]))
    yield from _nested(prediction, "", tally)


def _nested(prediction: Prediction, path: str, tally: Tally) -> Iterator[_Attribute]:
    """Answers about an object or an answer; deeper ones are named by the way there: `colour/red/shade`."""
    for nested in prediction.nested:
        question, answer = f"{path}{nested.feature}", nested.values["answer"]
        if nested.values["score"] is not None:
            tally.change(nested, Change.SCORE_NOT_REPRESENTABLE)
        count_unsafe(nested, [question, answer], tally)
        if nested.values.get("kind") == "checklist":
            yield _Attribute(f"{question}: {answer}", "true", "checkbox")
        else:
            yield _Attribute(question, answer)
        yield from _nested(nested, f"{question}/{answer}/", tally)


def _box(prediction: Prediction, size: Size | None, tally: Tally) -> Geometry | Loss:
    ltwh = box_in_picture(prediction, size, tally)
    if isinstance(ltwh, Loss):
        return ltwh
    left, top, width, height = ltwh
    return {"xtl": left, "ytl": top, "xbr": left + width, "ybr": top + height}


def _mask(prediction: Prediction, size: Size | None, _: Tally) -> Geometry | Loss:
    if why := mask_obstacle(prediction, size):
        return why
    rle = rle_of(prediction.values)
    left, top, width, height = map(int, rle.box_ltwh)
    runs = ", ".join(map(str, row_runs(rle)))
    return {"rle": runs, "left": left, "top": top, "width": width, "height": height}


def row_runs(rle: Rle) -> list[int]:
    """The mask's run lengths inside its box, along its rows; the first counts zeros, even where it is 0."""
    left, top, width, height = map(int, rle.box_ltwh)
    flat = to_dense(rle)[top : top + height, left : left + width].ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(edges, prepend=0, append=flat.size).tolist()
    return [0, *runs] if flat[0] else runs


def _polygon(prediction: Prediction, size: Size | None, tally: Tally) -> Geometry | Loss:
    ring = ring_in_picture(prediction, size, tally)
    return ring if isinstance(ring, Loss) else {"points": _corners(ring)}


def _line(prediction: Prediction, _size: Size | None, _tally: Tally) -> Geometry | Loss:
    corners = ring_of(prediction.values)
    return {"points": _corners(corners)} if len(corners) >= 2 else Loss.TOO_FEW_POINTS


def _point(prediction: Prediction, size: Size | None, _: Tally) -> Geometry | Loss:
    point = point_in_picture(prediction.values, size)
    return point if isinstance(point, Loss) else {"points": f"{point[0]},{point[1]}"}


def _corners(corners: Ring) -> str:
    return ";".join(f"{x},{y}" for x, y in corners.tolist())


GEOMETRIES: Mapping[str, tuple[str, Callable[[Prediction, Size | None, Tally], Geometry | Loss]]] = {
    "boxes": ("box", _box),
    "masks": ("mask", _mask),
    "polygons": ("polygon", _polygon),
    "lines": ("polyline", _line),
    "points": ("points", _point),
}

EXPORTER = Exporter(
    name="cvat",
    version=1,
    media_types=PICTURES,
    conventions={
        "box": "corners xtl, ytl, xbr, ybr in pixels of the picture as displayed, clipped to the picture",
        "mask": "run lengths along the rows of its box, zeros first",
        "polygon, polyline, points": "x,y in pixels; polygons are clipped to the picture, polylines are not",
        "score": "attribute score of a shape or tag; nested answers have no place for theirs",
        "answers": "a tag of the question's name with the attribute answer; about an object: attributes of it",
        "nested answers": "under an answer: attribute question/answer/question; checklists: a tick question: answer",
        "name": "the picture's basename; its global key where two pictures share the basename; made safe",
        "limits": "5,000 annotations of one feature on one data row: those of the highest scores",
    },
    split="files of their own, annotations-train-*.xml and so on, with `subset`: a task for each part",
    plan=lambda _, overview: overview.picture_names,
    render=render,
    write=write,
    renders_names=True,
)
