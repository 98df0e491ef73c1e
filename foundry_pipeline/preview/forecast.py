"""What the whole run would take, judged by a few answers: calls, time, failures, money."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foundry_pipeline.config.money import Money

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Seen:
    """What the sample showed. Rows asked; of these failed or refused by the model; requests sent; mean latency."""

    asked: int
    failed: int
    refused: int
    attempts: int
    mean_latency_s: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of the whole run. `rows` are those of `responses`: more than the data rows where these take several calls.

    Calls include retries; `failed_low` to `failed_high` rows is a 95 % interval.
    """

    data_rows: int
    rows: int
    rows_answered: int
    calls: int
    seconds: float
    limited_by: str
    """"rate" or "latency"."""
    failed_low: int
    failed_high: int
    cost: Money | None


def forecast(
    seen: Seen,
    *,
    rows: int,
    rows_answered: int,
    requests_per_second: float,
    max_concurrency: int,
    cost_per_call: Money | None,
    data_rows: int | None = None,
) -> Forecast:
    """`rows_answered` of the `rows` of `responses` have a good answer already and cost nothing. There are as many
    `data_rows`, unless said otherwise."""
    left = rows - rows_answered
    calls = math.ceil(left * (seen.attempts / seen.asked if seen.asked else 1.0))
    by_rate = calls / requests_per_second
    by_latency = calls * (seen.mean_latency_s or 0.0) / max_concurrency
    low, high = wilson(seen.failed + seen.refused, seen.asked)
    return Forecast(
        data_rows=rows if data_rows is None else data_rows,
        rows=rows,
        rows_answered=rows_answered,
        calls=calls,
        seconds=max(by_rate, by_latency),
        limited_by="rate" if by_rate >= by_latency else "latency",
        failed_low=math.floor(low * left),
        failed_high=math.ceil(high * left),
        cost=None if cost_per_call is None else Money(calls * cost_per_call.amount, cost_per_call.currency),
    )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of which `hits` of `of` were seen; 0 to 1 where nothing was."""
    if not of:
        return 0.0, 1.0
    share, spread = hits / of, Z_95**2 / of
    middle = (share + spread / 2) / (1 + spread)
    reach = Z_95 * math.sqrt(share * (1 - share) / of + Z_95**2 / (4 * of**2)) / (1 + spread)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`: for people."""
    for unit, length in (("days", 86_400), ("h", 3_600)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
