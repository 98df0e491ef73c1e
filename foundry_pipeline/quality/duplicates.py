"""Predictions that say one thing twice: the same geometry, or boxes that all but cover each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from foundry_pipeline.config.checks_source import DuplicatesRule
from foundry_pipeline.quality.finding import Finding, Worst, WorstRows, counted
from foundry_pipeline.quality.piece import Piece

DUPLICATES = "duplicates"

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Duplicates:
    """Counts over slices. A duplicate is a prediction that an earlier one of its data row and feature stands for."""

    rule: DuplicatesRule
    predictions: int = 0
    exact: int = 0
    near: int = 0
    worst: WorstRows = field(default_factory=WorstRows)

    def add(self, piece: Piece) -> None:
        """Take in a slice of a table with places."""
        frame = piece.predictions
        exact = ~frame.select(first=pl.col("place").is_first_distinct())["first"].to_numpy()
        near = np.zeros_like(exact)
        if "left" in frame.columns:
            near = near_duplicates(
                frame["group"].to_numpy(),
                frame.select("left", "top", "width", "height").to_numpy(),
                self.rule.iou,
            )
            near &= ~exact
        self.predictions += frame.height
        self.exact += int(exact.sum())
        self.near += int(near.sum())
        doubled = frame.filter(pl.Series(exact | near)).group_by("global_key", maintain_order=True).agg(pl.len())
        self.worst.add((count, Worst(key, counted(count, "duplicate"))) for key, count in doubled.rows())

    def finding(self) -> Finding:
        """Their share of all predictions."""
        share = (self.exact + self.near) / max(self.predictions, 1)
        words = (
            f"{self.exact + self.near:,} of {counted(self.predictions, 'prediction')} ({share:.1%}) repeat another of "
            f"their data row and feature: {self.exact:,} in the same place, {self.near:,} boxes with an IoU from "
            f"{self.rule.iou:g}"
        )
        facts = {"predictions": self.predictions, "same_place": self.exact, "high_iou": self.near}
        return Finding(DUPLICATES, self.rule, share, words, self.worst.rows(), facts)


def near_duplicates(groups: npt.NDArray[np.uint64], boxes_ltwh: Floats, iou: float) -> Flags:
    """True for each box that has an IoU from `iou` with an earlier one, from the left, of its group.

    `groups` (N,), `boxes_ltwh` (N, 4). A box is compared only with those that begin so little to its right that the
    IoU can be reached, so crowded pictures take N log N steps and a few more.
    """
    order = np.lexsort((boxes_ltwh[:, 0], groups))
    group, boxes, found = groups[order], boxes_ltwh[order], np.zeros(len(order), bool)
    reach = boxes[:, 0] + (1 - iou) * boxes[:, 2]
    first, ahead = np.arange(len(order)), 1
    while first.size:
        first = first[first + ahead < len(order)]
        other = first + ahead
        close = (group[other] == group[first]) & (boxes[other, 0] <= reach[first])
        first, other = first[close], other[close]
        found[other[_iou(boxes[first], boxes[other]) >= iou]] = True
        ahead += 1
    marks = np.zeros(len(order), bool)
    marks[order] = found
    return marks


def _iou(one: Floats, other: Floats) -> Floats:
    """(N, 4) and (N, 4) boxes_ltwh -> (N,). 0 where both are without area."""
    begin = np.maximum(one[:, :2], other[:, :2])
    end = np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    shared: Floats = np.clip(end - begin, 0, None).prod(axis=1)
    union = one[:, 2:].prod(axis=1) + other[:, 2:].prod(axis=1) - shared
    iou: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou
