"""[<dataset>, data_rows]: the source's rows in slices, which become the partitions of the dataset's runs."""

import hashlib
from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from assets.descriptions import dataset_description
from assets.keys import data_rows_key
from assets.metadata import dataset_metadata, table_metadata
from assets.partitions import register_slices
from foundry_pipeline.home import Dataset, Home
from foundry_pipeline.rows.datasets import DatasetReport, load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS
from resources import Listener

ALL_LOADED = "every_row_loaded"


class LoadConfig(dg.Config):
    """What the launchpad asks for."""

    reread: bool = Field(
        False, description="Read every row's content again, also where it is known from an earlier load."
    )


def data_rows_asset(dataset: Dataset, warehouse_root: str) -> dg.AssetsDefinition:
    """The asset of one dataset. `warehouse_root` only says where the table will be."""
    key = data_rows_key(dataset.name)

    @dg.asset(
        key=key,
        group_name=dataset.name,
        kinds={"parquet", dataset.media_type},
        description=dataset_description(dataset),
        metadata=table_metadata(DATA_ROWS, dataset.name, warehouse_root),
        check_specs=[dg.AssetCheckSpec(ALL_LOADED, asset=key, description="Nothing the source lists was left out.")],
    )
    def data_rows(
        context: dg.AssetExecutionContext,
        config: LoadConfig,
        home: dg.ResourceParam[Home],
        warehouse: dg.ResourceParam[Store],
        listener: dg.ResourceParam[Listener],
    ) -> Iterator[dg.MaterializeResult[None]]:
        report = load_dataset(
            dataset, home.root, home.settings, warehouse, reread=config.reread, on_progress=listener.on_load
        )
        listener.on_loaded(report)
        register_slices(context.instance, dataset.name, report.slices)
        folder = dg.MetadataValue.path(warehouse.uri(DATA_ROWS, dataset.name))
        yield dg.MaterializeResult(
            metadata={**dataset_metadata(report), "folder": folder},
            data_version=_data_version(report),
            check_results=[_all_loaded(report)],
        )

    return data_rows


def _data_version(report: DatasetReport) -> dg.DataVersion:
    lines = "\n".join(f"{key} {report.data_versions[key]}" for key in report.slices)
    return dg.DataVersion(hashlib.sha256(lines.encode()).hexdigest())


def _all_loaded(report: DatasetReport) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=ALL_LOADED,
        passed=not report.problem_count,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"problems": report.problem_count, "unavailable": report.unavailable},
    )
