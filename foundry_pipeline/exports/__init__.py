"""Prediction tables -> annotation files: one module a format, one call that writes an export with its manifest.

`FORMATS` lists what there is. A new format is a module with an `EXPORTER` and a line here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from foundry_pipeline.errors import ConfigError, Problem, StorageError
from foundry_pipeline.exports import coco, labelbox
from foundry_pipeline.exports.annotated import NOT_ASKED, AnnotatedRow
from foundry_pipeline.exports.format import Exporter
from foundry_pipeline.exports.rows import annotated_rows, exported_slices
from foundry_pipeline.exports.tally import Loss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.store import STAGING, Store, Written
from foundry_pipeline.tables import DATA_ROWS, OUTCOMES, PREDICTION_TABLES, RESPONSES

FORMATS: Mapping[str, Exporter] = {exporter.name: exporter for exporter in (labelbox.EXPORTER, coco.EXPORTER)}
MANIFEST = "manifest.json"


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
    """Reason -> predictions that were left out or changed; see `tally.Loss`."""


def export_run(run: Run, store: Store, format: str, out: Path | None = None) -> ExportReport:  # noqa: A002, its name
    """Write the run's annotations as `format` (a key of `FORMATS`), into the warehouse or into the folder `out`.

    In the warehouse that is `annotations/run=<run>/<format>`. Two exports of the same tables are the same bytes. Every
    file is written whole; `manifest.json` comes last and holds the sha256 of each, and files of an earlier export
    that are not part of this one are removed. Nothing of the old export is touched before the new one is complete.

    Raises ConfigError where there is no such format, StorageError where the warehouse or `out` refuses or is damaged.
    """
    if format not in FORMATS:
        raise ConfigError([Problem(run.file, f"expected one of {', '.join(FORMATS)}; got {format!r}", "$.exports")])
    exporter, tally = FORMATS[format], Tally()
    if out is None:
        return _export(run, store, exporter, tally, store, f"annotations/run={run.name}/{format}")
    try:
        return _export(run, store, exporter, tally, Store(out), "")
    finally:
        with contextlib.suppress(OSError):  # not empty: another export works there
            (out / STAGING).rmdir()


def _export(run: Run, store: Store, exporter: Exporter, tally: Tally, target: Store, folder: str) -> ExportReport:
    with _refusal_named(target, folder), target.scratch() as scratch:
        exporter.write(run, store, _all_rows(run, store, tally), scratch, tally)
        made = sorted(path for path in scratch.iterdir() if path.is_file())
        files = tuple(target.put_file(_within(folder, path.name), path) for path in made)
    _remove_others(exporter, target, folder, {path.name for path in made})
    manifest = _manifest(run, store, exporter, tally, files)
    target.write_file(
        _within(folder, MANIFEST), orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
    answered = tally.outcomes["ok"]
    return ExportReport(
        format=exporter.name,
        folder=_within(target.root, folder),
        files=files,
        answered=answered,
        unanswered=tally.outcomes.total() - answered,
        predictions_in=tally.came.total(),
        predictions_out=tally.came.total() - tally.left.total(),
        lost=_lost(tally),
    )


@contextlib.contextmanager
def _refusal_named(target: Store, folder: str) -> Iterator[None]:
    """A full or read-only disk, said as StorageError; the older export is still whole."""
    try:
        yield
    except OSError as err:
        raise StorageError(f"cannot write {_within(target.root, folder)}: {err.strerror or err}") from err


def _within(folder: str, name: str) -> str:
    return "/".join(part for part in (folder, name) if part)


def _all_rows(run: Run, store: Store, tally: Tally) -> Iterator[AnnotatedRow]:
    for slice_key in exported_slices(run, store):
        yield from annotated_rows(run, store, slice_key, tally)


def _remove_others(exporter: Exporter, target: Store, folder: str, names: set[str]) -> None:
    """Files that this format wrote before and does not write now; what else lies there is not ours."""
    for name in target.file_names(folder):
        if name not in names and exporter.file_names.fullmatch(name):
            target.remove_file(_within(folder, name))


def _manifest(
    run: Run, store: Store, exporter: Exporter, tally: Tally, files: tuple[Written, ...]
) -> dict[str, object]:
    return {
        "format": exporter.name,
        "format_version": exporter.version,
        "run": run.name,
        "model": run.model.name,
        "dataset": run.dataset.name,
        "media_type": run.dataset.media_type,
        "ontology_mapping": dict(sorted(run.ontology_mapping.items())),
        "min_score": {"default": run.min_score.default, **dict(sorted(run.min_score.by_feature.items()))},
        "conventions": dict(exporter.conventions),
        "data_rows": _row_counts(tally),
        "predictions": {
            "in": tally.came.total(),
            "out": tally.came.total() - tally.left.total(),
            "features": {f: {"in": tally.came[f], "out": tally.written(f)} for f in sorted(tally.came)},
        },
        "lost": _lost(tally),
        "files": [_file(written) for written in files],
        "inputs": [_inputs(run, store, slice_key) for slice_key in exported_slices(run, store)],
    }


def _row_counts(tally: Tally) -> dict[str, object]:
    answered = tally.outcomes["ok"]
    return {
        "answered": answered,
        "answered_with_predictions": tally.rows_with_predictions,
        "answered_without_predictions": answered - tally.rows_with_predictions,
        "unanswered": tally.outcomes.total() - answered,
        "outcomes": {name: tally.outcomes[name] for name in (*OUTCOMES, NOT_ASKED)},
    }


def _lost(tally: Tally) -> dict[str, int]:
    return {reason.value: tally.lost[reason] for reason in Loss if tally.lost[reason]}


def _file(written: Written) -> dict[str, object]:
    name = written.path.rpartition("/")[2]
    return {"name": name, "size_bytes": written.size_bytes, "sha256": written.sha256}


def _inputs(run: Run, store: Store, slice_key: str) -> dict[str, object]:
    """The slice's tables with the sha256 that their last commit recorded."""
    owners = {DATA_ROWS.name: run.dataset.name}
    sums = {}
    for spec in (DATA_ROWS, RESPONSES, *PREDICTION_TABLES):
        record = store.record(owners.get(spec.name, run.name), slice_key, spec.name)
        if record is not None:
            sums[spec.name] = record["sha256"]
    return {"slice": slice_key, "sha256": sums}
