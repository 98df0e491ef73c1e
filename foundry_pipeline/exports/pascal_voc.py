"""Pascal VOC: an XML a picture, palette pictures for masks, and the result files that hold the scores.

`Annotations/<picture>.xml` has the boxes, in whole pixels, counted from 1, both ends inclusive, as the challenge did;
`SegmentationClass/` and `SegmentationObject/` have the masks, where the run has some: of overlapping ones the higher
score is on top. `results/Main/comp4_det_test_<class>.txt` has the boxes unrounded, with their scores.

Written here: usual writers disagree about the first pixel, lose scores, and write no XML for a picture without objects.
Source: The PASCAL Visual Object Classes Challenge 2012 development kit, sections 8 and 9.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, rle_of
from foundry_pipeline.exports.file_names import PictureNames, class_words, stem_of
from foundry_pipeline.exports.format import PICTURES, Export, Exporter, Rendered, parts_of
from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.pictures import (
    Ltwh,
    Size,
    about_picture,
    box_around,
    box_in_picture,
    draw_ring,
    is_answered_picture,
    mask_obstacle,
    picture_size,
    ring_in_picture,
)
from foundry_pipeline.exports.tally import Change, Loss, RowLoss, Tally
from foundry_pipeline.exports.xml_text import child, count_unsafe, xml_bytes
from foundry_pipeline.home import Run
from foundry_pipeline.png import palette_png
from foundry_pipeline.rle import Rle, to_dense
from foundry_pipeline.tables import BOXES, MASKS, POLYGONS

MOST_COLOURS = 254
"""Of a palette picture; 0 is the background and 255 is left for "not to be looked at"."""
HAIR = 1e-9
"""Pixels that a sum of floats may be off: 2.1 + 3.9 ends at pixel 6."""


@dataclass(frozen=True, slots=True)
class _Object:
    """One object of a picture: its box, clipped, and its pixels where it is a mask or a polygon."""

    prediction: Prediction
    ltwh: Ltwh
    pixels: Rle | None

    @property
    def score(self) -> float:
        """A prediction without a score counts as 1."""
        score = self.prediction.values["score"]
        return 1.0 if score is None else float(score)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What must be known before the first picture: classes by feature, numbered from 1, names, and whether the run has
    masks."""

    class_ids: Mapping[str, int]
    words: Mapping[str, str]
    names: PictureNames
    has_masks: bool
    palette_rgb: bytes


SETS = ("ImageSets/Main", "ImageSets/Segmentation")
FOLDERS = ("Annotations", *SETS, "results/Main")
MASK_FOLDERS = ("SegmentationClass", "SegmentationObject")
TRAINVAL = ("train", "val")


