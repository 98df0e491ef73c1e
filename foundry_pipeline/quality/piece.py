"""One slice of a prediction table as the checks look at it: few columns, in polars, read in bounded batches.

A mask's run lengths and a polygon's points are kept as a hash: equal geometry has equal hashes, and a slice of masks
is not held in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow.parquet as pq

from foundry_pipeline.home import Run
from foundry_pipeline.store import Store, reading
from foundry_pipeline.tables import (
    BOXES,
    CLASSIFICATIONS,
    EDGES,
    ENTITIES,
    LINES,
    MASKS,
    POINTS,
    POLYGONS,
    RESPONSES,
    TableSpec,
)

BATCH_ROWS = 8192

GEOMETRY: Mapping[str, tuple[str, ...]] = {
    BOXES.name: ("left", "top", "width", "height"),
    MASKS.name: ("size_h", "size_w", "counts"),
    POLYGONS.name: ("points",),
    LINES.name: ("points",),
    POINTS.name: ("x", "y"),
    EDGES.name: ("source_id", "target_id", "type"),
    ENTITIES.name: ("start", "end"),
}
"""Table -> the columns that say where a prediction is. A table that is not here has no places."""

_BOX = ["left", "top", "width", "height", "image_width", "image_height"]
_WHO = ["global_key", "feature", "score"]
_WHERE = ["frame", "message_id"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice. `predictions` has global_key, feature, label, score and, in tables with places, group and place:
    hashes of what must be equal for two predictions to be about one thing (data row, feature, frame, message), and of
    that with the geometry. Boxes have their numbers too. `watched` are the whole rows of some data rows."""

    slice_key: str
    predictions: pl.DataFrame
    asked: frozenset[str]
    """Global keys of the data rows that have a response."""
    answered: frozenset[str]
    """Those of them that have a good answer."""
    watched: pl.DataFrame


def pieces(run: Run, store: Store, spec: TableSpec, watched: Collection[str] = ()) -> Iterator[Piece]:
    """The run's table, slice by slice. Raises StorageError where a file is damaged."""
    for slice_key in store.slices(spec, run.name):
        file = store.open(spec, run.name, slice_key)
        if file is None:
            continue
        with file, reading(store.path(spec, run.name, slice_key)):
            predictions, rows = _read(file, spec, watched)
        yield Piece(slice_key, predictions, *_asked(run, store, slice_key), rows)


def _read(file: pq.ParquetFile, spec: TableSpec, watched: Collection[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    whole = spec.schema.names if watched else list(dict.fromkeys((*_WHO, *_WHERE, *_needed(spec))))
    compact, rows = [], []
    for batch in file.iter_batches(BATCH_ROWS, columns=whole):
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        compact.append(_compact(frame, spec))
        if watched:
            rows.append(frame.filter(pl.col("global_key").is_in(list(watched))))
    none = pl.from_arrow(spec.schema.empty_table())
    assert isinstance(none, pl.DataFrame)
    return pl.concat([_compact(none, spec), *compact]), pl.concat([none.select(whole), *rows], how="diagonal")


def _needed(spec: TableSpec) -> tuple[str, ...]:
    """Columns beside those that every table has."""
    if spec is BOXES:
        return tuple(_BOX)
    return ("answer",) if spec is CLASSIFICATIONS else GEOMETRY.get(spec.name, ())


def _compact(frame: pl.DataFrame, spec: TableSpec) -> pl.DataFrame:
    label = pl.concat_str("feature", pl.lit(": "), "answer") if spec is CLASSIFICATIONS else pl.col("feature")
    columns = [*map(pl.col, _WHO), label.alias("label")]
    if spec.name in GEOMETRY:
        same = ["global_key", "feature", *_WHERE]
        columns += [pl.struct(same).hash().alias("group"), pl.struct(*same, *GEOMETRY[spec.name]).hash().alias("place")]
    return frame.select(*columns, *(_BOX if spec is BOXES else ()))


def _asked(run: Run, store: Store, slice_key: str) -> tuple[frozenset[str], frozenset[str]]:
    """(asked, answered). A data row with several responses has a good answer where all of them are good."""
    table = store.read(RESPONSES, run.name, slice_key, ["global_key", "outcome"])
    if table is None:
        return frozenset(), frozenset()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    by_row = frame.group_by("global_key").agg(good=(pl.col("outcome") == "ok").all())
    return frozenset(by_row["global_key"]), frozenset(by_row.filter("good")["global_key"])
