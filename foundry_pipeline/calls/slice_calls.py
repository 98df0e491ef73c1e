"""The calls of one slice as they settle, and what is reported of the slice. Holds a few bytes a row, and no reply."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from foundry_pipeline.calls.blame import Task
from foundry_pipeline.calls.ledger import Answer
from foundry_pipeline.calls.plan import GOOD, NONE, Plan
from foundry_pipeline.errors import EndpointStopped, StorageError
from foundry_pipeline.tables import OUTCOMES

EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class SliceReport:
    """What became of one slice. Counts are data rows unless said otherwise; `failure` is None where it is committed."""

    slice_key: str
    rows: int = 0
    ok: int = 0
    empty: int = 0
    """Of `ok`: answers that say "nothing found"."""
    failed: int = 0
    rejected_by_model: int = 0
    not_sent: int = 0
    calls: int = 0
    """Requests sent now, retries included."""
    reused: int = 0
    """Rows whose good answer was already there: no request."""
    repeated: int = 0
    """Calls whose outcome an earlier process never learned (killed in flight), sent again."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """p50, p95, p99 and max of the answers that came now."""
    rate_per_s: float = 0.0
    """Requests a second, as sent now."""
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)
    """Error code -> rows."""
    examples: Sequence[tuple[str, str, str]] = ()
    """(global key, code, message) of the first failed rows, at most 20."""
    failure: str | None = None
    data_version: str | None = None
    """sha256 of the committed file."""


class SliceCalls:
    """What the calls of a slice have brought so far. Make it and use it in the event loop of the calls."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rows_sharing = plan.rows_sharing()
        self._open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._latencies_ms = array("d")
        self._examples: list[tuple[int, str, str, str]] = []
        self.sent = 0
        """Requests, retries included."""
        self.errors: Counter[str] = Counter()
        """Error code -> rows."""
        self.failure: BaseException | None = None
        """Why a call has no answer; a bug before what is expected to happen."""

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
        if (error := task.settled.exception()) is not None:
            self.fail(error)
            return None, 0
        answer = task.settled.result()
        self._note(number, task, answer)
        return answer.outcome, int(self._rows_sharing[number])

    def fail(self, error: BaseException) -> None:
        """A call will have no answer now."""
        is_bug = not isinstance(error, EndpointStopped | StorageError)
        if self.failure is None or (is_bug and isinstance(self.failure, EndpointStopped | StorageError)):
            self.failure = error

    def _note(self, number: int, task: Task, answer: Answer) -> None:
        self._plan.settled[number] = OUTCOMES.index(answer.outcome)
        if answer.outcome == "ok" and answer.latency_ms is not None:
            self._latencies_ms.append(answer.latency_ms)
        if answer.error is not None:
            self.errors[answer.error] += int(self._rows_sharing[number])
            self._examples.append((number, task.row.global_key, answer.error, answer.message or ""))
            if len(self._examples) > 2 * EXAMPLES:
                self._examples = sorted(self._examples)[:EXAMPLES]

    async def all_settled(self) -> None:
        """Return once every call that was handed over has come to its end."""
        await self._none_open.wait()

    def report(self, slice_key: str, seconds: float) -> SliceReport:
        """What the calls brought, before the commit. A row whose call was stopped counts as not sent."""
        plan = self._plan
        final = plan.final()
        counts = {name: int(np.count_nonzero(final == code)) for code, name in enumerate(OUTCOMES)}
        return SliceReport(
            slice_key,
            rows=len(plan),
            ok=counts["ok"],
            failed=counts["failed"],
            rejected_by_model=counts["rejected_by_model"],
            not_sent=counts["not_sent"] + int(np.count_nonzero(final == NONE)),
            calls=self.sent,
            reused=int(np.count_nonzero(plan.kept != NONE)),
            latency_ms=_percentiles(self._latencies_ms),
            rate_per_s=self.sent / max(seconds, 1e-9),
            seconds=seconds,
            errors=dict(self.errors.most_common()),
            examples=tuple(example[1:] for example in sorted(self._examples)[:EXAMPLES]),
        )

    def kept(self) -> str:
        """How much of a slice that is not committed need not be asked again, for people."""
        good = np.isin(self._plan.settled[self._plan.first], [OUTCOMES.index(outcome) for outcome in GOOD])
        kept = np.count_nonzero((self._plan.kept != NONE) | good)
        return f"{kept} of {len(self._plan)} rows have their answer, kept in the ledger and not asked again"


def _percentiles(values: array[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = np.sort(np.array(values))
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: round(float(ordered[min(len(ordered) - 1, int(len(ordered) * share))]), 3)
        for name, share in places.items()
    }
