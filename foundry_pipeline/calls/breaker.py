"""Whose fault a failure is: the row's or the endpoint's. One breaker per endpoint, shared by all processes.

It opens after failures in a row and then lets one process at a time send a canary: a request that has succeeded
before. If the canary is answered, the endpoint is fine and the failures belong to their rows; if not, it is an outage
and no row is charged. A breaker that probes with the next row in line never ends on a row that always fails.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from foundry_pipeline.calls.endpoint_state import EndpointState, SharedState

OPENS_AFTER = 10
LONGEST_BACKOFF_S = 60.0
PROBE_MOST_S = 180.0
"""A probe whose process died is another process's turn after this long."""


@dataclass(frozen=True, slots=True)
class Gate:
    """May a request go? `is_probe`: it is this process's turn to send the canary. `wait_s`: ask again then."""

    is_probe: bool = False
    wait_s: float = 0.0

    @property
    def is_free(self) -> bool:
        """True where ordinary requests may go."""
        return not self.is_probe and self.wait_s <= 0


_OPEN_GATE = Gate()


class Breaker:
    """Counts failures in a row over all processes; `jitter` gives 0 to 1, for full jitter."""

    def __init__(self, shared: SharedState, jitter: Callable[[], float] = random.random) -> None:
        self._shared = shared
        self._jitter = jitter
        self._is_new = True

    def succeeded(self) -> None:
        """An ordinary request or the canary was answered: the endpoint is fine."""

        def close(state: EndpointState, _now: float) -> tuple[EndpointState, None]:
            if state.failures_in_row == 0 and state.open_since == 0:
                return state, None
            return state._replace(failures_in_row=0, open_since=0, next_probe=0, probes=0), None

        self._shared.tell(close)

    def failed(self) -> None:
        """A request failed in a way that may be the endpoint's fault."""

        def count(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            failures = state.failures_in_row + 1
            if failures < OPENS_AFTER or state.open_since:
                return state._replace(failures_in_row=failures), None
            return state._replace(failures_in_row=failures, open_since=now, next_probe=now, probes=0), None

        self._shared.tell(count)

    def open_now(self) -> None:
        """A canary failed although the breaker was closed: hold everybody back."""

        def trip(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            if state.open_since:
                return state, None
            return state._replace(open_since=now, next_probe=now + 1.0, probes=0), None

        self._shared.tell(trip)

    def probe_failed(self) -> None:
        """The canary failed too: wait longer before the next."""

        def back_off(state: EndpointState, now: float) -> tuple[EndpointState, None]:
            most = min(LONGEST_BACKOFF_S, 2.0 ** min(state.probes + 1, 10))
            wait_s = 1.0 + self._jitter() * (most - 1.0)
            return state._replace(next_probe=now + wait_s, probes=state.probes + 1), None

        self._shared.tell(back_off)

    def probe_abandoned(self) -> None:
        """This process stops before its probe has brought anything: it is another's turn."""
        self._shared.tell(lambda state, now: (state._replace(next_probe=now), None))

    def open_for_s(self) -> float | None:
        """Seconds since it opened; None while it is closed. For people: `gate` is what requests ask."""
        opened = self._shared.peek().open_since
        return self._shared.now() - opened if opened else None

    async def gate(self) -> Gate:
        """Ask before every request. Gives the probe to one process, which must report back.

        A process that has just started may probe at once: its person wants to know now, and the last prober may have
        been killed.
        """
        is_new, self._is_new = self._is_new, False
        await self._shared.look()
        if not self._shared.peek().open_since:
            return _OPEN_GATE

        def ask(state: EndpointState, now: float) -> tuple[EndpointState, Gate]:
            if not state.open_since:
                return state, _OPEN_GATE
            if now < state.next_probe and not is_new:
                return state, Gate(wait_s=state.next_probe - now)
            return state._replace(next_probe=now + PROBE_MOST_S), Gate(is_probe=True)

        return await self._shared.update(ask)
