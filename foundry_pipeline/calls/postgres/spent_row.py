"""What a run has cost, as a row: every call of the fleet is counted in it before it is sent.

Calls that are about to be sent at the same time are counted by one statement, which waits for the server's disk. If its
answer is lost with the connection, they may be counted twice: a budget is then spent a little early, never exceeded.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import groupby

from foundry_pipeline.calls.budget import Spent
from foundry_pipeline.calls.postgres.clerk import Clerk
from foundry_pipeline.calls.postgres.server import DURABLE, SCHEMA, Server

LOOK = f"SELECT calls, billionths FROM {SCHEMA}.spent WHERE run = :run"
MAKE = f"""
INSERT INTO {SCHEMA}.spent (run, calls, billionths)
VALUES (:run, cast(:calls AS int8), cast(:billionths AS numeric)) ON CONFLICT (run) DO NOTHING
"""
SPEND = f"""
UPDATE {SCHEMA}.spent s
SET calls = s.calls + b.paid, billionths = s.billionths + b.paid * cast(:price AS numeric)
FROM (
  SELECT run, CASE
    WHEN cast(:most AS numeric) IS NULL
      OR billionths + cast(:wanted AS int8) * cast(:price AS numeric) <= cast(:most AS numeric)
    THEN cast(:wanted AS int8)
    ELSE cast(greatest(0, div(cast(:most AS numeric) - billionths, nullif(cast(:price AS numeric), 0))) AS int8)
  END AS paid
  FROM {SCHEMA}.spent WHERE run = :run FOR UPDATE
) b
WHERE s.run = b.run
RETURNING b.paid, s.calls, s.billionths
"""
GIVE_BACK = f"""
UPDATE {SCHEMA}.spent
SET calls = greatest(0, calls - 1), billionths = greatest(0, billionths - cast(:price AS numeric))
WHERE run = :run
RETURNING calls, billionths
"""


_Waiting = tuple[int, int | None, Future[bool]]
"""Price, most and what is to be told to who wants to spend it."""


class SpentRow:
    """A `SharedSpent` in PostgreSQL."""

    def __init__(self, server: Server, run: str, recorded: Callable[[], Spent]) -> None:
        """`recorded` is where the count begins, should there be none. Raises StorageError."""
        self._run = run
        self._recorded = recorded
        self._clerk = Clerk(server, "spent", DURABLE)
        self._waiting: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self._returning: deque[int] = deque()
        self._seen = self._clerk.tell(self._look).result()

    async def spend(self, price: int, most: int | None) -> bool:
        """See SharedSpent."""
        paid: Future[bool] = Future()
        self._waiting.put((price, most, paid))
        self._clerk.tell(self._spend_for_all, paid)
        return await asyncio.wrap_future(paid)

    def give_back(self, price: int) -> None:
        """See SharedSpent."""
        self._returning.append(price)
        self._clerk.tell(self._give_back, price)

    def peek(self) -> Spent:
        """See SharedSpent: without what is about to be given back."""
        spent = self._seen
        for price in tuple(self._returning):
            spent = spent.without_one(price)
        return spent

    def close(self) -> None:
        """See SharedSpent."""
        self._clerk.close()

    # In the clerk's thread

    def _look(self) -> Spent:
        while not (rows := self._clerk.run(LOOK, run=self._run)):
            calls, billionths = self._recorded()
            self._clerk.run(MAKE, run=self._run, calls=calls, billionths=billionths)
        return _spent(rows[0])

    def _spend_for_all(self, asked: Future[bool]) -> None:
        """Count the calls of all who wait by now, in the order in which they came, unless `asked` has its answer."""
        if asked.done():
            return
        waiting = list(self._taken())
        for (price, most), group in groupby(waiting, key=lambda one: one[:2]):
            futures = [paid for _, _, paid in group]
            try:
                count = self._spend(len(futures), price, most)
            except BaseException as err:  # they must hear of it, whatever it is
                for paid in futures:
                    paid.set_exception(err)
                raise
            for at, paid in enumerate(futures):
                paid.set_result(at < count)

    def _taken(self) -> Iterator[_Waiting]:
        while not self._waiting.empty():
            one = self._waiting.get()
            if one[2].set_running_or_notify_cancel():
                yield one

    def _spend(self, wanted: int, price: int, most: int | None) -> int:
        """How many of the calls are paid for."""
        values = {"run": self._run, "wanted": wanted, "price": price, "most": most}
        while not (rows := self._clerk.run(SPEND, **values)):
            self._look()
        paid, *seen = rows[0]
        self._seen = _spent(seen)
        return int(paid)

    def _give_back(self, price: int) -> None:
        for row in self._clerk.run(GIVE_BACK, run=self._run, price=price):
            self._seen = _spent(row)
        self._returning.popleft()


def _spent(row: Sequence[object]) -> Spent:
    calls, billionths = row
    return Spent(int(str(calls)), int(str(billionths)))
