"""`owners`, `tags` and `freshness` of a run's or dataset's file: what a catalogue says of it beside its content.

The forms are Dagster's, checked here so that a slip is told with its line and takes nothing else down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from foundry_pipeline.config.fields import Block, refuse, seen, text
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import shown

_EMAIL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._%+-]*)@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")
_TEAM = re.compile(r"team:\S(?:.*\S)?")
_TAG_KEY = re.compile(r"(?:[A-Za-z0-9_.-]{1,63}/)?[A-Za-z0-9_.-]{1,63}")
_TAG_VALUE = re.compile(r"[A-Za-z0-9_.-]{0,63}")
_RESERVED = ("dagster/", "model", "dataset")
"""Tags that are there already."""
_SPAN = re.compile(r"(\d{1,6})\s*(m|h|d)")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the latest materialization may be: older than `warn_after` is a warning, than `fail_after` a failure."""

    fail_after: timedelta
    warn_after: timedelta | None = None


def owner(item: Item, found: Findings) -> str | None:
    """A mail address, or `team:name`."""
    word = text(200)(item, found)
    if word is None or _EMAIL.fullmatch(word) or _TEAM.fullmatch(word):
        return word
    refuse(item, found, f"expected a mail address or team:name; got {shown(word)}")
    return None


def tags(item: Item, found: Findings) -> Mapping[str, str] | None:
    """A mapping of labels. Keys and values have letters, digits, `_`, `-` and `.`, at most 63 of them."""
    if not isinstance(item.value, Mapping):
        refuse(item, found, f"expected a mapping (`name: value`); got {seen(item)}")
        return None
    read = {name: _tag(name, entry, found) for name, entry in item.value.items()}
    return {name: value for name, value in read.items() if value is not None}


def _tag(name: str, entry: Item, found: Findings) -> str | None:
    if any(name == taken or (taken.endswith("/") and name.startswith(taken)) for taken in _RESERVED):
        refuse(entry, found, f"the tag {shown(name)} is set by the pipeline or by Dagster")
    elif not _TAG_KEY.fullmatch(name):
        message = f"expected a name of letters, digits, _ - . and at most one /; got {shown(name)}"
        refuse(entry, found, message)
    elif isinstance(entry.value, tuple | Mapping) or entry.value is None:
        refuse(entry, found, f"expected text; got {seen(entry)}")
    elif not _TAG_VALUE.fullmatch(entry.text):
        refuse(entry, found, f"expected at most 63 letters, digits, _ - .; got {shown(entry.text)}")
    else:
        return entry.text
    return None


def freshness(item: Item, found: Findings) -> Freshness | None:
    """A span such as `26h`, or `{fail_after: 26h, warn_after: 25h}`."""
    if not isinstance(item.value, Mapping):
        limit = _span(item, found)
        return None if limit is None else Freshness(limit)
    block = Block.of(item, found)
    assert block is not None
    fail_after = block.read("fail_after", _span, required=True)
    warn_after = block.read("warn_after", _span)
    block.close()
    later = block.item("warn_after")
    if fail_after and warn_after and later is not None and warn_after >= fail_after:
        refuse(later, found, f"expected less than fail_after; got {later.text}")
        return None
    return None if fail_after is None else Freshness(fail_after, warn_after)


def _span(item: Item, found: Findings) -> timedelta | None:
    """`90m`, `26h` or `7d`; at least a minute, as Dagster demands."""
    match = _SPAN.fullmatch(item.value.strip()) if isinstance(item.value, str) else None
    if match is None or not int(match[1]):
        refuse(item, found, f"expected minutes, hours or days such as 90m, 26h or 7d; got {shown(item.text)}")
        return None
    return int(match[1]) * _UNITS[match[2]]
