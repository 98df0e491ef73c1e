"""[<run>, <table>]: a run's prediction tables and rejects, decoded from its responses alone."""

import base64
import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence

import dagster as dg

from assets.blocking import refuse_if_blocked
from assets.descriptions import table_description
from assets.keys import decoded_keys, decoded_tables, responses_key, table_key
from assets.lineage import column_lineage
from assets.metadata import decoded_metadata, slice_file, table_metadata
from assets.outcomes import Finished, Outcomes, slices_of_step
from assets.partitions import slices_of
from assets.versions import decoding_version
from foundry_pipeline.decode_processes import DecodeJob, decode_slices, useful_processes
from foundry_pipeline.draw import draw_slice_sample
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.predictions import DecodeReport
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.store import Store
from foundry_pipeline.tables import TABLES, TableSpec
from resources import Contents, Listener

MOST_SLICES_A_RUN = 10_000
"""Decoding is quick, and not the calls' policy: then Dagster decodes the good slices although one of them failed."""


def prediction_assets(run: Run, warehouse_root: str) -> dg.AssetsDefinition:
    """The tables of one run, one step that can be asked for some of them. `warehouse_root` says where they will be.

    All tables of a slice are written together, whichever are asked for; asked for are those that Dagster reports.
    """

    @dg.multi_asset(
        name=f"{run.name}__predictions",
        specs=[_spec(run, table, warehouse_root) for table in decoded_tables(run)],
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.multi_run(MOST_SLICES_A_RUN),
    )
    def predictions(
        context: dg.AssetExecutionContext,
        warehouse: dg.ResourceParam[Store],
        contents: dg.ResourceParam[Contents],
        listener: dg.ResourceParam[Listener],
    ) -> Iterator[dg.MaterializeResult[None]]:
        refuse_if_blocked(context, run, [responses_key(run.name)])
        asked = [key for key in decoded_keys(run) if key in context.selected_asset_keys]
        with slices_of_step(context) as outcomes, contents.open(run.dataset) as reader:
            job = DecodeJob(run, warehouse.root, contents.home_root, contents.settings)
            with contextlib.closing(decode_slices(job, context.partition_keys, _processes())) as results:
                for slice_key, result in results:
                    _note(run, slice_key, result, asked, outcomes, warehouse.root)
                    listener.on_decoded(run.name, slice_key)
            _add_picture(run, warehouse, reader, outcomes)
        for key in asked:
            yield dg.MaterializeResult(asset_key=key, data_version=outcomes.data_version(key))

    return predictions


def _spec(run: Run, table: TableSpec, warehouse_root: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        table_key(run.name, table.name),
        deps=[responses_key(run.name)],
        group_name=run.name,
        kinds={"parquet"},
        description=table_description(run, table),
        metadata={
            **table_metadata(table, run.name, warehouse_root),
            "dagster/column_lineage": column_lineage(run, table),
        },
        code_version=decoding_version(run),
        partitions_def=slices_of(run.dataset),
        skippable=True,
    )


def _processes() -> int:
    """One in a worker of the command line, which has as many of them as it was asked for."""
    return useful_processes() if multiprocessing.parent_process() is None else 1


def _note(
    run: Run,
    slice_key: str,
    result: DecodeReport | StorageError,
    asked: Sequence[dg.AssetKey],
    outcomes: Outcomes,
    warehouse_root: str,
) -> None:
    if isinstance(result, StorageError):
        outcomes.failed[slice_key] = str(result)
        return
    for key in asked:
        table = key.path[-1]
        file = slice_file(TABLES[table], run.name, warehouse_root, slice_key)
        metadata = {**decoded_metadata(result, table), **file}
        outcomes.finished.append(Finished(key, slice_key, result.data_versions[table], metadata))


def _add_picture(run: Run, store: Store, reader: RowReader, outcomes: Outcomes) -> None:
    """Draw the first slice that has something to show. One picture a step: events are kept for ever."""
    if run.dataset.media_type != "image":
        return
    for at, done in enumerate(outcomes.finished):
        if done.asset_key != outcomes.finished[0].asset_key:
            continue
        jpeg = draw_slice_sample(run, store, done.slice_key, reader.picture)
        if jpeg is not None:
            picture = dg.MetadataValue.md(f"![predictions](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})")
            outcomes.finished[at] = Finished(
                done.asset_key, done.slice_key, done.data_version, {**done.metadata, "picture": picture}
            )
            return
