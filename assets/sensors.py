"""Sensors: a dataset that grows, and good slices whose tables still wait because a neighbour failed."""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import dagster as dg
from dagster import AssetRecordsFilter

from assets.jobs import AssetJob
from assets.keys import data_rows_key, decoded_keys, responses_key, whole_run_keys
from assets.metadata import CHANGED
from assets.outcomes import DATA_VERSION, materialized_in
from assets.partitions import range_tags, ranges, registered_slices, slices_in, slices_of, slices_per_run
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import RESPONSES
from resources.fingerprints import source_fingerprint

GROWS = "foundry_pipeline/grows"
CONTENT = "foundry_pipeline/content"
"""Run tags: the dataset whose sensor launched the run, and what for. The content with a number behind it is the run
key: Dagster never launches the same key again, so that a key without a number would make the first failure the last."""
MOST_FAILURES = 3

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dataclass(frozen=True, slots=True)
class Load:
    """A materialization of a dataset's data rows; `changed` names the slices it wrote, as `spans` does."""

    storage_id: int
    data_version: str
    changed: str


def growth_sensor(
    dataset: Dataset, loading: AssetJob, followers: Sequence[Run], jobs: Sequence[AssetJob]
) -> dg.SensorDefinition:
    """Loads the dataset when its source changes, and launches the slices of runs that follow it. Off by default.

    `loading` is the dataset's job, `jobs` are the followers'.
    """

    @dg.sensor(
        name=f"{dataset.name}_growth",
        jobs=[loading, *jobs],
        minimum_interval_seconds=60,
        description=f"Loads {dataset.name} when its source changes; then launches what is new for the runs that have "
        f"follow_dataset: {', '.join(run.name for run in followers) or 'none'}.",
    )
    def growth(
        context: dg.SensorEvaluationContext, warehouse: dg.ResourceParam[Store]
    ) -> dg.SensorResult | dg.SkipReason:
        if _is_working(context.instance, loading.name):
            return dg.SkipReason(f"{dataset.name} is being loaded")
        load = _load_request(context.instance, dataset, loading.name)
        if load is not None:
            return dg.SensorResult(run_requests=[load], cursor=context.cursor)
        seen: dict[str, int] = json.loads(context.cursor or "{}")
        requests = [request for run in followers for request in _follow(context.instance, run, warehouse, seen)]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason("nothing new"),
            cursor=json.dumps(seen),
        )

    return growth


def _load_request(instance: dg.DagsterInstance, dataset: Dataset, job_name: str) -> dg.RunRequest | None:
    """A load, unless the last load that this sensor launched was for the source as it is."""
    content = f"{dataset.name}:{source_fingerprint(dataset)}"
    latest = instance.get_runs(dg.RunsFilter(job_name=job_name, tags={GROWS: dataset.name}), limit=1)
    if latest and latest[0].tags.get(CONTENT) == content and latest[0].status != dg.DagsterRunStatus.FAILURE:
        return None
    return _request(instance, job_name, content, {GROWS: dataset.name})


def _follow(instance: dg.DagsterInstance, run: Run, store: Store, seen: dict[str, int]) -> Iterator[dg.RunRequest]:
    """Runs for slices that have no answers, failed, or have other rows than at the last look.

    `seen` is the run -> the last load that was looked at.
    """
    loads = _loads_since(instance, run.dataset, seen.get(run.name))
    if not loads or _is_working(instance, run.name):
        return
    known = registered_slices(instance, run.dataset.name)
    wanted = _unanswered(instance, run, store, known)
    for load in loads[1:]:
        wanted |= slices_in(known, load.changed)
    for group in ranges(known, wanted, slices_per_run(run)):
        content = f"{run.name}:{group[0]}-{group[-1]}:{loads[-1].data_version}"
        request = _request(instance, run.name, content, {GROWS: run.dataset.name, **range_tags(group)})
        if request is not None:
            yield request
    seen[run.name] = loads[-1].storage_id


def _loads_since(instance: dg.DagsterInstance, dataset: Dataset, seen: int | None) -> list[Load]:
    """The load that was looked at last and those after it, the oldest first; the latest alone where none was."""
    after = None if seen is None else seen - 1
    wanted = AssetRecordsFilter(asset_key=data_rows_key(dataset.name), after_storage_id=after)
    records = instance.fetch_materializations(wanted, limit=1 if seen is None else 1000).records
    loads = []
    for record in reversed(records):
        event = record.asset_materialization
        assert event is not None
        changed = event.metadata.get(CHANGED)
        version = (event.tags or {}).get(DATA_VERSION, "")
        loads.append(Load(record.storage_id, version, str(changed.value) if changed is not None else ""))
    return loads


def _unanswered(instance: dg.DagsterInstance, run: Run, store: Store, known: Sequence[str]) -> set[str]:
    statuses = instance.get_status_by_partition(responses_key(run.name), known, slices_of(run.dataset)) or {}
    failed = {key for key, status in statuses.items() if status is not None and status.value == "FAILED"}
    return failed | (set(known) - set(store.slices(RESPONSES, run.name)))


def _request(
    instance: dg.DagsterInstance, job_name: str, content: str, tags: Mapping[str, str]
) -> dg.RunRequest | None:
    """A run for this content, unless the last three of them failed."""
    same = dg.RunsFilter(job_name=job_name, tags={CONTENT: content})
    latest = instance.get_runs(same, limit=MOST_FAILURES)
    if len([run for run in latest if run.status == dg.DagsterRunStatus.FAILURE]) == MOST_FAILURES:
        return None
    run_key = f"{content}:{instance.get_runs_count(same)}"
    return dg.RunRequest(run_key=run_key, job_name=job_name, tags={**tags, CONTENT: content})


def _is_working(instance: dg.DagsterInstance, job_name: str) -> bool:
    return instance.get_runs_count(dg.RunsFilter(job_name=job_name, statuses=UNFINISHED)) > 0


def rescue_sensor(runs: Mapping[str, Run], jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """Decodes and exports the slices that were answered in a run that then failed for others. Off by default.

    Needed for runs of jobs only (schedules, the growth sensors): a step whose neighbour failed is not started. A
    backfill from the UI does without, since tables have a backfill policy of their own.
    """

    @dg.run_status_sensor(
        name="tables_of_good_slices",
        run_status=dg.DagsterRunStatus.FAILURE,
        monitored_jobs=list(jobs),
        request_jobs=list(jobs),
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="When some slices of a job's run fail, decodes and exports the others.",
    )
    def tables_of_good_slices(context: dg.RunStatusSensorContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        failed, run = context.dagster_run, runs[context.dagster_run.job_name]
        done = set(materialized_in(context.instance, failed.run_id))
        good = _slices(done, responses_key(run.name)) - _slices(done, decoded_keys(run)[0])
        if not good:
            yield dg.SkipReason(f"no slice of {run.name} was answered")
        known = registered_slices(context.instance, run.dataset.name)
        for group in ranges(known, good, len(known) or 1):
            yield dg.RunRequest(
                run_key=f"{failed.run_id}:{group[0]}-{group[-1]}",
                job_name=run.name,
                asset_selection=[*decoded_keys(run), *whole_run_keys(run)],
                tags=range_tags(group),
            )

    return tables_of_good_slices


def _slices(done: Set[tuple[dg.AssetKey, str | None]], asset_key: dg.AssetKey) -> set[str | None]:
    return {slice_key for key, slice_key in done if key == asset_key}
