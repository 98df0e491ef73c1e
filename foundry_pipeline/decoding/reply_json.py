"""A reply's text -> a JSON tree, under limits, with duplicate keys known and NaN let through.

orjson is the fast way but keeps the last of duplicate keys and refuses NaN, 1e999 and lone surrogates, so a reply that
it refuses, or that may hold duplicates, is parsed by the standard library, where the first of duplicate keys stays.
What the tree means is `decode.py`'s matter.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import orjson

from foundry_pipeline.decoding.places import Path
from foundry_pipeline.decoding.rejects import Fault

MAX_DEPTH = 64
MAX_NODES = 1_000_000
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
    """Depth and nodes, counted before anything is built: 10 MB of `[],` would take 300 MB as objects."""
    if len(text) <= MAX_NODES and text.count("[") + text.count("{") <= MAX_DEPTH:
        return None
    if text.lstrip(" \t\r\n")[:1] not in ("[", "{"):
        return None  # a string, or no JSON at all
    bare = _outside_strings(text)
    if (depth := _depth(bare)) > MAX_DEPTH:
        return Fault("too_deep", f"nested {depth} deep, the limit is {MAX_DEPTH}")
    if (nodes := 1 + bare.count("[") + bare.count(",") + bare.count(":")) > MAX_NODES:
        return Fault("too_large", f"about {nodes} values, the limit is {MAX_NODES}")
    return None


def _outside_strings(text: str) -> str:
    """The text without what stands between quotes."""
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    return "".join(itertools.islice(text.split('"'), 0, None, 2))


def _depth(bare: str) -> int:
    brackets = np.frombuffer(bare.encode("ascii", "replace").translate(None, _NOT_BRACKETS), np.uint8)
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), np.int32(1), np.int32(-1))
    return int(steps.cumsum().max(initial=0))


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
    return _outside_strings(text).count(":") != _members(value)


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
        return Fault("not_json", f"not JSON: {err.msg} at character {err.pos}")
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
