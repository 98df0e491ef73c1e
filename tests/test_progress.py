"""How far a run is: what calls report while they run, its words, and when Dagster's log hears of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.progress_words import LogPace, progress_words, time_left
from foundry_pipeline.calls.budget import Cost
from foundry_pipeline.calls.reports import Speedometer
from foundry_pipeline.config.money import Money
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.invoke import Progress
from tests.fake_model import FakeModel, Reply
from tests.invoking import Bench

CAT = Reply({"label": "cat"})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: CAT) as served:
        yield served


def heard(bench: Bench) -> list[Progress]:
    moments: list[Progress] = []
    with bench.invoker() as invoker:
        list(invoker.invoke(["00000"], on_progress=moments.append))
    return moments


def test_progress_counts_rows_failures_by_code_and_what_the_endpoint_allows(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda r: replace(CAT if r.text != "text 3" else Reply({"no": 1}, status=422), delay_s=0.1)
    bench = Bench(tmp_path, model.url, rows=20)
    bench.model(max_concurrency=4)
    moments = heard(bench)
    assert (moments[-1].done, moments[-1].rows, moments[-1].calls) == (20, 20, 20)
    assert moments[-1].errors == {"http_422": 1}
    assert moments[-1].failed == 0, "a refusal is a verdict"
    assert moments[-1].allowed_per_s == 500.0
    assert any(moment.left_s for moment in moments)


def test_a_hold_says_until_when(model: FakeModel, tmp_path: Path) -> None:
    def answer(_: object) -> Reply:
        return Reply(status=429, headers={"Retry-After": "3"}) if len(model.requests) == 1 else CAT

    model.answer = answer
    bench = Bench(tmp_path, model.url, rows=3)
    bench.model(max_concurrency=1)
    held = [moment for moment in heard(bench) if moment.note.startswith("held by the endpoint until ")]
    assert held
    assert held[0].note.endswith(" UTC")


def test_an_outage_says_since_when_it_is_paused_and_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    bench = Bench(tmp_path, f"http://127.0.0.1:{port}/", rows=30, settings=Settings(preflight_patience_s=3.0))
    notes = [moment.note for moment in heard(bench)]
    paused = [note for note in notes if note.startswith("paused since ")]
    assert paused
    assert " UTC: " in paused[0]
    assert "cannot be reached" in paused[0]


def test_nothing_is_said_of_the_time_left_while_nothing_goes(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    bench = Bench(tmp_path, f"http://127.0.0.1:{port}/", settings=Settings(preflight_patience_s=1.0))
    assert {moment.left_s for moment in heard(bench)} == {None}


# Words


def test_the_words_name_rate_limit_failures_cost_and_what_is_waited_for() -> None:
    cost = Cost(41, Money(Decimal("0.82"), "USD"), Money(Decimal(25)))
    progress = Progress("r", 1000, 400, 3, 41, 4.82, "held by the endpoint until 12:03:07 UTC", allowed_per_s=2.5,
                        errors={"timeout": 1, "http_500": 2}, cost=cost)  # fmt: skip
    assert progress_words(progress) == (
        "held by the endpoint until 12:03:07 UTC, 4.8 of 2.5 requests/s, 0.82 of 25 USD spent, "
        "3 without an answer (http_500 2, timeout 1)"
    )


def test_without_a_price_or_trouble_the_words_are_few() -> None:
    assert progress_words(Progress("r", 10, 4, 0, 4, 0.1, allowed_per_s=0.1)) == "0.1 of 0.1 requests/s, 0 failed"


def test_time_left_has_hours_where_it_is_long() -> None:
    assert (time_left(0.4), time_left(123), time_left(18_123)) == (
        "about 0:00 left",
        "about 2:03 left",
        "about 5:02:03 left",
    )


# Lines in Dagster's log


def lines_at(clock: Clock, pace: LogPace, seconds: int, note_at: dict[int, str] | None = None) -> list[int]:
    """The seconds at which a line is due, asked every second."""
    note, due = "", []
    for second in range(1, seconds + 1):
        clock.now += 1.0
        note = (note_at or {}).get(second, note)
        if pace.is_due(note):
            due.append(second)
    return due


def test_a_line_comes_every_ten_seconds_and_then_more_rarely() -> None:
    clock = Clock()
    due = lines_at(clock, LogPace(clock), 36_000)
    assert due[:4] == [10, 20, 30, 45]
    assert len([second for second in due if second <= 3600]) == 14
    assert len(due) == 20


def test_a_slice_that_is_done_begins_anew() -> None:
    clock = Clock()
    pace = LogPace(clock)
    lines_at(clock, pace, 1000)
    pace.slice_done()
    assert lines_at(clock, pace, 30) == [10, 20, 30]


def test_a_pause_and_its_end_are_told_soon() -> None:
    clock = Clock()
    due = lines_at(clock, LogPace(clock), 400, {300: "paused since 12:00:00 UTC: refused", 350: ""})
    assert {300, 350} <= set(due)


def test_a_pause_that_goes_on_is_no_news() -> None:
    clock = Clock()
    changing = {second: f"paused since 12:00:00 UTC: refused {second}" for second in range(300, 400)}
    with_pause = lines_at(clock, LogPace(clock), 400, changing)
    assert len([second for second in with_pause if second >= 300]) <= 3


@given(st.lists(st.sampled_from(["", "held by x", "paused since y"]), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_an_endpoint_that_flaps_for_an_hour_costs_about_twenty_lines(notes: list[str]) -> None:
    clock = Clock()
    flapping = {second: notes[second // 10 % len(notes)] for second in range(0, 3600, 10)}
    assert len(lines_at(clock, LogPace(clock), 3600, flapping)) <= 30


# Speed


def test_the_speed_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    speed = Speedometer(clock)
    calls = 0
    for second in range(1, 121):
        clock.now = float(second)
        calls += 10 if second <= 60 else 2
        latest = speed.read(calls, calls)
    assert latest == (2.0, 2.0)


def test_the_speed_of_a_slow_endpoint_is_told_over_a_minute() -> None:
    clock = Clock()
    speed = Speedometer(clock)
    for second in range(1, 301):
        clock.now = float(second)
        latest = speed.read(second // 10, second // 10)
    assert latest == (pytest.approx(0.1, abs=0.03), pytest.approx(0.1, abs=0.03))


def test_in_a_pause_the_speed_falls_to_nothing() -> None:
    clock = Clock()
    speed = Speedometer(clock)
    for second in range(1, 201):
        clock.now = float(second)
        latest = speed.read(min(second, 60), min(second, 60))
    assert latest[0] == 0.0


def test_before_anything_was_sent_the_speed_is_nothing() -> None:
    assert Speedometer(Clock()).read(0, 0) == (0.0, 0.0)
