"""Shapes from the frame of a stored picture into that of the displayed one, for the eight EXIF orientations.

Tables are in the frame that the model saw. Where a manifest keeps EXIF (`exif: keep`), that is the picture as it is
stored; what people open, annotate and compare is the picture as it is displayed, so exports and views turn the shapes.
Source: EXIF 2.3, Orientation; coordinates are continuous, with 0 at the edge of the first pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from foundry_pipeline.rle import Rle, from_dense, to_dense

Record = Mapping[str, Any]
Xy = tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Turn:
    """How a stored picture of this size, in pixels, becomes the displayed one: mirrored, then its axes swapped."""

    mirrors_x: bool
    mirrors_y: bool
    swaps: bool
    stored_wh: tuple[int, int]

    def point(self, x: float, y: float) -> Xy:
        width, height = self.stored_wh
        x, y = (width - x if self.mirrors_x else x), (height - y if self.mirrors_y else y)
        return (y, x) if self.swaps else (x, y)

    def sides(self, width: Any, height: Any) -> tuple[Any, Any]:
        return (height, width) if self.swaps else (width, height)

    def mask(self, pixels: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        turned = pixels[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]
        return turned.T if self.swaps else turned


_TURNS = {
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}
"""Orientation -> mirrors x, mirrors y, swaps."""


def displayed(table: str, values: Record, orientation: int, displayed_wh: tuple[int, int]) -> Record:
    """A row of a prediction table, turned from the stored picture's frame. `displayed_wh` is the displayed size.

    Rows without a shape, and pictures that are stored upright, stay as they are.
    """
    shape = _SHAPES.get(table)
    if shape is None or orientation not in _TURNS:
        return values
    mirrors_x, mirrors_y, swaps = _TURNS[orientation]
    width, height = displayed_wh
    return {
        **values,
        **shape(values, _Turn(mirrors_x, mirrors_y, swaps, (height, width) if swaps else (width, height))),
    }


def _box(values: Record, turn: _Turn) -> Record:
    left, top, width, height = (values[name] for name in ("left", "top", "width", "height"))
    (x1, y1), (x2, y2) = turn.point(left, top), turn.point(left + width, top + height)
    width, height = turn.sides(width, height)
    image_width, image_height = turn.sides(values["image_width"], values["image_height"])
    size = {"image_width": image_width, "image_height": image_height}
    return {"left": min(x1, x2), "top": min(y1, y2), "width": width, "height": height} | size


def _mask(values: Record, turn: _Turn) -> Record:
    box_ltwh = (values["left"], values["top"], values["width"], values["height"])
    stored = Rle((values["size_h"], values["size_w"]), values["counts"], values["area"], box_ltwh)
    turned = from_dense(turn.mask(to_dense(stored)))
    left, top, width, height = turned.box_ltwh
    size_h, size_w = turned.size_hw
    box = {"left": left, "top": top, "width": width, "height": height}
    return {"size_h": size_h, "size_w": size_w, "counts": turned.counts} | box


def _ring(values: Record, turn: _Turn) -> Record:
    turned = (turn.point(point["x"], point["y"]) for point in values["points"])
    return {"points": [{"x": x, "y": y} for x, y in turned]}


def _point(values: Record, turn: _Turn) -> Record:
    x, y = turn.point(values["x"], values["y"])
    return {"x": x, "y": y}


_SHAPES: Mapping[str, Callable[[Record, _Turn], Record]] = {
    "boxes": _box,
    "masks": _mask,
    "polygons": _ring,
    "lines": _ring,
    "points": _point,
}
