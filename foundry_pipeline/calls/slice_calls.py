"""The calls of one slice as they settle, and what is reported of the slice. Holds a few bytes a row, and no reply."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from foundry_pipeline.calls.blame import Task
from foundry_pipeline.calls.ledger import Answer
from foundry_pipeline.calls.plan import GOOD, NONE, Plan
from foundry_pipeline.calls.reports import SliceReport
from foundry_pipeline.calls.tally import MOST_NAMED, OLDER_STAYS, Tally, Unanswered
from foundry_pipeline.errors import EndpointStopped, SliceBusy, StorageError
from foundry_pipeline.tables import OUTCOMES

EXPECTED = (EndpointStopped, StorageError, SliceBusy)
"""Why a call may have no answer, other than by a bug."""


class SliceCalls:
    """What the calls of a slice have brought so far. Make it and use it in the event loop of the calls."""

    def __init__(self, plan: Plan, unknown: Collection[str] = ()) -> None:
        """`unknown` are calls that an earlier process sent, or was about to send, without learning the outcome."""
        self._plan = plan
        self._unknown = unknown
        self._rows_sharing = plan.rows_sharing()
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._latencies_ms = array("d")
        self._unanswered: dict[str, list[tuple[int, Unanswered]]] = {}
        self._repeated: list[str] = []
        self.sent = 0
        """Requests, retries included."""
        self.errors: Counter[str] = Counter()
        """Error code -> rows of `responses`."""
        self.failure: BaseException | None = None
        """Why a call has no answer; a bug before what is expected to happen."""

    def go_on(self, plan: Plan) -> None:
        """The rows were planned again: there are more of them, and their numbers are others."""
        for rows in self._unanswered.values():
            rows[:] = [(int(np.flatnonzero(plan.ids == self._plan.ids[number])[0]), row) for number, row in rows]
        self._plan = plan
        self._rows_sharing = plan.rows_sharing()

    def begin(self) -> None:
        """A call was handed over."""
        self._open += 1
        self._none_open.clear()

    def settle(self, number: int, task: Task) -> tuple[str | None, int]:
        """The call of row `number` has come to its end: (outcome if there is one, rows that have waited for it)."""
        self._open -= 1
        if not self._open:
            self._none_open.set()
        self.sent += task.sends
        if task.sends and task.call_id in self._unknown:
            self._repeated.append(task.ask.row.global_key)
        if (error := task.settled.exception()) is not None:
            self.fail(error)
            return None, 0
        answer = task.settled.result()
        self._note(number, task, answer)
        return answer.outcome, int(self._rows_sharing[number])

    def fail(self, error: BaseException) -> None:
        """A call will have no answer now."""
        is_bug = not isinstance(error, EXPECTED)
        if self.failure is None or (is_bug and isinstance(self.failure, EXPECTED)):
            self.failure = error

    def _note(self, number: int, task: Task, answer: Answer) -> None:
        self._plan.settled[number] = OUTCOMES.index(answer.outcome)
        if answer.outcome == "ok" and answer.latency_ms is not None:
            self._latencies_ms.append(answer.latency_ms)
        if answer.outcome != "ok":
            self.errors[answer.error or ""] += int(self._rows_sharing[number])
            self._name(number, _unanswered(task, answer))

    def _name(self, number: int, row: Unanswered) -> None:
        """Keep the first rows of each outcome by name, in the slice's order."""
        rows = self._unanswered.setdefault(row.outcome, [])
        rows.append((number, row))
        if len(rows) > 2 * MOST_NAMED:
            rows.sort(key=lambda named: named[0])
            del rows[MOST_NAMED:]

    async def all_settled(self) -> None:
        """Return once every call that was handed over has come to its end."""
        await self._none_open.wait()

    def report(self, slice_key: str, seconds: float) -> SliceReport:
        """What the calls took."""
        return SliceReport(
            slice_key,
            rows=len(self._plan),
            calls=self.sent,
            reused=int(np.count_nonzero(self._plan.kept != NONE)),
            repeated=len(self._repeated),
            repeated_rows=tuple(self._repeated[:MOST_NAMED]),
            latency_ms=_percentiles(self._latencies_ms),
            rate_per_s=self.sent / seconds if seconds > 0 else 0.0,
            seconds=seconds,
        )

    def tally(self, stop_code: str, unsent: Sequence[str] = ()) -> Tally:
        """The rows before the commit. What was not settled is not sent, with `stop_code`; `unsent` names some of it."""
        plan = self._plan
        left = int(np.count_nonzero(plan.final() == NONE))
        tally = Tally(older_stays=plan.older_stays, codes=Counter(self.errors))
        tally.outcomes.update(plan.outcomes())
        for number, row in sorted((named for rows in self._unanswered.values() for named in rows), key=_number):
            stays = row.outcome not in GOOD and plan.good_at[number] != NONE
            tally.name(replace(row, outcome=OLDER_STAYS) if stays else row)
        if left:
            tally.outcomes["not_sent"] += left
            tally.codes[stop_code] += left
        for key in unsent:
            tally.name(Unanswered(key, "not_sent", stop_code))
        return tally

    def kept(self) -> str:
        """How much of a slice that is not committed need not be asked again, for people."""
        good = np.isin(self._plan.settled[self._plan.first], [OUTCOMES.index(outcome) for outcome in GOOD])
        kept = np.count_nonzero((self._plan.kept != NONE) | good)
        return f"{kept} of {len(self._plan)} rows have their answer, kept in the ledger and not asked again"


def _unanswered(task: Task, answer: Answer) -> Unanswered:
    attempts = answer.attempts or task.sends
    return Unanswered(
        task.ask.row.global_key,
        answer.outcome,
        answer.error or "",
        answer.http_status,
        attempts,
        answer.message or "",
    )


def _number(named: tuple[int, Unanswered]) -> int:
    return named[0]


def _percentiles(values: array[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = np.sort(np.array(values))
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: round(float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]), 3)
        for name, share in places.items()
    }
