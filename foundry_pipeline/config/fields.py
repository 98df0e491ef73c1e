"""Typed reading of YAML items: one reader for each type, one `Block` for each mapping, all problems gathered.

Owns what a text, number, choice or list must look like and how a message says so. Which keys exist, and their bounds,
is in the modules that own the files (`manifest.py`, `dataset_source.py`, `run_source.py`, `settings.py`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

from foundry_pipeline.config.yaml_source import Findings, Item, path_below
from foundry_pipeline.errors import shown

T = TypeVar("T")

Reader = Callable[[Item, Findings], T | None]
"""Item -> value; None, with a problem in the findings, where the item is not such a value."""


def near(word: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" where a known word is close, else an empty text."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def one_of(known: Iterable[str]) -> str:
    """The known words as a message lists them; a name with invisible characters is escaped."""
    return ", ".join(word if word.isprintable() else repr(word) for word in known)


def refuse(item: Item, found: Findings, message: str) -> None:
    """A problem at this item."""
    found.problem(message, item.path, item.line)


def seen(item: Item) -> str:
    """What stands there, for a message: "a list", or the value, with the advice that its type asks for."""
    if isinstance(item.value, tuple):
        return "a list"
    if isinstance(item.value, Mapping):
        return "a mapping"
    if item.value is None:
        return "nothing"
    if isinstance(item.value, bool):
        return f"{item.text}, a boolean in YAML: quote it if it is text"
    if isinstance(item.value, int | float):
        return f"{item.text}, a number in YAML: quote it if it is text"
    return shown(item.value)


def text(max_chars: int, *, prose: bool = False) -> Reader[str]:
    """Text without control characters, not blank. `prose` may be blank and have line breaks and tabs."""

    def read(item: Item, found: Findings) -> str | None:
        if not isinstance(item.value, str):
            refuse(item, found, f"expected text; got {seen(item)}")
        elif not item.value.strip() and not prose:
            refuse(item, found, "expected text; got an empty one")
        elif len(item.value) > max_chars:
            refuse(item, found, f"expected at most {max_chars} characters; got {len(item.value)}")
        elif control := _control_character(item.value, allowed="\n\t\r" if prose else ""):
            refuse(item, found, f"may not hold the control character U+{ord(control):04X}")
        else:
            return item.value
        return None

    return read


def _control_character(value: str, allowed: str) -> str | None:
    return next((c for c in value if (c < " " or "\x7f" <= c <= "\x9f") and c not in allowed), None)


def written(max_chars: int) -> Reader[str]:
    """Text, or a number taken as it was written: version 1.10 is not 1.1."""
    read_text = text(max_chars)

    def read(item: Item, found: Findings) -> str | None:
        is_number = isinstance(item.value, int | float) and not isinstance(item.value, bool)
        return read_text(Item(item.text, item.path, item.line, item.text) if is_number else item, found)

    return read


def number(*, above: float | None = None, least: float | None = None, most: float) -> Reader[float]:
    """A number over `above` or from `least`, up to and including `most`. Booleans are not numbers."""

    def read(item: Item, found: Findings) -> float | None:
        value = item.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(item, found, f"expected a number; got {_seen_for_number(item)}")
        elif (above is not None and value <= above) or (least is not None and value < least) or value > most:
            start = f"over {above:g}" if above is not None else f"from {least:g}"
            refuse(item, found, f"expected a number {start} to {most:g}; got {item.text}")
        else:
            return float(value)
        return None

    return read


def whole(least: int, most: int) -> Reader[int]:
    """A whole number from `least` to `most`, both included."""

    def read(item: Item, found: Findings) -> int | None:
        value = item.value
        if isinstance(value, bool) or not isinstance(value, int):
            refuse(item, found, f"expected a whole number; got {_seen_for_number(item)}")
        elif not least <= value <= most:
            refuse(item, found, f"expected a whole number from {least} to {most}; got {item.text}")
        else:
            return value
        return None

    return read


def _seen_for_number(item: Item) -> str:
    if isinstance(item.value, float):
        return item.text
    if isinstance(item.value, bool):
        return f"{item.text}, a boolean in YAML"
    return f"the text {shown(item.value)}{_as_number(item.value)}" if isinstance(item.value, str) else seen(item)


def _as_number(value: str) -> str:
    """ " : write 1000" for `1e3`, which YAML 1.1 reads as text."""
    try:
        size = abs(float(value))
    except ValueError:
        return ""
    plain = math.isfinite(size) and (size == 0 or 1e-15 < size < 1e15) and len(value) < 40
    return f": write {format(Decimal(value.strip().replace('_', '')).normalize(), 'f')}" if plain else ""


def flag(item: Item, found: Findings) -> bool | None:
    """true or false."""
    if isinstance(item.value, bool):
        return item.value
    refuse(item, found, f"expected true or false; got {shown(item.value) if item.text else seen(item)}")
    return None


def choice(known: Collection[str], *, any_case: bool = False, aliases: Mapping[str, str] | None = None) -> Reader[str]:
    """One of the known words; with `any_case`, capitals do not matter. An alias stands for the word it maps to."""

    def read(item: Item, found: Findings) -> str | None:
        if not isinstance(item.value, str):
            refuse(item, found, f"expected one of {one_of(known)}; got {seen(item)}")
            return None
        word = item.value.lower() if any_case else item.value
        word = (aliases or {}).get(word, word)
        if word not in known:
            message = f"expected one of {one_of(known)}; got {shown(item.value)}{near(item.value, known)}"
            refuse(item, found, message)
            return None
        return word

    return read


def list_of(read_one: Reader[T], *, empty: bool = False) -> Reader[tuple[T, ...]]:
    """A list without repetitions. One that is empty is refused unless `empty`: leaving the key out says it better."""

    def read(item: Item, found: Findings) -> tuple[T, ...] | None:
        if not isinstance(item.value, tuple):
            refuse(item, found, f"expected a list; got {seen(item)}")
            return None
        if not item.value and not empty:
            refuse(item, found, "expected at least one entry; leave the key out instead")
        values: dict[T, None] = {}
        for entry in item.value:
            value = read_one(entry, found)
            if value is not None and value in values:
                refuse(entry, found, f"{shown(entry.value)} stands twice")
            elif value is not None:
                values[value] = None
        return tuple(values)

    return read


class Block:
    """One mapping being read. Every key that a reader asks for is known; `close` reports the others."""

    def __init__(self, entries: Mapping[str, Item], item: Item, found: Findings) -> None:
        self._entries = entries
        self._item = item
        self._found = found
        self._asked: list[str] = []

    @classmethod
    def of(cls, item: Item, found: Findings) -> Block | None:
        """The mapping at this item; None, with a problem, where it is something else."""
        if isinstance(item.value, Mapping):
            return cls(item.value, item, found)
        refuse(item, found, f"expected a mapping (`key: value`); got {seen(item)}")
        return None

    def item(self, key: str, *, required: bool = False) -> Item | None:
        """The key's item. A key without a value counts as left out; a required one that is left out is a problem."""
        self._asked.append(key)
        item = self._entries.get(key)
        if item is not None and item.value is not None:
            return item
        if required:
            line = self._item.line if item is None else item.line
            self._found.problem(f"the required key {key!r} is missing", path_below(self._item.path, key), line)
        return None

    def read(self, key: str, reader: Reader[T], *, required: bool = False) -> T | None:
        """The key's value; None where it is left out, or is wrong and reported."""
        item = self.item(key, required=required)
        return None if item is None else reader(item, self._found)

    def given(self, readers: Mapping[str, Reader[Any]]) -> dict[str, Any]:
        """The values of those keys that are there and sound: arguments for a dataclass that has the defaults."""
        values = {key: self.read(key, reader) for key, reader in readers.items()}
        return {key: value for key, value in values.items() if value is not None}

    def ignore(self, *keys: str) -> None:
        """Keys that are known and mean nothing here."""
        self._asked += keys

    def close(self) -> None:
        """Report every key that nobody asked for."""
        for key, item in self._entries.items():
            if key not in self._asked:
                refuse(item, self._found, f"unknown key {shown(key)}{near(key, self._asked)}")
