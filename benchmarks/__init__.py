"""What `make bench` measures: ratios within one run, printed and never asserted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ratio:
    """One line of the table. `value` is the median of numerator / denominator, `spread` its least and greatest."""

    name: str
    value: float
    goal: str
    numerator: str
    denominator: str
    spread: tuple[float, float]
