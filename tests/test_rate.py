"""The rate: exact spacing, over processes, whatever the clock does."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundry_pipeline.calls.endpoint_state import MOST_BOOKED, EndpointState, LocalState, StateFile, endpoint_key
from foundry_pipeline.calls.rate import CATCH_UP_S, WIDER, Rate
from tests.fake_model import windows


class Time:
    """A clock that only moves when somebody sleeps, or is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def send_times(rate: Rate, clock: Time, calls: int) -> list[float]:
    async def go() -> list[float]:
        times = []
        for _ in range(calls):
            await rate.acquire()
            times.append(clock.now)
        return times

    return asyncio.run(go())


@given(per_s=st.floats(0.01, 2000), calls=st.integers(2, 60))
@settings(max_examples=50, deadline=None)
def test_no_window_holds_more_than_the_rate_allows_plus_one(per_s: float, calls: int) -> None:
    clock = Time()
    times = send_times(Rate(LocalState(clock), per_s, sleep=clock.sleep), clock, calls)
    assert times[-1] - times[0] == pytest.approx((calls - 1) * WIDER / per_s, rel=1e-6)
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 1 / per_s


@given(
    per_s=st.sampled_from([0.5, 3.0, 20.0, 100.0, 500.0]),
    processes=st.integers(1, 8),
    late_s=st.dictionaries(st.integers(0, 600), st.floats(0, 0.2), max_size=40),
)
@example(per_s=500.0, processes=1, late_s={0: CATCH_UP_S - 1e-6})
@example(per_s=100.0, processes=4, late_s={0: CATCH_UP_S - 1e-6})
@example(per_s=20.0, processes=8, late_s={0: WIDER / 20 / 2 - 1e-6})
@settings(max_examples=60, deadline=None)
def test_late_wake_ups_put_no_more_into_a_window_than_one_or_two_percent(
    per_s: float, processes: int, late_s: dict[int, float]
) -> None:
    """Event loops that share the rate wake up late, some times; what is too late is lost, and the rest is made up."""
    clock = Time()
    shared = LocalState(clock)
    rates = [Rate(shared, per_s, sleep=clock.sleep) for _ in range(processes)]
    times: list[float] = []

    async def go() -> None:
        waiting = [(await rate.book(), rate) for rate in rates]
        for wake_up in range(int(3 * max(per_s, 3))):
            slot, rate = waiting.pop(0)
            clock.now = max(clock.now, slot + late_s.get(wake_up, 0.0))
            if rate.is_good(slot):
                times.append(clock.now)
            waiting.append((await rate.book(), rate))
            waiting.sort(key=lambda pair: pair[0])

    asyncio.run(go())
    width_s = max(1.0, 1 / per_s)
    assert windows(times, width_s) <= max(per_s * width_s + 1, per_s * width_s * 1.02)


def test_the_documents_tenth_of_a_request_per_second_is_ten_seconds_apart() -> None:
    clock = Time()
    first, second = send_times(Rate(LocalState(clock), 0.1, sleep=clock.sleep), clock, 2)
    assert second - first == pytest.approx(10 * WIDER)


def test_an_idle_hour_earns_no_burst() -> None:
    clock = Time()
    rate = Rate(LocalState(clock), 10, sleep=clock.sleep)
    send_times(rate, clock, 1)
    clock.now += 3600
    times = send_times(rate, clock, 20)
    assert times[-1] - times[0] >= 19 / 10


def test_burst_lets_that_many_go_at_once_and_no_more() -> None:
    clock = Time()
    times = send_times(Rate(LocalState(clock), 1, burst=3, sleep=clock.sleep), clock, 6)
    assert [round(t - times[0]) for t in times] == [0, 0, 0, 1, 2, 3]


def test_F032_a_hold_holds_every_process_that_shares_the_state(tmp_path: Path) -> None:
    clock = Time()
    one, two = (Rate(StateFile(tmp_path / "rate", clock, "boot"), 100, sleep=clock.sleep) for _ in range(2))
    one.hold(7)
    assert send_times(two, clock, 1)[0] == pytest.approx(1007.0)


def test_a_hold_that_comes_while_a_process_sleeps_holds_it_too() -> None:
    clock = Time()
    shared = LocalState(clock)
    other = Rate(shared, 1)

    holds = iter([5.0])

    async def sleep(seconds: float) -> None:
        other.hold(next(holds, 0.0))
        await clock.sleep(seconds)

    rate = Rate(shared, 1, sleep=sleep)
    times = send_times(rate, clock, 2)
    assert times[1] - times[0] >= 5


