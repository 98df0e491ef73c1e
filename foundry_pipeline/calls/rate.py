"""The rate of one endpoint, over all processes: exact spacing, with holds and a pace that gives way and recovers.

GCRA with slots: a process books the next free send time, then sleeps until it. Where the shared state is a file, one
slot per process is booked ahead, so shares are equal and a killed process wastes one slot; where it is far away, a few
for those who wait already. Slots stand 1 % wider than the rate allows, because a late event loop bunches arrivals at
the server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from foundry_pipeline.calls.endpoint_state import EndpointState, SharedState, Spacing

Sleep = Callable[[float], Awaitable[None]]

WIDER = 1.01
CATCH_UP_S = 0.005
"""An event loop that wakes late may take the slots of the last 5 ms; older ones are lost, not sent in a bunch."""
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
        self._spacing = Spacing(interval_s, max(CATCH_UP_S, burst_s), burst_s)
        self._per_s = requests_per_second
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._booked: deque[float] = deque()

    async def acquire(self) -> None:
        """Return at this call's send time. Waiters of one process are served in order."""
        self._waiting += 1
        try:
            async with self._turn:
                while not await self._reach(await self._next_slot()):
                    pass
        finally:
            self._waiting -= 1

    async def _next_slot(self) -> float:
        """A send time on the shared clock, for this waiter alone."""
        if not self._booked:
            self._booked.extend(await self._shared.book(self._spacing, self._waiting))
        return self._booked.popleft()

    async def _reach(self, slot: float) -> bool:
        """Sleep until `slot`. False where a hold came in meanwhile, or it is so late that the slot is history."""
        await self._sleep_until(slot - self._shared.look_ahead_s)
        state = await self._shared.look()
        await self._sleep_until(slot)
        now = self._shared.now()
        return state.hold_until <= now and now - slot <= self._spacing.late_s

    async def _sleep_until(self, at: float) -> None:
        wait_s = at - self._shared.now()
        if wait_s > 0:
            await self._sleep(wait_s)

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
