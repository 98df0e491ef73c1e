"""What is said about calls while they run and when a slice is done: Progress, SliceReport, and how fast things go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from foundry_pipeline.calls.budget import Cost
from foundry_pipeline.calls.tally import Tally, Unanswered
from foundry_pipeline.errors import EndpointStopped

STEP_S, SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 0.5, 10.0, 60.0
FEWEST = 5
"""Fewer calls than this say little about how many a second they are."""


@dataclass(frozen=True, slots=True)
class SliceReport:
    """What became of one slice. Counts are data rows unless said otherwise; `failure` is None where it is committed.

    Of a committed slice, outcomes, `errors`, `examples` and `unanswered` are about the slice as it now is, whoever
    called for it; of a failed one, about what is known of its rows.
    """

    slice_key: str
    rows: int = 0
    ok: int = 0
    empty: int = 0
    """Of `ok`: answers that say "nothing found"."""
    older_stays: int = 0
    """Of `ok`: rows whose new call failed, so that the answer they had stays."""
    failed: int = 0
    rejected_by_model: int = 0
    not_sent: int = 0
    calls: int = 0
    """Requests sent now, retries included."""
    reused: int = 0
    """Rows whose good answer was already there: no request."""
    repeated: int = 0
    """Calls whose outcome an earlier process never learned (killed in flight), sent again."""
    repeated_rows: Sequence[str] = ()
    """The global keys of the first 20 of them."""
    damaged: int = 0
    """Answers in the ledger that had rotted: asked again."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """p50, p95, p99 and max of the answers that came now."""
    rate_per_s: float = 0.0
    """Requests a second, as sent now."""
    allowed_per_s: float = 0.0
    """Requests a second that the endpoint takes at the end of the slice, after its 429s."""
    seconds: float = 0.0
    cost: Cost | None = None
    """Of the run so far, where the model has a price."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Error code -> rows, the most frequent first."""
    examples: Mapping[str, Unanswered] = field(default_factory=dict)
    """Error code -> the first row with it."""
    unanswered: Sequence[Unanswered] = ()
    """The first rows without an answer: failed, then not sent, then refused, at most 20 of each."""
    failure: str | None = None
    stop: str | None = None
    """Why nothing more is sent for the whole run, where that ended the slice."""
    data_version: str | None = None
    """sha256 of the committed file."""

    @property
    def answered(self) -> int:
        """Rows that are not asked again by themselves."""
        return self.ok + self.rejected_by_model


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a run, for bars and logs. Rows done include reused ones; `note` says what is being waited for.

    `rate_per_s` is over the last seconds, `allowed_per_s` what the endpoint takes after its 429s. `errors` counts rows
    given up by code. `left_s` is None where nobody can tell.
    """

    run: str
    rows: int
    done: int
    failed: int
    calls: int
    rate_per_s: float
    note: str = ""
    allowed_per_s: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    left_s: float | None = None
    cost: Cost | None = None


class _Moment(NamedTuple):
    at: float
    calls: int
    rows: int


class Speedometer:
    """Calls and rows a second of late. `rows` are those that were called for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first = _Moment(clock(), 0, 0)
        self._moments = deque([self._first])

    def read(self, calls: int, rows: int) -> tuple[float, float]:
        """(calls a second, rows a second) for totals so far: over ten seconds, or as many more as hold FEWEST of them.

        Calls are looked at for a minute at most, so that a pause shows; rows for as long as there is, for what is left.
        """
        now = _Moment(self._clock(), calls, rows)
        if now.at - self._moments[-1].at >= STEP_S:
            self._moments.append(now)
        while len(self._moments) > 1 and now.at - self._moments[1].at >= LONGEST_WINDOW_S:
            self._moments.popleft()
        recent = [then for then in self._moments if now.at - then.at >= SHORTEST_WINDOW_S] or [self._moments[0]]
        called = next((then for then in reversed(recent) if calls - then.calls >= FEWEST), self._moments[0])
        settled = next((then for then in reversed(recent) if rows - then.rows >= FEWEST), self._first)
        return (
            _per_s(calls - called.calls, now.at - called.at),
            _per_s(rows - settled.rows, now.at - settled.at),
        )


def _per_s(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def tallied(report: SliceReport, tally: Tally) -> SliceReport:
    """The report with what became of the slice's rows."""
    return replace(
        report,
        ok=tally.outcomes["ok"],
        empty=tally.empty,
        older_stays=tally.older_stays,
        failed=tally.outcomes["failed"],
        rejected_by_model=tally.outcomes["rejected_by_model"],
        not_sent=tally.outcomes["not_sent"],
        errors=dict(tally.codes.most_common()),
        examples=dict(tally.examples),
        unanswered=tuple(tally.named()),
    )


def not_begun(slice_key: str, rows: int, stop: EndpointStopped) -> SliceReport:
    """A slice of which nothing was sent, since the run had stopped before."""
    errors = {stop.code: rows} if rows else {}
    return SliceReport(slice_key, rows=rows, not_sent=rows, errors=errors, failure=str(stop), stop=str(stop))