def test_a_hold_is_never_longer_than_an_hour() -> None:
    clock = Time()
    rate = Rate(LocalState(clock), 1, sleep=clock.sleep)
    rate.hold(1e9)
    assert rate.view().held_s == 3600


def test_F033_slowing_down_halves_the_pace_and_time_brings_it_back() -> None:
    clock = Time()
    rate = Rate(LocalState(clock), 10, sleep=clock.sleep)
    rate.slow_down()
    rate.slow_down()
    assert rate.view().per_s == pytest.approx(5)
    clock.now += 25
    assert rate.view().per_s == pytest.approx(7.5)
    clock.now += 3600
    assert rate.view().per_s == pytest.approx(10)


def test_F104_a_state_from_before_a_reboot_is_forgotten(tmp_path: Path) -> None:
    clock = Time()
    Rate(StateFile(tmp_path / "rate", clock, "before"), 0.001).hold(3000)
    clock.now = 5.0
    rate = Rate(StateFile(tmp_path / "rate", clock, "after"), 1, sleep=clock.sleep)
    assert send_times(rate, clock, 1) == [5.0]


def test_a_clock_that_jumps_back_neither_stalls_nor_floods(tmp_path: Path) -> None:
    clock = Time()
    clock.now = 100_000.0
    rate = Rate(StateFile(tmp_path / "rate", clock, "boot"), 10, sleep=clock.sleep)
    rate.hold(3000)
    clock.now -= 7200
    send_times(rate, clock, 1)
    clock.now -= 500
    back = clock.now
    times = send_times(rate, clock, 30)
    assert times[0] - back <= (MOST_BOOKED + 1) * WIDER / 10, "a hold of hours that nobody asked for is none"
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.1


def test_two_processes_of_one_boot_share_a_state_and_an_open_one_sees_what_the_other_writes(tmp_path: Path) -> None:
    one, two = (StateFile(tmp_path / "rate", lambda: 50.0, "boot") for _ in range(2))
    one.tell(lambda state, _: (state._replace(failures_in_row=3), None))
    assert two.peek().failures_in_row == 3
    two.tell(lambda state, _: (state._replace(failures_in_row=4), None))
    assert one.peek().failures_in_row == 4


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_F119_a_damaged_state_file_starts_anew(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rate")
        path.write_bytes(content)
        state = StateFile(path, lambda: 50.0, "boot")
        assert state.peek() == EndpointState()
        state.close()


def test_F100_slots_that_were_slept_through_are_lost_not_sent_in_a_bunch() -> None:
    clock = Time()
    naps = iter([60.0])

    async def oversleep(seconds: float) -> None:
        clock.now += seconds + next(naps, 0.0)

    times = send_times(Rate(LocalState(clock), 10, sleep=oversleep), clock, 20)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) > 60
    assert min(gaps) >= 0.1


def test_the_state_is_per_endpoint_and_holds_no_secret() -> None:
    assert endpoint_key("https://h/a?key=1") == endpoint_key("https://user:pw@h/a?key=2")
    assert endpoint_key("https://h/a") != endpoint_key("https://h/b")


def _grants(path: str, per_s: float, seconds: float, start: Barrier, out: multiprocessing.Queue[list[float]]) -> None:
    async def go() -> list[float]:
        rate = Rate(StateFile(Path(path)), per_s)
        until = time.monotonic() + seconds
        times = []
        while time.monotonic() < until:
            await rate.acquire()
            times.append(time.monotonic())
        return times

    start.wait(120)
    out.put(asyncio.run(go()))


def test_eight_processes_together_stay_within_the_rate_and_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    out: multiprocessing.Queue[list[float]] = context.Queue()
    start = context.Barrier(8)
    given = (str(tmp_path / "r"), 40.0, 4.0, start, out)
    workers = [context.Process(target=_grants, args=given) for _ in range(8)]
    for worker in workers:
        worker.start()
    grants = [out.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join()
    together = sorted(t for times in grants for t in times)
    span = together[-1] - together[0]
    assert len(together) - 1 <= span * 40 * 1.1, "eight rates would be 320; a busy machine delays the first grants"
    assert windows(together) <= 60, "a busy machine bunches what is granted one by one"
    assert all(times for times in grants)
