"""Which data rows a preview takes: some of every kind of row there is, the same ones for the same seed.

Memory holds the sample, not the dataset.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from foundry_pipeline.data_rows import DataRow

SIZE_STEP = 4
"""Rows whose size differs by less than this factor are of one kind."""
MOST_STRATA = 200


@dataclass(frozen=True, slots=True)
class Sampled:
    """A data row of the sample, its slice, and the kind of row that it stands for."""

    slice_key: str
    row: DataRow
    stratum: str


def stratum_of(column: str | None) -> Callable[[DataRow], str]:
    """Row -> its kind: the metadata column's value, or else content type, shape and order of magnitude of its size."""
    if column is not None:
        return lambda row: f"{column}={row.metadata.get(column, '')}"
    return _kind_of


def stratified(
    rows: Iterable[tuple[str, DataRow]], count: int, seed: int, kind_of: Callable[[DataRow], str] = lambda _: ""
) -> list[Sampled]:
    """At most `count` of the (slice key, data row) pairs: one of each kind, then a second of each, and so on.

    Within a kind the order is a random one that `seed` fixes, whatever the order of `rows`. Frequent kinds come first
    where there are more kinds than places; beyond `MOST_STRATA` kinds, new ones count as one.
    """
    strata: dict[str, _Stratum] = {}
    for slice_key, row in rows:
        kind = kind_of(row)
        if kind not in strata and len(strata) >= MOST_STRATA:
            kind = "other"
        strata.setdefault(kind, _Stratum(count)).add(_draw(seed, row), Sampled(slice_key, row, kind))
    ordered = sorted(strata.items(), key=lambda item: (-item[1].seen, item[0]))
    taken = sorted(
        (rank, place, sampled)
        for place, (_, stratum) in enumerate(ordered)
        for rank, sampled in enumerate(stratum.first())
    )
    return [sampled for _, _, sampled in taken[:count]]


class _Stratum:
    """The first few rows of one kind, in the seed's order."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[int, int, Sampled]] = []
        self.seen = 0

    def add(self, draw: int, sampled: Sampled) -> None:
        self.seen += 1
        entry = (-draw, self.seen, sampled)  # a heap has its smallest first; ties by order of arrival
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, entry)
        elif self._kept and entry > self._kept[0]:
            heapq.heapreplace(self._kept, entry)

    def first(self) -> list[Sampled]:
        return [sampled for _, _, sampled in sorted(self._kept, reverse=True)]


def _draw(seed: int, row: DataRow) -> int:
    digest = hashlib.sha256(f"{seed}\x1f{row.global_key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8])


def _kind_of(row: DataRow) -> str:
    if row.width is None or row.height is None:
        return f"{row.mime_type or row.media_type}, {_magnitude(len(row.row_data))}"
    shape = "square" if row.width == row.height else "wide" if row.width > row.height else "tall"
    return f"{row.mime_type or row.media_type}, {shape}, {_magnitude(row.width * row.height)}"


def _magnitude(size: int) -> str:
    step = 1
    while step * SIZE_STEP <= size:
        step *= SIZE_STEP
    return f"{step} or more"
