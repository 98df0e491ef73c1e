"""What formats must know of all slices before the first row: which classes have predictions, which names two share.

Each slice's share in it is small, and read from its tables without their wide columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from foundry_pipeline.exports.file_names import NameDigests, PictureNames
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, PREDICTION_TABLES, TABLE_OF_KIND, TableSpec


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """One slice's share: the model's classes by table, sorted, and the digests of its pictures' names."""

    classes: Mapping[str, Sequence[str]]
    names: NameDigests


def read_facts(run: Run, store: Store, slice_key: str) -> SliceFacts:
    """The facts as the slice's tables say them."""
    classes = {spec.name: _classes(run, store, spec, slice_key) for spec in PREDICTION_TABLES}
    return SliceFacts(classes, NameDigests.of(_pictures(run, store, slice_key)))


def _classes(run: Run, store: Store, spec: TableSpec, slice_key: str) -> list[str]:
    table = store.read(spec, run.name, slice_key, ["feature"])
    return [] if table is None else sorted(pc.unique(table["feature"]).to_pylist())


def _pictures(run: Run, store: Store, slice_key: str) -> list[tuple[str, str]]:
    """(global key, row_data) of every picture."""
    columns = ["global_key", "row_data", "media_type"]
    table = store.read(DATA_ROWS, run.dataset.name, slice_key, columns)
    rows = () if table is None else zip(*(table[name].to_pylist() for name in columns), strict=True)
    return [(key, data) for key, data, media in rows if media == "image"]


class Overview:
    """The facts of all slices of one run together."""

    def __init__(self, run: Run, facts: Iterable[SliceFacts]) -> None:
        """`facts` is read once; of each, about 50 bytes a picture are held while the names are compared."""
        self._run = run
        self._seen: dict[str, set[str]] = {spec.name: set() for spec in PREDICTION_TABLES}
        self.picture_names = PictureNames(self._gather(facts))

    def _gather(self, facts: Iterable[SliceFacts]) -> Iterator[NameDigests]:
        for of_slice in facts:
            for table, classes in of_slice.classes.items():
                self._seen[table].update(classes)
            yield of_slice.names

    def features_seen(self, spec: TableSpec) -> set[str]:
        """Your names of the features that have predictions in this table, whatever their scores."""
        return {name for name in map(self._run.feature_of, self._seen[spec.name]) if name is not None}

    def feature_names(self, specs: Collection[TableSpec]) -> list[str]:
        """Your names of the features that may be in these tables: the ontology's in its order, then others by alphabet.

        Others are those that the tables hold: a model without an ontology names them as it goes.
        """
        seen = set().union(*map(self.features_seen, specs))
        return list(dict.fromkeys([*self._of_ontology(specs), *sorted(seen)]))

    def all_features_seen(self) -> dict[str, list[str]]:
        """The features of every table, sorted."""
        return {spec.name: sorted(self.features_seen(spec)) for spec in PREDICTION_TABLES}

    def _of_ontology(self, specs: Collection[TableSpec]) -> Iterator[str]:
        ontology = self._run.model.ontology
        for feature in ontology.features() if ontology else ():
            name = self._run.feature_of(feature.name)
            if name is not None and TABLE_OF_KIND[feature.kind] in specs:
                yield name
