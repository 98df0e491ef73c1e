"""[<run>, evaluation]: the run against its dataset's ground truth, beside the other runs on that dataset."""

import base64
from collections.abc import Sequence
from typing import Any

import dagster as dg

from assets.blocking import refuse_if_blocked
from assets.descriptions import evaluation_description, markdown_table
from assets.keys import data_rows_key, decoded_keys, evaluation_key, responses_key
from assets.metadata import column_schema
from assets.versions import evaluation_version
from foundry_pipeline.evaluation.compare import Comparison, compare_runs
from foundry_pipeline.evaluation.evaluate import Evaluation, evaluate_run, read_truth
from foundry_pipeline.evaluation.plots import confusion_matrix, precision_recall
from foundry_pipeline.evaluation.report import is_headline, min_score_line, report_name, write_report
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import MATCHES, METRICS
from resources import Contents

MOST_CONFUSIONS = 2
"""Shown in the UI, whose events are kept for ever; the report has all."""


def evaluation_asset(run: Run, siblings: Sequence[str]) -> dg.AssetsDefinition:
    """The asset of one run whose dataset has ground truth. `siblings` are all runs on that dataset."""

    @dg.asset(
        key=evaluation_key(run.name),
        deps=[data_rows_key(run.dataset.name), *decoded_keys(run)],
        group_name=run.name,
        kinds={"parquet", "html"},
        description=evaluation_description(run),
        metadata={"dagster/column_schema": column_schema(METRICS)},
        code_version=evaluation_version(run),
    )
    def evaluation(
        context: dg.AssetExecutionContext, warehouse: dg.ResourceParam[Store], contents: dg.ResourceParam[Contents]
    ) -> dg.MaterializeResult[None]:
        refuse_if_blocked(context, run, [responses_key(run.name), *decoded_keys(run)])
        truth = contents.ground_truth(run.dataset)
        found = evaluate_run(run, warehouse, lambda rows: read_truth(truth, str(run.dataset.ground_truth), rows))
        comparison = compare_runs(warehouse, run.dataset.name, siblings)
        write_report(found, comparison, warehouse)
        metadata = _about(found, warehouse) | _pictures(found) | _beside(comparison)
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(found.written[METRICS.name].sha256))

    return evaluation


def _about(found: Evaluation, store: Store) -> dict[str, Any]:
    headlines = [m for m in found.findings.measures if is_headline(m)]
    rows = [(m.table, m.feature or "all", m.metric, _shown(m.value), m.truths) for m in headlines]
    metadata: dict[str, Any] = {
        "dagster/row_count": len(found.findings.measures),
        "data_rows_compared": found.compared,
        "data_rows_unanswered": found.unanswered,
        "measures": dg.MetadataValue.md(
            markdown_table(("table", "feature", "measure", "value", "truths"), rows, len(rows))
        ),
        "report": dg.MetadataValue.path(f"{store.root}/{report_name(found.run)}"),
        "metrics_table": dg.MetadataValue.path(store.uri(METRICS, found.run)),
        "matches_table": dg.MetadataValue.path(store.uri(MATCHES, found.run)),
        **{_name(m.table, m.feature, m.metric): m.value for m in headlines if m.value is not None},
    }
    if found.findings.notes:
        metadata["notes"] = "; ".join(found.findings.notes)
    if found.findings.min_scores:
        metadata["best_min_score"] = min_score_line(found.findings.min_scores)
    return metadata


def _name(table: str, feature: str, metric: str) -> str:
    """Numbers stand on their own too, so that Dagster plots them over time."""
    return f"{table}_{metric}" if not feature else f"{table}_{feature}_{metric}"


def _pictures(found: Evaluation) -> dict[str, Any]:
    pictures = {}
    for name in sorted({curve.table for curve in found.findings.curves}):
        of_table = [curve for curve in found.findings.curves if curve.table == name]
        pictures[f"precision_recall_{name}"] = _picture(precision_recall(of_table))
    for place, confusion in enumerate(found.findings.confusions[:MOST_CONFUSIONS], 1):
        if confusion.labels:
            pictures[f"confusion_{place}"] = _picture(confusion_matrix(confusion))
    return pictures


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![plot](data:image/png;base64,{base64.b64encode(png).decode()})")


def _beside(comparison: Comparison) -> dict[str, Any]:
    if len(comparison.runs) < 2:
        return {}
    rows = [(line.table, line.feature or "all", line.metric, *map(_shown, line.values)) for line in comparison.lines]
    return {
        "runs_on_this_dataset": dg.MetadataValue.md(
            markdown_table(("table", "feature", "measure", *comparison.runs), rows, len(rows))
        )
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
