"""Asset checks over a whole run: every row has an outcome, few fail, few parts are refused, numbers are possible.

They look at all slices and not at those of the step: Dagster's partitioned checks do not know ranges of partitions.
Whether files are as they were written is looked at on request only, since that reads all of them.
"""

from collections.abc import Iterator

import dagster as dg

from assets.audit import Answers, audit_answers, audit_boxes, audit_scores, damaged_files, reject_reasons, total_rows
from assets.keys import decoded_tables, responses_key, table_key
from assets.unanswered import CODES_SHOWN, worst_codes_table
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, REJECTS, RESPONSES, TableSpec

ANSWERED, FAILED_SHARE = "answered_equals_asked", "failed_share"
REJECT_SHARE, INSIDE, SCORES = "reject_share", "boxes_inside_picture", "scores_in_0_1"
INTACT = "files_intact"

MOST_REJECTS = 0.05
"""Share of refused parts above which something is wrong with the model or its manifest, and not with one answer."""
SLICES_NAMED = 20


def run_checks(run: Run) -> list[dg.AssetChecksDefinition]:
    """All checks of one run: a step on its responses, a step on its tables, a step on the files of both."""
    return [_responses_checks(run), _tables_checks(run), _files_checks(run)]


def _files_checks(run: Run) -> dg.AssetChecksDefinition:
    tables = {table_key(run.name, spec.name): spec for spec in (RESPONSES, *decoded_tables(run))}
    description = "Every file has the sha256 that it was committed with. Reads all files: executed on request only."

    @dg.multi_asset_check(
        name=f"{run.name}__files_checks",
        specs=[dg.AssetCheckSpec(INTACT, asset=key, description=description) for key in tables],
        can_subset=True,
    )
    def files_checks(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Store]
    ) -> Iterator[dg.AssetCheckResult]:
        for asked in context.selected_asset_check_keys:
            yield _intact(run, asked.asset_key, tables[asked.asset_key], warehouse)

    return files_checks


def _intact(run: Run, key: dg.AssetKey, spec: TableSpec, store: Store) -> dg.AssetCheckResult:
    damaged = damaged_files(run, store, spec)
    advice = "ask its rows again with refresh" if spec is RESPONSES else "materialize it again: no call is needed"
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=INTACT,
        passed=not damaged,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "files": len(store.slices(spec, run.name)),
            "damaged": len(damaged),
            "for_example": dg.MetadataValue.json(dict(list(damaged.items())[:SLICES_NAMED])),
            **({"advice": advice} if damaged else {}),
        },
    )


def files_check_keys(run: Run) -> list[dg.AssetCheckKey]:
    """The checks that no job executes by itself."""
    return [dg.AssetCheckKey(table_key(run.name, spec.name), INTACT) for spec in (RESPONSES, *decoded_tables(run))]


def _responses_checks(run: Run) -> dg.AssetChecksDefinition:
    key = responses_key(run.name)

    @dg.multi_asset_check(
        name=f"{run.name}__responses_checks",
        specs=[
            dg.AssetCheckSpec(ANSWERED, asset=key, description="Every data row has one outcome."),
            dg.AssetCheckSpec(
                FAILED_SHARE,
                asset=key,
                description=f"No row failed; an error above {run.max_failed_share:.1%}, the run's max_failed_share.",
            ),
        ],
        can_subset=True,
    )
    def responses_checks(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Store]
    ) -> Iterator[dg.AssetCheckResult]:
        answers = audit_answers(run, warehouse)
        results = {ANSWERED: _answered(key, answers), FAILED_SHARE: _failed_share(key, answers, run.max_failed_share)}
        yield from (results[asked.name] for asked in context.selected_asset_check_keys)

    return responses_checks


def _answered(key: dg.AssetKey, answers: Answers) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=ANSWERED,
        passed=not answers.missing and not answers.unequal,
        severity=dg.AssetCheckSeverity.ERROR if answers.unequal else dg.AssetCheckSeverity.WARN,
        metadata={
            "data_rows": answers.rows,
            **dict(sorted(answers.outcomes.items())),
            "slices": answers.slices,
            "slices_without_responses": len(answers.missing),
            "slices_with_other_rows": len(answers.unequal),
            "for_example": ", ".join([*answers.unequal, *answers.missing][:SLICES_NAMED]),
        },
    )


