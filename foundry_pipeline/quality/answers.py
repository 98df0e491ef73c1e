"""Findings about the answers of a run: is every data row answered, how many failed, what was refused of the replies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from foundry_pipeline.config.checks_source import RejectsRule
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.home import Run
from foundry_pipeline.quality.audit import ROWS_NAMED, Answers, total_rows
from foundry_pipeline.quality.finding import Finding, Worst, WorstRows, counted
from foundry_pipeline.store import Store
from foundry_pipeline.tables import REJECTS

ANSWERED, FAILED_SHARE, REJECT_SHARE = "answered_equals_asked", "failed_share", "reject_share"

SLICES_NAMED = 20
CODES_SAID = 5


def answered_finding(run: Run, answers: Answers) -> Finding:
    """Every data row has an outcome. A slice that has no responses yet is noted; other rows than asked are wrong."""
    words = f"{answers.rows:,} data rows asked, {answers.answered:,} with an outcome"
    if answers.missing:
        words += f"; {counted(len(answers.missing), 'slice')} without responses: {_some(answers.missing)}"
    if answers.unequal:
        words += f"; other rows than asked in {counted(len(answers.unequal), 'slice')}: {_some(answers.unequal)}"
    return Finding(
        ANSWERED,
        run.checks.answered_equals_asked,
        answers.strangers / max(answers.rows, 1),
        words,
        tuple(answers.worst),
        {
            "data_rows": answers.rows,
            "calls": answers.outcomes.total(),
            **dict(sorted(answers.outcomes.items())),
            "slices": answers.slices,
            "slices_without_responses": len(answers.missing),
            "slices_with_other_rows": len(answers.unequal),
            "for_example": ", ".join([*answers.unequal, *answers.missing][:SLICES_NAMED]),
        },
        noted=bool(answers.missing),
        breached=bool(answers.unequal) and not answers.strangers,  # the rows are there, and not all of their calls
    )


def failed_finding(run: Run, answers: Answers) -> Finding:
    """How many rows failed. One is noted; the limit is for the share of them."""
    failed, share, (of_worst, slice_key) = answers.outcomes["failed"], answers.failed_share, answers.worst_slice
    words = f"no row of {answers.outcomes.total():,} failed"
    if failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in answers.failures.codes.most_common(CODES_SAID))
        words = f"{failed:,} of {answers.outcomes.total():,} rows failed ({share:.1%}): {codes}. "
        words += "They are asked again next time."
    worst = [Worst(row.global_key, f"{row.code}: {row.message}") for row in answers.failures.named()]
    facts = {"failed_share": share, "failed": failed, "worst_slice": slice_key, "failed_share_of_worst_slice": of_worst}
    return Finding(
        FAILED_SHARE, run.checks.failed_share, share, words, tuple(worst[:ROWS_NAMED]), facts, noted=failed > 0
    )


@dataclass(slots=True)
class Refused:
    """What was refused of the replies. `parts` are all rows of the prediction tables and rejects together."""

    parts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    worst: WorstRows = field(default_factory=WorstRows)


def audit_rejects(run: Run, store: Store) -> Refused:
    """Rejects by reason, the data rows with most of them, and what they are a share of."""
    tables = tables_needed(run.model.ontology, run.model.allowed_feature_kinds)
    found = Refused(sum(total_rows(run, store, spec) for spec in tables if spec is not REJECTS))
    for _, table in store.read_all(REJECTS, run.name, ["global_key", "reason"]):
        frame = _frame(table)
        found.parts += frame.height
        found.reasons.update(frame["reason"].to_list())
        by_row = frame.group_by("global_key", maintain_order=True).agg(pl.len(), pl.col("reason").mode().min())
        found.worst.add(
            (count, Worst(key, f"{counted(count, 'reject')}, such as {reason}")) for key, count, reason in by_row.rows()
        )
    return found


def rejects_finding(run: Run, refused: Refused) -> Finding:
    """Which share of all parts was refused. One is noted; a reason may have a limit of its own."""
    rule: RejectsRule = run.checks.reject_share
    count, parts = refused.reasons.total(), max(refused.parts, 1)
    share = count / parts
    over = {r: n / parts for r, n in refused.reasons.items() if n / parts > rule.reasons.get(r, 1.0)}
    words = f"nothing of {counted(refused.parts, 'part')} was refused"
    if count:
        most = ", ".join(f"{reason} {n:,} ({n / parts:.1%})" for reason, n in refused.reasons.most_common(CODES_SAID))
        words = f"{count:,} of {counted(refused.parts, 'part')} refused ({share:.1%}): {most}"
    if over:
        words += "; over their own limit: " + ", ".join(f"{r} ({rule.reasons[r]:.1%})" for r in sorted(over))
    facts = {"rejects": count, "share": share, "reasons": dict(refused.reasons.most_common())}
    return Finding(REJECT_SHARE, rule, share, words, refused.worst.rows(), facts, noted=count > 0, breached=bool(over))


def _frame(table: object) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _some(slice_keys: list[str]) -> str:
    more = f" and {len(slice_keys) - SLICES_NAMED:,} more" if len(slice_keys) > SLICES_NAMED else ""
    return ", ".join(slice_keys[:SLICES_NAMED]) + more
