"""The rate of one endpoint, over all processes: exact spacing, with holds and a pace that gives way and recovers.

GCRA with slots: a process books the next free send time, then sleeps until it. Where the shared state is a file, one
slot per process is booked ahead, so shares are equal and a killed process wastes one slot; where it is far away, a few
for those who wait already.

A busy machine wakes an event loop late. A slot that is a little late is still used, or much of the rate would be lost;
slots stand a little wider than the rate allows, so that late ones do not bunch. In any max(1 s, 1/rate) the endpoint
gets at most one request more than its rate, and from 100/s on at most 2 % more, where a request travels for less than
half an interval or 10 ms longer than another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from foundry_pipeline.calls.endpoint_state import EndpointState, SharedState, Spacing

Sleep = Callable[[float], Awaitable[None]]

WIDER = 1.005
CATCH_UP_S = 0.015
"""How late a slot may be used; at a slow rate it is half an interval. Older ones are lost, not sent in a bunch."""
LONGEST_HOLD_S = 3600.0
LEAST_PACE = 0.1
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
        interval_s = WIDER / requests_per_second
        burst_s = (burst - 1) * interval_s
        self._spacing = Spacing(interval_s, max(CATCH_UP_S, interval_s / 2, burst_s), burst_s)
        self._per_s = requests_per_second
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._booked: deque[float] = deque()

    async def acquire(self) -> float:
        """Return at this call's send time, which it gives, on the shared clock. Waiters of one process are served in
        order."""
        self._waiting += 1
        try:
            async with self._turn:
                while not await self._reach(slot := await self.book()):
                    pass
            return slot
        finally:
            self._waiting -= 1

    async def book(self) -> float:
        """The next free send time, on the shared clock; it is now taken."""
        if self._booked:
            return self._booked.popleft()
        slots = await self._shared.book(self._spacing, self._waiting or 1)
        if len(slots) > 1:
            self._booked.extend(slots[1:])
        return slots[0]

    async def _reach(self, slot: float) -> bool:
        """Sleep until `slot`; False where it is not to be used."""
        shared = self._shared
        if (wait_s := slot - shared.look_ahead_s - shared.now()) > 0:
            await self._sleep(wait_s)
        await shared.look()
        if (wait_s := slot - shared.now()) > 0:
            await self._sleep(wait_s)
        return self.is_good(slot)

    def is_good(self, slot: float) -> bool:
        """False where a hold has come in since the slot was booked, or it is so late that the slot is history."""
        now = self._shared.now()
        return now - slot <= self._spacing.late_s and self._shared.peek().hold_until <= now

    def hold(self, seconds: float) -> None:
        """Nobody sends for `seconds` (0 to 3600, clamped): the endpoint said so."""
        until = max(0.0, min(seconds, LONGEST_HOLD_S))

        def keep(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            return state._replace(hold_until=max(state.hold_until, now + until)), None

        self._shared.tell(keep)

    def slow_down(self) -> None:
        """Halve the pace, at most once in 5 s and down to a tenth; it recovers by 1 % of the full rate a second."""

        def halve(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            if now - state.pace_changed < SLOWER_EVERY_S:
                return state, None
            pace = max(LEAST_PACE, state.pace_at(now) / 2)
            return state._replace(pace=pace, pace_changed=now), None

        self._shared.tell(halve)

    def view(self) -> RateView:
        """What the endpoint allows now."""
        state, now = self._shared.peek(), self._shared.now()
        pace = state.pace_at(now)
        return RateView(self._per_s * pace, pace, max(0.0, state.hold_until - now))