def write(run: Run, plan: _Plan, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`, some of which are a file a picture."""
    for name in (*FOLDERS, *(MASK_FOLDERS if plan.has_masks else ())):
        (folder / name).mkdir(parents=True)
    (folder / "labelmap.txt").write_bytes(_label_map(plan))
    for part in parts_of(run):
        for word in plan.words.values():
            _results(folder, part, word).touch()
    with ExitStack() as stack:
        about = stack.enter_context((folder / "images.jsonl").open("wb"))
        names = {name for part in parts_of(run) for name in _lists(part)}
        lists = {name: _open_lists(stack, folder, name, plan) for name in sorted(names)}
        for rendered in rows:
            _write_picture(folder, rendered)
            about.write(rendered.contents[1])
            for file in (file for name in _lists(rendered.split) for file in lists[name]):
                file.write(f"{rendered.about['stem']}\n".encode())


def _lists(part: str | None) -> tuple[str, ...]:
    """The image sets that a picture of this part is in, as the challenge calls them."""
    if part is None:
        return ("trainval",)
    return (part, "trainval") if part in TRAINVAL else (part,)


def _open_lists(stack: ExitStack, folder: Path, name: str, plan: _Plan) -> list[BinaryIO]:
    """The lists of all pictures of a set, and of those with masks."""
    main, segmented = (stack.enter_context((folder / kind / f"{name}.txt").open("wb")) for kind in SETS)
    return [main, segmented] if plan.has_masks else [main]


def _write_picture(folder: Path, rendered: Rendered) -> None:
    stem = rendered.about["stem"]
    xml, _, *pictures = rendered.contents
    (folder / f"Annotations/{stem}.xml").write_bytes(xml)
    for name, picture in zip(MASK_FOLDERS[: len(pictures)], pictures, strict=True):
        (folder / f"{name}/{stem}.png").write_bytes(picture)
    for word, lines in rendered.about["results"].items():
        with _results(folder, rendered.split, word).open("ab") as file:  # opened each time: there may be thousands
            file.write(lines.encode())


def _plan(_run: Run, overview: Overview) -> _Plan:
    features = overview.feature_names((BOXES, MASKS, POLYGONS))
    return _Plan(
        class_ids={name: i for i, name in enumerate(features, 1)},
        words=class_words(features),
        names=overview.picture_names,
        has_masks=bool(overview.feature_names((MASKS, POLYGONS))),
        palette_rgb=b"".join(bytes(_colour(i)) for i in range(256)),
    )


def render(export: Export, plan: _Plan, annotated: AnnotatedRow) -> Rendered | None:
    """The XML, masks and result lines of one answered picture. Memory holds two palette pictures."""
    if not is_answered_picture(annotated, export.tally):
        return None
    size = picture_size(annotated)
    if size is None:
        export.tally.leave_row_out(annotated, RowLoss.PICTURE_SIZE_UNKNOWN, Loss.PICTURE_SIZE_UNKNOWN)
        return None
    objects = list(_objects(annotated, size, export.tally))
    if not export.takes(annotated, written=bool(objects)):
        return None
    file_name = plan.names.file_of(annotated.row, one_word=True)
    stem = stem_of(file_name)
    pictures = _drawn(plan, objects, size, export.tally) if plan.has_masks else ()
    root = _annotation(export, file_name, size, objects, segmented=plan.has_masks)
    contents = (xml_bytes(root), about_picture(annotated.row, file_name), *pictures)
    about = {"stem": stem, "results": _result_lines(plan, stem, objects, export.tally)}
    return Rendered(annotated.split, contents, about)


def _objects(annotated: AnnotatedRow, size: Size, tally: Tally) -> Iterator[_Object]:
    """What VOC can hold of one picture; nested answers it cannot."""
    for prediction in annotated.predictions:
        found = _object(prediction, size, tally)
        if isinstance(found, Loss):
            tally.leave_out(prediction, found)
        else:
            tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
            yield found


def _object(prediction: Prediction, size: Size, tally: Tally) -> _Object | Loss:
    if prediction.table == POLYGONS.name:
        return _polygon_object(prediction, size, tally)
    pixels = None
    if prediction.table == MASKS.name:
        if why := mask_obstacle(prediction, size):
            return why
        pixels = rle_of(prediction.values)
    elif prediction.table != BOXES.name:
        return Loss.KIND_NOT_REPRESENTABLE
    ltwh = box_in_picture(prediction, size, tally)
    return ltwh if isinstance(ltwh, Loss) else _Object(prediction, ltwh, pixels)


def _polygon_object(prediction: Prediction, size: Size, tally: Tally) -> _Object | Loss:
    ring = ring_in_picture(prediction, size, tally)
    if isinstance(ring, Loss):
        return ring
    pixels = draw_ring(ring, size)
    if isinstance(pixels, Loss):
        return pixels
    tally.change(prediction, Change.DRAWN_AS_PIXELS)
    return _Object(prediction, box_around(ring), pixels)


def _annotation(
    export: Export, file_name: str, size: Size, objects: Sequence[_Object], *, segmented: bool
) -> ET.Element:
    root = ET.Element("annotation")
    child(root, "folder", "JPEGImages")
    child(root, "filename", file_name)
    child(child(root, "source"), "database", export.run.name)
    of_size = child(root, "size")
    for name, value in (("width", size[0]), ("height", size[1]), ("depth", 3)):
        child(of_size, name, value)
    child(root, "segmented", int(segmented))
    for found in objects:
        _add_object(root, found, size, export.tally)
    return root


def _add_object(root: ET.Element, found: _Object, size: Size, tally: Tally) -> None:
    left, top, width, height = found.ltwh
    ends = (left, top, left + width, top + height)
    corners = (*(math.floor(end + HAIR) + 1 for end in ends[:2]), *(math.ceil(end - HAIR) for end in ends[2:]))
    if any(abs(end - round(end)) > HAIR for end in ends):
        tally.change(found.prediction, Change.ROUNDED_TO_PIXELS)
    count_unsafe(found.prediction, [found.prediction.feature], tally)
    element = child(root, "object")
    child(element, "name", found.prediction.feature)
    for name, value in (("pose", "Unspecified"), ("truncated", int(_at_edge(found, size))), ("difficult", 0)):
        child(element, name, value)
    box = child(element, "bndbox")
    for name, corner in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
        child(box, name, corner)


def _at_edge(found: _Object, size: Size) -> bool:
    """Whether the object may go on past the picture's edge."""
    left, top, width, height = found.ltwh
    return left <= 0 or top <= 0 or left + width >= size[0] or top + height >= size[1]


def _drawn(plan: _Plan, objects: Sequence[_Object], size: Size, tally: Tally) -> tuple[bytes, bytes]:
    """The two palette pictures. The highest score is drawn last; of equal ones the first in the reply."""
    classes, instances = np.zeros(size[::-1], np.uint8), np.zeros(size[::-1], np.uint8)
    drawn = dict(_drawable(plan, objects, tally))
    for place in sorted(drawn, key=lambda place: (objects[place - 1].score, -place)):
        left, top, width, height = map(int, drawn[place].box_ltwh)
        box = np.s_[top : top + height, left : left + width]
        inside = to_dense(drawn[place])[box]
        classes[box][inside] = plan.class_ids[objects[place - 1].prediction.feature]
        instances[box][inside] = place
    shown = np.bincount(instances.ravel(), minlength=MOST_COLOURS + 1)
    for place, pixels in drawn.items():
        if shown[place] < pixels.area:
            tally.change(objects[place - 1].prediction, Change.PARTLY_HIDDEN)
    return palette_png(classes, plan.palette_rgb), palette_png(instances, plan.palette_rgb)


def _drawable(plan: _Plan, objects: Sequence[_Object], tally: Tally) -> Iterator[tuple[int, Rle]]:
    """(place in the XML, from 1, which is its colour; pixels) of what the palette has room for."""
    for place, found in enumerate(objects, 1):
        if found.pixels is not None:
            if max(place, plan.class_ids[found.prediction.feature]) <= MOST_COLOURS:
                yield place, found.pixels
            else:
                tally.change(found.prediction, Change.MASK_NOT_DRAWN)


def _result_lines(plan: _Plan, stem: str, objects: Sequence[_Object], tally: Tally) -> dict[str, str]:
    """Class, as a word for a file's name -> a line an object."""
    lines: defaultdict[str, str] = defaultdict(str)
    for found in objects:
        if found.prediction.values["score"] is None:
            tally.change(found.prediction, Change.SCORE_MISSING_WRITTEN_AS_1)
        left, top, width, height = found.ltwh
        numbers = (found.score, left + 1, top + 1, left + width, top + height)
        lines[plan.words[found.prediction.feature]] += f"{stem} {' '.join(map(_number, numbers))}\n"
    return dict(lines)


def _results(folder: Path, part: str | None, word: str) -> Path:
    """Without a split, results are of the set `test`, where evaluations look for them."""
    return folder / f"results/Main/comp4_det_{part or 'test'}_{word}.txt"


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _label_map(plan: _Plan) -> bytes:
    """The classes and their colours, in the form that CVAT and datumaro read."""
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    for feature, number in plan.class_ids.items():
        name = "".join(c if c.isprintable() and c != ":" else "_" for c in feature)
        lines.append(f"{name}:{','.join(map(str, _colour(number)))}::")
    return "".join(f"{line}\n" for line in lines).encode()


def _colour(number: int) -> tuple[int, int, int]:
    """The challenge's palette: the number's bits, three at a time, are the highest bits of red, green and blue."""
    red = green = blue = 0
    for bit in range(8):
        red |= (number >> 3 * bit & 1) << 7 - bit
        green |= (number >> 3 * bit + 1 & 1) << 7 - bit
        blue |= (number >> 3 * bit + 2 & 1) << 7 - bit
    return red, green, blue


EXPORTER = Exporter(
    name="pascal_voc",
    version=1,
    media_types=PICTURES,
    conventions={
        "bndbox": "whole pixels from 1, both ends inclusive: xmin = floor(left) + 1, xmax = ceil(left + width)",
        "results": "comp4_det_test_<class>.txt: picture, score, xmin, ymin, xmax, ymax, from 1, not rounded",
        "score": "in results alone; 1 where the model gave none",
        "masks": "palette PNGs; the higher score on top; 0 is background; classes as in labelmap.txt",
        "polygons": "drawn into the masks; their boxes in the XML",
        "pictures": "not copied: JPEGImages/ is where readers look for them; images.jsonl: where each one is",
        "truncated": "1 where the box reaches the picture's edge",
    },
    split="image sets: ImageSets/*/train.txt, val.txt, test.txt; trainval.txt is train and val; "
    "results/Main/comp4_det_<part>_<class>.txt",
    plan=_plan,
    render=render,
    write=write,
    renders_classes=True,
    renders_names=True,
)
