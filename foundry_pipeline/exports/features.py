"""Which features an export has, in which order: the classes of trainers, the labels of annotation tools."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow.compute as pc

from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TABLE_OF_KIND, TableSpec


def feature_names(run: Run, store: Store, specs: Collection[TableSpec]) -> list[str]:
    """Your names of the features that may be in these tables: the ontology's in its order, then others by alphabet.

    Others are those that the tables hold, whatever their scores: a model without an ontology names them as it goes.
    """
    seen = set().union(*(features_seen(run, store, spec) for spec in specs))
    return list(dict.fromkeys([*_of_ontology(run, specs), *sorted(seen)]))


def features_seen(run: Run, store: Store, spec: TableSpec) -> set[str]:
    """Your names of the features that have predictions in this table, whatever their scores."""
    classes: set[str] = set()
    for _, table in store.read_all(spec, run.name, ["feature"]):
        classes.update(pc.unique(table["feature"]).to_pylist())
    return {name for name in map(run.feature_of, classes) if name is not None}


def _of_ontology(run: Run, specs: Collection[TableSpec]) -> Iterator[str]:
    for feature in run.model.ontology.features() if run.model.ontology else ():
        name = run.feature_of(feature.name)
        if name is not None and TABLE_OF_KIND[feature.kind] in specs:
            yield name
