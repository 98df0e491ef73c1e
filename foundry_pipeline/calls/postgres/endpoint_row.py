"""An endpoint's shared state as a row: one statement books, on the server's clock, whichever machine asks.

A thread of this process, the clerk, asks the server. Nothing here waits for the server's disk (synchronous_commit off):
after a crash of the server the last moments are forgotten, and they have passed by then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from foundry_pipeline.calls.endpoint_state import (
    MOST_BOOKED,
    MOST_BOOKED_S,
    RECOVERY_PER_S,
    Change,
    EndpointState,
    Spacing,
)
from foundry_pipeline.calls.postgres.clerk import Clerk
from foundry_pipeline.calls.postgres.server import SCHEMA, Server

R = TypeVar("R")
FRESH_S = 0.025
"""A state seen so long ago is taken for the present one."""
BOOKED_AHEAD_S = 0.02
"""Slots of this span are booked at once where so many wait: at a fast rate a round trip for each would be the limit.
What a killed process wastes."""
LONGEST_TRIP_S = 0.5
_FIELDS = ", ".join(EndpointState._fields)
_NOW = "cast(extract(epoch FROM clock_timestamp()) AS float8)"
_SEEN = f"{{row}}.revision, {_NOW}, " + ", ".join(f"{{row}}.{name}" for name in EndpointState._fields)

MAKE = f"""
INSERT INTO {SCHEMA}.endpoints (key, revision, {_FIELDS})
VALUES (:key, 0, {", ".join(str(default) for default in EndpointState())}) ON CONFLICT (key) DO NOTHING
"""
LOOK = f"SELECT {_SEEN.format(row='e')} FROM {SCHEMA}.endpoints e WHERE key = :key"
CHANGE = f"""
UPDATE {SCHEMA}.endpoints e
SET revision = revision + 1, {", ".join(f"{name} = :{name}" for name in EndpointState._fields if name != "next_free")}
WHERE key = :key AND revision = :revision
RETURNING {_SEEN.format(row="e")}
"""


def booking(now: str = _NOW) -> str:
    """`Spacing.take` in SQL, for `count` slots at once and a process that is `trip` seconds away.

    The innermost query locks the row and looks at the clock once; each level around it names one step. RETURNING gives
    the first slot, and then what `LOOK` does.
    """
    return f"""
UPDATE {SCHEMA}.endpoints e SET next_free = b.slot + cast(:count AS int) * b.spacing
FROM (
  SELECT s.*, greatest(
    CASE WHEN s.free >= s.now - cast(:late AS float8) THEN s.free ELSE s.now - cast(:burst AS float8) END,
    s.hold_until,
    s.now + cast(:trip AS float8) - cast(:late AS float8)
  ) AS slot
  FROM (
    SELECT t.*, least(
      t.next_free, greatest(t.now, t.hold_until) + greatest({MOST_BOOKED} * t.spacing, {MOST_BOOKED_S})
    ) AS free
    FROM (
      SELECT r.*, n.now, cast(:interval AS float8)
        / least(1.0, r.pace + greatest(0.0, n.now - r.pace_changed) * {RECOVERY_PER_S}) AS spacing
      FROM {SCHEMA}.endpoints r, LATERAL (SELECT {now} AS now) n
      WHERE r.key = :key FOR UPDATE OF r
    ) t
  ) s
) b
WHERE e.key = b.key
RETURNING b.slot, b.spacing, {_SEEN.format(row="e")}
"""


BOOK = booking()


class EndpointRow:
    """A `SharedState` in PostgreSQL."""

    def __init__(self, server: Server, key: str) -> None:
        """Raises StorageError where the server cannot be reached."""
        self._key = key
        self._clerk = Clerk(server, "rate", "SET synchronous_commit TO off")
        self._state = EndpointState()
        self._revision = 0
        self._seen_at = 0.0
        self._ahead_s: float | None = None
        self._told: Future[None] | None = None
        self._clerk.tell(self._look).result()

    # In the event loop's thread, or any

    def now(self) -> float:
        """The server's clock, as well as this process knows it: never ahead by more than a round trip."""
        return time.monotonic() + (self._ahead_s or 0.0)

    def peek(self) -> EndpointState:
        """See SharedState."""
        return self._state

    @property
    def look_ahead_s(self) -> float:
        """See SharedState."""
        return max(BOOKED_AHEAD_S, 2 * self._clerk.trip_s)

    async def look(self) -> None:
        """See SharedState. A state of the last moment will do, unless this process has just changed it."""
        if self._has_told() or time.monotonic() - self._seen_at > FRESH_S:
            await self._clerk.ask(self._look)

    async def book(self, spacing: Spacing, wanted: int) -> Sequence[float]:
        """See SharedState."""
        return await self._clerk.ask(lambda: self._book(spacing, wanted))

    async def update(self, change: Change[R]) -> R:
        """See SharedState."""
        return await self._clerk.ask(lambda: self._change(change))

    def tell(self, change: Change[None]) -> None:
        """See SharedState. What would change nothing is not told."""
        state = self._state
        if self._has_told() or change(state, self.now())[0] is not state:
            self._told = self._clerk.tell(self._change, change)

    def close(self) -> None:
        """Finish what was told, and give the connection back."""
        self._clerk.close()

    def _has_told(self) -> bool:
        return self._told is not None and not self._told.done()

    # In the clerk's thread

    def _look(self) -> None:
        while not (rows := self._run(LOOK)):
            self._run(MAKE)
        self._see(rows[0])
        if self._state.is_absurd(self.now()):
            self._swap(EndpointState())

    def _book(self, spacing: Spacing, wanted: int) -> Sequence[float]:
        interval_s = spacing.interval_s / self._state.pace_at(self.now())
        most = max(1, min(wanted, int(BOOKED_AHEAD_S / interval_s)))
        values = {"count": most, "interval": spacing.interval_s, "late": spacing.late_s, "burst": spacing.burst_s}
        while not (rows := self._run(BOOK, trip=min(self._clerk.trip_s, LONGEST_TRIP_S), **values)):
            self._run(MAKE)
        slot, apart_s, *seen = rows[0]
        self._see(seen)
        if self._state.is_absurd(self.now()):
            self._look()
            return self._book(spacing, wanted)
        return [slot + at * apart_s for at in range(most)]

    def _change(self, change: Change[R]) -> R:
        """Compare and swap: nobody holds the row between reading and writing it."""
        while True:
            self._look()
            before = self._state
            after, result = change(before, self.now())
            if after is before or self._swap(after):
                return result

    def _swap(self, after: EndpointState) -> bool:
        """False where another process has changed the row since it was seen."""
        values = after._asdict()
        del values["next_free"]
        rows = self._run(CHANGE, revision=self._revision, **values)
        if rows:
            self._see(rows[0])
        return bool(rows)

    def _run(self, statement: str, **values: float) -> list[list[Any]]:
        """See Clerk.run: a booking that is made twice is wasted, a change counts once more."""
        return self._clerk.run(statement, key=self._key, **values)

    def _see(self, row: Sequence[Any]) -> None:
        """Take in a row, and what its time says about the server's clock.

        The row was read between the question and now, so the clock is ahead of ours by something between the two
        differences; what was believed before is moved into that range.
        """
        revision, server_now, *values = row
        heard_at = time.monotonic()
        least, most = server_now - heard_at, server_now - self._clerk.asked_at
        self._ahead_s = min(max(least if self._ahead_s is None else self._ahead_s, least), most)
        self._state, self._revision, self._seen_at = EndpointState(*values), revision, heard_at
