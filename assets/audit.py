"""Counts over a run's committed tables, slice by slice: what the asset checks compare. No Dagster here."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from foundry_pipeline.calls.tally import Tally, Unanswered
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, REJECTS, RESPONSES, TableSpec

EDGE_PX = 1.0
"""A box may reach this far out of its picture: models round."""


@dataclass(slots=True)
class Answers:
    """Data rows against responses. `missing` are slices without responses, `unequal` those with other rows."""

    slices: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    failures: Tally = field(default_factory=Tally)
    """The failed rows alone: by code, with an example of each."""

    @property
    def failed_share(self) -> float:
        """Of the rows that have an outcome."""
        return self.outcomes["failed"] / max(self.outcomes.total(), 1)


@dataclass(slots=True)
class Outside:
    """Boxes that reach out of their picture. `of` counts the boxes whose picture's size is known."""

    of: int = 0
    boxes: int = 0
    worst_px: float = 0.0


@dataclass(slots=True)
class Scores:
    """Scores of one table; `wrong` are outside 0 to 1."""

    of: int = 0
    wrong: int = 0


def audit_answers(run: Run, store: Store) -> Answers:
    """Compare every slice of the dataset with the run's responses."""
    found = Answers()
    for slice_key in store.slices(DATA_ROWS, run.dataset.name):
        asked = row_count(store, DATA_ROWS, run.dataset.name, slice_key)
        answered = store.read(RESPONSES, run.name, slice_key, ["outcome"])
        found.slices += 1
        found.rows += asked
        if answered is None:
            found.missing.append(slice_key)
            continue
        if answered.num_rows != asked:
            found.unequal.append(slice_key)
        outcomes = Counter(answered["outcome"].to_pylist())
        found.outcomes.update(outcomes)
        if outcomes["failed"]:
            for record in _failed_rows(run, store, slice_key):
                found.failures.add(record)
    return found


def _failed_rows(run: Run, store: Store, slice_key: str) -> list[Unanswered]:
    columns = ["global_key", "outcome", "error", "http_status", "attempts", "message"]
    table = store.read(RESPONSES, run.name, slice_key, columns)
    failed = [] if table is None else table.filter(pc.equal(table["outcome"], "failed")).to_pylist()
    return [
        Unanswered(r["global_key"], r["outcome"], r["error"] or "", r["http_status"], r["attempts"], r["message"] or "")
        for r in failed
    ]


def audit_boxes(run: Run, store: Store) -> Outside:
    """How far boxes reach out of their pictures."""
    found = Outside()
    names = ["left", "top", "width", "height", "image_width", "image_height"]
    for _, table in store.read_all(BOXES, run.name, names):
        sized = table.filter(pc.and_(pc.is_valid(table["image_width"]), pc.is_valid(table["image_height"])))
        reach = _reach_px(sized)
        found.of += sized.num_rows
        found.boxes += pc.sum(pc.greater(reach, EDGE_PX)).as_py() or 0
        found.worst_px = max(found.worst_px, pc.max(reach).as_py() or 0.0)
    return found


def audit_scores(run: Run, store: Store, spec: TableSpec) -> Scores:
    """Scores of one of the run's tables."""
    found = Scores()
    for _, table in store.read_all(spec, run.name, ["score"]):
        scores = table["score"].drop_null()
        right = pc.and_(pc.greater_equal(scores, 0.0), pc.less_equal(scores, 1.0))
        found.of += len(scores)
        found.wrong += len(scores) - (pc.sum(right).as_py() or 0)
    return found


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
    return sum(row_count(store, spec, run.name, slice_key) for slice_key in store.slices(spec, run.name))


def row_count(store: Store, spec: TableSpec, owner: str, slice_key: str) -> int:
    """Rows of one file, read from its footer; 0 where there is none."""
    file = store.open(spec, owner, slice_key)
    if file is None:
        return 0
    with file:
        rows: int = file.metadata.num_rows
        return rows


def reject_reasons(run: Run, store: Store) -> Counter[str]:
    """Reason -> rejects."""
    reasons: Counter[str] = Counter()
    for _, table in store.read_all(REJECTS, run.name, ["reason"]):
        reasons.update(table["reason"].to_pylist())
    return reasons


def _reach_px(boxes: pa.Table) -> pa.ChunkedArray:
    return pc.max_element_wise(*_overhangs_px(boxes), 0.0)


def _overhangs_px(boxes: pa.Table) -> Iterator[pa.ChunkedArray]:
    yield pc.negate(boxes["left"])
    yield pc.negate(boxes["top"])
    yield pc.subtract(pc.add(boxes["left"], boxes["width"]), pc.cast(boxes["image_width"], pa.float64()))
    yield pc.subtract(pc.add(boxes["top"], boxes["height"]), pc.cast(boxes["image_height"], pa.float64()))
