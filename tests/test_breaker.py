"""The breaker: whose fault a failure is."""

from __future__ import annotations

import asyncio
from pathlib import Path

from foundry_pipeline.calls.breaker import OPENS_AFTER, PROBE_MOST_S, Breaker, Gate
from foundry_pipeline.calls.endpoint_state import LocalState, StateFile


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def gate(breaker: Breaker) -> Gate:
    return asyncio.run(breaker.gate())


def opened(breaker: Breaker) -> Breaker:
    for _ in range(OPENS_AFTER):
        breaker.failed()
    return breaker


def test_it_stays_closed_while_some_requests_succeed() -> None:
    breaker = Breaker(LocalState(Time()))
    for _ in range(5 * OPENS_AFTER):
        breaker.failed()
        breaker.succeeded()
    assert gate(breaker).is_free


def test_failures_in_a_row_open_it_for_every_process(tmp_path: Path) -> None:
    clock = Time()
    one, two = (Breaker(StateFile(tmp_path / "s", clock, "boot")) for _ in range(2))
    opened(one)
    assert not gate(two).is_free


def test_only_one_process_gets_the_probe() -> None:
    shared = LocalState(Time())
    one, two = Breaker(shared), Breaker(shared)
    assert gate(one).is_free
    assert gate(two).is_free
    opened(one)
    assert gate(one).is_probe
    assert not gate(two).is_probe
    assert not gate(two).is_free


def test_a_process_that_has_just_started_may_probe_at_once() -> None:
    shared = LocalState(Time())
    first = opened(Breaker(shared))
    assert gate(first).is_probe
    assert not gate(first).is_probe
    assert gate(Breaker(shared)).is_probe


def test_an_abandoned_probe_is_anothers_turn_at_once() -> None:
    shared = LocalState(Time())
    breaker = opened(Breaker(shared))
    assert gate(breaker).is_probe
    breaker.probe_abandoned()
    assert gate(breaker).is_probe


def test_a_prober_that_died_loses_its_turn() -> None:
    clock = Time()
    shared = LocalState(clock)
    assert gate(opened(Breaker(shared))).is_probe
    clock.now += PROBE_MOST_S + 1
    assert gate(Breaker(shared)).is_probe


def test_failed_probes_come_ever_more_rarely_but_never_more_than_a_minute_apart() -> None:
    clock = Time()
    breaker = opened(Breaker(LocalState(clock), jitter=lambda: 1.0))
    waits = []
    for _ in range(10):
        assert gate(breaker).is_probe
        breaker.probe_failed()
        waits.append(gate(breaker).wait_s)
        clock.now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] == 2.0
    assert waits[-1] == 60.0


def test_an_answered_probe_closes_it() -> None:
    breaker = opened(Breaker(LocalState(Time())))
    assert gate(breaker).is_probe
    breaker.succeeded()
    assert gate(breaker).is_free
