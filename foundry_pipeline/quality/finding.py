"""What a quality check found: a number, the limit it is judged by, words, and the data rows to look at."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from foundry_pipeline.config.checks_source import Rule, Severity
from foundry_pipeline.errors import shown

WORST_ROWS = 20
"""Rows named by a finding: a person looks at a few, a table is there for all of them."""
NAME_CHARS = 80


@dataclass(frozen=True, slots=True)
class Worst:
    """A data row to look at, and why."""

    global_key: str
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one run. It is over where `number` exceeds the rule's limit.

    `noted`: not over, and still something a person should know; that is a warning at most. `facts` are further
    figures: whole or broken numbers, words, or mappings of words to numbers.
    """

    check: str
    rule: Rule
    number: float
    words: str
    worst: tuple[Worst, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    noted: bool = False
    breached: bool = False
    """Over a limit of its own, beside the rule's."""

    @property
    def over(self) -> bool:
        """True where the number exceeds the limit."""
        return self.breached or self.number > self.rule.limit

    @property
    def passed(self) -> bool:
        """True where there is nothing to say."""
        return not self.over and not self.noted

    @property
    def is_error(self) -> bool:
        """True where it is over and the run file calls that an error."""
        return self.over and self.rule.severity is Severity.ERROR


@dataclass(slots=True)
class WorstRows:
    """The worst of many rows: those with the greatest badness; of equal ones, the first that came."""

    most: int = WORST_ROWS
    _heap: list[tuple[float, int, Worst]] = field(default_factory=list)
    _came: int = 0

    def add(self, rows: Iterable[tuple[float, Worst]]) -> None:
        """Take in (badness, row)."""
        for badness, worst in rows:
            self._came += 1
            heapq.heappush(self._heap, (badness, -self._came, worst))
            if len(self._heap) > self.most:
                heapq.heappop(self._heap)

    def rows(self) -> tuple[Worst, ...]:
        """The worst first."""
        return tuple(worst for _, _, worst in sorted(self._heap, reverse=True))


def plain(name: str) -> str:
    """A class or key, which may be a stranger's text, for words: what is long or invisible is cut or escaped."""
    return name if name.isprintable() and len(name) <= NAME_CHARS else shown(name)


def counted(number: int, word: str) -> str:
    """`1 row`, `2,000 rows`, `3 boxes`"""
    plural = f"{word}es" if word.endswith("x") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"
