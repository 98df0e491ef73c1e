"""Data rows against responses, slice by slice: who has an answer, who failed and why, what was refused.

A data row may have several responses, one a call: it counts once, with the worst of its outcomes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from foundry_pipeline.calls.tally import Tally, Unanswered
from foundry_pipeline.config.checks_source import RejectsRule
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.home import Run
from foundry_pipeline.quality.finding import Finding, Worst, WorstRows, counted
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, REJECTS, RESPONSES, TableSpec

ANSWERED, FAILED_SHARE, REJECT_SHARE = "answered_equals_asked", "failed_share", "reject_share"

BEST_FIRST = ("ok", "rejected_by_model", "not_sent", "failed")
SLICES_NAMED = 20
ROWS_NAMED = 20
CODES_SAID = 5


@dataclass(slots=True)
class Answers:
    """Data rows against responses. `missing` are slices without responses, `unequal` those with other rows."""

    slices: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    unequal_rows: int = 0
    """Data rows that should have a response and have none, or the other way round, where the slice has responses."""
    strangers: list[Worst] = field(default_factory=list)
    """The first of them."""
    failures: Tally = field(default_factory=Tally)
    """The failed rows alone: by code, with an example of each."""
    worst_slice: tuple[float, str] = (0.0, "")
    """The greatest share of failed rows, and whose it is."""

    @property
    def failed_share(self) -> float:
        """Of the rows that have an outcome."""
        return self.outcomes["failed"] / max(self.outcomes.total(), 1)


def audit_answers(run: Run, store: Store) -> Answers:
    """Compare every slice of the dataset with the run's responses."""
    found = Answers()
    for slice_key in store.slices(DATA_ROWS, run.dataset.name):
        asked = store.read(DATA_ROWS, run.dataset.name, slice_key, ["global_key"])
        responses = store.read(RESPONSES, run.name, slice_key, ["global_key", "outcome"])
        found.slices += 1
        found.rows += 0 if asked is None else asked.num_rows
        if responses is None or asked is None:
            found.missing.append(slice_key)
            continue
        outcomes = worst_outcomes(_frame(responses))
        _compare(found, slice_key, set(asked["global_key"].to_pylist()), set(outcomes["global_key"]))
        counts = Counter(outcomes["outcome"].to_list())
        found.outcomes.update(counts)
        if counts["failed"]:
            found.worst_slice = max(found.worst_slice, (counts["failed"] / counts.total(), slice_key))
            for record in _failed_rows(run, store, slice_key):
                found.failures.add(record)
    return found


def worst_outcomes(responses: pl.DataFrame) -> pl.DataFrame:
    """(global_key, outcome), one row a data row in the order they came."""
    rank = pl.col("outcome").replace_strict({name: at for at, name in enumerate(BEST_FIRST)}, return_dtype=pl.Int8)
    return responses.group_by("global_key", maintain_order=True).agg(pl.col("outcome").sort_by(rank).last())


def _compare(found: Answers, slice_key: str, asked: set[str], answered: set[str]) -> None:
    if asked == answered:
        return
    found.unequal.append(slice_key)
    found.unequal_rows += len(asked ^ answered)
    unlike = [Worst(key, "has no response") for key in sorted(asked - answered)]
    unlike += [Worst(key, "has a response and is no data row") for key in sorted(answered - asked)]
    found.strangers += unlike[: ROWS_NAMED - len(found.strangers)]


def _failed_rows(run: Run, store: Store, slice_key: str) -> list[Unanswered]:
    columns = ["global_key", "outcome", "error", "http_status", "attempts", "message"]
    table = store.read(RESPONSES, run.name, slice_key, columns)
    assert table is not None
    failed = _frame(table).filter(pl.col("outcome") == "failed").unique("global_key", keep="first", maintain_order=True)
    return [
        Unanswered(r["global_key"], r["outcome"], r["error"] or "", r["http_status"], r["attempts"], r["message"] or "")
        for r in failed.to_dicts()
    ]


def answered_finding(run: Run, answers: Answers) -> Finding:
    """Every data row has an outcome. A slice that has no responses yet is noted; other rows than asked are wrong."""
    words = f"{answers.rows:,} data rows asked, {answers.outcomes.total():,} with an outcome"
    if answers.missing:
        words += f"; {counted(len(answers.missing), 'slice')} without responses: {_some(answers.missing)}"
    if answers.unequal:
        words += f"; other rows than asked in {counted(len(answers.unequal), 'slice')}: {_some(answers.unequal)}"
    return Finding(
        ANSWERED,
        run.checks.answered_equals_asked,
        answers.unequal_rows / max(answers.rows, 1),
        words,
        tuple(answers.strangers),
        {
            "data_rows": answers.rows,
            **dict(sorted(answers.outcomes.items())),
            "slices": answers.slices,
            "slices_without_responses": len(answers.missing),
            "slices_with_other_rows": len(answers.unequal),
            "for_example": ", ".join([*answers.unequal, *answers.missing][:SLICES_NAMED]),
        },
        noted=bool(answers.missing),
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


def total_rows(run: Run, store: Store, spec: TableSpec) -> int:
    """Rows of one of the run's tables, all slices together."""
    return sum(row_count(store, spec, run.name, slice_key) for slice_key in store.slices(spec, run.name))


def row_count(store: Store, spec: TableSpec, owner: str, slice_key: str) -> int:
    """Rows of one file, read from its footer; 0 where there is none."""
    file = store.open(spec, owner, slice_key)
    if file is None:
        return 0
    with file:
        rows: int = file.metadata.num_rows
        return rows


def _frame(table: object) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _some(slice_keys: list[str]) -> str:
    more = f" and {len(slice_keys) - SLICES_NAMED:,} more" if len(slice_keys) > SLICES_NAMED else ""
    return ", ".join(slice_keys[:SLICES_NAMED]) + more
