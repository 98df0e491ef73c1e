"""What the catalogue says of every asset beside its content: owners, tags, freshness, what makes it anew by itself."""

from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg

from assets.keys import decoded_keys, preview_key, whole_run_keys
from foundry_pipeline.config.catalogue_source import Freshness
from foundry_pipeline.home import Dataset, Run

AUTOMATION = "made_when_answers_come"
TAG_CHARS = 63
"""Dagster's limit for a tag's value."""


def catalogued_dataset(dataset: Dataset, asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """A dataset's asset, with what its file says of owners, tags and freshness."""
    tags = {"dataset": dataset.name[:TAG_CHARS], **dataset.tags}
    policy = _policy(dataset.freshness)
    return asset.map_asset_specs(
        lambda spec: spec.replace_attributes(owners=dataset.owners, tags=_tags(spec, tags), freshness_policy=policy)
    )


def catalogued_run(run: Run, asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
    """One of a run's assets, with what its file says of owners, tags and freshness."""
    tags = {"model": run.model.key[:TAG_CHARS], "dataset": run.dataset.name[:TAG_CHARS], **run.tags}
    by_itself = set(made_by_itself(run))
    policy = _policy(run.freshness)

    def described(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.replace_attributes(
            owners=run.owners,
            tags=_tags(spec, tags),
            freshness_policy=policy if spec.key != preview_key(run.name) else None,
            automation_condition=_eager() if spec.key in by_itself else None,
        )

    return asset.map_asset_specs(described)


def made_by_itself(run: Run) -> Iterator[dg.AssetKey]:
    """What may be made whenever answers have come: it calls nobody, and costs nothing."""
    yield from decoded_keys(run)
    yield from whole_run_keys(run)


def automation_sensor(runs: Iterable[Run]) -> dg.AutomationConditionSensorDefinition:
    """Makes tables of slices that were answered, and exports and evaluation of tables that were made. Off by default.

    It never calls the model: responses and data rows have no condition.
    """
    keys = [key for run in runs for key in made_by_itself(run)]
    return dg.AutomationConditionSensorDefinition(
        AUTOMATION,
        target=dg.AssetSelection.assets(*keys),
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Decodes slices when they are answered, then exports and evaluates, where no check holds it back.",
    )


def _eager() -> dg.AutomationCondition[Any]:
    """When what it is made of is new, complete and not under way, and no check that blocks has failed of it."""
    passed = dg.AutomationCondition.all_deps_blocking_checks_passed()
    return (dg.AutomationCondition.eager() & passed).with_label("when what it is made of is new and sound")


def _tags(spec: dg.AssetSpec, more: dict[str, str]) -> dict[str, str]:
    kinds = {f"dagster/kind/{kind}" for kind in spec.kinds}
    return {**{name: value for name, value in spec.tags.items() if name not in kinds}, **more}


def _policy(freshness: Freshness | None) -> dg.FreshnessPolicy | None:
    if freshness is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=freshness.fail_after, warn_window=freshness.warn_after)
