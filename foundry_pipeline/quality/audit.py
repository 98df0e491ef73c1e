"""Counts over a run's committed responses, slice by slice: what `answers.py` judges. One slice in memory at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow.compute as pc

from foundry_pipeline.asks import calls_of_slice
from foundry_pipeline.calls.tally import Tally, Unanswered
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.quality.finding import Worst
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, RESPONSES, TableSpec

ROWS_NAMED = 20


@dataclass(slots=True)
class Answers:
    """Data rows against responses. `missing` are slices without responses, `unequal` those with other rows or calls.

    `outcomes` counts calls: one a data row, but several where a video or conversation takes several.
    """

    slices: int = 0
    rows: int = 0
    calls: int = 0
    """What the data rows take, as far as it is known without reading conversations."""
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    failures: Tally = field(default_factory=Tally)
    """The failed rows alone: by code, with an example of each."""
    answered: int = 0
    """Data rows that have a response, or several."""
    strangers: int = 0
    """Data rows that should have a response and have none, or the other way round, where the slice has responses."""
    worst: list[Worst] = field(default_factory=list)
    """The first of them."""
    worst_slice: tuple[float, str] = (0.0, "")
    """The greatest share of failed rows, and whose it is."""

    @property
    def failed_share(self) -> float:
        """Of the calls that have an outcome."""
        return self.outcomes["failed"] / max(self.outcomes.total(), 1)


def audit_answers(run: Run, store: Store) -> Answers:
    """Compare every slice of the dataset with the run's responses."""
    found = Answers()
    for slice_key in store.slices(DATA_ROWS, run.dataset.name):
        answered = store.read(RESPONSES, run.name, slice_key, ["global_key", "outcome"])
        asked = calls_of_slice(run, store, slice_key)
        found.slices += 1
        found.rows += store.row_count(DATA_ROWS, run.dataset.name, slice_key)
        found.calls += asked
        if answered is None:
            found.missing.append(slice_key)
            continue
        # How many turns a conversation has, only reading it tells; that each has a call at least can be seen.
        calls_agree = answered.num_rows >= asked if run.generate else answered.num_rows == asked
        if not _same_rows(found, run, store, slice_key, set(answered["global_key"].to_pylist())) or not calls_agree:
            found.unequal.append(slice_key)
        outcomes = Counter(answered["outcome"].to_pylist())
        found.outcomes.update(outcomes)
        if outcomes["failed"]:
            found.worst_slice = max(found.worst_slice, (outcomes["failed"] / outcomes.total(), slice_key))
            for record in _failed_rows(run, store, slice_key):
                found.failures.add(record)
    return found


def _same_rows(found: Answers, run: Run, store: Store, slice_key: str, answered: set[str]) -> bool:
    """True where exactly the slice's data rows have a response. A data row may have several: it counts once."""
    table = store.read(DATA_ROWS, run.dataset.name, slice_key, ["global_key"])
    asked = set() if table is None else set(table["global_key"].to_pylist())
    unlike = [Worst(key, "has no response") for key in sorted(asked - answered)]
    unlike += [Worst(key, "has a response and is no data row") for key in sorted(answered - asked)]
    found.answered += len(answered)
    found.strangers += len(unlike)
    found.worst += unlike[: ROWS_NAMED - len(found.worst)]
    return not unlike


def _failed_rows(run: Run, store: Store, slice_key: str) -> list[Unanswered]:
    columns = ["global_key", "outcome", "error", "http_status", "attempts", "message"]
    table = store.read(RESPONSES, run.name, slice_key, columns)
    failed = [] if table is None else table.filter(pc.equal(table["outcome"], "failed")).to_pylist()
    return [
        Unanswered(r["global_key"], r["outcome"], r["error"] or "", r["http_status"], r["attempts"], r["message"] or "")
        for r in failed
    ]


def damaged_files(run: Run, store: Store, spec: TableSpec) -> dict[str, str]:
    """Slice key -> what is wrong with its file. Reads all of every file."""
    found = {}
    for slice_key in store.slices(spec, run.name):
        try:
            if store.check_intact(spec, run.name, slice_key) is None:
                store.read(spec, run.name, slice_key)
        except StorageError as err:
            found[slice_key] = str(err)
    return found


def total_rows(run: Run, store: Store, spec: TableSpec) -> int:
    """Rows of one of the run's tables, all slices together."""
    return sum(store.row_count(spec, run.name, slice_key) for slice_key in store.slices(spec, run.name))
