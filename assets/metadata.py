"""Facts about a slice or table as Dagster metadata: few, small, never a secret, never a whole reply."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.descriptions import markdown_table
from assets.partitions import spans
from foundry_pipeline.home import Run
from foundry_pipeline.invoke import SliceReport
from foundry_pipeline.predictions import DecodeReport
from foundry_pipeline.rows.datasets import DatasetReport
from foundry_pipeline.tables import BOXES, DATA_ROWS, REJECTS, TableSpec

ROWS_SHOWN = 20
CHANGED = "changed_slices"
"""Metadata of a loaded dataset: see `spans`."""


def column_schema(spec: TableSpec) -> dg.TableSchema:
    """The table's columns, with unit and meaning."""
    return dg.TableSchema(columns=[_column(column) for column in spec.schema])


def table_metadata(spec: TableSpec, owner: str, warehouse: str) -> dict[str, Any]:
    """What is true of a table before anything is in it. `owner` is the dataset or run, `warehouse` a folder or URL."""
    return {
        "dagster/column_schema": column_schema(spec),
        "dagster/uri": table_uri(spec, owner, warehouse),
        "key": ", ".join(spec.key),
    }


def table_uri(spec: TableSpec, owner: str, warehouse: str) -> str:
    """Where `Store` keeps the table's slices; without one, since opening a bucket asks the network for its region."""
    return f"{warehouse.rstrip('/')}/{spec.name}/{'dataset' if spec is DATA_ROWS else 'run'}={owner}"


def dataset_metadata(report: DatasetReport) -> dict[str, Any]:
    """Of a loaded dataset."""
    return {
        "dagster/row_count": report.rows,
        "slices": len(report.slices),
        "slices_changed": len(report.changed),
        CHANGED: spans(report.slices, set(report.changed)),
        "added": report.added,
        "vanished": report.vanished,
        "content_changed": report.content_changed,
        "unavailable": report.unavailable,
        "bytes_read": report.bytes_read,
        "labelled": report.labelled,
        "mime_types": dg.MetadataValue.json(dict(report.mime_types)),
        "problem_count": report.problem_count,
        "problem_codes": dg.MetadataValue.json(dict(report.problem_counts)),
        "problems": dg.MetadataValue.md(_problems(report)),
    }


def responses_metadata(run: Run, report: SliceReport) -> dict[str, Any]:
    """Of one committed slice. `calls` to `latency_ms_max` are about this run, the others about the slice as it is."""
    return {
        "dagster/partition_row_count": report.rows,
        "ok": report.ok,
        "empty": report.empty,
        "failed": report.failed,
        "rejected_by_model": report.rejected_by_model,
        "not_sent": report.not_sent,
        "calls": report.calls,
        "reused": report.reused,
        "repeated": report.repeated,
        "calls_per_second": round(report.rate_per_s, 3),
        "allowed_per_second": float(run.model.requests_per_second),
        "seconds": round(report.seconds, 3),
        **{f"latency_ms_{name}": value for name, value in report.latency_ms.items()},
        **_faults(report),
    }


def decoded_metadata(report: DecodeReport, table: str) -> dict[str, Any]:
    """Of one table of one decoded slice."""
    if table == REJECTS.name:
        return {
            "dagster/partition_row_count": sum(report.rejects.values()),
            "reasons": dg.MetadataValue.json(dict(report.rejects)),
            "unread_texts": report.unread_texts,
        }
    metadata: dict[str, Any] = {"dagster/partition_row_count": report.predictions[table], "replies": report.rows}
    if table == BOXES.name:
        metadata["boxes_outside"] = report.boxes_outside
        if report.hints:
            metadata["hints"] = "; ".join(report.hints)
    return metadata


def _faults(report: SliceReport) -> Mapping[str, Any]:
    if not report.examples and not report.errors:
        return {}
    lost = report.failed + report.rejected_by_model + report.not_sent
    rows = report.examples[:ROWS_SHOWN]
    top = dict(list(report.errors.items())[:ROWS_SHOWN])
    return {
        "error_codes": dg.MetadataValue.json(top),
        "rows_without_answer": dg.MetadataValue.md(markdown_table(("data row", "code", "message"), rows, lost)),
    }


def _problems(report: DatasetReport) -> str:
    if not report.problems:
        return "none"
    rows = [(problem.place, problem.code, problem.message) for problem in report.problems[:ROWS_SHOWN]]
    return markdown_table(("place", "code", "what"), rows, report.problem_count)


def _column(column: pa.Field) -> dg.TableColumn:
    about = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
    unit = f" ({about['unit']})" if "unit" in about else ""
    return dg.TableColumn(
        column.name,
        str(column.type),
        about.get("meaning", "") + unit,
        dg.TableColumnConstraints(nullable=column.nullable),
    )
