"""One geometric item of a reply -> the columns of its table, or why it is refused.

Coordinates are pixels of the picture sent, origin at its top left, y down. What lies outside the picture is kept as
said; what cannot be meant (negative sizes, numbers that are not finite) is refused, never repaired.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from foundry_pipeline import rle
from foundry_pipeline.decoding.features import GEOMETRY_KEYS
from foundry_pipeline.decoding.rejects import Fault, json_type, wrong_type
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.tables import TABLE_OF_KIND, TableSpec

MAX_COORDINATE = 2.0**53
"""Beyond it a float no longer holds every whole number; no picture is that large."""
MAX_PLAIN_COORDINATE = MAX_COORDINATE - 1

Values = tuple[object, ...]
Columns = tuple[Sequence[object], ...]
CheckMask = Callable[[Mapping[str, object]], "rle.Rle | rle.BadRle"]
"""What a mask with `size` and `counts` is, in its picture."""
Read = Callable[[object, CheckMask], Values | Fault]
ReadPlain = Callable[[list[object]], Columns | None]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A kind of object: its key in a reply, its table, and the functions that read its items.

    `read` gives one item's values of the table's own columns, in their order. `read_plain` gives those of a whole list,
    a column each, several times as fast; None where anything in it has to be looked into.
    """

    kind: FeatureKind
    key: str
    spec: TableSpec
    read: Read
    read_plain: ReadPlain


def numbers(values: list[object]) -> list[float] | Fault:
    """Finite coordinates. Booleans and strings are no numbers; null is what JavaScript makes of NaN."""
    for value in values:
        if not (type(value) is float or type(value) is int) or not -MAX_COORDINATE < value < MAX_COORDINATE:
            return _no_number(values)
    return list(map(float, values))  # type: ignore[arg-type]  # all are int or float


def _no_number(values: list[object]) -> Fault:
    """What is wrong with these coordinates. A wrong type is told before a number that is not finite."""
    odd = [value for value in values if value is not None and type(value) is not float and type(value) is not int]
    if odd:
        return wrong_type("a number", odd[0])
    if None in values:
        return Fault("not_finite", "expected a number, got null")
    return Fault("not_finite", f"expected finite numbers below 2**53, got {values}")


def read_box(item: object, _: CheckMask) -> Values | Fault:
    """[left, top, width, height] in pixels."""
    if not isinstance(item, list):
        return wrong_type("a box [left, top, width, height]", item)
    if len(item) != 4:
        return Fault("bad_length", f"expected a box of 4 numbers [left, top, width, height], got {len(item)}")
    box = numbers(item)
    if isinstance(box, Fault):
        return box
    if box[2] < 0 or box[3] < 0:
        return Fault("negative_size", f"expected a width and height of 0 or more, got {box[2]:g} and {box[3]:g}")
    return tuple(box)


def read_mask(item: object, check: CheckMask) -> Values | Fault:
    """{"size": [height, width], "counts": ...}, COCO run lengths."""
    if not isinstance(item, dict):
        return wrong_type('a mask {"size": [height, width], "counts": ...}', item)
    if missing := [key for key in ("size", "counts") if key not in item]:
        return Fault("missing_key", f"a mask needs size and counts; missing: {', '.join(missing)}")
    mask = check(item)
    if isinstance(mask, rle.BadRle):
        return Fault(mask.reason, f"rule {mask.rule}: {mask.message}")
    return (*mask.size_hw, mask.counts, mask.area, *mask.box_ltwh)


def read_polygon(item: object, _: CheckMask) -> Values | Fault:
    """One outer ring of at least three distinct [x, y], open or closed; kept open."""
    points = _points(item, "a polygon")
    if isinstance(points, Fault):
        return points
    while len(points) > 1 and points[-1] == points[0]:
        points.pop()
    if (distinct := len(set(points))) < 3:
        return Fault("too_few_points", f"expected at least 3 distinct points, got {distinct}")
    return (points,)


