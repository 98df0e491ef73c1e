"""Cron expressions of five fields, checked before a scheduler sees them.

Owns what is legal: lists, ranges, steps, names of months and weekdays. When it fires is the scheduler's matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from foundry_pipeline.errors import shown


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    most: int
    names: Mapping[str, int] = field(default_factory=dict)

    def number(self, word: str) -> int | None:
        """The number that a word stands for; None where it is out of range or no word of this field."""
        value = int(word) if re.fullmatch(r"[0-9]{1,2}", word) else self.names.get(word.lower())
        return value if value is not None and self.least <= value <= self.most else None


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of the week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def cron_fault(expression: str) -> str | None:
    """What is wrong with a cron expression; None where it is five legal fields that some day satisfy.

    A day that no month has is refused also beside a weekday, where cron would go by the weekday: Dagster refuses it.
    """
    words = expression.split()
    if len(words) != len(_FIELDS):
        return (
            "expected a cron expression of five fields (minute hour day month weekday), such as '0 2 * * *';"
            f" got {len(words)}: {shown(expression)}"
        )
    values: list[set[int]] = []
    for word, one in zip(words, _FIELDS, strict=True):
        found = _values(word, one)
        if found is None:
            return (
                f"{shown(word)} is no {one.name}: expected {one.least}-{one.most}, *, lists, ranges (a-b) or steps (/n)"
            )
        values.append(found)
    days, months = values[2], values[3]
    if not any(min(days) <= _LONGEST[month - 1] for month in months):
        return f"no month of {shown(words[3])} has a day {shown(words[2])}"
    return None


def _values(word: str, one: _Field) -> set[int] | None:
    """The numbers that `1,5-9,*/2` stands for; None where a part is not legal."""
    values: set[int] = set()
    for part in word.split(","):
        found = _part(part, one)
        if found is None:
            return None
        values |= found
    return values


def _part(part: str, one: _Field) -> set[int] | None:
    match = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/([0-9]{1,2}))?", part, re.ASCII)
    if match is None:
        return None
    whole, first_word, last_word, step_word = match.groups()
    step = int(step_word) if step_word else 1
    first = one.least if whole == "*" else one.number(first_word)
    last = one.most if whole == "*" else first if last_word is None else one.number(last_word)
    # A step needs a range to walk in: readers of `5/15` differ on where it ends.
    if first is None or last is None or first > last or step == 0 or (step_word and first == last):
        return None
    return set(range(first, last + 1, step))
