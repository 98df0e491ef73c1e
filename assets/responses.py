"""[<run>, responses]: the op `invoke_model`, which calls a run's endpoint for a range of slices, as an asset."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

import dagster as dg
from pydantic import Field

from assets.descriptions import responses_description
from assets.keys import data_rows_key, invoke_op_name, pool_of, responses_key
from assets.metadata import failure_metadata, price_metadata, responses_metadata, table_metadata
from assets.outcomes import Finished, Outcomes, slices_of_step
from assets.partitions import slices_of, slices_per_run
from assets.progress_words import LogPace, progress_words, time_left
from assets.stops import Totals
from assets.versions import answers_version
from foundry_pipeline.home import Run
from foundry_pipeline.invoke import CallOptions, Progress, SliceReport
from foundry_pipeline.tables import RESPONSES
from resources import Listener, ModelCalls


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
                **price_metadata(run),
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
        log = _StepLog(context)
        _warn_of_other_machines(context, model_calls.ledger)
        with slices_of_step(context) as outcomes, log.of_a_stop(), model_calls.open(run) as invoker:
            for report in invoker.invoke(context.partition_keys, options, log.hearing(listener)):
                log.on_slice(report)
                listener.on_slice(run.name, report)
                _note(outcomes, key, run, report)
            outcomes.headline, outcomes.evidence = log.headline(), failure_metadata(run, log.failed)
        return dg.MaterializeResult(asset_key=key, data_version=outcomes.data_version(key))

    return invoke_model


def _warn_of_other_machines(context: dg.AssetExecutionContext, ledger: str) -> None:
    """Runs that another launcher than Dagster's own starts may be on other machines, which share no folder."""
    launcher = type(context.instance.run_launcher)
    if "://" not in ledger and launcher.__module__.partition(".")[0] != "dagster":
        context.log.warning(
            f"{launcher.__name__} may start runs on other machines: with the ledger in a folder ({ledger}) the rate is "
            "per machine, and so is the right to work on a slice; FOUNDRY_LEDGER=postgresql://... is for all of them"
        )


def _note(outcomes: Outcomes, key: dg.AssetKey, run: Run, report: SliceReport) -> None:
    if report.failure is not None:
        outcomes.failed[report.slice_key] = report.failure
    else:
        assert report.data_version is not None
        metadata = responses_metadata(run, report)
        outcomes.finished.append(Finished(key, report.slice_key, report.data_version, metadata))


class _StepLog:
    """What a step tells Dagster's log while it works, and what it has to say at its end."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._log = context.log
        self._pace = LogPace()
        self._totals = Totals()
        self.failed: list[SliceReport] = []
        self._latest: Progress | None = None

    def hearing(self, listener: Listener) -> Callable[[Progress], None]:
        """The listener, and now and then a line in the log."""

        def on_progress(progress: Progress) -> None:
            self._latest = progress
            listener.on_calls(progress)
            if self._pace.is_due(progress.note):
                left = "" if progress.left_s is None else f", {time_left(progress.left_s)}"
                done = f"{progress.done:,} of {progress.rows:,} rows ({progress.done / max(progress.rows, 1):.0%})"
                self._log.info(f"{done}, {progress_words(progress)}{left}")

        return on_progress

    @contextmanager
    def of_a_stop(self) -> Iterator[None]:
        """Say what there is and what is left, where the step is interrupted."""
        try:
            yield
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            if self._latest is not None:
                done, rows = self._latest.done, self._latest.rows
                self._log.warning(
                    f"stopped: {done:,} of {rows:,} rows have their answer, {rows - done:,} are left but for what came "
                    "home since; run again to go on"
                )
            raise

    def on_slice(self, report: SliceReport) -> None:
        """A line for each slice; of those that a stop left, for the first alone."""
        is_told = report.stop is not None and self._totals.stop is not None
        self._totals.add(report)
        self._pace.slice_done()
        if report.failure is None:
            self._log.info(_in_words(report))
            return
        self.failed.append(report)
        if not is_told:
            self._log.error(f"slice {report.slice_key} failed: {report.failure}")

    def headline(self) -> str:
        """What stopped the step, and how far it came; empty where nothing did."""
        return self._totals.stop_in_words()


def _in_words(report: SliceReport) -> str:
    return (
        f"slice {report.slice_key}: {report.rows:,} rows, {report.ok:,} ok ({report.empty:,} empty), "
        f"{report.failed:,} failed, {report.rejected_by_model:,} rejected by the model, {report.not_sent:,} not sent; "
        f"{report.calls:,} calls, {report.reused:,} answers reused"
        + (f"; {report.damaged:,} answers in its ledger were damaged: asked again" if report.damaged else "")
    )
