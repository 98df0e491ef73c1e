"""[<run>, annotations]: the prediction tables as files of every format the run names."""

import hashlib
from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets.blocking import refuse_if_blocked
from assets.descriptions import annotations_description
from assets.keys import annotations_key, data_rows_key, decoded_keys, responses_key
from assets.versions import exports_version
from foundry_pipeline.exports import ExportReport, export_run
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from resources import Contents

MOST_KINDS = 3
"""Dagster refuses an asset with more."""


def annotations_asset(run: Run) -> dg.AssetsDefinition:
    """The asset of one run that names a format or more."""

    @dg.asset(
        key=annotations_key(run.name),
        deps=[data_rows_key(run.dataset.name), *decoded_keys(run)],
        group_name=run.name,
        kinds=set(run.exports[:MOST_KINDS]),
        description=annotations_description(run),
        code_version=exports_version(run),
    )
    def annotations(
        context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Store], contents: dg.ResourceParam[Contents]
    ) -> dg.MaterializeResult[None]:
        refuse_if_blocked(context, run, [responses_key(run.name), *decoded_keys(run)])
        with contents.open(run.dataset) as reader:
            reports = [export_run(run, warehouse, name, read_text=reader.text) for name in run.exports]
        metadata: dict[str, Any] = {}
        for report in reports:
            metadata |= _about(report)
        return dg.MaterializeResult(metadata=metadata, data_version=_data_version(reports))

    return annotations


def _about(report: ExportReport) -> dict[str, Any]:
    return {
        f"{report.format}_folder": dg.MetadataValue.path(report.folder),
        f"{report.format}_files": len(report.files),
        f"{report.format}_data_rows": report.answered,
        f"{report.format}_unanswered": report.unanswered,
        f"{report.format}_predictions": report.predictions_out,
        f"{report.format}_lost": dg.MetadataValue.json({**report.lost}),
        f"{report.format}_changed": dg.MetadataValue.json({**report.changed}),
    }


def _data_version(reports: Sequence[ExportReport]) -> dg.DataVersion:
    lines = "\n".join(f"{file.path} {file.sha256}" for report in reports for file in report.files)
    return dg.DataVersion(hashlib.sha256(lines.encode()).hexdigest())
