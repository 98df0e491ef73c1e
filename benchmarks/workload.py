"""What the call benchmarks work on: texts, and a run over them."""

from __future__ import annotations

import json
from pathlib import Path

from foundry_pipeline.config.settings import Settings
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Option
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.store import Store

CAT = Ontology(None, (Classification("label", FeatureKind.RADIO, "label", (Option("cat", "cat", 0),)),), ())
NO_LIMIT = 1e6


def run_over_texts(
    root: Path,
    url: str,
    rows: int,
    *,
    rows_per_slice: int = 1000,
    requests_per_second: float = NO_LIMIT,
    max_concurrency: int | None = 64,
    headers: tuple[tuple[str, str], ...] = (),
) -> tuple[Run, Store]:
    """A run over `rows` texts that are unlike any other folder's, loaded into slices below `root`."""
    root.mkdir(parents=True)
    lines = (json.dumps({"global_key": f"k{i}", "row_data": f"text {i} of {root.name}"}) for i in range(rows))
    (root / "rows.ndjson").write_text("\n".join(lines))
    dataset = Dataset("ds", "ds.yaml", root, "text", "rows.ndjson", rows_per_slice)
    store = Store(root / "warehouse")
    load_dataset(dataset, root, Settings(), store)
    model = Manifest(
        "m", "m", "m.yaml", url, requests_per_second, ontology=CAT, max_concurrency=max_concurrency, headers=headers
    )
    return Run(root.name, "run.yaml", model, dataset), store
