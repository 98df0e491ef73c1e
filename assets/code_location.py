"""A home folder -> everything Dagster knows of it, listed once, by name, in the order data flows."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from assets.annotations import annotations_asset
from assets.catalogue import automation_sensor, catalogued_dataset, catalogued_run
from assets.checks import run_checks
from assets.data_rows import data_rows_asset
from assets.evaluation import evaluation_asset
from assets.jobs import data_rows_job, preview_job, run_job, run_schedule
from assets.predictions import prediction_assets
from assets.preview import preview_asset
from assets.responses import responses_asset
from assets.sensors import growth_sensor, rescue_sensor
from foundry_pipeline.config.ledger_source import VARIABLE as LEDGER_VARIABLE
from foundry_pipeline.config.ledger_source import is_database
from foundry_pipeline.home import Home, Run
from resources import (
    ContentsResource,
    HomeResource,
    Listener,
    ModelCallsResource,
    Places,
    WarehouseResource,
)

log = logging.getLogger(__name__)


def code_location(home: Home, places: Places, resources: Mapping[str, object] | None = None) -> dg.Definitions:
    """The sound datasets and runs of a home. What is unsound is logged, once, and takes nothing else down.

    `resources` take the place of those of the same name: another listener, or calls over another transport.
    """
    for problem in (*home.problems, *home.warnings):
        log.warning("%s", problem)
    _accept_two_backfill_policies()
    datasets, runs, warehouse = list(home.datasets.values()), list(home.runs.values()), places.warehouse
    loading = {dataset.name: data_rows_job(dataset, home) for dataset in datasets}
    calling = {run.name: run_job(run) for run in runs}
    siblings = {d.name: [run.name for run in runs if run.dataset.name == d.name] for d in datasets}
    following = {d.name: [run for run in runs if run.follow_dataset and run.dataset.name == d.name] for d in datasets}
    return dg.Definitions(
        assets=[
            *(catalogued_dataset(dataset, data_rows_asset(dataset, warehouse)) for dataset in datasets),
            *(catalogued_run(run, asset) for run in runs for asset in _assets(run, siblings, warehouse)),
        ],
        asset_checks=[check for run in runs for check in run_checks(run)],
        jobs=[*loading.values(), *calling.values(), *(preview_job(run, home) for run in runs)],
        schedules=[run_schedule(run, calling[run.name]) for run in runs if run.schedule is not None],
        sensors=[
            *(
                growth_sensor(d, loading[d.name], following[d.name], [calling[run.name] for run in following[d.name]])
                for d in datasets
            ),
            *([rescue_sensor(home.runs, list(calling.values())), automation_sensor(runs)] if runs else []),
        ],
        resources={**_resources(places), **(resources or {})},
        # A process of its own for each step costs 3 CPU-seconds, and these steps wait for the network and the disk.
        executor=dg.in_process_executor,
    )


def _assets(run: Run, siblings: Mapping[str, Sequence[str]], warehouse: str) -> Iterator[dg.AssetsDefinition]:
    """One run's, in the order data flows. `siblings` are the runs on each dataset."""
    yield preview_asset(run)
    yield responses_asset(run, warehouse)
    yield prediction_assets(run, warehouse)
    if run.exports:
        yield annotations_asset(run)
    if run.dataset.ground_truth:
        yield evaluation_asset(run, siblings[run.dataset.name])


def _resources(places: Places) -> dict[str, object]:
    return {
        "home": HomeResource(root=str(places.home)),
        "warehouse": WarehouseResource(root=places.warehouse),
        "model_calls": ModelCallsResource(
            home_root=str(places.home), warehouse_root=places.warehouse, ledger=_ledger_field(places.ledger)
        ),
        "contents": ContentsResource(home_root=str(places.home)),
        "listener": Listener(),
    }


def _ledger_field(ledger: str) -> str:
    """A database's URL may hold a password, and Dagster stores and shows fields: it gets the variable's name."""
    return dg.EnvVar(LEDGER_VARIABLE) if is_database(ledger) else ledger


def _accept_two_backfill_policies() -> None:
    """Dagster warns of jobs whose assets have two backfill policies. Ours do, so that tables of good slices are made
    although a neighbour's calls failed."""
    warnings.filterwarnings("ignore", "Asset job .* materializes assets with varying BackfillPolicies")