def read_line(item: object, _: CheckMask) -> Values | Fault:
    """At least two [x, y]."""
    points = _points(item, "a line")
    if isinstance(points, Fault):
        return points
    return (points,) if len(points) >= 2 else Fault("too_few_points", f"expected at least 2 points, got {len(points)}")


def read_point(item: object, _: CheckMask) -> Values | Fault:
    """[x, y] in pixels."""
    point = _pair(item)
    return point if isinstance(point, Fault) else tuple(point)


def read_edge(item: object, _: CheckMask) -> Values | Fault:
    """{"source": ref, "target": ref, "type": ...}: (source ref, target ref, type), the refs still as they came."""
    if not isinstance(item, dict):
        return wrong_type('an edge {"source": ..., "target": ..., "type": ...}', item)
    if missing := [key for key in ("source", "target") if item.get(key) is None]:
        return Fault("missing_key", f"an edge needs source and target; missing: {', '.join(missing)}")
    kind = item.get("type")
    if kind is not None and not isinstance(kind, str):
        return wrong_type("type as a string", kind)
    if kind not in (None, "unidirectional", "bidirectional"):
        return Fault("unknown_option", "expected type unidirectional or bidirectional")
    return item["source"], item["target"], kind or "unidirectional"


def _points(item: object, what: str) -> list[tuple[float, float]] | Fault:
    if not isinstance(item, list):
        return wrong_type(f"{what} as a list of [x, y]", item)
    points = []
    for place, pair in enumerate(item):
        point = _pair(pair)
        if isinstance(point, Fault):
            return Fault(point.reason, f"point {place}: {point.message}")
        points.append((point[0], point[1]))
    return points


def _pair(item: object) -> list[float] | Fault:
    if not isinstance(item, list):
        return Fault("wrong_type", f"expected a point [x, y], got {json_type(item)}")
    if len(item) != 2:
        return Fault("bad_length", f"expected a point of 2 numbers [x, y], got {len(item)}")
    return numbers(item)


def plain_numbers(values: list[object], least: float, most: float) -> bool:
    """Whether all are numbers from `least` to `most`."""
    if not set(map(type, values)) <= {float, int} or not math.isfinite(sum(values)):  # type: ignore[arg-type]
        return False
    return not values or (min(values) >= least and max(values) <= most)  # type: ignore[type-var, operator]


def _plain_boxes(items: list[object]) -> Columns | None:
    columns = _plain_columns(items, 4)
    return columns if columns is not None and min(columns[2]) >= 0 and min(columns[3]) >= 0 else None


def _plain_points(items: list[object]) -> Columns | None:
    return _plain_columns(items, 2)


def _plain_columns(items: list[object], length: int) -> tuple[list[float], ...] | None:
    """Lists of so many numbers each, as columns; None where they are anything else, or none at all."""
    if set(map(type, items)) != {list} or set(map(len, items)) != {length}:  # type: ignore[arg-type]
        return None
    flat: list[object] = list(itertools.chain.from_iterable(items))  # type: ignore[arg-type]
    if not plain_numbers(flat, -MAX_PLAIN_COORDINATE, MAX_PLAIN_COORDINATE):
        return None
    return tuple(flat[place::length] for place in range(length))  # type: ignore[misc]


def _nothing_plain(_: list[object]) -> None:
    return None


_READERS: Mapping[FeatureKind, tuple[Read, ReadPlain]] = {
    FeatureKind.RECTANGLE: (read_box, _plain_boxes),
    FeatureKind.MASK: (read_mask, _nothing_plain),
    FeatureKind.POLYGON: (read_polygon, _nothing_plain),
    FeatureKind.LINE: (read_line, _nothing_plain),
    FeatureKind.POINT: (read_point, _plain_points),
    FeatureKind.EDGE: (read_edge, _nothing_plain),
}
GEOMETRIES: Mapping[FeatureKind, Geometry] = {
    kind: Geometry(kind, key, TABLE_OF_KIND[kind], *_READERS[kind]) for kind, key in GEOMETRY_KEYS.items()
}
