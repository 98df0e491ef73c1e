"""One geometric item of a reply -> the columns of its table, or why it is refused.

Coordinates are pixels of the picture sent, origin at its top left, y down. What lies outside the picture is kept as
said; what cannot be meant (negative sizes, numbers that are not finite) is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from foundry_pipeline import rle
from foundry_pipeline.decoding.features import GEOMETRY_KEYS
from foundry_pipeline.decoding.rejects import Fault, json_type, wrong_type
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.tables import TABLE_OF_KIND, TableSpec

MAX_COORDINATE = 2.0**53
"""Beyond it a float no longer holds every whole number; no picture is that large."""

Values = tuple[object, ...]
Read = Callable[[object, "rle.Size | None"], Values | Fault]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A kind of object: its key in a reply, its table, and the function that reads one item.

    `read` takes the item and the picture's (height, width), None where nobody knows it, and gives the table's own
    columns in their order.
    """

    kind: FeatureKind
    key: str
    spec: TableSpec
    read: Read


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


def read_box(item: object, _: rle.Size | None) -> Values | Fault:
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


def read_mask(item: object, image_hw: rle.Size | None) -> Values | Fault:
    """{"size": [height, width], "counts": ...}, COCO run lengths."""
    if not isinstance(item, dict):
        return wrong_type('a mask {"size": [height, width], "counts": ...}', item)
    if missing := [key for key in ("size", "counts") if key not in item]:
        return Fault("missing_key", f"a mask needs size and counts; missing: {', '.join(missing)}")
    mask = rle.check(item["size"], item["counts"], image_hw)
    if isinstance(mask, rle.BadRle):
        return Fault(mask.reason, f"rule {mask.rule}: {mask.message}")
    return (*mask.size_hw, mask.counts, mask.area, *mask.box_ltwh)


def read_polygon(item: object, _: rle.Size | None) -> Values | Fault:
    """One outer ring of at least three distinct [x, y], open or closed; kept open."""
    points = _points(item, "a polygon")
    if isinstance(points, Fault):
        return points
    while len(points) > 1 and points[-1] == points[0]:
        points.pop()
    if (distinct := len(set(points))) < 3:
        return Fault("too_few_points", f"expected at least 3 distinct points, got {distinct}")
    return (points,)


def read_line(item: object, _: rle.Size | None) -> Values | Fault:
    """At least two [x, y]."""
    points = _points(item, "a line")
    if isinstance(points, Fault):
        return points
    return (points,) if len(points) >= 2 else Fault("too_few_points", f"expected at least 2 points, got {len(points)}")


def read_point(item: object, _: rle.Size | None) -> Values | Fault:
    """[x, y] in pixels."""
    point = _pair(item)
    return point if isinstance(point, Fault) else tuple(point)


def read_edge(item: object, _: rle.Size | None) -> Values | Fault:
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


_READERS: Mapping[FeatureKind, Read] = {
    FeatureKind.RECTANGLE: read_box,
    FeatureKind.MASK: read_mask,
    FeatureKind.POLYGON: read_polygon,
    FeatureKind.LINE: read_line,
    FeatureKind.POINT: read_point,
    FeatureKind.EDGE: read_edge,
}
GEOMETRIES: Mapping[FeatureKind, Geometry] = {
    kind: Geometry(kind, key, TABLE_OF_KIND[kind], _READERS[kind]) for kind, key in GEOMETRY_KEYS.items()
}
