"""What exports keep between two of them, slice by slice, so that a changed slice is the only one that is read again.

`_exports/run=<run>/facts/<slice>.part` holds a slice's share in the overview, `.../<format>/<slice>.part` what its
data rows put into a format's files. A part is found by what it was made from: the slice's tables (size and times of
files and records), this package's own code, the run's settings, and what of the overview shows in it. Parts may be
deleted at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson

import foundry_pipeline
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.exports.file_names import NameDigests
from foundry_pipeline.exports.format import Export, Exporter, ReadText, Rendered
from foundry_pipeline.exports.overview import Overview, SliceFacts, read_facts
from foundry_pipeline.exports.part_file import PartWriter, read_part
from foundry_pipeline.exports.rows import annotated_rows
from foundry_pipeline.exports.tally import Tally
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, PREDICTION_TABLES, RESPONSES

PARTS = "_exports"
FACTS = "facts"
INPUTS = (DATA_ROWS, RESPONSES, *PREDICTION_TABLES)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SliceInputs:
    """One slice's tables: what tells whether they have been written again, and the sha256 of each, for the manifest."""

    stamp: Json
    sums: Mapping[str, str]
    facts: SliceFacts


class Parts:
    """The parts of one run's exports. `fresh` takes none of an earlier export; parts are written all the same."""

    def __init__(self, run: Run, store: Store, scratch: Path, *, fresh: bool = False) -> None:
        """`scratch` is a folder for parts in the making, on the store's disk where it has one."""
        self._run, self._store, self._scratch, self._fresh = run, store, scratch, fresh
        self._stamps = {spec.name: store.stamps(spec, self._owner(spec.name)) for spec in INPUTS}

    @property
    def slices(self) -> list[str]:
        """Keys of the slices that have data rows or answers, in order."""
        return sorted({*self._stamps[DATA_ROWS.name], *self._stamps[RESPONSES.name]})

    def inputs(self, slice_key: str) -> SliceInputs:
        """What is known of a slice before its rows: from its part, or from its tables and their records."""
        stamp = {name: stamps[slice_key] for name, stamps in self._stamps.items() if slice_key in stamps}
        key, name = _key({"tables": stamp}), self._name(FACTS, slice_key)
        kept = None if self._fresh else read_part(self._store, name, key)
        if kept is not None:
            ((about, digests),) = kept
            names = NameDigests(*(np.frombuffer(one, np.uint64) for one in digests))
            return SliceInputs(stamp, about["sums"], SliceFacts(about["classes"], names))
        inputs = SliceInputs(stamp, self._sums(slice_key), read_facts(self._run, self._store, slice_key))
        names = inputs.facts.names
        digests = tuple(one.tobytes() for one in (names.keys, names.names, names.stems))
        with PartWriter(self._scratch / "facts.part", key) as part:
            part.add({"sums": inputs.sums, "classes": inputs.facts.classes}, digests)
            self._store.put_file(name, part.finish())
        return inputs

    def rendered(
        self,
        export: Export,
        exporter: Exporter[Any],
        plan: Any,
        overview: Overview,
        slice_key: str,
        inputs: SliceInputs,
    ) -> Iterator[Rendered]:
        """What the slice's data rows put into the files, in order. At the end their counts are in `export.tally`."""
        key = _key(
            {
                "tables": inputs.stamp,
                "format": [exporter.name, exporter.version],
                "settings": _settings(export.run),
                "features": overview.all_features_seen() if exporter.renders_classes else None,
                "shared_names": overview.picture_names.shared_by(inputs.facts.names)
                if exporter.renders_names
                else None,
            }
        )
        name = self._name(exporter.name, slice_key)
        kept = None if self._fresh else read_part(self._store, name, key)
        if kept is None:
            yield from self._render(export, exporter, plan, slice_key, name, key)
            return
        for about, contents in kept:
            if "tally" in about:
                export.tally.add(about["tally"])
            else:
                yield Rendered(about["split"], contents, about["of_row"])

    def _render(
        self, export: Export, exporter: Exporter[Any], plan: Any, slice_key: str, name: str, key: bytes
    ) -> Iterator[Rendered]:
        """From the tables, into a part on the way; one that may be otherwise next time is not kept."""
        texts, tally = _WatchedTexts(export.read_text), Tally()
        of_slice = dataclasses.replace(export, read_text=texts, tally=tally)
        with PartWriter(self._scratch / "rows.part", key) as part:
            for annotated in annotated_rows(export.run, self._store, slice_key, tally):
                rendered = exporter.render(of_slice, plan, annotated)
                if rendered is not None:
                    part.add({"split": rendered.split, "of_row": rendered.about}, rendered.contents)
                    yield rendered
            part.add({"tally": tally.as_json()})
            if texts.settled:
                self._store.put_file(name, part.finish())
        export.tally.add(tally.as_json())

    def forget_others(self, exporter: Exporter[Any]) -> None:
        """Take away the parts of slices that are no more."""
        for what in (FACTS, exporter.name):
            folder = f"{PARTS}/run={self._run.name}/{what}"
            for name in {*self._store.file_names(folder)} - {f"{key}.part" for key in self.slices}:
                self._store.remove_file(f"{folder}/{name}")

    def _sums(self, slice_key: str) -> dict[str, str]:
        records = {spec.name: self._store.record(self._owner(spec.name), slice_key, spec.name) for spec in INPUTS}
        return {table: record["sha256"] for table, record in records.items() if record is not None}

    def _owner(self, table: str) -> str:
        return self._run.dataset.name if table == DATA_ROWS.name else self._run.name

    def _name(self, what: str, slice_key: str) -> str:
        return f"{PARTS}/run={self._run.name}/{what}/{slice_key}.part"


class _WatchedTexts:
    """Reads texts, and notes whether each will be the same next time: in its data row, or known by its sha256."""

    def __init__(self, read_text: ReadText) -> None:
        self._read_text = read_text
        self.settled = True

    def __call__(self, row: DataRow) -> str:
        try:
            text = self._read_text(row)
        except RowUnavailable:
            self.settled = False
            raise
        self.settled &= text == row.row_data or row.content_sha256 is not None
        return text


def _settings(run: Run) -> Json:
    """Everything of the run, its model and dataset that shows in files."""
    return {
        "names": [run.name, run.model.name, run.dataset.name],
        "media": [run.dataset.media_type, run.dataset.encoding],
        "seen": [run.model.exif, run.model.html, dict(run.dataset.roles), dataclasses.asdict(run.sampling)],
        "ontology": run.model.ontology.as_json() if run.model.ontology else None,
        "mapping": dict(run.ontology_mapping),
        "min_score": [run.min_score.default, dict(run.min_score.by_feature)],
        "keep_empty": run.keep_empty,
        "split": dict(run.split.shares) if run.split else None,
        "project": dataclasses.asdict(run.project) if run.project else None,
    }


def _key(facts: Json) -> bytes:
    canonical = orjson.dumps({"code": _code_digest(), **facts}, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).digest()


@lru_cache(maxsize=1)
def _code_digest() -> str:
    """Of this package's source: what another version has made is not taken for ours."""
    digest = hashlib.sha256()
    for file in sorted(Path(foundry_pipeline.__path__[0]).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
