"""Counts of a slice's rows by outcome and error code, and the first rows without an answer by name.

A failed row never counts as an empty one: `empty` are good answers that say "nothing found".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

MOST_NAMED = 20
"""Rows kept by name for each outcome: a table is there for all of them."""
OLDER_STAYS = "older answer stays"
"""Stands for the outcome of a row whose new call failed, so that the answer it had is kept."""
IN_ORDER = ("failed", OLDER_STAYS, "not_sent", "rejected_by_model")
"""What a person wants to see first."""
_EMPTY_REPLIES = frozenset(["{}", "[]", "{ }", "[ ]", b"{}", b"[]", b"{ }", b"[ ]"])
_EMPTY_MOST = 100
"""A longer reply is not looked at: mebibytes would be copied for nothing."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A data row without an answer, and why: `code` and `message` as in `responses`."""

    global_key: str
    outcome: str
    code: str = ""
    http_status: int | None = None
    attempts: int = 0
    message: str = ""


@dataclass(slots=True)
class Tally:
    """Rows by outcome, and those without an answer by code. `examples` has the first row of each code."""

    outcomes: Counter[str] = field(default_factory=Counter)
    empty: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Unanswered] = field(default_factory=dict)
    older_stays: int = 0
    _named: dict[str, list[Unanswered]] = field(default_factory=dict)

    def add_good(self, reply: str | bytes | None) -> None:
        """A row of `responses` that is ok."""
        self.outcomes["ok"] += 1
        if reply is not None and len(reply) <= _EMPTY_MOST and reply.strip() in _EMPTY_REPLIES:
            self.empty += 1

    def add(self, row: Unanswered) -> None:
        """A row without an answer."""
        self.outcomes[row.outcome] += 1
        self.name(row)
        if row.code:
            self.codes[row.code] += 1

    def add_older(self, row: Unanswered) -> None:
        """Of a row that counts as ok already: its new call failed, and the answer it had stays."""
        self.older_stays += 1
        self.name(replace(row, outcome=OLDER_STAYS))
        if row.code:
            self.codes[row.code] += 1

    def name(self, row: Unanswered) -> None:
        """Keep a row by name, where it is one of the first; it is not counted."""
        if row.code:
            self.examples.setdefault(row.code, row)
        rows = self._named.setdefault(row.outcome, [])
        if len(rows) < MOST_NAMED:
            rows.append(row)

    def too_many_failed(self, allowed: float) -> str | None:
        """Why a slice may not be committed, for people; None where the share of failed rows is within `allowed`."""
        rows, failed = self.outcomes.total(), self.outcomes["failed"]
        share = failed / rows if rows else 0.0
        if share <= allowed:
            return None
        codes = ", ".join(f"{code}: {count}" for code, count in self.codes.most_common(5))
        return (
            f"{failed} of {rows} rows failed ({share:.1%}, max_failed_share is {allowed:.1%}){codes and f': {codes}'}; "
            "the slice's older tables stay, run again to ask only those rows"
        )

    def named(self) -> Iterator[Unanswered]:
        """The first rows without an answer, what matters most first; at most MOST_NAMED of each outcome."""
        for outcome in IN_ORDER:
            yield from self._named.get(outcome, ())
