"""Slices as partitions: registering them, and cutting them into the ranges that one Dagster run takes."""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import groupby

import dagster as dg

from foundry_pipeline.home import Dataset, Run

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"

KEYS_AT_ONCE = 10_000
"""SQLite takes 32,766 variables in a statement, and Dagster puts all keys into one."""

RUN_SECONDS = 1800.0
"""A launched run costs about 4 CPU-seconds: at half an hour nobody notices. Longer, and what is done shows late."""
MOST_SLICES_A_RUN = 100


def slices_name(dataset: str) -> str:
    """The name of a dataset's dynamic partitions."""
    return f"{dataset}_slices"


def slices_of(dataset: Dataset) -> dg.DynamicPartitionsDefinition:
    """The partitions of every partitioned asset of the dataset's runs."""
    return dg.DynamicPartitionsDefinition(name=slices_name(dataset.name))


def registered_slices(instance: dg.DagsterInstance, dataset: str) -> Sequence[str]:
    """The dataset's slices that Dagster knows, in their order."""
    return instance.get_dynamic_partitions(slices_name(dataset))


def register_slices(instance: dg.DagsterInstance, dataset: str, slice_keys: Sequence[str]) -> None:
    """Make Dagster's partitions these slices, in this order: ranges of slices follow the order of registration."""
    name = slices_name(dataset)
    known = instance.get_dynamic_partitions(name)
    same = _shared_start(known, slice_keys)
    for key in known[same:]:
        instance.delete_dynamic_partition(name, key)
    for at in range(same, len(slice_keys), KEYS_AT_ONCE):
        instance.add_dynamic_partitions(name, slice_keys[at : at + KEYS_AT_ONCE])


def _shared_start(left: Sequence[str], right: Sequence[str]) -> int:
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def slices_per_run(run: Run) -> int:
    """How many slices one Dagster run takes: about half an hour of calls at the model's rate, 1 to 100."""
    slice_seconds = run.dataset.rows_per_slice / run.model.requests_per_second
    return max(1, min(MOST_SLICES_A_RUN, int(RUN_SECONDS / slice_seconds)))


def ranges(known: Sequence[str], wanted: Set[str | None], most: int) -> Iterator[tuple[str, ...]]:
    """The wanted slices in groups of neighbours, at most `most` in each, in the order that Dagster knows them."""
    for is_wanted, neighbours in groupby(known, key=wanted.__contains__):
        group = tuple(neighbours)
        if is_wanted:
            yield from (group[at : at + most] for at in range(0, len(group), most))


def range_tags(slice_keys: Sequence[str]) -> Mapping[str, str]:
    """What makes a run work on neighbouring slices, from the first to the last of them."""
    return {RANGE_START: slice_keys[0], RANGE_END: slice_keys[-1]}


def spans(known: Sequence[str], wanted: set[str]) -> str:
    """The wanted slices in few words: `00000-00041, 00050`."""
    groups = ranges(known, wanted, max(len(known), 1))
    return ", ".join(group[0] if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups)


def slices_in(known: Sequence[str], words: str) -> set[str]:
    """The inverse of `spans`, among the slices that there still are."""
    bounds = [word.partition("-") for word in words.split(", ") if word]
    return {key for key in known if any(first <= key <= (last or first) for first, _, last in bounds)}
