"""Predictions on pictures: which data rows are pictures, how large they are, and what of a shape lies inside.

Pixels of the picture as displayed, after EXIF orientation, origin at its top left corner.
"""

from __future__ import annotations

import numpy as np
import orjson
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, Record
from foundry_pipeline.exports.format import PICTURES
from foundry_pipeline.exports.tally import Change, Loss, RowLoss, Tally
from foundry_pipeline.rle import Rle, check
from foundry_pipeline.tables import BOXES, MASKS, POLYGONS

Size = tuple[int, int]
"""Width and height in pixels."""
Ltwh = tuple[float, float, float, float]
"""Left, top, width, height in pixels."""
Ring = NDArray[np.float64]
"""A polygon's corners, shape (n, 2), x and y in pixels; the first is not repeated."""


def is_answered_picture(annotated: AnnotatedRow, tally: Tally) -> bool:
    """Whether this is one; all other data rows are counted, with their predictions."""
    if not annotated.answered:
        tally.leave_row_out(annotated, RowLoss.NOT_ANSWERED)
    elif annotated.row.media_type not in PICTURES:
        tally.leave_row_out(annotated, RowLoss.OTHER_MEDIA_TYPE, Loss.NOT_IMPORTABLE_FOR_MEDIA)
    else:
        return True
    return False


def picture_size(annotated: AnnotatedRow) -> Size | None:
    """The data row's size, else what a prediction says of the picture the model saw; None where nobody knows."""
    if annotated.row.width and annotated.row.height:
        return annotated.row.width, annotated.row.height
    for prediction in annotated.predictions:
        values = prediction.values
        if prediction.table == MASKS.name:
            return values["size_w"], values["size_h"]
        if prediction.table == BOXES.name and values["image_width"] and values["image_height"]:
            return values["image_width"], values["image_height"]
    return None


def ltwh_of(values: Record) -> Ltwh:
    """The box in a row of `boxes`, or around a row of `masks`."""
    return values["left"], values["top"], values["width"], values["height"]


def ring_of(values: Record) -> Ring:
    """The corners in a row of `polygons` or `lines`."""
    return np.array([(point["x"], point["y"]) for point in values["points"]], float).reshape(-1, 2)


def box_in_picture(prediction: Prediction, size: Size | None, tally: Tally) -> Ltwh | Loss:
    """The box of a row of `boxes`, or around a mask or a polygon, clipped to the picture where its size is known."""
    if prediction.table == POLYGONS.name:
        ring = ring_of(prediction.values)
        if len(ring) < 3:
            return Loss.TOO_FEW_POINTS
        ltwh = box_around(ring)
    else:
        ltwh = ltwh_of(prediction.values)
    clipped = clip_box(ltwh, size)
    if ltwh[2] <= 0 or ltwh[3] <= 0:
        return Loss.ZERO_SIZE
    if clipped[2] <= 0 or clipped[3] <= 0:
        return Loss.OUTSIDE_PICTURE
    if clipped != ltwh:
        tally.change(prediction, Change.CLIPPED_TO_PICTURE)
    return clipped


def mask_obstacle(prediction: Prediction, size: Size | None) -> Loss | None:
    """Why a row of `masks` cannot be shown on a picture of this size; a size that nobody knows fits every mask."""
    values = prediction.values
    if values["area"] == 0:
        return Loss.ZERO_SIZE
    fits = size is None or (values["size_w"], values["size_h"]) == size
    return None if fits else Loss.MASK_SIZE_DIFFERS


def ring_in_picture(prediction: Prediction, size: Size | None, tally: Tally) -> Ring | Loss:
    """The ring of a row of `polygons`, clipped to the picture where its size is known."""
    ring = ring_of(prediction.values)
    if len(ring) < 3:
        return Loss.TOO_FEW_POINTS
    clipped = ring if size is None else clip_ring(ring, size)
    if len(clipped) < 3 or (clipped is not ring and ring_area(clipped) == 0):
        return Loss.OUTSIDE_PICTURE
    if clipped is not ring:
        tally.change(prediction, Change.CLIPPED_TO_PICTURE)
    return clipped


def point_in_picture(values: Record, size: Size | None) -> tuple[float, float] | Loss:
    """A row of `points`, where it is not beside the picture."""
    x, y = values["x"], values["y"]
    outside = size is not None and not (0 <= x <= size[0] and 0 <= y <= size[1])
    return Loss.OUTSIDE_PICTURE if outside else (x, y)


def box_around(ring: Ring) -> Ltwh:
    """The smallest box that holds a polygon."""
    (left, top), (right, bottom) = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
    return left, top, right - left, bottom - top


def clip_box(ltwh: Ltwh, size: Size | None) -> Ltwh:
    """The part of a box inside the picture; the whole box where its size is not known.

    A box beside the picture gets a width or height of 0 or less.
    """
    left, top, width, height = ltwh
    if size is None or (left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]):
        return ltwh  # left + width - left is not always width in floats
    right, bottom = min(left + width, size[0]), min(top + height, size[1])
    left, top = max(left, 0.0), max(top, 0.0)
    return left, top, right - left, bottom - top


def clip_ring(ring: Ring, size: Size) -> Ring:
    """The part of a polygon inside the picture; no corners where all of it is beside.

    Parts that the edge cuts apart stay one ring, joined along the edge.
    Source: Sutherland and Hodgman, Reentrant polygon clipping, 1974.
    """
    for axis, limit, sign in ((0, 0.0, 1.0), (1, 0.0, 1.0), (0, float(size[0]), -1.0), (1, float(size[1]), -1.0)):
        inside = sign * (ring[:, axis] - limit) >= 0
        if not inside.all():
            ring = _cut(ring, inside, axis, limit)
    return ring


def _cut(ring: Ring, inside: NDArray[np.bool_], axis: int, limit: float) -> Ring:
    """The side of a ring that `inside` says, closed along the line where the coordinate `axis` is `limit`."""
    kept = []
    for at, (here, before) in enumerate(zip(ring, np.roll(ring, 1, axis=0), strict=True)):
        if inside[at] != inside[at - 1]:
            share = (limit - before[axis]) / (here[axis] - before[axis])
            crossing = before + share * (here - before)
            crossing[axis] = limit
            kept.append(crossing)
        if inside[at]:
            kept.append(here)
    return np.array(kept).reshape(-1, 2)


def ring_area(ring: Ring) -> float:
    """In square pixels, by the shoelace formula."""
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def draw_ring(ring: Ring, size: Size) -> Rle | Loss:
    """A polygon's pixels as pycocotools sees them, which is how COCOeval turns polygons into masks."""
    if len(ring) < 3:
        return Loss.TOO_FEW_POINTS
    if not _near_picture(ring, size):
        return Loss.OUTSIDE_PICTURE
    width, height = size
    (drawn,) = coco_mask.frPyObjects([ring.ravel().tolist()], height, width)
    rle = check([height, width], drawn["counts"].decode("ascii"), None)
    assert isinstance(rle, Rle)
    return rle


def _near_picture(ring: Ring, size: Size) -> bool:
    """pycocotools draws no polygon safely that runs far outside: memory and time grow with its length."""
    return bool((ring >= -np.array(size)).all() and (ring <= 2 * np.array(size)).all())


def about_picture(row: DataRow, file_name: str) -> bytes:
    """A line for the index beside files that call a picture `file_name`: which data row it is, and where it lies."""
    about = {"file_name": file_name, "global_key": row.global_key, "data_row_id": row.data_row_id}
    return orjson.dumps(about | {"row_data": row.row_data}, option=orjson.OPT_APPEND_NEWLINE)
