"""Canary rows: data rows whose answers must not change, and the answers that they gave first.

What is kept is one JSON file a table in the warehouse, `quality/run=<run>/<table>.canaries.json`: for each row its
predictions. It is never overwritten by a later answer; `foundry-pipeline accept` takes it away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from foundry_pipeline.config.checks_source import CanaryRule
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.quality.drift import quality_folder
from foundry_pipeline.quality.finding import WORST_ROWS, Finding, Worst, counted, plain
from foundry_pipeline.quality.piece import Piece
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TableSpec

CANARIES = "canary_rows"

_PASSING = {
    "run", "model", "dataset", "data_row_id", "global_key", "prediction_id", "call_id",
    "index", "parent_id", "source_id", "target_id", "image_width", "image_height", "counts",
}  # fmt: skip
"""What an equal answer may differ in: ids, the order of the reply, and a mask's very pixels."""

Prediction = Mapping[str, Any]
Answers = Mapping[str, Sequence[Prediction]]


@dataclass(slots=True)
class Canaries:
    """The canary rows of one table. `kept` are the first answers, `now` the present ones. `complete`: all slices of
    the dataset have the table, so that a row that is in none is no data row."""

    rule: CanaryRule
    kept: Answers
    complete: bool
    now: dict[str, list[Prediction]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    """Rows that were asked and have no good answer."""

    @classmethod
    def of(cls, run: Run, store: Store, spec: TableSpec, *, complete: bool) -> Canaries:
        """With what was kept of the run's canary rows."""
        return cls(run.checks.canary_rows, _read(store, run.name, spec.name), complete)

    def add(self, piece: Piece) -> None:
        """Take in a slice."""
        self.silent.update(key for key in self.rule.rows if key in piece.asked - piece.answered)
        for key in self.rule.rows:
            if key in piece.answered:
                rows = piece.watched.filter(pl.col("global_key") == key)
                self.now[key] = [_comparable(record) for record in rows.to_dicts()]

    def finding(self) -> Finding:
        """The share of canary rows whose answer is another one, or that have none."""
        changed = [worst for key in self.rule.rows if (worst := self._change(key)) is not None]
        rows = len(self.rule.rows)
        words = f"{len(changed):,} of {counted(rows, 'canary row')} changed" + (
            f": {plain(changed[0].global_key)}: {changed[0].why}" if changed else ""
        )
        facts = {"canary_rows": rows, "changed": len(changed), "kept": len(self.kept)}
        return Finding(CANARIES, self.rule, len(changed) / max(rows, 1), words, tuple(changed[:WORST_ROWS]), facts)

    def _change(self, key: str) -> Worst | None:
        if key in self.silent:
            return Worst(key, "has no good answer")
        if key not in self.now and self.complete:
            return Worst(key, "is no data row of the dataset")
        if key not in self.now or key not in self.kept:
            return None
        before, after = self.kept[key], self.now[key]
        same = _matched(before, after, self.rule)
        if same == len(before) == len(after):
            return None
        return Worst(key, f"{len(before) - same} of {counted(len(before), 'prediction')} gone, {len(after) - same} new")

    def fresh(self) -> Answers:
        """All first answers: those that were kept, and those of rows that had none yet."""
        return {**self.now, **self.kept}


def keep_canaries(store: Store, run: str, table: str, canaries: Canaries) -> None:
    """Keep the first answers of rows that have none kept yet."""
    if canaries.fresh() != canaries.kept:
        content = json.dumps(canaries.fresh(), ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        store.write_file(_name(run, table), content.encode("utf-8", "surrogatepass"))


def _name(run: str, table: str) -> str:
    return f"{quality_folder(run)}/{table}.canaries.json"


def _read(store: Store, run: str, table: str) -> Answers:
    content = store.read_file(_name(run, table))
    if content is None:
        return {}
    try:
        kept = json.loads(content)
        return {str(key): [dict(prediction) for prediction in predictions] for key, predictions in kept.items()}
    except (ValueError, TypeError, AttributeError) as err:
        where = f"{store.root}/{_name(run, table)}"
        raise StorageError(f"{where}: damaged: {err}; `foundry-pipeline accept {run}` takes it away") from err


def _comparable(record: Mapping[str, Any]) -> Prediction:
    return {name: value for name, value in record.items() if name not in _PASSING}


def _matched(before: Sequence[Prediction], after: Sequence[Prediction], rule: CanaryRule) -> int:
    """The most pairs of equal predictions, each in one pair: augmenting paths, so that no order of theirs matters."""
    partner: dict[int, int] = {}

    def find(one: int, tried: set[int]) -> bool:
        for other, prediction in enumerate(after):
            if other in tried or not _same(before[one], prediction, rule):
                continue
            tried.add(other)
            if other not in partner or find(partner[other], tried):
                partner[other] = one
                return True
        return False

    return sum(find(one, set()) for one in range(len(before)))


def _same(one: Prediction, other: Prediction, rule: CanaryRule) -> bool:
    """By the columns that both have: what was kept before a table had a column says nothing of it."""
    return all(_close(name, value, other[name], one, rule) for name, value in one.items() if name in other)


def _close(name: str, one: Any, other: Any, prediction: Prediction, rule: CanaryRule) -> bool:
    """Numbers within their tolerance, all else equal. An area may change as its outline moves by the tolerance."""
    if name == "points" and len(one) == len(other):
        return all(
            abs(p[axis] - q[axis]) <= rule.pixel_tolerance for p, q in zip(one, other, strict=True) for axis in p
        )
    if name == "score" and one is not None and other is not None:
        return bool(abs(one - other) <= rule.score_tolerance)
    if name == "area":
        return bool(abs(one - other) <= rule.pixel_tolerance * 2 * (prediction["width"] + prediction["height"]))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= rule.pixel_tolerance
    return bool(one == other)
