"""A home with its endpoint and an instance: what tests of assets at work need, and a line to execute a job."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from assets.code_location import code_location
from assets.partitions import range_tags, registered_slices, slices_of
from foundry_pipeline.home import Run, load_home
from foundry_pipeline.store import Store
from resources import places_of
from tests.fake_model import FakeModel


@dataclass
class Place:
    """A home with its endpoint and instance."""

    root: Path
    model: FakeModel
    instance: dg.DagsterInstance

    @property
    def store(self) -> Store:
        return Store(self.root / "warehouse")

    def run(self, name: str = "notes_mood") -> Run:
        return load_home(self.root, {}).runs[name]

    def execute(
        self,
        job: str,
        keys: list[dg.AssetKey] | None = None,
        slices: tuple[str, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """What the UI does with these assets, here and now."""
        definitions = code_location(load_home(self.root, {}), places_of({}, self.root))
        ops = {"ops": {f"{job}__invoke_model": {"config": config}}} if config else {}
        return definitions.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            asset_selection=keys,
            tags=range_tags(slices) if slices else None,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **ops},
            raise_on_error=False,
        )

    def statuses(self, key: dg.AssetKey, run: Run) -> dict[str, str | None]:
        known = registered_slices(self.instance, run.dataset.name)
        found = self.instance.get_status_by_partition(key, known, slices_of(run.dataset)) or {}
        return {slice_key: status and status.value for slice_key, status in found.items()}


def last_materialization(place: Place, key: dg.AssetKey, slice_key: str | None) -> dg.AssetMaterialization:
    partitions = [slice_key] if slice_key else None
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions)
    found = place.instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    assert found is not None
    return found
