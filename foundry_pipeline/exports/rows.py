"""Tables -> data rows with their predictions, in one fixed order, under the run's mapping and thresholds.

The order is that of the data rows; within a row that of the tables, then frame, the ontology's order of features, and
place in the reply. It depends neither on the order inside the tables nor on how the dataset is cut into slices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.exports.annotated import NOT_ASKED, AnnotatedRow, Prediction, Record
from foundry_pipeline.exports.tally import Loss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.orientation import displayed
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, PREDICTION_TABLES, RESPONSES, TableSpec, empty

ROWS_AT_ONCE = 100  # data rows as Python objects; the rest of the slice stays in Arrow, about ten times smaller
SAME_FOR_ALL = frozenset({"run", "model", "dataset", "data_row_id", "call_id"})


def annotated_rows(run: Run, store: Store, slice_key: str, tally: Tally) -> Iterator[AnnotatedRow]:
    """The slice's data rows in order, each with the predictions that mapping and thresholds let out.

    A prediction without a score passes every threshold; what is nested under one left out is left out with it.
    """
    data_rows = _read(store, DATA_ROWS, run.dataset.name, slice_key)
    keys = data_rows["global_key"].combine_chunks()
    outcomes = _outcomes(run, store, slice_key)
    tables = [_ordered(run, spec, _read(store, spec, run.name, slice_key), keys) for spec in PREDICTION_TABLES]
    for table in tables:
        _count_strays(run, table, tally)
    for first in range(0, len(keys), ROWS_AT_ONCE):
        stop = min(first + ROWS_AT_ONCE, len(keys))
        by_table = [(table.name, table.records(first, stop)) for table in tables]
        for place, row in enumerate(rows_of(data_rows.slice(first, stop - first))):
            of_calls = outcomes.get(row.global_key, [NOT_ASKED])
            outcome = "ok" if "ok" in of_calls else of_calls[0]
            unanswered = len(of_calls) - of_calls.count("ok") if len(of_calls) > 1 else 0
            records = [(name, upright(run, row, name, each)) for name, of_rows in by_table for each in of_rows[place]]
            split = None if run.split is None else run.split.part_of(row.global_key)
            annotated = AnnotatedRow(row, outcome, _trees(run, records, tally), unanswered, split)
            yield _annotated(run, annotated, tally)


@dataclass(frozen=True, slots=True)
class _Ordered:
    """A prediction table in the order of the data rows: those of row i are `table[starts[i]:starts[i + 1]]`.

    Behind the last come the predictions whose data row is not in the slice.
    """

    name: str
    table: pa.Table
    starts: Sequence[int]

    def records(self, first: int, stop: int) -> list[list[Record]]:
        """The records of the data rows first..stop, a list for each."""
        begin, end = self.starts[first], self.starts[stop]
        if begin == end:
            return [[]] * (stop - first)
        found: list[Any] = _records(self.table.slice(begin, end - begin))
        return [found[self.starts[i] - begin : self.starts[i + 1] - begin] for i in range(first, stop)]

    def strays(self) -> list[str]:
        """Features of the predictions whose data row is not in the slice."""
        features: list[str] = self.table["feature"].slice(self.starts[-1]).to_pylist()
        return features


def _records(table: pa.Table) -> list[Any]:
    """The table's rows as dicts; polars makes them several times faster than pyarrow."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.to_dicts()


def _read(store: Store, spec: TableSpec, owner: str, slice_key: str) -> pa.Table:
    columns = None if spec is DATA_ROWS else [name for name in spec.schema.names if name not in SAME_FOR_ALL]
    table = store.read(spec, owner, slice_key, columns)
    return empty(spec) if table is None else table


def _outcomes(run: Run, store: Store, slice_key: str) -> dict[str, list[str]]:
    """global key -> the outcomes of its calls, in order."""
    table = store.read(RESPONSES, run.name, slice_key, ["global_key", "outcome"])
    found: defaultdict[str, list[str]] = defaultdict(list)
    if table is not None:
        for key, outcome in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            found[key].append(outcome)
    return found


