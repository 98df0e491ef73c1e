"""Names of things in Dagster: asset keys, partitions, jobs and pools. Names of runs and datasets are identifiers."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import dagster as dg

from foundry_pipeline.calls.endpoint_state import endpoint_key
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.home import Dataset, Home, Run
from foundry_pipeline.rows.addresses import shown_url
from foundry_pipeline.tables import RESPONSES, TableSpec

DATA_ROWS_JOB = "_data_rows"


def data_rows_key(dataset: str) -> dg.AssetKey:
    """[<dataset>, data_rows]"""
    return dg.AssetKey([dataset, "data_rows"])


def responses_key(run: str) -> dg.AssetKey:
    """[<run>, responses]"""
    return table_key(run, RESPONSES.name)


def table_key(run: str, table: str) -> dg.AssetKey:
    """[<run>, <table>]"""
    return dg.AssetKey([run, table])


def annotations_key(run: str) -> dg.AssetKey:
    """[<run>, annotations]"""
    return dg.AssetKey([run, "annotations"])


def decoded_tables(run: Run) -> tuple[TableSpec, ...]:
    """The prediction tables that the run's model needs, then rejects."""
    return tables_needed(run.model.ontology, run.model.allowed_feature_kinds)


def decoded_keys(run: Run) -> list[dg.AssetKey]:
    """Their asset keys."""
    return [table_key(run.name, spec.name) for spec in decoded_tables(run)]


def evaluation_key(run: str) -> dg.AssetKey:
    """[<run>, evaluation]"""
    return dg.AssetKey([run, "evaluation"])


def preview_key(run: str) -> dg.AssetKey:
    """[<run>, preview]"""
    return dg.AssetKey([run, "preview"])


def whole_run_keys(run: Run) -> list[dg.AssetKey]:
    """What is made of all tables of a run: its annotations and its evaluation, as far as it has them."""
    exported = [annotations_key(run.name)] if run.exports else []
    return exported + ([evaluation_key(run.name)] if run.dataset.ground_truth else [])


def data_rows_job_name(dataset: Dataset, home: Home) -> str:
    """<dataset>_data_rows, or with one more underscore at the end where a run has that name."""
    return _free_name(f"{dataset.name}{DATA_ROWS_JOB}", home.runs)


def preview_job_name(run: Run, home: Home) -> str:
    """<run>_preview, or with more underscores at the end where a run or another job has that name."""
    taken = {*home.runs, *(data_rows_job_name(dataset, home) for dataset in home.datasets.values())}
    return _free_name(f"{run.name}_preview", taken)


def _free_name(name: str, taken: Iterable[str]) -> str:
    return name if name not in set(taken) else _free_name(f"{name}_", taken)


def pool_of(run: Run) -> str:
    """One pool for each endpoint, whichever models and runs call it: readable, and told apart by a hash."""
    endpoint = run.model.inference_endpoint
    parts = urlsplit(shown_url(endpoint))
    words = re.sub(r"[^A-Za-z0-9]+", "_", f"{parts.netloc}{parts.path}").strip("_")
    return f"{words[:60]}_{endpoint_key(endpoint)[:6]}"


def invoke_op_name(run: str) -> str:
    """The op that calls for a run. Dagster refuses two ops of one name, so `invoke_model` alone would not do."""
    return f"{run}__invoke_model"
