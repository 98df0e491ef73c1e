"""What a failed check holds back. Dagster does so within one run; here it is so in later runs too.

A backfill makes responses, tables and exports in runs of their own, and a person may ask for one of them alone: then
what counts is the latest word of each check that blocks.
"""

from collections.abc import Iterable, Iterator, Set

import dagster as dg

from assets.checks import check_specs
from assets.outcomes import ALL_SLICES, FAILURES
from foundry_pipeline.home import Run


def refuse_if_blocked(context: dg.AssetExecutionContext, run: Run, upstream: Iterable[dg.AssetKey]) -> None:
    """Raise Failure where a check that blocks has failed of one of the assets that this step reads."""
    words = list(_refusals(context.instance, run, set(upstream)))
    if words:
        why = (
            f"held back: {'; '.join(words)}. Mend it and materialize that asset again; where it is as it should be, "
            f"raise the limit in {run.file}, or `foundry-pipeline accept {run.name}`, and execute the check again"
        )
        raise dg.Failure(why, metadata={FAILURES: dg.MetadataValue.json({ALL_SLICES: why})}, allow_retries=False)


def _refusals(instance: dg.DagsterInstance, run: Run, upstream: Set[dg.AssetKey]) -> Iterator[str]:
    for spec in check_specs(run):
        if spec.blocking and spec.asset_key in upstream:
            evaluation = _latest(instance, spec.key)
            if evaluation is not None and not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
                words = (evaluation.description or "").rstrip(".")
                yield f"the check {spec.name} of {spec.asset_key.to_user_string()} failed: {words}"


def _latest(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dg.AssetCheckEvaluation | None:
    """The latest that came to an end: one that is under way has no word yet."""
    records = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    for record in records:
        if isinstance(record.evaluation, dg.AssetCheckEvaluation):
            return record.evaluation
    return None
