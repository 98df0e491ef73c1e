"""A reply's text -> a JSON tree, under limits, with duplicate keys known and NaN let through.

orjson is the fast way but keeps the last of duplicate keys and refuses NaN, 1e999 and lone surrogates, so a reply that
it refuses, or that may hold duplicates, is parsed by the standard library, where the first of duplicate keys stays.
What the tree means is `decode.py`'s matter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from foundry_pipeline.decoding.places import Path
from foundry_pipeline.decoding.rejects import Fault

MAX_DEPTH = 64
MAX_VALUES = 4_000_000
MAX_HEAVY = 1_000_000
"""Lists, objects and strings: as Python objects they take some 60 bytes or more, a number takes 32."""
_PIECE_CHARS = 65_536
_CUT_VALUE = re.compile(r"(t|tr|tru|f|fa|fal|fals|n|nu|nul|-?[\d.eE+-]*)\s*")
"""What may be left of a value where the text ends."""
_MOST_CHARS_OF_64_BITS = 20
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Repeat:
    """A member whose key was there before in the same object: where, and its value."""

    path: Path
    value: object


@dataclass(frozen=True, slots=True)
class Tree:
    """A parsed reply. In its objects the first of duplicate keys stays; the others are `repeats`."""

    value: object
    repeats: tuple[Repeat, ...] = ()


@dataclass(frozen=True, slots=True)
class NotJson(Fault):
    """Text that is no JSON. `is_cut_off` where it begins as a list or object and ends in the middle of it."""

    is_cut_off: bool = False


def parse(text: str) -> Tree | Fault:
    """Parse JSON text. NaN, infinities, 1e999 and endless integers become floats, finite or not. Never raises."""
    text = text.removeprefix("\ufeff")
    if (problem := _over_limits(text)) is not None:
        return problem
    value = load_unchecked(text)
    return _parse_tolerantly(text) if value is None or _may_repeat_keys(text, value) else Tree(value)


def load_unchecked(text: str) -> object:
    """The value, the fast way: no limit is checked and the last of duplicate keys stays. None where orjson refuses."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _over_limits(text: str) -> Fault | None:
    """Depth and values, counted before anything is built: 10 MB of `[],` would take 300 MB as objects."""
    if len(text) <= MAX_HEAVY and text.count("[") + text.count("{") <= MAX_DEPTH:
        return None
    if text.lstrip(" \t\r\n")[:1] not in ("[", "{"):
        return None  # a string, or no JSON at all
    depth, deepest, values, heavy = 0, 0, 1, 0
    for bare, quotes in _outside_strings(text):
        depths = depth + _steps(bare).cumsum()
        deepest = max(deepest, int(depths.max(initial=0)))
        depth = int(depths[-1]) if len(depths) else depth
        values += bare.count("[") + bare.count(",") + bare.count(":")
        heavy += bare.count("[") + bare.count("{") + quotes // 2
    if deepest > MAX_DEPTH:
        return Fault("too_deep", f"nested {deepest} deep, the limit is {MAX_DEPTH}")
    if values > MAX_VALUES:
        return Fault("too_large", f"about {values} values, the limit is {MAX_VALUES}")
    if heavy > MAX_HEAVY:
        return Fault("too_large", f"about {heavy} lists, objects and strings, the limit is {MAX_HEAVY}")
    return None


def _outside_strings(text: str) -> Iterator[tuple[str, int]]:
    """What stands outside of strings, and how many quotes, of one piece of the text after the other."""
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    is_inside = 0
    for at in range(0, len(text), _PIECE_CHARS):
        parts = text[at : at + _PIECE_CHARS].split('"')
        yield "".join(parts[is_inside::2]), len(parts) - 1
        is_inside = (is_inside + len(parts) - 1) % 2


def _steps(bare: str) -> npt.NDArray[np.int32]:
    """1 where a list or object opens, -1 where one ends."""
    brackets = np.frombuffer(bare.encode("ascii", "replace").translate(None, _NOT_BRACKETS), np.uint8)
    return np.where((brackets == ord("[")) | (brackets == ord("{")), np.int32(1), np.int32(-1))


def _may_repeat_keys(text: str, value: object) -> bool:
    """Whether the text has more members than the tree. Each member has a colon, and a string may have more of them."""
    if type(value) is not dict:
        return isinstance(value, list) and _has_repeats(text, value)
    least = len(value)
    for member in value.values():
        if type(member) is dict:
            least += len(member)
        elif type(member) is list:
            least += sum(map(len, member)) if set(map(type, member)) == {dict} else 0
    return text.count(":") != least and _has_repeats(text, value)


def _has_repeats(text: str, value: object) -> bool:
    return sum(bare.count(":") for bare, _ in _outside_strings(text)) != _members(value)


def _members(value: object) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_members(item) for item in value.values() if type(item) in (dict, list))
    if isinstance(value, list):
        return sum(_members(item) for item in value if type(item) in (dict, list))
    return 0


class _FirstStays:
    """An `object_pairs_hook` that keeps the first of duplicate keys and remembers the others."""

    def __init__(self) -> None:
        self.repeats: dict[int, list[tuple[str, object]]] = {}

    def __call__(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        first = dict(reversed(pairs))
        if len(first) == len(pairs):
            return dict(pairs)
        first, later = {}, []
        for key, value in pairs:
            if key in first:
                later.append((key, value))
            else:
                first[key] = value
        self.repeats[id(first)] = later
        return first


def _integer(digits: str) -> int | float:
    """Beyond 64 bits a float, as orjson does it, so that a reply means the same whichever parser reads it."""
    if len(digits) <= _MOST_CHARS_OF_64_BITS and -(2**63) <= int(digits) < 2**64:
        return int(digits)
    return float(digits)


def _parse_tolerantly(text: str) -> Tree | Fault:
    hook = _FirstStays()
    try:
        value = json.loads(text, object_pairs_hook=hook, parse_int=_integer)
    except json.JSONDecodeError as err:
        begins = text.lstrip()[:1] in ("{", "[")
        ends = err.msg.startswith("Unterminated string") or _CUT_VALUE.fullmatch(text, err.pos) is not None
        return NotJson("not_json", f"not JSON: {err.msg} at character {err.pos}", begins and ends)
    return Tree(value, tuple(_located(value, (), hook.repeats)) if hook.repeats else ())


def _located(value: object, path: Path, repeats: dict[int, list[tuple[str, object]]]) -> Iterator[Repeat]:
    """The repeats with their paths. An object is found by its identity: it lives as long as the tree."""
    if isinstance(value, dict):
        for key, later in repeats.get(id(value), ()):
            yield Repeat((*path, key), later)
        for key, item in value.items():
            yield from _located(item, (*path, key), repeats)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            if type(item) in (dict, list):
                yield from _located(item, (*path, place), repeats)
