"""What is known of a slice's rows: which need a call, and where the answers of the others are.

A row is one of `responses`: a data row, or one of the parts of it that are asked about (`asks.py`). A slice may have a
million rows, so a row takes a few dozen bytes here, and no object. Rows are numbered from 0 in the slice's order; rows
with the same request share one call, which is the first such row's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from foundry_pipeline.tables import OUTCOMES

NONE = -1
GOOD = ("ok", "rejected_by_model")
"""Outcomes that say what the model thinks of the row."""

Ids: TypeAlias = npt.NDArray[np.bytes_]
Numbers: TypeAlias = npt.NDArray[np.int32]
Codes: TypeAlias = npt.NDArray[np.int8]
"""Places in OUTCOMES, or NONE."""
Picked: TypeAlias = npt.NDArray[np.bool_]

_ID_BYTES = 32


class EarlierAnswers:
    """call id -> place and outcome of answers that were there before. Places count from 0 in the order given."""

    def __init__(self, answers: Iterable[tuple[str, str]] = ()) -> None:
        """`answers` are (call id, outcome)."""
        ids, codes = bytearray(), bytearray()
        for call_id, outcome in answers:
            ids += bytes.fromhex(call_id)
            codes.append(OUTCOMES.index(outcome))
        self.ids = ids_of(ids)
        self._codes = np.frombuffer(codes, np.int8)
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]

    def places(self, ids: Ids) -> Numbers:
        """Where each call's answer is; NONE where there is none."""
        if not len(self.ids):
            return np.full(len(ids), NONE, np.int32)
        at = np.minimum(np.searchsorted(self._sorted, ids), len(self.ids) - 1)
        return np.where(self._sorted[at] == ids, self._order[at], NONE).astype(np.int32)

    def good_without(self, ids: Ids) -> Numbers:
        """Places of good answers to other calls than these, each call once."""
        is_first = np.zeros(len(self.ids), bool)
        is_first[np.unique(self.ids, return_index=True)[1]] = True
        is_good = np.isin(self._codes, _codes(GOOD))
        return np.flatnonzero(is_good & is_first & ~np.isin(self.ids, ids)).astype(np.int32)

    def outcomes(self, places: Numbers) -> Codes:
        """The outcomes at these places; NONE for NONE."""
        if not len(self.ids):
            return np.full(len(places), NONE, np.int8)
        return np.where(places == NONE, NONE, self._codes[places]).astype(np.int8)


@dataclass(slots=True)
class Plan:
    """The rows of a slice, an array for each fact.

    `places` are those of the rows' data rows in the slice's file, ascending; the same one for each row about a data
    row. `committed_at` is the place of an answer in the committed
    `responses`, NONE where it is, or will be, in the ledger. `kept` is the outcome of an answer that stands without a
    call. `good_at` is the place of a committed good answer to the same request: it stays where a refresh fails.
    `settled` is the outcome of the call that was made now, at its first row.
    """

    places: Numbers
    ids: Ids
    first: Numbers
    committed_at: Numbers
    good_at: Numbers
    kept: Codes
    settled: Codes

    @classmethod
    def of(
        cls,
        places: Numbers,
        ids: Ids,
        committed: EarlierAnswers,
        in_ledger: EarlierAnswers,
        keeps: Callable[[str], bool],
        settled: EarlierAnswers | None = None,
    ) -> Plan:
        """The ledger's answers are newer than the committed ones; of both, those that `keeps` says are kept stand.

        `settled` are calls that were made now already, where the rows are planned again.
        """
        at = committed.places(ids)
        outcome = committed.outcomes(at)
        newer = in_ledger.outcomes(in_ledger.places(ids))
        kept_codes = [code for code, name in enumerate(OUTCOMES) if keeps(name)]
        from_ledger = np.isin(newer, kept_codes)
        from_file = ~from_ledger & np.isin(outcome, kept_codes)
        first = _first_with_same(ids)
        made = np.full(len(ids), NONE, np.int8) if settled is None else settled.outcomes(settled.places(ids))
        made[first != np.arange(len(ids))] = NONE
        return cls(
            places=places,
            ids=ids,
            first=first,
            committed_at=np.where(from_file, at, NONE).astype(np.int32),
            good_at=np.where(np.isin(outcome, _codes(GOOD)), at, NONE).astype(np.int32),
            kept=np.where(from_ledger, newer, np.where(from_file, outcome, NONE)).astype(np.int8),
            settled=made,
        )

    def __len__(self) -> int:
        return len(self.places)

    def call_id(self, row: int) -> str:
        """Hexadecimal."""
        return self.ids[row : row + 1].tobytes().hex()

    @property
    def needs_call(self) -> Picked:
        """True at the first row of every call that is to be made."""
        needs: Picked = (self.kept == NONE) & (self.settled == NONE) & self._is_first
        return needs

    @property
    def _is_first(self) -> Picked:
        is_first: Picked = self.first == np.arange(len(self))
        return is_first

    def calls_made(self) -> EarlierAnswers:
        """The calls that were made now."""
        made = np.flatnonzero(self.settled != NONE)
        return EarlierAnswers((self.call_id(row), OUTCOMES[self.settled[row]]) for row in made.tolist())

    def rows_of(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """The rows about each of some data rows, as (first, first behind)."""
        begins, ends = (np.searchsorted(self.places, places, side) for side in ("left", "right"))
        return begins.astype(np.int32), ends.astype(np.int32)

    def rows_sharing(self) -> Numbers:
        """At the first row of a call, the rows that wait for its answer; 0 elsewhere."""
        return np.bincount(self.first, minlength=len(self)).astype(np.int32)

    def final(self) -> Codes:
        """Every row's outcome, as it would be committed now; NONE where it has none."""
        now = np.where(self._stays, _codes(("ok",))[0], self._now)
        return np.where(self.kept != NONE, self.kept, now).astype(np.int8)

    @property
    def older_stays(self) -> int:
        """Rows whose new call failed, so that the good answer they had stays."""
        return int(np.count_nonzero(self._stays & (self.kept == NONE)))

    @property
    def _now(self) -> Codes:
        """Every row's outcome of the call that is made now."""
        return self.settled[self.first] if len(self) else self.settled

    @property
    def _stays(self) -> Picked:
        now = self._now
        stays: Picked = (self.good_at != NONE) & (now != NONE) & ~np.isin(now, _codes(GOOD))
        return stays

    def outcomes(self) -> Counter[str]:
        """Outcome -> rows that have it so far."""
        final = self.final()
        return Counter({name: int(np.count_nonzero(final == code)) for code, name in enumerate(OUTCOMES)})

    def count(self, outcome: str) -> int:
        """Rows with this outcome so far."""
        return int(np.count_nonzero(self.final() == OUTCOMES.index(outcome)))

    def call_ids(self, picked: Picked) -> Iterator[str]:
        """The calls of these rows, each once where rows with the same call are picked together."""
        return (self.call_id(int(row)) for row in np.flatnonzero(picked & self._is_first))


def ids_of(joined: bytes | bytearray) -> Ids:
    """An array of call ids from their bytes, 32 each."""
    return np.frombuffer(joined, f"S{_ID_BYTES}")


def _first_with_same(ids: Ids) -> Numbers:
    """For every row the first row with its id."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    is_new = np.ones(len(ids), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    first = np.empty(len(ids), np.int32)
    first[order] = order[np.flatnonzero(is_new)[np.cumsum(is_new) - 1]] if len(ids) else order
    return first


def _codes(outcomes: Iterable[str]) -> list[int]:
    return [OUTCOMES.index(outcome) for outcome in outcomes]
