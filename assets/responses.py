"""[<run>, responses]: the op `invoke_model`, which calls a run's endpoint for a range of slices, as an asset."""

import time
from collections.abc import Callable
from enum import Enum

import dagster as dg
from pydantic import Field

from assets.descriptions import responses_description
from assets.keys import data_rows_key, invoke_op_name, pool_of, responses_key
from assets.metadata import responses_metadata, table_metadata
from assets.outcomes import Finished, Outcomes, slices_of_step
from assets.partitions import slices_of, slices_per_run
from assets.versions import answers_version
from foundry_pipeline.home import Run
from foundry_pipeline.invoke import CallOptions, Progress, SliceReport
from foundry_pipeline.tables import RESPONSES
from resources import Listener, ModelCalls

LOG_EVERY_S = 600.0
"""Between lines of the log about a slice that takes its time: each is an event, kept for ever."""


class Retry(Enum):
    """What is asked again. The names are what the launchpad shows and takes."""

    failed = "failed"
    rejected = "rejected"
    none = "none"


class InvokeConfig(dg.Config):
    """What the launchpad asks for."""

    refresh: bool = Field(False, description="Call for every row again, also where there is a good answer: paid again.")
    retry: Retry = Field(
        Retry.failed,
        description="Which rows are asked again, beside those without an answer. failed: rows that failed or were not "
        "sent. rejected: those, and rows the model refused. none: no others.",
    )


def responses_asset(run: Run, warehouse_root: str) -> dg.AssetsDefinition:
    """The asset of one run. `warehouse_root` only says where the table will be.

    `from_op`, and no asset function: an op takes a pool and a range of slices, and may fail for some of them only.
    """
    responses = dg.AssetsDefinition.from_op(
        _invoke_model(run),
        keys_by_input_name={"data_rows": data_rows_key(run.dataset.name)},
        keys_by_output_name={"result": responses_key(run.name)},
        partitions_def=slices_of(run.dataset),
        backfill_policy=dg.BackfillPolicy.multi_run(slices_per_run(run)),
        group_name=run.name,
    )
    return responses.map_asset_specs(
        lambda spec: spec.replace_attributes(
            description=responses_description(run),
            kinds={"http", "parquet"},
            metadata={
                **table_metadata(RESPONSES, run.name, warehouse_root),
                "model": run.model.name,
                "requests_per_second": float(run.model.requests_per_second),
                "inference_params": dg.MetadataValue.json(dict(run.inference_params)),
            },
        )
    )


def _invoke_model(run: Run) -> dg.OpDefinition:
    @dg.op(
        name=invoke_op_name(run.name),
        description=f"Calls {run.model.name} for the rows of {run.dataset.name} that have no good answer yet.",
        ins={"data_rows": dg.In(dg.Nothing)},
        out=dg.Out(dg.Nothing),
        pool=pool_of(run),
        code_version=answers_version(run),
    )
    def invoke_model(
        context: dg.AssetExecutionContext,
        config: InvokeConfig,
        model_calls: dg.ResourceParam[ModelCalls],
        listener: dg.ResourceParam[Listener],
    ) -> dg.MaterializeResult[None]:
        key = responses_key(run.name)
        options = CallOptions(config.refresh, config.retry.value)
        on_progress = _heard(context, listener)
        with slices_of_step(context) as outcomes, model_calls.open(run) as invoker:
            for report in invoker.invoke(context.partition_keys, options, on_progress):
                context.log.info(_in_words(report))
                listener.on_slice(run.name, report)
                _note(outcomes, key, run, report)
        return dg.MaterializeResult(asset_key=key, data_version=outcomes.data_version(key))

    return invoke_model


def _note(outcomes: Outcomes, key: dg.AssetKey, run: Run, report: SliceReport) -> None:
    if report.failure is not None:
        outcomes.failed[report.slice_key] = report.failure
    else:
        assert report.data_version is not None
        metadata = responses_metadata(run, report)
        outcomes.finished.append(Finished(key, report.slice_key, report.data_version, metadata))


def _in_words(report: SliceReport) -> str:
    if report.failure is not None:
        return f"slice {report.slice_key} failed: {report.failure}"
    return (
        f"slice {report.slice_key}: {report.rows:,} rows, {report.ok:,} ok, {report.failed:,} failed, "
        f"{report.rejected_by_model:,} rejected by the model, {report.not_sent:,} not sent; {report.calls:,} calls, "
        f"{report.reused:,} answers reused"
    )


def _heard(
    context: dg.AssetExecutionContext, listener: Listener, clock: Callable[[], float] = time.monotonic
) -> Callable[[Progress], None]:
    """The listener, and now and then a line in the log."""
    last = clock()

    def on_progress(progress: Progress) -> None:
        nonlocal last
        listener.on_calls(progress)
        if clock() - last >= LOG_EVERY_S:
            last = clock()
            context.log.info(
                f"{progress.done:,} of {progress.rows:,} rows, {progress.failed:,} failed, {progress.rate_per_s:.2f} "
                f"requests per second {progress.note}"
            )

    return on_progress
