"""Numbers that cannot be right: scores outside 0 to 1, boxes that reach out of their picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from foundry_pipeline.config.checks_source import Rule
from foundry_pipeline.quality.finding import Finding, Worst, WorstRows, counted
from foundry_pipeline.quality.piece import Piece

SCORES, INSIDE = "scores_in_0_1", "boxes_inside_picture"

EDGE_PX = 1.0
"""A box may reach this far out of its picture: models round."""


@dataclass(slots=True)
class Scores:
    """Scores of one table; `wrong` are outside 0 to 1. A prediction without a score is not looked at."""

    rule: Rule
    of: int = 0
    wrong: int = 0
    worst: WorstRows = field(default_factory=WorstRows)

    def add(self, piece: Piece) -> None:
        """Take in a slice."""
        scored = piece.predictions.filter(pl.col("score").is_not_null())
        wrong = scored.filter(~pl.col("score").is_between(0.0, 1.0))
        self.of += scored.height
        self.wrong += wrong.height
        self.worst.add(
            (abs(score), Worst(key, f"{score:g}")) for key, score in wrong.select("global_key", "score").rows()
        )

    def finding(self) -> Finding:
        """The share of scores that are wrong."""
        words = f"{self.wrong:,} of {counted(self.of, 'score')} outside 0 to 1"
        facts = {"scores": self.of, "wrong": self.wrong}
        return Finding(SCORES, self.rule, self.wrong / max(self.of, 1), words, self.worst.rows(), facts)


@dataclass(slots=True)
class Outside:
    """Boxes that reach out of their picture. `of` counts the boxes whose picture's size is known."""

    rule: Rule
    of: int = 0
    boxes: int = 0
    worst_px: float = 0.0
    worst: WorstRows = field(default_factory=WorstRows)

    def add(self, piece: Piece) -> None:
        """Take in a slice of boxes."""
        sized = piece.predictions.filter(pl.col("image_width").is_not_null() & pl.col("image_height").is_not_null())
        right = pl.col("left") + pl.col("width") - pl.col("image_width")
        bottom = pl.col("top") + pl.col("height") - pl.col("image_height")
        reach = pl.max_horizontal(-pl.col("left"), -pl.col("top"), right, bottom, pl.lit(0.0))
        reaching = sized.select("global_key", reach=reach)
        outside = reaching.filter(pl.col("reach") > EDGE_PX)
        self.of += sized.height
        self.boxes += outside.height
        self.worst_px = max([self.worst_px, *reaching["reach"].top_k(1)])
        by_row = outside.group_by("global_key", maintain_order=True).agg(pl.max("reach"))
        self.worst.add((px, Worst(key, f"reaches {px:,.1f} px out of its picture")) for key, px in by_row.rows())

    def finding(self) -> Finding:
        """Their share of the boxes whose picture's size is known."""
        share = self.boxes / max(self.of, 1)
        words = f"{self.boxes:,} of {counted(self.of, 'box')} ({share:.1%}) reach out of their picture"
        if self.boxes:
            words += f", by up to {self.worst_px:,.1f} px"
        facts = {"boxes": self.of, "outside": self.boxes, "worst_px": self.worst_px}
        return Finding(INSIDE, self.rule, share, words, self.worst.rows(), facts)
