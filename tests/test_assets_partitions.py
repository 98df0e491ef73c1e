from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.partitions import (
    MOST_SLICES_A_RUN,
    range_tags,
    ranges,
    register_slices,
    registered_slices,
    slices_in,
    slices_per_run,
    spans,
)
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.manifest import Manifest

KNOWN = [f"{number:05d}" for number in range(40)]


def make_run(rows_per_slice: int, rate: float) -> Run:
    model = Manifest("m", "m", "models/m.yaml", "http://127.0.0.1:1/", rate)
    dataset = Dataset("d", "datasets/d.yaml", Path("/data"), "text", "*", rows_per_slice=rows_per_slice)
    return Run("r", "runs/r.yaml", model, dataset)


@given(st.sets(st.sampled_from(KNOWN)), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_ranges_hold_every_wanted_slice_once_and_only_neighbours(wanted: set[str], most: int) -> None:
    groups = list(ranges(KNOWN, wanted, most))
    assert [key for group in groups for key in group] == sorted(wanted)
    for group in groups:
        first = KNOWN.index(group[0])
        assert list(group) == KNOWN[first : first + len(group)]
        assert len(group) <= most


@given(st.sets(st.sampled_from(KNOWN)))
@settings(max_examples=60, deadline=None)
def test_slices_in_is_the_inverse_of_spans(wanted: set[str]) -> None:
    assert slices_in(KNOWN, spans(KNOWN, wanted)) == wanted


def test_spans_are_few_words() -> None:
    assert spans(KNOWN, {"00000", "00001", "00002", "00007"}) == "00000-00002, 00007"


def test_a_range_goes_from_its_first_to_its_last_slice() -> None:
    assert range_tags(("00003", "00004", "00005")) == {
        "dagster/asset_partition_range_start": "00003",
        "dagster/asset_partition_range_end": "00005",
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["a", "b", "c"]),
        (["a"], ["a", "b", "c"]),
        (["a", "b", "c"], ["a", "b"]),
        (["a", "c"], ["a", "b", "c"]),
        (["c", "a"], ["a", "c"]),
        (["a", "b"], []),
        (["a", "b"], ["a", "b"]),
    ],
    ids=["new", "grown", "shrunk", "one between", "other order", "gone", "same"],
)
def test_registered_slices_are_the_datasets_in_its_order(before: list[str], after: list[str]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        register_slices(instance, "street", before)
        register_slices(instance, "street", after)
        assert list(registered_slices(instance, "street")) == after


def test_a_hundred_thousand_slices_are_registered_in_portions_that_any_sqlite_takes() -> None:
    keys = [f"{number:05d}" for number in range(33_000)]
    with dg.DagsterInstance.ephemeral() as instance:
        register_slices(instance, "street", keys)
        assert list(registered_slices(instance, "street")) == keys


@pytest.mark.parametrize(
    ("rows_per_slice", "rate", "expected"),
    [(1000, 0.1, 1), (1000, 10.0, 18), (10, 1000.0, MOST_SLICES_A_RUN)],
    ids=["one slice takes hours", "half an hour", "quick"],
)
def test_a_dagster_run_takes_about_half_an_hour(rows_per_slice: int, rate: float, expected: int) -> None:
    assert slices_per_run(make_run(rows_per_slice, rate)) == expected
