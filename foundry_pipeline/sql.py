"""Questions to the warehouse in SQL, answered by DuckDB (the optional extra `sql`).

Owns which names a query may use: every table of `tables.py` under its own name, over all runs, datasets and slices,
and a few views. A table that nobody has written yet is there, empty. A question calls no model and changes no table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa

from foundry_pipeline.errors import ConfigError, Problem
from foundry_pipeline.store import Store, owner_column
from foundry_pipeline.tables import PREDICTION_TABLES, TABLES, TableSpec

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH_ROWS = 10_000
_COMMON = "run, model, dataset, data_row_id, global_key, prediction_id, feature, score, frame, message_id, call_id"

VIEWS = {
    "failed_rows": "select run, global_key, outcome, error, http_status, attempts, message, frames, message_id"
    " from responses where outcome <> 'ok'",
    "predictions": " union all ".join(
        f"select '{spec.name}' as \"table\", {_COMMON} from {spec.name}"  # noqa: S608
        for spec in PREDICTION_TABLES
    ),
}
"""View -> its query: the calls without a good answer; the columns that all prediction tables share."""


class Questions:
    """The warehouse's tables as DuckDB views. A context manager."""

    def __init__(self, store: Store) -> None:
        """Raises ConfigError where DuckDB is not installed."""
        try:
            import duckdb
        except ImportError:
            raise ConfigError([Problem("sql", "needs DuckDB: pip install 'foundry-pipeline[sql]'")]) from None
        self._error: type[Exception] = duckdb.Error
        self._connection: DuckDBPyConnection = duckdb.connect(":memory:")
        self._connection.execute("set autoinstall_known_extensions = false")  # a question fetches no code
        for spec in TABLES.values():
            self._add(store, spec)
        for name, query in VIEWS.items():
            self._connection.execute(f"create view {name} as {query}")

    def __enter__(self) -> Questions:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, query: str) -> pa.RecordBatchReader:
        """The answer, read while it is consumed. Raises ConfigError with DuckDB's words where the query is wrong."""
        try:
            answer = self._connection.sql(query)
            if answer is not None:
                return answer.to_arrow_reader(BATCH_ROWS)
        except self._error as err:
            raise ConfigError([Problem("sql", str(err))]) from None
        raise ConfigError([Problem("sql", "expected a query that gives rows")])

    def _add(self, store: Store, spec: TableSpec) -> None:
        """The owner's column first, so that `select *` begins with the run."""
        self._connection.register(f"{spec.name}_files", store.scan(spec))
        columns = ", ".join(f'"{name}"' for name in dict.fromkeys((owner_column(spec), *spec.schema.names)))
        self._connection.execute(f"create view {spec.name} as select {columns} from {spec.name}_files")  # noqa: S608


def write_csv(answer: pa.RecordBatchReader, out: TextIO) -> None:
    """A header, then a line a row; lists and structs as JSON, null as nothing."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(answer.schema.names)
    writer.writerows([_cell(value) for value in row.values()] for row in _rows(answer))


def write_json(answer: pa.RecordBatchReader, out: TextIO) -> None:
    """One JSON object a line."""
    for row in _rows(answer):
        print(json.dumps(row, ensure_ascii=False, default=str), file=out)


def write_table(answer: pa.RecordBatchReader, out: TextIO) -> None:
    """For people: aligned columns, long values cut, and how many rows there are."""
    import polars as pl

    frame = pl.DataFrame(answer.read_all())
    with pl.Config(tbl_rows=50, tbl_cols=-1, fmt_str_lengths=60, tbl_width_chars=200) as shown:
        shown.set_tbl_formatting("MARKDOWN").set_tbl_hide_dataframe_shape().set_tbl_hide_column_data_types()
        print(frame, file=out)
    print(f"{frame.height} rows", file=out)


WRITERS = {"table": write_table, "csv": write_csv, "json": write_json}


def _rows(answer: pa.RecordBatchReader) -> Iterator[dict[str, Any]]:
    for batch in answer:
        yield from batch.to_pylist()


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value
