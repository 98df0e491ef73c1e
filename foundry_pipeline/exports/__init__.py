"""Prediction tables -> annotation files: one module a format, one call that writes an export with its manifest.

`FORMATS` lists what there is. A new format is a module with an `EXPORTER` and a line here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import ConfigError, Problem, RowUnavailable, StorageError
from foundry_pipeline.exports import (
    coco,
    conll,
    cvat,
    huggingface,
    label_studio,
    labelbox,
    pascal_voc,
    plain_csv,
    spacy_jsonl,
    yolo,
)
from foundry_pipeline.exports.format import Export, Exporter, ReadText
from foundry_pipeline.exports.manifest import manifest_of, written_predictions
from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.parts import Parts
from foundry_pipeline.exports.publish import about_files, publish, within
from foundry_pipeline.exports.tally import Change, Loss, Tally, by_reason
from foundry_pipeline.home import Run
from foundry_pipeline.rows.content import Kind, locate
from foundry_pipeline.rows.local_files import LocalFiles
from foundry_pipeline.store import STAGING, Store, Written

FORMATS: Mapping[str, Exporter[Any]] = {
    exporter.name: exporter
    for exporter in (
        labelbox.EXPORTER,
        coco.EXPORTER,
        yolo.DETECT,
        yolo.SEGMENT,
        pascal_voc.EXPORTER,
        label_studio.EXPORTER,
        cvat.EXPORTER,
        spacy_jsonl.EXPORTER,
        conll.EXPORTER,
        huggingface.EXPORTER,
        plain_csv.EXPORTER,
    )
}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What one export wrote. `files` are without the manifest, their paths relative to the store or to `out`."""

    format: str
    folder: str
    """Where the files are, in the store's own spelling."""
    files: tuple[Written, ...]
    answered: int
    """Data rows that the model answered, with or without predictions."""
    unanswered: int
    predictions_in: int
    """Rows of the prediction tables, nested answers included."""
    predictions_out: int
    lost: Mapping[str, int]
    """Reason -> predictions that were left out; see `tally.Loss`. `predictions_in` less `predictions_out`."""
    changed: Mapping[str, int]
    """How -> predictions that are in the files, but not as the model said them; see `tally.Change`."""


def export_run(
    run: Run,
    store: Store,
    format: str,  # noqa: A002, its name
    out: Path | None = None,
    read_text: ReadText | None = None,
    *,
    fresh: bool = False,
) -> ExportReport:
    """Write the run's annotations as `format` (a key of `FORMATS`), into the warehouse or into the folder `out`.

    In the warehouse that is `annotations/run=<run>/<format>`. Two exports of the same tables are the same bytes. Every
    file is written whole; `manifest.json` comes last and holds the sha256 of each, and files of an earlier export
    that are not part of this one are removed. Nothing of the old export is touched before the new one is complete.

    What earlier exports have made of slices that have not changed since is used again (`parts.py`), except with
    `fresh`; the files are the same.

    `read_text` gives the text of data rows for formats that contain it; without it, only texts that stand in the data
    row itself are known. Raises ConfigError where there is no such format, or where the run's project has no
    place for what would be written; StorageError where the warehouse or `out` refuses or is damaged.
    """
    if format not in FORMATS:
        raise ConfigError([Problem(run.file, f"expected one of {', '.join(FORMATS)}; got {format!r}", "$.exports")])
    export = Export(run, read_text or _InlineTexts(run), Tally())
    if out is None:
        return _export(export, store, FORMATS[format], store, f"annotations/run={run.name}/{format}", fresh=fresh)
    try:
        return _export(export, store, FORMATS[format], Store(out), "", fresh=fresh)
    finally:
        with contextlib.suppress(OSError):  # not empty: another export works there
            (out / STAGING).rmdir()


def _export(
    export: Export, store: Store, exporter: Exporter[Any], target: Store, folder: str, *, fresh: bool
) -> ExportReport:
    run, tally = export.run, export.tally
    with _refusal_named(target, folder), target.scratch() as scratch, store.scratch() as scratch_of_parts:
        parts = Parts(run, store, scratch_of_parts, fresh=fresh)
        inputs = {slice_key: parts.inputs(slice_key) for slice_key in parts.slices}
        overview = Overview(run, (of_slice.facts for of_slice in inputs.values()))
        plan = exporter.plan(run, overview)
        rows = (
            rendered
            for slice_key, of_slice in inputs.items()
            for rendered in parts.rendered(export, exporter, plan, overview, slice_key, of_slice)
        )
        exporter.write(run, plan, rows, scratch)
        _refuse_unfit(run, tally)
        sums = {slice_key: of_slice.sums for slice_key, of_slice in inputs.items()}
        files = publish(
            target, folder, scratch, lambda files: manifest_of(run, exporter, tally, about_files(folder, files), sums)
        )
        parts.forget_others(exporter)
    answered = tally.outcomes["ok"]
    return ExportReport(
        format=exporter.name,
        folder=within(target.root, folder),
        files=files,
        answered=answered,
        unanswered=tally.outcomes.total() - answered,
        predictions_in=tally.came.total(),
        predictions_out=written_predictions(tally),
        lost=by_reason(tally.lost.values(), Loss),
        changed=by_reason(tally.changed.values(), Change),
    )


def _refuse_unfit(run: Run, tally: Tally) -> None:
    """Everything that the project lacks, at once, while no file is in its place yet."""
    if run.project is not None and tally.unfit:
        raise ConfigError(
            Problem(run.file, f"{run.project.file}: {fault}", "$.ontology") for fault in sorted(tally.unfit)
        )


@contextlib.contextmanager
def _refusal_named(target: Store, folder: str) -> Iterator[None]:
    """A full or read-only disk, said as StorageError; until files are moved the older export is whole."""
    try:
        yield
    except OSError as err:
        raise StorageError(f"cannot write {within(target.root, folder)}: {err.strerror or err}") from err


class _InlineTexts:
    """Reads the texts that stand in their data rows, and no others."""

    def __init__(self, run: Run) -> None:
        self._files = LocalFiles(run.dataset.base.parent)

    def __call__(self, row: DataRow) -> str:
        if locate(row.row_data, row.media_type, self._files)[0] is not Kind.INLINE:
            raise RowUnavailable("row_missing", "its text is elsewhere, and this export reads none")
        return row.row_data
