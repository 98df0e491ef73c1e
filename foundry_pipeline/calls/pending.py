"""What ledgers hold that is not in tables yet, by run and slice."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from foundry_pipeline.calls.lease import Holder
from foundry_pipeline.calls.ledger_tables import ATTEMPTS, CALLS


@dataclass(frozen=True, slots=True)
class Pending:
    """The ledger of one slice. `damage` says why it cannot be read; then nothing else is known but its size."""

    run: str = ""
    slice_key: str = ""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Outcome -> calls that ended so."""
    unknown: int = 0
    """Calls that are in flight, or were when their process died."""
    failed_attempts: int = 0
    size_bytes: int = 0
    """Of replies and evidence; of the file, where it is damaged."""
    since_us: int | None = None
    """When the oldest of its calls was sent: microseconds of the UTC epoch."""
    in_spare: int = 0
    """Answers that found no place in the ledger itself when its disk failed; counted in `outcomes`."""
    holder: Holder | None = None
    damage: str | None = None

    def with_spare(self, spare: Pending) -> Pending:
        """What is in two databases of one slice. The calls whose answers are in the spare look open in the ledger."""
        answers = sum(spare.outcomes.values())
        return replace(
            self,
            outcomes=Counter(self.outcomes) + Counter(spare.outcomes),
            unknown=max(0, self.unknown - answers),
            size_bytes=self.size_bytes + spare.size_bytes,
            in_spare=answers,
        )


def pending_slices(connection: sa.Connection) -> list[Pending]:
    """Every slice that has a row in this database; in one of a single slice, that one, without its names."""
    outcomes: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    since_us: dict[tuple[str, str], int] = {}
    for run, slice_key, outcome, in_flight, calls, size_bytes, first_us in connection.execute(_CALLS):
        key = run, slice_key
        if outcome is not None:
            outcomes[key][outcome] += calls
        counts[key]["unknown"] += calls if outcome is None and in_flight else 0
        counts[key]["size_bytes"] += int(size_bytes or 0)
        if first_us is not None:
            since_us[key] = min(first_us, since_us.get(key, first_us))
    for run, slice_key, attempts, size_bytes in connection.execute(_ATTEMPTS):
        counts[run, slice_key] += Counter(failed_attempts=attempts, size_bytes=int(size_bytes or 0))
    return [
        Pending(
            *key,
            dict(outcomes[key]),
            counts[key]["unknown"],
            counts[key]["failed_attempts"],
            counts[key]["size_bytes"],
            since_us.get(key),
        )
        for key in sorted(counts)
    ]


_CALLS = sa.select(
    CALLS.c.run,
    CALLS.c.slice,
    CALLS.c.outcome,
    CALLS.c.in_flight,
    sa.func.count(),
    sa.func.sum(sa.func.length(CALLS.c.reply)),
    sa.func.min(CALLS.c.sent_us),
).group_by(CALLS.c.run, CALLS.c.slice, CALLS.c.outcome, CALLS.c.in_flight)
_ATTEMPTS = sa.select(
    ATTEMPTS.c.run, ATTEMPTS.c.slice, sa.func.count(), sa.func.sum(sa.func.length(ATTEMPTS.c.evidence))
).group_by(ATTEMPTS.c.run, ATTEMPTS.c.slice)
