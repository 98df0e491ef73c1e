"""COCO instances -> ground truth: boxes, and masks from polygons or run lengths.

An image is the data row whose global key is its `global_key`, its `file_name`, or a path that ends in that file's name
when only one does. Numbers and outlines are checked before any native code sees them.
Source: cocodataset/cocoapi, `PythonAPI/pycocotools/coco.py`, `annToRLE`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from foundry_pipeline.errors import ConfigError, Problem, shown
from foundry_pipeline.evaluation.truth import TrueObject, Truth
from foundry_pipeline.rle import MAX_PIXELS, MAX_SIDE, BadRle, Rle, Size, check

Item = Mapping[str, Any]
FARTHEST_PX = 2.0**24
"""A corner beyond this is no outline; the C code that fills polygons allocates by such numbers."""


def coco_truth(document: Mapping[str, object], file: str, global_keys: Iterable[str]) -> Truth:
    """The ground truth in a COCO document. Raises ConfigError with every problem; `file` names it in messages."""
    reader = _Reader(document, file, global_keys)
    objects = [made for place, item in enumerate(reader.annotations) if (made := reader.object_of(place, item))]
    if reader.problems:
        raise ConfigError(reader.problems)
    return Truth(
        rows=frozenset(reader.key_of.values()),
        boxes=tuple(objects),
        masks=tuple(found for found in objects if found.rle is not None),
        category_ids={name: number for number, name in reader.categories.items()},
        image_ids={key: number for number, key in reader.key_of.items()},
        unused=dict(reader.unused),
    )


class _Reader:
    """One document, its problems and what of it cannot be used."""

    def __init__(self, document: Mapping[str, object], file: str, global_keys: Iterable[str]) -> None:
        self._file = file
        self.problems: list[Problem] = []
        self.unused: Counter[str] = Counter()
        images = self._numbered(document, "images")
        self.annotations = self._list(document, "annotations")
        self.categories = {number: str(item.get("name")) for number, item in self._numbered(document, "categories")}
        self._sizes = {number: _size((item.get("height"), item.get("width"))) for number, item in images}
        self.key_of = self._keys(images, list(global_keys))

    def object_of(self, place: int, item: Item) -> TrueObject | None:
        """One annotation; None where it is of an image that the dataset lacks, or is a problem."""
        image, category = _known(item.get("image_id"), self._sizes), _known(item.get("category_id"), self.categories)
        if image is None or category is None:
            given = f"image {shown(item.get('image_id'))}, category {shown(item.get('category_id'))}"
            self._refuse(place, f"expected the ids of an image and a category in this file; got {given}")
            return None
        if image not in self.key_of:
            self.unused["annotation_of_an_image_not_in_the_dataset"] += 1
            return None
        box = _numbers(item.get("bbox"), 4)
        if box is None or min(box[2:]) < 0:
            self._refuse(place, f"bbox: expected [left, top, width, height]; got {shown(item.get('bbox'))}")
            return None
        area = item.get("area", box[2] * box[3])
        rle = self._mask(place, item.get("segmentation"), self._sizes[image])
        return TrueObject(
            truth_id=str(item.get("id", place)),
            global_key=self.key_of[image],
            feature=self.categories[category],
            box_ltwh=(box[0], box[1], box[2], box[3]),
            area=float(area) if _is_number(area) else box[2] * box[3],
            rle=rle,
            crowd=bool(item.get("iscrowd", 0)),
        )

    def _mask(self, place: int, given: object, size_hw: Size | None) -> Rle | None:
        """None where there is no mask, or where it is a problem."""
        if not given:
            return None
        found = _run_lengths(given, size_hw) if isinstance(given, dict) else _outlines(given, size_hw)
        if isinstance(found, str):
            self._refuse(place, f"segmentation: {found}")
            return None
        return found

    def _keys(self, images: Sequence[tuple[int, Item]], global_keys: list[str]) -> dict[int, str]:
        known = set(global_keys)
        ends = Counter(PurePosixPath(key).name for key in global_keys)
        by_end = {PurePosixPath(key).name: key for key in global_keys}
        keys = {}
        for number, item in images:
            name = str(item.get("file_name", ""))
            last = PurePosixPath(name).name
            exact = next((str(item[k]) for k in ("global_key", "file_name") if str(item.get(k)) in known), None)
            key = exact or (by_end[last] if ends[last] == 1 else None)
            if key is None:
                self.unused["image_not_in_the_dataset"] += 1
            else:
                keys[number] = key
        return keys

    def _numbered(self, document: Mapping[str, object], name: str) -> list[tuple[int, Item]]:
        numbered = []
        for place, item in enumerate(self._list(document, name)):
            number = item.get("id")
            if isinstance(number, bool) or not isinstance(number, int):
                self._add(f"$.{name}[{place}].id", f"expected an integer; got {shown(number)}")
            else:
                numbered.append((number, item))
        return numbered

    def _list(self, document: Mapping[str, object], name: str) -> list[Item]:
        items = document.get(name)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            self._add(f"$.{name}", "expected a list of objects, as COCO instances have it")
            return []
        return items

    def _refuse(self, place: int, message: str) -> None:
        self._add(f"$.annotations[{place}]", message)

    def _add(self, path: str, message: str) -> None:
        self.problems.append(Problem(self._file, message, path))


def _run_lengths(given: Item, size_hw: Size | None) -> Rle | str:
    found = check(given.get("size"), given.get("counts"), size_hw)
    return found.message if isinstance(found, BadRle) else found


def _outlines(given: object, size_hw: Size | None) -> Rle | str:
    """The pixels inside the rings together, as COCO fills them; or what is wrong."""
    if size_hw is None:
        return "its image says no width and height"
    rings = [_numbers(ring, None) for ring in given] if isinstance(given, list) else [None]
    outlines = [list(ring) for ring in rings if ring is not None and len(ring) >= 6 and len(ring) % 2 == 0]
    if len(outlines) != len(rings):
        return f"expected rings of x, y pairs, three at least; got {shown(given)}"
    merged = coco_mask.merge(coco_mask.frPyObjects(outlines, *size_hw))
    found = check(list(merged["size"]), merged["counts"].decode("ascii"), size_hw)
    return found.message if isinstance(found, BadRle) else found


def _known(number: object, known: Mapping[int, object]) -> int | None:
    return number if isinstance(number, int) and number in known else None


def _size(size_hw: tuple[object, object]) -> Size | None:
    height, width = size_hw
    if not (isinstance(height, int) and isinstance(width, int)):
        return None
    fits = min(height, width) >= 1 and max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS
    return (height, width) if fits else None


def _numbers(given: object, length: int | None) -> tuple[float, ...] | None:
    if not isinstance(given, list) or (length is not None and len(given) != length):
        return None
    return tuple(map(float, given)) if all(_is_number(v) and abs(v) <= FARTHEST_PX for v in given) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
