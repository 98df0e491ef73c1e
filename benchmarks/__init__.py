"""What `make bench` measures: ratios within one run, printed and never asserted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Ratio:
    """One line of the table. `value` is the median of numerator / denominator, `spread` its least and greatest."""

    name: str
    value: float
    goal: str
    numerator: str
    denominator: str
    spread: tuple[float, float]

    @classmethod
    def of(cls, name: str, values: Sequence[float], goal: str, numerator: str, denominator: str) -> Self:
        """A line from several rounds."""
        return cls(name, statistics.median(values), goal, numerator, denominator, (min(values), max(values)))

    @classmethod
    def one(cls, name: str, value: float, goal: str, numerator: str, denominator: str) -> Self:
        """A line from one long round."""
        return cls.of(name, [value], goal, numerator, denominator)
