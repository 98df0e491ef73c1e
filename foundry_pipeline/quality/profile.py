"""The shape of a table's predictions: how many a data row, how sure, of what. Small, and comparable over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from foundry_pipeline.quality.histogram import EXAMPLES, Counts, Histogram, Shift
from foundry_pipeline.quality.piece import Piece

SCORE_STEPS = 20
"""Bins are centred on 0, 0.05 ... 1: models like round scores, and rounding would move those at a bin's edge."""
NO_SCORE = "no score"
MOST_CLASSES = 500
OTHER = "(others)"
"""Stands for all classes of a slice beyond its 500 most frequent: without an ontology a model may say anything."""
_STEPS = (10, 15, 20, 30, 50, 100, 200, 500, 1000)

MEASURES = ("predictions_per_row", "score_drift", "class_balance")
"""The checks that compare a profile with an earlier one."""


@dataclass(slots=True)
class Profile:
    """`rows` are data rows with a good answer, also those in which nothing was found."""

    rows: int = 0
    predictions: int = 0
    per_row: Histogram = field(default_factory=Histogram)
    scores: Histogram = field(default_factory=Histogram)
    classes: Histogram = field(default_factory=Histogram)

    def merge(self, other: Profile) -> None:
        """Take in what another has counted."""
        self.rows += other.rows
        self.predictions += other.predictions
        for mine, its in ((self.per_row, other.per_row), (self.scores, other.scores), (self.classes, other.classes)):
            mine.merge(its)

    def shift(self, measure: str, then: Profile) -> Shift:
        """This profile against an earlier one, by one of MEASURES."""
        if measure == "predictions_per_row":
            return Shift(self.per_row, then.per_row.counts, (self.rows, then.rows))
        sizes = (min(self.rows, self.predictions), min(then.rows, then.predictions))
        mine, its = (self.scores, then.scores) if measure == "score_drift" else (self.classes, then.classes)
        return Shift(mine, its.counts, sizes)

    def as_json(self) -> dict[str, Any]:
        """Counts alone: examples are of now."""
        return {
            "rows": self.rows,
            "predictions": self.predictions,
            "per_row": dict(self.per_row.counts),
            "scores": dict(self.scores.counts),
            "classes": dict(self.classes.counts),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Profile:
        """The inverse of `as_json`."""
        per_row, scores, classes = (_histogram(body[name]) for name in ("per_row", "scores", "classes"))
        return cls(int(body["rows"]), int(body["predictions"]), per_row, scores, classes)


def profile_of(piece: Piece) -> Profile:
    """The profile of one slice."""
    frame, found = piece.predictions, Profile(predictions=piece.predictions.height)
    by_row = frame.group_by("global_key", maintain_order=True).agg(pl.len())
    empty = sorted(piece.answered - set(by_row["global_key"]))
    found.rows = by_row.height + len(empty)
    if empty:
        found.per_row.add("0", len(empty), empty[:EXAMPLES])
    for key, count in by_row.rows():
        found.per_row.add(_per_row_bin(count), 1, (key,))
    bins = pl.when(pl.col("score").is_finite()).then((pl.col("score") * SCORE_STEPS).round().clip(0, SCORE_STEPS))
    for step, count, keys in _grouped(frame.with_columns(bins.alias("bin")), "bin").rows():
        found.scores.add(NO_SCORE if step is None else f"{step / SCORE_STEPS:.2f}", count, keys)
    classes = _grouped(frame, "label").sort("count", "label", descending=[True, False])
    for at, (label, count, keys) in enumerate(classes.rows()):
        found.classes.add(label if at < MOST_CLASSES else OTHER, count, keys)
    return found


def _grouped(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """(value, count, first data rows)"""
    keys = pl.col("global_key").unique(maintain_order=True).head(EXAMPLES)
    return frame.group_by(column, maintain_order=True).agg(pl.len().alias("count"), keys)


def _per_row_bin(count: int) -> str:
    """Exact to 9, then in steps that grow."""
    if count < _STEPS[0]:
        return str(count)
    first = max(step for step in _STEPS if step <= count)
    last = next((step - 1 for step in _STEPS if step > count), None)
    return f"{first}+" if last is None else f"{first}-{last}"


def _histogram(counts: Counts) -> Histogram:
    found = Histogram()
    for label, count in counts.items():
        found.add(str(label), int(count))
    return found
