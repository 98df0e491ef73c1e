"""What is pending in the ledgers, as a person reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from foundry_pipeline.calls.ledgers import Ledgers
from foundry_pipeline.calls.pending import Pending
from foundry_pipeline.recovery import waiting_answers
from foundry_pipeline.store import Store

HEADS = ("run", "slice", "answers", "not in tables", "outcome unknown", "failed attempts", "size", "since", "held by")


def pending_lines(pending: Sequence[Pending], ledgers: Ledgers, store: Store) -> Iterator[str]:
    """A table with a row per slice, in the order given, and a line for each damaged ledger."""
    if not pending:
        yield f"{ledgers}: nothing is pending"
        return
    yield f"{ledgers}:"
    rows = [HEADS, *(_row(p, waiting_answers(p, ledgers, store)) for p in pending)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADS))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield from (p.damage for p in pending if p.damage is not None)


def _row(p: Pending, waiting: int) -> tuple[str, ...]:
    if p.damage is not None:
        return (p.run, p.slice_key, "damaged", "", "", "", _size(p.size_bytes), "", _holder(p))
    answers = ", ".join(f"{count} {outcome}" for outcome, count in sorted(p.outcomes.items())) or "0"
    counts = (str(waiting), str(p.unknown), str(p.failed_attempts))
    return (p.run, p.slice_key, answers, *counts, _size(p.size_bytes), _moment(p.since_us), _holder(p))


def _holder(p: Pending) -> str:
    return "nobody" if p.holder is None else f"pid {p.holder.pid} on {p.holder.host} since {p.holder.since}"


def _moment(sent_us: int | None) -> str:
    """UTC, to the second."""
    return "" if sent_us is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(sent_us / 1_000_000))


def _size(size_bytes: int) -> str:
    for limit, unit, digits in ((1_000, "B", 0), (1_000_000, "kB", 1), (1_000_000_000, "MB", 1)):
        if size_bytes < limit:
            return f"{size_bytes / (limit / 1_000):.{digits}f} {unit}"
    return f"{size_bytes / 1_000_000_000:.1f} GB"
