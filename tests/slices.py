"""A slice in a store, for tests of decoding: its data rows, its responses, and the run that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import FeatureKind, Ontology
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, RESPONSES, build
from tests.decoding import EVERYTHING

SLICE = "000000"


def make_run(
    media_type: str = "image", known: Ontology | None = EVERYTHING, kinds: tuple[FeatureKind, ...] = ()
) -> Run:
    model = Manifest("m", "m", "m.yaml", "http://127.0.0.1:1/", 1.0, ontology=known, allowed_feature_kinds=kinds)
    return Run("run", "run.yaml", model, Dataset("street", "street.yaml", Path("/data"), media_type, "*"))


def commit_rows(store: Store, media_type: str, keys: list[str], slice_key: str = SLICE, **more: Any) -> None:
    columns: dict[str, list[Any]] = {name: [None] * len(keys) for name in DATA_ROWS.schema.names}
    columns |= {"data_row_id": [f"id-{key}" for key in keys], "global_key": keys}
    columns |= {"media_type": [media_type] * len(keys), "row_data": [f"content of {key}" for key in keys]}
    columns |= {"attachments": [[]] * len(keys), "metadata": [[]] * len(keys)}
    store.commit("street", slice_key, {"data_rows": build(DATA_ROWS, columns | more)})


def commit_replies(
    store: Store, replies: Mapping[str, Any], outcomes: Mapping[str, str] | None = None, slice_key: str = SLICE
) -> None:
    keys = list(replies)
    columns: dict[str, list[Any]] = {name: [None] * len(keys) for name in RESPONSES.schema.names}
    columns |= {"call_id": [f"call-{key}" for key in keys], "data_row_id": [f"id-{key}" for key in keys]}
    columns |= {"global_key": keys, "outcome": [(outcomes or {}).get(key, "ok") for key in keys]}
    columns |= {"attempts": [1] * len(keys)}
    columns |= {"reply": [r if isinstance(r, str | None) else json.dumps(r) for r in replies.values()]}
    store.commit("run", slice_key, {"responses": build(RESPONSES, columns)})
