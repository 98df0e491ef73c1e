"""Counts in named bins, and whether two of them differ: by how much, and by more than chance.

The measure is the Jensen-Shannon distance (the root of the divergence, in bits: 0 the same, 1 nothing in common). It
takes classes as well as bins of numbers, is finite where a bin is empty (a population stability index is not), and has
one scale for all. Small samples of one distribution differ too: a G-test tells whether these would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

EXAMPLES = 20
"""Data rows remembered for each bin."""

CHANCE_Z = 4.75
"""Standard deviations of one in a million: a run of a thousand slices asks a few thousand times."""

Counts = Mapping[str, int]


@dataclass(slots=True)
class Histogram:
    """Bin -> count, and some data rows of each bin."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, label: str, count: int, global_keys: Iterable[str] = ()) -> None:
        """Count things in a bin."""
        self.counts[label] += count
        known = self.examples.setdefault(label, [])
        known.extend(key for key in global_keys if len(known) < EXAMPLES)

    def merge(self, other: Histogram) -> None:
        """Take in what another has counted."""
        for label, count in other.counts.items():
            self.add(label, count, other.examples.get(label, ()))


def distance(now: Counts, then: Counts) -> float:
    """Jensen-Shannon distance of two distributions, 0 to 1. 0 where either has nothing counted."""
    if not (sum(now.values()) and sum(then.values())):
        return 0.0
    p, q = _shares(now), _shares(then)
    middle = {label: (p.get(label, 0.0) + q.get(label, 0.0)) / 2 for label in {**p, **q}}
    bits = (_divergence(p, middle) + _divergence(q, middle)) / 2
    return math.sqrt(min(max(bits, 0.0), 1.0))


def beyond_chance(now: Counts, then: Counts, now_size: int, then_size: int) -> bool:
    """True where two samples of one distribution, of these sizes, would differ so less than once in a million times.

    The sizes are of what is independent: boxes of one picture are alike, so there are at most as many as pictures.
    """
    p, q = _shares(now), _shares(then)
    labels = {label for label in {**p, **q} if p.get(label) or q.get(label)}
    if not (p and q and now_size and then_size) or len(labels) < 2:
        return False
    weight = now_size / (now_size + then_size)
    middle = {label: weight * p.get(label, 0.0) + (1 - weight) * q.get(label, 0.0) for label in labels}
    bits = now_size * _divergence(p, middle) + then_size * _divergence(q, middle)
    return 2 * math.log(2) * bits > _chi_square_quantile(len(labels) - 1)


def _shares(counts: Counts) -> dict[str, float]:
    total = sum(counts.values())
    return {label: count / total for label, count in counts.items()} if total else {}


def _divergence(p: Mapping[str, float], middle: Mapping[str, float]) -> float:
    """Kullback-Leibler divergence from `middle`, in bits. Summed in an order that both directions share."""
    return math.fsum(share * math.log2(share / middle[label]) for label, share in p.items() if share)


def _chi_square_quantile(freedom: int) -> float:
    """By Wilson and Hilferty's cube of a normal variable."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + CHANCE_Z * math.sqrt(part)) ** 3


@dataclass(frozen=True, slots=True)
class Shift:
    """A distribution against an earlier one. `sizes` are (now, then), of what is independent."""

    now: Histogram
    then: Counts
    sizes: tuple[int, int]

    @property
    def distance(self) -> float:
        """0 the same, 1 nothing in common; chance included."""
        return distance(self.now.counts, self.then)

    @property
    def telling(self) -> float:
        """The distance, where chance does not explain it; else 0."""
        return self.distance if beyond_chance(self.now.counts, self.then, *self.sizes) else 0.0

    def movers(self) -> list[tuple[str, float, float]]:
        """(bin, share then, share now), the greatest change first."""
        p, q = _shares(self.now.counts), _shares(self.then)
        moved = [(label, q.get(label, 0.0), p.get(label, 0.0)) for label in sorted({**p, **q})]
        return sorted(moved, key=lambda row: -abs(row[2] - row[1]))
