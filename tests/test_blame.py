"""Whose fault failures are: no healthy row is given up in an outage, and every poison row ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from foundry_pipeline.calls.blame import MOST_REFUNDS, SAME_FAULT_ROWS, Blame, HeldBack, Task
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.calls.verdicts import Next, Verdict
from foundry_pipeline.data_rows import DataRow

FAULT = Verdict(Next.RETRY, "http_500", "500 boom")
OUTAGE = Verdict(Next.WAIT, "http_502", "502 bad gateway")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    loop = asyncio.new_event_loop()
    made = Task(DataRow("1", "k", "text", "t"), "c", Ledger(tmp_path / "s.sqlite"), loop.create_future())
    loop.close()
    return made


def test_a_row_has_max_attempts_failures(task: Task) -> None:
    blame = Blame(3)
    assert [blame.charge(task, FAULT, 500) for _ in range(3)] == [False, False, True]
    answer = blame.verdict_on(task)
    assert (answer.outcome, answer.error, answer.http_status) == ("failed", "http_500", 500)


def test_a_proven_outage_takes_charges_back(task: Task) -> None:
    blame = Blame(2)
    blame.charge(task, FAULT, 500)
    blame.charge(task, FAULT, 500)
    assert not blame.is_proven(task), "nothing else has succeeded: a canary must speak first"
    blame.endpoint()
    assert not blame.is_spent(task)


def test_what_was_charged_before_a_success_stays_charged(task: Task) -> None:
    blame = Blame(2)
    blame.charge(task, FAULT, 500)
    blame.success()
    blame.endpoint()
    blame.resume()
    assert blame.charge(task, FAULT, 500)


def test_a_row_that_brings_the_endpoint_down_every_time_ends(task: Task) -> None:
    blame = Blame(1)
    for _ in range(MOST_REFUNDS):
        blame.charge(task, FAULT, 500)
        assert not blame.is_proven(task)
        blame.endpoint()
        blame.resume()
    blame.charge(task, FAULT, 500)
    assert blame.is_proven(task)


def test_an_outage_that_only_one_row_sees_is_that_rows(task: Task) -> None:
    blame = Blame(1)
    sends = 0
    while not blame.is_contradicted(task):
        blame.suspect(task, OUTAGE, 502)
        blame.success()
        sends += 1
        assert sends < 20
    assert blame.is_proven(task)


def test_an_outage_that_everybody_sees_is_nobodys(task: Task) -> None:
    blame = Blame(1)
    for _ in range(100):
        blame.suspect(task, OUTAGE, 502)
    assert not blame.is_contradicted(task)
    assert not blame.is_spent(task)


def test_what_was_in_flight_when_an_outage_began_is_part_of_it(task: Task) -> None:
    blame = Blame(1)
    blame.suspect(task, OUTAGE, 502)
    blame.endpoint()
    blame.suspect(task, OUTAGE, 502)
    assert not blame.charge(task, FAULT, 500)
    blame.rows()
    assert not blame.is_spent(task)
    blame.resume()
    assert blame.charge(task, FAULT, 500)


def test_suspicions_are_charged_when_the_canary_is_answered(task: Task) -> None:
    blame = Blame(2)
    blame.suspect(task, OUTAGE, 502)
    blame.suspect(task, OUTAGE, 502)
    blame.rows()
    assert blame.is_spent(task)


def test_a_fault_with_few_resends_ends_sooner_than_the_attempts(task: Task) -> None:
    blame = Blame(8)
    once = Verdict(Next.RETRY, "empty_body", "nothing", resends=1)
    assert [blame.charge(task, once, 200) for _ in range(2)] == [False, True]


def test_the_same_fault_on_five_rows_is_the_endpoints_even_in_small_slices(task: Task) -> None:
    held = HeldBack()
    refused = Answer("c", "rejected_by_model", error="http_422")
    for _ in range(SAME_FAULT_ROWS - 1):
        assert held.add(task, refused) is None
        assert len(held.release()) == 1
    assert held.add(task, refused) == SAME_FAULT_ROWS


def test_an_answer_makes_held_back_verdicts_the_rows_own(task: Task) -> None:
    held = HeldBack()
    refused = Answer("c", "rejected_by_model", error="http_422")
    held.add(task, refused)
    assert held.clear() == [(task, refused)]
    assert held.add(task, refused) is None
