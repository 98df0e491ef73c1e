"""The rate of one endpoint, over all processes: exact spacing, with holds and a pace that gives way and recovers.

GCRA with slots: under the lock a process books the next free send time, then sleeps until it. One slot per process is
booked ahead, so shares are equal and a killed process wastes one slot.

A busy machine wakes an event loop late. A slot that is a little late is still used, or much of the rate would be lost;
slots stand a little wider than the rate allows, so that late ones do not bunch. In any max(1 s, 1/rate) the endpoint
gets at most one request more than its rate, and from 100/s on at most 2 % more, where a request travels for less than
half an interval or 10 ms longer than another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from foundry_pipeline.calls.endpoint_state import EndpointState, SharedState

Sleep = Callable[[float], Awaitable[None]]

WIDER = 1.005
CATCH_UP_S = 0.015
"""How late a slot may be used; at a slow rate it is half an interval. Older ones are lost, not sent in a bunch."""
LONGEST_HOLD_S = 3600.0
MOST_BOOKED = 256
"""Every process books one slot ahead. More than this many are left over from a slower rate that no longer holds."""
LEAST_PACE = 0.1
RECOVERY_PER_S = 0.01
SLOWER_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class RateView:
    """What the endpoint allows now: `per_s` after slow-downs, and how long everybody is held."""

    per_s: float
    pace: float
    held_s: float


class Rate:
    """`requests_per_second` with at most `burst` calls at once after a pause."""

    def __init__(
        self, shared: SharedState, requests_per_second: float, burst: int = 1, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._shared = shared
        self._interval_s = WIDER / requests_per_second
        self._per_s = requests_per_second
        self._burst_s = (burst - 1) * self._interval_s
        self._late_s = max(CATCH_UP_S, self._interval_s / 2, self._burst_s)
        self._sleep = sleep
        self._turn = asyncio.Lock()

    async def acquire(self) -> None:
        """Return at this call's send time. Waiters of one process are served in order."""
        async with self._turn:
            while True:
                slot = self.book()
                wait_s = slot - self._shared.now()
                if wait_s <= 0:
                    return
                await self._sleep(wait_s)
                if self.is_good(slot):
                    return

    def book(self) -> float:
        """The next free send time, on the shared clock; it is now taken."""
        return self._shared.update(self._take)

    def is_good(self, slot: float) -> bool:
        """False where a hold has come in since the slot was booked, or it is so late that the slot is history."""
        now = self._shared.now()
        return now - slot <= self._late_s and self._shared.peek().hold_until <= now

    def hold(self, seconds: float) -> None:
        """Nobody sends for `seconds` (0 to 3600, clamped): the endpoint said so."""
        until = max(0.0, min(seconds, LONGEST_HOLD_S))

        def keep(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            return state._replace(hold_until=max(state.hold_until, now + until)), None

        self._shared.update(keep)

    def slow_down(self) -> None:
        """Halve the pace, at most once in 5 s and down to a tenth; it recovers by 1 % of the full rate a second."""

        def halve(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            if now - state.pace_changed < SLOWER_EVERY_S:
                return state, None
            pace = max(LEAST_PACE, _pace(state, now) / 2)
            return state._replace(pace=pace, pace_changed=now), None

        self._shared.update(halve)

    def view(self) -> RateView:
        """What the endpoint allows now."""

        state, now = self._shared.peek(), self._shared.now()
        pace = _pace(state, now)
        return RateView(self._per_s * pace, pace, max(0.0, state.hold_until - now))

    def _take(self, state: EndpointState, now: float) -> tuple[EndpointState, float]:
        """A slot that is a little late is still taken; after a pause only the burst's are left."""
        interval_s = self._interval_s / _pace(state, now)
        next_free = min(state.next_free, max(now, state.hold_until) + MOST_BOOKED * interval_s)
        due = next_free if next_free >= now - self._late_s else now - self._burst_s
        slot = max(due, state.hold_until)
        return EndpointState(slot + interval_s, *state[1:]), slot


def _pace(state: EndpointState, now: float) -> float:
    if state.pace >= 1.0:
        return 1.0
    return min(1.0, state.pace + max(0.0, now - state.pace_changed) * RECOVERY_PER_S)
