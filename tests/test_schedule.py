"""Cron expressions: what we accept, the scheduler accepts."""

import pytest
from dagster._utils.schedules import is_valid_cron_schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.config.schedule import cron_fault


@pytest.mark.parametrize(
    "expression",
    [
        "0 2 * * *",
        "*/5 * * * *",
        "0,30 8-18/2 1,15 jan-jun MON-FRI",
        "0 0 29 2 *",
        "0 0 31 1,2 *",
        "00 02 * * 7",
        " 0  2 * * * ",
    ],
)
def test_ordinary_schedules_are_legal(expression: str):
    assert cron_fault(expression) is None
    assert is_valid_cron_schedule(expression)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "five fields"),
        ("@daily", "five fields"),
        ("* * * * * *", "five fields"),
        ("60 * * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 0 0 * *", "day of the month"),
        ("0 0 * 13 *", "month"),
        ("0 0 * * 8", "day of the week"),
        ("0 0 * * fun", "'fun'"),
        ("*/0 * * * *", "'*/0'"),
        ("5/15 * * * *", "'5/15'"),
        ("5-1 * * * *", "'5-1'"),
        ("1,,2 * * * *", "'1,,2'"),
        ("\u0663 * * * *", "minute"),
        ("0 0 31 2,4 *", "has a day '31'"),
        ("0 0 30 feb *", "has a day '30'"),
        ("0 0 30 feb mon", "has a day '30'"),
    ],
)
def test_what_never_fires_or_is_read_in_two_ways_is_refused(expression: str, says: str):
    fault = cron_fault(expression)
    assert fault is not None and says in fault


def _part(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    stepped = st.tuples(st.just("*") | span, st.integers(0, 70)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.one_of(st.just("*"), number.map(str), span, stepped)


def _field(least: int, most: int) -> st.SearchStrategy[str]:
    return st.lists(_part(least, most), min_size=1, max_size=3).map(",".join)


@settings(deadline=None, max_examples=150)
@given(st.tuples(_field(0, 60), _field(0, 24), _field(0, 32), _field(0, 13), _field(0, 8)).map(" ".join))
def test_what_passes_here_passes_the_scheduler(expression: str):
    if cron_fault(expression) is None:
        assert is_valid_cron_schedule(expression)
