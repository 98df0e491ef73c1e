"""Rows without an answer, as metadata: how many, why, and the first of them by name. Messages are a stranger's text:
shortened and escaped."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from assets.descriptions import markdown_table
from foundry_pipeline.calls.tally import IN_ORDER, Unanswered
from foundry_pipeline.invoke import SliceReport

ROWS_SHOWN = 20
CODES_SHOWN = 5
ROWS_CHARS, CODES_CHARS = 1600, 800
"""An event is kept for ever: both tables stay below 4 KB with everything else."""


def unanswered_metadata(reports: Sequence[SliceReport]) -> dict[str, Any]:
    """Why rows have no answer: counts by code, an example of the worst codes, and the first of the rows."""
    codes: Counter[str] = Counter()
    examples: dict[str, Unanswered] = {}
    for report in reports:
        codes.update(report.errors)
        examples = {**report.examples, **examples}
    rows = sorted((row for r in reports for row in r.unanswered), key=lambda row: IN_ORDER.index(row.outcome))
    total = sum(r.failed + r.older_stays + r.rejected_by_model + r.not_sent for r in reports)
    if not codes and not total:
        return {}
    return {
        "error_codes": dg.MetadataValue.json(dict(codes.most_common(ROWS_SHOWN))),
        "worst_codes": dg.MetadataValue.md(worst_codes_table(codes, examples)),
        "rows_without_answer": dg.MetadataValue.md(_rows_table(rows, total)),
    }


_NO_EXAMPLE = Unanswered("", "not_sent")


def worst_codes_table(codes: Counter[str], examples: Mapping[str, Unanswered]) -> str:
    """The five most frequent codes, each with a row that has it."""
    lines = []
    for code, count in codes.most_common(CODES_SHOWN):
        row = examples.get(code, _NO_EXAMPLE)
        lines.append((code, f"{count:,}", row.global_key, row.message))
    return markdown_table(("code", "rows", "for example", "message"), lines, len(codes), CODES_CHARS)


def _rows_table(rows: Sequence[Unanswered], total: int) -> str:
    header = ("data row", "outcome", "code", "status", "attempts", "message")
    lines = [
        (r.global_key, r.outcome.replace("_", " "), r.code, r.http_status or "", r.attempts or "", r.message)
        for r in rows[:ROWS_SHOWN]
    ]
    return markdown_table(header, lines, total, ROWS_CHARS)


def repeated_metadata(reports: Sequence[SliceReport]) -> dict[str, Any]:
    """Calls that were sent again, since an earlier process never learned what became of them; and their rows."""
    repeated = sum(report.repeated for report in reports)
    if not repeated:
        return {"repeated": 0}
    keys = [(key,) for report in reports for key in report.repeated_rows][:ROWS_SHOWN]
    named = markdown_table(("data row",), keys, repeated, CODES_CHARS)
    return {"repeated": repeated, "repeated_rows": dg.MetadataValue.md(named)}