def _ordered(run: Run, spec: TableSpec, table: pa.Table, keys: pa.Array) -> _Ordered:
    ontology = run.model.ontology
    features = pa.array([feature.name for feature in ontology.features()] if ontology else [], pa.string())
    rank = {
        "row": pc.index_in(table["global_key"], value_set=keys),
        "frame": table["frame"],
        "ontology": pc.index_in(table["feature"], value_set=features),
        "feature": table["feature"],
        "index": table["index"],
        "id": table["prediction_id"],
    }
    order = pc.sort_indices(pa.table(rank), sort_keys=[(name, "ascending") for name in rank])
    if not np.array_equal(order, np.arange(table.num_rows)):  # as decoded they mostly are in order: save the copy
        table = table.take(order)
    counts = np.bincount(rank["row"].drop_null().to_numpy(), minlength=len(keys))
    return _Ordered(spec.name, table, [0, *np.cumsum(counts).tolist()])


def _count_strays(run: Run, table: _Ordered, tally: Tally) -> None:
    for model_class in table.strays():
        stray = Prediction(table.name, _name_of(run, model_class), {})
        tally.came[stray.feature] += 1
        tally.leave_out(stray, Loss.DATA_ROW_MISSING)


def upright(run: Run, row: DataRow, table: str, record: Record) -> Record:
    """What is let out is in the frame of the picture as displayed, whatever frame the model saw."""
    if run.model.exif != "keep" or row.exif_orientation is None or row.width is None or row.height is None:
        return record
    return displayed(table, record, row.exif_orientation, (row.width, row.height))


def _trees(run: Run, records: Iterable[tuple[str, Record]], tally: Tally) -> tuple[Prediction, ...]:
    """All predictions of one data row, nested ones under their parents; those without a parent there are lost."""
    found = [Prediction(table, _name_of(run, record["feature"]), record) for table, record in records]
    tally.came.update(prediction.feature for prediction in found)
    waiting: defaultdict[str | None, list[Prediction]] = defaultdict(list)
    for prediction in found:
        waiting[prediction.values.get("parent_id")].append(prediction)
    top = _under(None, waiting)
    for orphans in waiting.values():
        tally.leave_out_all(orphans, Loss.PARENT_LEFT_OUT)
    return top


def _under(parent_id: str | None, waiting: dict[str | None, list[Prediction]]) -> tuple[Prediction, ...]:
    return tuple(_with_nested(prediction, waiting) for prediction in waiting.pop(parent_id, ()))


def _with_nested(prediction: Prediction, waiting: dict[str | None, list[Prediction]]) -> Prediction:
    nested = _under(prediction.values["prediction_id"], waiting) if waiting else ()
    return replace(prediction, nested=nested) if nested else prediction


def _annotated(run: Run, found: AnnotatedRow, tally: Tally) -> AnnotatedRow:
    """Only what the run lets out. A row that was not answered has no predictions, whatever older tables hold."""
    tally.outcomes[found.outcome] += 1
    tally.calls_unanswered += found.calls_unanswered
    if not found.answered:
        tally.leave_out_all(found.predictions, Loss.ROW_NOT_ANSWERED)
        return replace(found, predictions=())
    let_out = replace(found, predictions=_let_out(run, found.predictions, tally))
    tally.rows_with_predictions += bool(let_out.predictions)
    return let_out


def _let_out(run: Run, predictions: Iterable[Prediction], tally: Tally) -> tuple[Prediction, ...]:
    kept = []
    for prediction in predictions:
        if why := _held_back(run, prediction):
            tally.leave_out(prediction, why)
        elif prediction.nested:
            kept.append(replace(prediction, nested=_let_out(run, prediction.nested, tally)))
        else:
            kept.append(prediction)
    return tuple(kept)


def _held_back(run: Run, prediction: Prediction) -> Loss | None:
    if run.feature_of(prediction.values["feature"]) is None:
        return Loss.MAPPED_TO_NULL
    score = prediction.values["score"]
    if score is not None and score < run.min_score.of(prediction.feature):
        return Loss.BELOW_MIN_SCORE
    return None


def _name_of(run: Run, model_class: str) -> str:
    """Your feature, or the model's class where the run leaves it out: counts need a name for it."""
    return run.feature_of(model_class) or model_class
