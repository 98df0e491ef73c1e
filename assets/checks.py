"""Asset checks over a whole run, as its run file wants them; `foundry_pipeline/quality` has what they measure.

They look at all slices and not at those of the step: Dagster's partitioned checks do not know ranges of partitions. A
check that blocks holds back what is made of its asset, in the same Dagster run and in later ones.
Whether files are as they were written is looked at on request only, since that reads all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from assets.descriptions import markdown_table
from assets.keys import decoded_tables, responses_key, table_key
from assets.unanswered import worst_codes_table
from foundry_pipeline.config.checks_source import Rule, Severity
from foundry_pipeline.home import Run
from foundry_pipeline.quality.answers import (
    ANSWERED,
    FAILED_SHARE,
    REJECT_SHARE,
    answered_finding,
    audit_rejects,
    failed_finding,
    rejects_finding,
)
from foundry_pipeline.quality.audit import Answers, audit_answers, damaged_files
from foundry_pipeline.quality.finding import Finding
from foundry_pipeline.quality.table_checks import check_table, table_checks
from foundry_pipeline.store import Store
from foundry_pipeline.tables import REJECTS, RESPONSES, TableSpec

INTACT = "files_intact"
SLICES_NAMED = 20
WORST_CHARS = 1600
"""An event is kept for ever: a check's rows stay below 4 KB with everything else."""

_MEASURES: Mapping[str, str] = {
    ANSWERED: "Every data row has one outcome",
    FAILED_SHARE: "No row failed; the limit is for the share of rows that did",
    REJECT_SHARE: "Nothing the model said was refused; the limit is for the share of all parts of replies",
    "scores_in_0_1": "Every score is from 0 to 1",
    "boxes_inside_picture": "No box reaches out of its picture by over a pixel",
    "duplicates": "No prediction repeats another of its data row and feature",
    "predictions_per_row": "As many predictions a data row as in the last good materialization",
    "score_drift": "Scores are spread as in the last good materialization",
    "class_balance": "Classes have their shares of the last good materialization",
    "canary_rows": "The canary rows of the run file are answered as they were at first",
}


def run_checks(run: Run) -> list[dg.AssetChecksDefinition]:
    """All checks of one run: a step on its responses, a step on its tables, a step on the files of both.

    Of the first two, none that the run file turns off.
    """
    steps = [(_responses_specs(run), _responses_checks), (_tables_specs(run), _tables_checks)]
    return [*(step(run, specs) for specs, step in steps if specs), _files_checks(run)]


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


def check_specs(run: Run) -> list[dg.AssetCheckSpec]:
    """What `run_checks` checks beside files: whatever may block."""
    return [*_responses_specs(run), *_tables_specs(run)]


def _responses_specs(run: Run) -> list[dg.AssetCheckSpec]:
    names = [name for name in (ANSWERED, FAILED_SHARE) if run.checks.on(name)]
    return [_spec(run, responses_key(run.name), name) for name in names]


def _tables_specs(run: Run) -> list[dg.AssetCheckSpec]:
    return [
        _spec(run, table_key(run.name, table.name), name)
        for table in decoded_tables(run)
        for name in _checks_of(run, table)
    ]


def _checks_of(run: Run, table: TableSpec) -> tuple[str, ...]:
    if table is REJECTS:
        return (REJECT_SHARE,) if run.checks.on(REJECT_SHARE) else ()
    return table_checks(run, table)


def _spec(run: Run, key: dg.AssetKey, name: str) -> dg.AssetCheckSpec:
    rule = run.checks.rule(name)
    words = f"{_MEASURES[name]}. Over {rule.limit:g}: {_consequence(rule)}."
    return dg.AssetCheckSpec(name, asset=key, description=words, blocking=rule.blocking)


def _consequence(rule: Rule) -> str:
    if rule.blocking:
        return "an error, and what is made of this is held back"
    return "an error" if rule.severity is Severity.ERROR else "a warning"


def _responses_checks(run: Run, specs: Sequence[dg.AssetCheckSpec]) -> dg.AssetChecksDefinition:
    key = responses_key(run.name)

    @dg.multi_asset_check(name=f"{run.name}__responses_checks", specs=specs, can_subset=True)
    def responses_checks(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Store]
    ) -> Iterator[dg.AssetCheckResult]:
        answers = audit_answers(run, warehouse)
        results = {
            ANSWERED: _result(key, answered_finding(run, answers)),
            FAILED_SHARE: _result(key, failed_finding(run, answers), _worst_codes(answers)),
        }
        yield from (results[asked.name] for asked in context.selected_asset_check_keys)

    return responses_checks


def _tables_checks(run: Run, specs: Sequence[dg.AssetCheckSpec]) -> dg.AssetChecksDefinition:
    tables = {table_key(run.name, spec.name): spec for spec in decoded_tables(run)}

    @dg.multi_asset_check(name=f"{run.name}__predictions_checks", specs=specs, can_subset=True)
    def predictions_checks(
        context: dg.AssetCheckExecutionContext, warehouse: dg.ResourceParam[Store]
    ) -> Iterator[dg.AssetCheckResult]:
        asked = context.selected_asset_check_keys
        for key, table in tables.items():
            names = {check.name for check in asked if check.asset_key == key}
            findings = _findings(run, warehouse, table) if names else {}
            yield from (_result(key, finding) for name, finding in findings.items() if name in names)

    return predictions_checks


def _findings(run: Run, store: Store, table: TableSpec) -> Mapping[str, Finding]:
    if table is REJECTS:
        return {REJECT_SHARE: rejects_finding(run, audit_rejects(run, store))}
    return check_table(run, store, table, datetime.now(UTC))


def _result(key: dg.AssetKey, finding: Finding, more: Mapping[str, Any] | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=finding.check,
        passed=finding.passed,
        severity=dg.AssetCheckSeverity.ERROR if finding.is_error else dg.AssetCheckSeverity.WARN,
        description=finding.words,
        metadata={"number": finding.number, "limit": finding.rule.limit, **_facts(finding), **(more or {})},
    )


def _facts(finding: Finding) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: dg.MetadataValue.json(value) if isinstance(value, Mapping) else value
        for name, value in finding.facts.items()
    }
    if finding.worst:
        rows = [(worst.global_key, worst.why) for worst in finding.worst]
        facts["worst_rows"] = dg.MetadataValue.md(
            markdown_table(("data row", "why"), rows, len(rows), most_chars=WORST_CHARS)
        )
    return facts


def _worst_codes(answers: Answers) -> dict[str, dg.MetadataValue]:
    failures = answers.failures
    if not failures.codes:
        return {}
    return {"worst_codes": dg.MetadataValue.md(worst_codes_table(failures.codes, failures.examples))}
