"""What becomes of the slices of one step: a slice that fails fails alone.

On success Dagster writes one event for each slice. Otherwise it would write none: so finished slices are recorded here,
one by one, before the step fails, also where it is interrupted; the others show as failed and are what is run again.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from assets.descriptions import markdown_table

DATA_VERSION = "dagster/data_version"
IS_OURS = "dagster/data_version_is_user_provided"
CODE_VERSION = "dagster/code_version"
INPUT_VERSION = "dagster/input_data_version"
INPUT_EVENT = "dagster/input_event_pointer"

FAILURES = "failures"
"""Metadata of a failed step: slice key -> what happened."""
ALL_SLICES = ""
"""Stands for all of a step's slices among its failures, where one is not about one of them."""
FAILURES_KEPT = 100
SLICES_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Finished:
    """An asset's slice that is done. `data_version` is the same where the content is."""

    asset_key: dg.AssetKey
    slice_key: str
    data_version: str
    metadata: Mapping[str, Any]


@dataclass(slots=True)
class Outcomes:
    """The slices of one step so far."""

    finished: list[Finished] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Slice key -> why."""
    headline: str = ""
    """What to say first of a step that fails; empty where nothing is to be said of it as a whole."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """Metadata of a step that fails, beside the slices."""

    def data_version(self, asset_key: dg.AssetKey) -> dg.DataVersion:
        """One version over all slices of the step: Dagster takes one for an output, whatever its range of slices.

        A range made in one run, then a slice of it alone, gives that slice another version although its content is
        the same: what is computed from it shows as stale once too often, never too seldom.
        """
        versions = [(done.slice_key, done.data_version) for done in self.finished if done.asset_key == asset_key]
        if len(versions) == 1:
            return dg.DataVersion(versions[0][1])
        lines = "\n".join(f"{slice_key} {version}" for slice_key, version in sorted(versions))
        return dg.DataVersion(hashlib.sha256(lines.encode()).hexdigest())


@contextmanager
def slices_of_step(context: dg.AssetExecutionContext) -> Iterator[Outcomes]:
    """Collect what becomes of the step's slices. At the end, raises Failure where one or more have failed."""
    outcomes = Outcomes()
    try:
        yield outcomes
        if outcomes.failed:
            raise _failure(outcomes)
    except BaseException:
        _record_each(context, outcomes.finished)
        raise
    for done in outcomes.finished:
        context.add_asset_metadata(done.metadata, asset_key=done.asset_key, partition_key=done.slice_key)


def _failure(outcomes: Outcomes) -> dg.Failure:
    failed = outcomes.failed
    shown = dict(list(failed.items())[:FAILURES_KEPT])
    table = markdown_table(("slice", "why"), shown.items(), len(failed), SLICES_CHARS)
    first = "{}: {}".format(*next(iter(failed.items())))
    done = f"{len(failed):,} of the step's slices failed; the others are done"
    return dg.Failure(
        f"{outcomes.headline} ({done})" if outcomes.headline else f"{done}. {first}",
        metadata={
            "failed_slices": dg.MetadataValue.md(table),
            **outcomes.evidence,
            FAILURES: dg.MetadataValue.json(shown),
        },
        allow_retries=False,
    )


def _record_each(context: dg.AssetExecutionContext, finished: Sequence[Finished]) -> None:
    inputs = {key: _input_tags(context, key) for key in {done.asset_key for done in finished}}
    for done in finished:
        tags = {DATA_VERSION: done.data_version, IS_OURS: "true", **inputs[done.asset_key]}
        context.log_event(
            dg.AssetMaterialization(done.asset_key, partition=done.slice_key, metadata=done.metadata, tags=tags)
        )


def _input_tags(context: dg.AssetExecutionContext, asset_key: dg.AssetKey) -> dict[str, str]:
    """What Dagster itself writes beside a data version, so that the slice is not stale from its first day."""
    spec = context.assets_def.specs_by_key[asset_key]
    tags = {CODE_VERSION: spec.code_version} if spec.code_version else {}
    for dep in spec.deps:
        records = context.instance.fetch_materializations(dep.asset_key, limit=1).records
        if records and (found := records[0].asset_materialization) is not None:
            name = dep.asset_key.to_user_string()
            tags[f"{INPUT_VERSION}/{name}"] = (found.tags or {}).get(DATA_VERSION, "")
            tags[f"{INPUT_EVENT}/{name}"] = str(records[0].storage_id)
    return tags


def materialized_in(instance: dg.DagsterInstance, run_id: str) -> Iterator[tuple[dg.AssetKey, str | None]]:
    """What a run materialized, whether it succeeded or not: (asset key, slice key; None where it has no slices)."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
        event = entry.asset_materialization
        if event is not None:
            yield event.asset_key, event.partition
