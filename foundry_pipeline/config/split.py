"""`split` of a run: which share of the data rows is for training, for validation and for testing.

A row's part depends on its global key and the shares alone, so that it is the same in every export, of every run and
model, and stays when the dataset grows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from foundry_pipeline.config.fields import Block, number, refuse, seen
from foundry_pipeline.config.yaml_source import Findings, Item

PARTS = ("train", "val", "test")
"""In this order they lie on the range that keys are hashed to."""


@dataclass(frozen=True, slots=True)
class Split:
    """Shares by part: those of `PARTS` that have some, in that order. They add up to 1."""

    shares: Mapping[str, float]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that may have rows."""
        return tuple(self.shares)

    def part_of(self, global_key: str) -> str:
        """The part of a data row: where the first 8 bytes of its key's sha256, as a share of 1, fall."""
        place = int.from_bytes(hashlib.sha256(global_key.encode()).digest()[:8]) / 2**64
        ends = zip(self.shares, accumulate(self.shares.values()), strict=True)
        return next((part for part, end in ends if place < end), self.parts[-1])


_share = number(least=0, most=1)


def read_split(item: Item, found: Findings) -> Split | None:
    """`{train: 0.8, val: 0.1, test: 0.1}`; a part that is left out has no rows."""
    if not isinstance(item.value, Mapping):
        refuse(item, found, f"expected a mapping (`train: 0.8`); got {seen(item)}")
        return None
    block, before = Block(item.value, item, found), len(found.problems)
    shares = block.given(dict.fromkeys(PARTS, _share))
    block.close()
    if len(found.problems) > before:
        return None
    if not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-6):
        refuse(item, found, f"expected shares of train, val and test that add up to 1; got {total:g}")
        return None
    return Split({part: share for part, share in shares.items() if share})