def _failed_share(key: dg.AssetKey, answers: Answers, limit: float) -> dg.AssetCheckResult:
    share = answers.failed_share
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=FAILED_SHARE,
        passed=share == 0.0,
        severity=dg.AssetCheckSeverity.ERROR if share > limit else dg.AssetCheckSeverity.WARN,
        description=_failures_in_words(answers) if share else None,
        metadata={"failed_share": share, "limit": limit, **_worst_codes(answers)},
    )


def _failures_in_words(answers: Answers) -> str:
    failed, rows = answers.outcomes["failed"], answers.outcomes.total()
    worst = ", ".join(f"{code} {count:,}" for code, count in answers.failures.codes.most_common(CODES_SHOWN))
    return f"{failed:,} of {rows:,} rows failed ({answers.failed_share:.1%}): {worst}. They are asked again next time."


def _worst_codes(answers: Answers) -> dict[str, dg.MetadataValue]:
    failures = answers.failures
    if not failures.codes:
        return {}
    return {"worst_codes": dg.MetadataValue.md(worst_codes_table(failures.codes, failures.examples))}


def _tables_checks(run: Run) -> dg.AssetChecksDefinition:
    tables = {table_key(run.name, spec.name): spec for spec in decoded_tables(run)}

    @dg.multi_asset_check(
        name=f"{run.name}__predictions_checks", specs=list(_table_check_specs(tables)), can_subset=True
    )
    def predictions_checks(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Store]
    ) -> Iterator[dg.AssetCheckResult]:
        for asked in context.selected_asset_check_keys:
            yield _check_table(run, asked, tables[asked.asset_key], warehouse)

    return predictions_checks


def _table_check_specs(tables: dict[dg.AssetKey, TableSpec]) -> Iterator[dg.AssetCheckSpec]:
    for key, spec in tables.items():
        if spec is REJECTS:
            description = f"Nothing the model said was refused; an error above {MOST_REJECTS:.0%} of all parts."
            yield dg.AssetCheckSpec(REJECT_SHARE, asset=key, description=description)
        else:
            yield dg.AssetCheckSpec(SCORES, asset=key, description="Every score is from 0 to 1.")
        if spec is BOXES:
            yield dg.AssetCheckSpec(INSIDE, asset=key, description="No box reaches out of its picture by over a pixel.")


def _check_table(run: Run, asked: dg.AssetCheckKey, spec: TableSpec, store: Store) -> dg.AssetCheckResult:
    if asked.name == REJECT_SHARE:
        return _reject_share(run, asked.asset_key, store)
    if asked.name == INSIDE:
        return _inside(run, asked.asset_key, store)
    scores = audit_scores(run, store, spec)
    return dg.AssetCheckResult(
        asset_key=asked.asset_key,
        check_name=SCORES,
        passed=not scores.wrong,
        metadata={"scores": scores.of, "wrong": scores.wrong},
    )


def _reject_share(run: Run, key: dg.AssetKey, store: Store) -> dg.AssetCheckResult:
    reasons = reject_reasons(run, store)
    rejects = reasons.total()
    parts = rejects + sum(total_rows(run, store, spec) for spec in decoded_tables(run) if spec is not REJECTS)
    share = rejects / max(parts, 1)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=REJECT_SHARE,
        passed=not rejects,
        severity=dg.AssetCheckSeverity.ERROR if share > MOST_REJECTS else dg.AssetCheckSeverity.WARN,
        metadata={"rejects": rejects, "share": share, "reasons": dg.MetadataValue.json(dict(reasons.most_common()))},
    )


def _inside(run: Run, key: dg.AssetKey, store: Store) -> dg.AssetCheckResult:
    outside = audit_boxes(run, store)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=INSIDE,
        passed=not outside.boxes,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"boxes": outside.of, "outside": outside.boxes, "worst_px": outside.worst_px},
    )
