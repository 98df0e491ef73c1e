"""Facts about a slice or table as Dagster metadata: few, small, never a secret, never a whole reply."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.descriptions import markdown_table
from assets.partitions import spans
from assets.unanswered import repeated_metadata, unanswered_metadata
from foundry_pipeline.calls.budget import Cost
from foundry_pipeline.config.money import Money
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
        "mime_types": dg.MetadataValue.json(dict(report.mime_types)),
        "problem_count": report.problem_count,
        "problem_codes": dg.MetadataValue.json(dict(report.problem_counts)),
        "problems": dg.MetadataValue.md(_problems(report)),
    }


def responses_metadata(run: Run, report: SliceReport) -> dict[str, Any]:
    """Of one committed slice. `calls` to `latency_ms_max` are about this materialization, `spent` is about the run so
    far, the others are about the slice as it is."""
    return {
        "dagster/partition_row_count": report.rows,
        "ok": report.ok,
        "empty": report.empty,
        "failed": report.failed,
        "rejected_by_model": report.rejected_by_model,
        "not_sent": report.not_sent,
        **({"older_answer_stays": report.older_stays} if report.older_stays else {}),
        **unanswered_metadata([report]),
        "calls": report.calls,
        "reused": report.reused,
        **repeated_metadata([report]),
        "damaged": report.damaged,
        **_cost_metadata(run, report),
        "calls_per_second": round(report.rate_per_s, 3),
        "allowed_per_second": round(report.allowed_per_s, 3),
        "seconds": round(report.seconds, 3),
        **{f"latency_ms_{name}": value for name, value in report.latency_ms.items()},
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


def failure_metadata(run: Run, failed: Sequence[SliceReport]) -> dict[str, Any]:
    """Of a step, about its failed slices: their rows by outcome, why they have no answer, what was spent."""
    if not failed:
        return {}
    return {
        "rows": sum(report.rows for report in failed),
        "answered": sum(report.answered for report in failed),
        "failed": sum(report.failed for report in failed),
        "rejected_by_model": sum(report.rejected_by_model for report in failed),
        "not_sent": sum(report.not_sent for report in failed),
        **unanswered_metadata(failed),
        "calls": sum(report.calls for report in failed),
        **repeated_metadata(failed),
        **_spent_metadata(run, [report.cost for report in failed if report.cost is not None]),
    }


def price_metadata(run: Run) -> dict[str, Any]:
    """What a call costs and the run may cost, as its files say."""
    price = run.model.cost_per_call
    if price is None:
        return {}
    return {"cost_per_call": float(price.amount), **_budget_metadata(run, price)}


def _budget_metadata(run: Run, price: Money) -> dict[str, Any]:
    currency = price.currency or (run.budget.currency if run.budget is not None else "")
    return {
        **({"budget": float(run.budget.amount)} if run.budget is not None else {}),
        **({"currency": currency} if currency else {}),
    }


def _cost_metadata(run: Run, report: SliceReport) -> dict[str, Any]:
    price = run.model.cost_per_call
    if price is None or report.cost is None:
        return {}
    return {"cost": float(price.amount * report.calls), **_spent_metadata(run, [report.cost])}


def _spent_metadata(run: Run, costs: Sequence[Cost]) -> dict[str, Any]:
    price = run.model.cost_per_call
    if price is None or not costs:
        return {}
    spent = max(costs, key=lambda cost: cost.calls).spent
    return {"spent": float(spent.amount), **_budget_metadata(run, price)}


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
