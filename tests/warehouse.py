"""A warehouse for tests: prediction tables from short records, everything not said filled in.

run = make_run("street_objects", features={"cat": "rectangle"})
fill(store, run, "000000", data_rows=[{"global_key": "a.jpg", "width": 60, "height": 40}],
     boxes=[{"global_key": "a.jpg", "feature": "cat", "left": 1, "top": 2, "width": 3, "height": 4, "score": 0.9}])
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from foundry_pipeline.config.split import Split
from foundry_pipeline.home import Dataset, MinScore, Run
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import CLASSIFICATION_KINDS, Classification, FeatureKind, Ontology, Option, Tool
from foundry_pipeline.rle import Rle, from_dense
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, PREDICTION_TABLES, RESPONSES, TableSpec, build

Record = Mapping[str, Any]

DEFAULTS: dict[str, Any] = {
    "score": None,
    "frame": None,
    "message_id": None,
    "parent_id": None,
    "image_width": None,
    "image_height": None,
    "type": "unidirectional",
    "anchor": "exact",
    "text": "",
    "kind": "radio",
}
NAMESPACE = uuid.UUID("00000000-0000-5000-8000-000000000000")


def make_run(
    name: str = "run",
    *,
    features: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    media_type: str = "image",
    mapping: Mapping[str, str | None] | None = None,
    min_score: MinScore | None = None,
    split: Mapping[str, float] | None = None,
) -> Run:
    """A run. `features` is the model's ontology: name -> kind, in order; None for a model without one."""
    model = Manifest(
        "model", "model", "models/model.yaml", "http://127.0.0.1:1/", 10.0, ontology=_ontology(features, options)
    )
    dataset = Dataset("street", "datasets/street.yaml", Path("/data"), media_type, "*")
    return Run(
        name,
        f"runs/{name}.yaml",
        model,
        dataset,
        ontology_mapping=mapping or {},
        min_score=min_score or MinScore(),
        split=Split(split) if split else None,
    )


def _ontology(features: Mapping[str, str] | None, options: Sequence[str]) -> Ontology | None:
    if features is None:
        return None
    kinds = {name: FeatureKind(kind) for name, kind in features.items()}
    choices = tuple(Option(value, value, i) for i, value in enumerate(options))
    return Ontology(
        None,
        tuple(Classification(n, k, n, choices) for n, k in kinds.items() if k in CLASSIFICATION_KINDS),
        tuple(Tool(n, k) for n, k in kinds.items() if k not in CLASSIFICATION_KINDS),
    )


def fill(
    store: Store,
    run: Run,
    slice_key: str,
    *,
    data_rows: Sequence[Record],
    outcomes: Mapping[str, str] | None = None,
    calls: Mapping[str, Sequence[Record]] | None = None,
    **tables: Sequence[Record],
) -> None:
    """Commit one slice: data rows, responses, and every prediction table (empty where none is given).

    `outcomes` maps global keys to an outcome; a row that it does not name is `ok`; None as an outcome: not asked.
    `calls` maps global keys to what is to be said of each of several calls.
    """
    rows = [_data_row(run, record) for record in data_rows]
    answers = [
        _response(row, (outcomes or {}).get(row["global_key"], "ok")) | ({"call_id": f"{place}"} if call else {}) | call
        for row in rows
        for place, call in enumerate((calls or {}).get(row["global_key"], ({},)))
    ]
    predictions = {spec.name: _table(spec, run, tables.get(spec.name, ())) for spec in PREDICTION_TABLES}
    store.commit(run.dataset.name, slice_key, {DATA_ROWS.name: _built(DATA_ROWS, rows)})
    asked = {RESPONSES.name: _built(RESPONSES, [answer for answer in answers if answer["outcome"]])}
    store.commit(run.name, slice_key, asked | predictions)


def mask(global_key: str, feature: str, dense: Iterable[Iterable[int]], **more: Any) -> dict[str, Any]:
    """A record of `masks` from pixels, rows of 0 and 1."""
    rle: Rle = from_dense(np.array(dense, bool))
    left, top, width, height = rle.box_ltwh
    size_h, size_w = rle.size_hw
    shape = {"size_h": size_h, "size_w": size_w, "counts": rle.counts, "area": rle.area}
    box = {"left": left, "top": top, "width": width, "height": height}
    return {"global_key": global_key, "feature": feature, **shape, **box, **more}


def prediction_id(table: str, record: Record) -> str:
    """The id that `fill` gives a record which says none; `index` is part of it."""
    parts = (table, *(record.get(name) for name in ("global_key", "feature", "frame", "index", "answer")))
    return str(record.get("prediction_id") or uuid.uuid5(NAMESPACE, repr(parts)))


def _data_row(run: Run, record: Record) -> dict[str, Any]:
    given = {"data_row_id": f"id-{record['global_key']}", "media_type": run.dataset.media_type}
    empty = {"row_data": f"/data/{record['global_key']}", "attachments": [], "metadata": []}
    return dict.fromkeys(DATA_ROWS.schema.names) | given | empty | dict(record)


def _response(row: Record, outcome: str | None) -> dict[str, Any]:
    same = {"call_id": f"call-{row['global_key']}", "data_row_id": row["data_row_id"], "global_key": row["global_key"]}
    sent = {"outcome": outcome, "attempts": 1, "sent_at": datetime(2024, 1, 1, tzinfo=UTC)}
    return dict.fromkeys(RESPONSES.schema.names) | same | sent


def _table(spec: TableSpec, run: Run, records: Sequence[Record]) -> Any:
    places: dict[object, int] = {}
    complete = []
    for record in records:
        list_key = (record["global_key"], record["feature"], record.get("frame"))
        index = record.get("index", places.get(list_key, 0))
        places[list_key] = index + 1
        complete.append(_prediction(spec, run, {**record, "index": index}))
    return _built(spec, complete)


def _prediction(spec: TableSpec, run: Run, record: Record) -> dict[str, Any]:
    same = {
        "run": run.name,
        "model": run.model.name,
        "dataset": run.dataset.name,
        "data_row_id": f"id-{record['global_key']}",
        "call_id": f"call-{record['global_key']}",
        "prediction_id": prediction_id(spec.name, record),
    }
    defaults = {name: value for name, value in DEFAULTS.items() if name in spec.schema.names}
    return defaults | same | dict(record)


def _built(spec: TableSpec, records: Sequence[Record]) -> Any:
    return build(spec, {name: [record[name] for record in records] for name in spec.schema.names})
