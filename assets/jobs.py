"""One job a run, one job a dataset, and the schedules that run files ask for."""

from collections.abc import Iterator

import dagster as dg
from dagster import AssetSelection

# What define_asset_job gives; Dagster does not export its type.
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.checks import files_check_keys
from assets.keys import (
    data_rows_job_name,
    data_rows_key,
    decoded_keys,
    preview_job_name,
    preview_key,
    responses_key,
    whole_run_keys,
)
from assets.partitions import range_tags, ranges, registered_slices, slices_per_run
from foundry_pipeline.home import Dataset, Home, Run

AssetJob = UnresolvedAssetJobDefinition


def run_job(run: Run) -> AssetJob:
    """Everything of one run, for a slice or a range of slices; exports and evaluation are made anew from all slices."""
    keys = [responses_key(run.name), *decoded_keys(run), *whole_run_keys(run)]
    return dg.define_asset_job(
        run.name,
        AssetSelection.assets(*keys) - AssetSelection.checks(*files_check_keys(run)),
        description=f"Call {run.model.name} for slices of {run.dataset.name}, decode the answers, export and evaluate.",
    )


def preview_job(run: Run, home: Home) -> AssetJob:
    """A few rows of one run, called and drawn."""
    return dg.define_asset_job(
        preview_job_name(run, home),
        AssetSelection.assets(preview_key(run.name)),
        description=f"Call {run.model.name} for a few rows of {run.dataset.name}, and draw what it says.",
    )


def data_rows_job(dataset: Dataset, home: Home) -> AssetJob:
    """Load one dataset and register its slices."""
    return dg.define_asset_job(
        data_rows_job_name(dataset, home),
        AssetSelection.assets(data_rows_key(dataset.name)),
        description=f"Load the data rows of {dataset.name} and register its slices.",
    )


def run_schedule(run: Run, job: AssetJob) -> dg.ScheduleDefinition:
    """The run file's schedule: every slice, a Dagster run for each range of them. Off until somebody turns it on."""
    assert run.schedule is not None

    @dg.schedule(
        name=f"{run.name}_schedule",
        job=job,
        cron_schedule=run.schedule,
        description=f"{run.file}: {run.schedule} (UTC). Rows that have a good answer are not called again.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        known = registered_slices(context.instance, run.dataset.name)
        if not known:
            yield dg.SkipReason(f"{run.dataset.name} has no slices yet: materialize its data_rows first")
        for group in ranges(known, set(known), slices_per_run(run)):
            run_key = f"{context.scheduled_execution_time.isoformat()}:{group[0]}-{group[-1]}"
            yield dg.RunRequest(run_key=run_key, tags=range_tags(group))

    return schedule
