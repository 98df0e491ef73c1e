"""Which columns a prediction table's columns come from, for the catalogue: `dagster/column_lineage`."""

from collections.abc import Mapping, Sequence

import dagster as dg

from assets.keys import data_rows_key, responses_key
from foundry_pipeline.home import Run
from foundry_pipeline.tables import BOXES, DATA_ROWS, ENTITIES, RESPONSES, TableSpec

Sources = Sequence[tuple[TableSpec, str]]

_ROW: Sources = [(DATA_ROWS, "data_row_id")]
_KEY: Sources = [(DATA_ROWS, "global_key")]
_REPLY: Sources = [(RESPONSES, "reply")]

_OF_THE_RUN = {"run", "model", "dataset"}
"""These come from files a person wrote, and from no column."""

_OF_RESPONSES: Mapping[str, Sources] = {
    "data_row_id": _ROW,
    "global_key": _KEY,
    "call_id": [(DATA_ROWS, "row_data"), (DATA_ROWS, "content_sha256")],
    "reply": [(DATA_ROWS, "row_data")],
}
_OF_PREDICTIONS: Mapping[str, Sources] = {
    "data_row_id": [(RESPONSES, "data_row_id")],
    "global_key": [(RESPONSES, "global_key")],
    "call_id": [(RESPONSES, "call_id")],
    "prediction_id": [(RESPONSES, "global_key"), *_REPLY],
}
_OF_TABLES: Mapping[str, Mapping[str, Sources]] = {
    BOXES.name: {"image_width": [(DATA_ROWS, "width")], "image_height": [(DATA_ROWS, "height")]},
    ENTITIES.name: {name: [*_REPLY, (DATA_ROWS, "row_data")] for name in ("start", "end", "text", "anchor")},
}


def column_lineage(run: Run, spec: TableSpec) -> dg.TableColumnLineage:
    """Of responses or of a table that is decoded from them: what is not said otherwise stands in the reply."""
    keys = {DATA_ROWS.name: data_rows_key(run.dataset.name), RESPONSES.name: responses_key(run.name)}
    return dg.TableColumnLineage(
        {
            column: [dg.TableColumnDep(keys[source.name], name) for source, name in sources]
            for column, sources in _sources(spec).items()
        }
    )


def _sources(spec: TableSpec) -> Mapping[str, Sources]:
    if spec is RESPONSES:
        return _OF_RESPONSES
    own = _OF_TABLES.get(spec.name, {})
    columns = [name for name in spec.schema.names if name not in _OF_THE_RUN]
    return {name: own.get(name) or _OF_PREDICTIONS.get(name) or _REPLY for name in columns}
