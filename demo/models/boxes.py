"""Boxes as arrays: overlap, suppression, and the document's order. A box is four floats in pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def iou_ltrb(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box (4,) with others (n, 4), all left, top, right, bottom. Two empty boxes: 0."""
    left_top = np.maximum(box[:2], others[:, :2])
    right_bottom = np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.clip(right_bottom - left_top, 0.0, None), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - intersection
    overlap: Floats = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return overlap


def suppress(boxes_ltrb: Floats, scores: Floats, iou: float) -> list[int]:
    """Greedy non-maximum suppression: places of the boxes to keep, best score first.

    A box goes when a better one overlaps it by more than `iou`.
    """
    waiting = np.argsort(-scores, kind="stable")
    kept = []
    while waiting.size:
        best, rest = int(waiting[0]), waiting[1:]
        kept.append(best)
        waiting = rest[iou_ltrb(boxes_ltrb[best], boxes_ltrb[rest]) <= iou]
    return kept


def to_ltwh(box_ltrb: Floats) -> list[float]:
    """Left, top, width, height, rounded to hundredths of a pixel: the document's order."""
    left, top, right, bottom = box_ltrb
    return [round(float(value), 2) for value in (left, top, right - left, bottom - top)]


def sigmoid(logits: Floats) -> Floats:
    """Logits to 0..1. Clipped first, so that a sure model cannot overflow the exponential."""
    return 1.0 / (1.0 + np.exp(-np.clip(logits, -100.0, 100.0)))
