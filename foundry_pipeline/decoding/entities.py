"""Entities in a reply: spans of a row's text, checked against what they quote, re-anchored where offsets are off.

Offsets are Unicode code points, from 0, half open.
Source of the rules: `docs/predictions.md`, Entities.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from foundry_pipeline.decoding.answers import read_nested, read_score, score_in
from foundry_pipeline.decoding.features import Feature
from foundry_pipeline.decoding.findings import Findings
from foundry_pipeline.decoding.geometry import plain_numbers
from foundry_pipeline.decoding.objects import Listed
from foundry_pipeline.decoding.places import Place, is_text, quoted
from foundry_pipeline.decoding.rejects import Fault, cut, value_seen, wrong_type
from foundry_pipeline.tables import ENTITIES

NEAR_CHARS = 100
"""How far an entity may be from where it says, in a text that has its words in several places."""
MAX_SEARCHED_CHARS = 100_000_000
"""Looking through a whole text for every one of 10,000 wrong entities would take hours where the text is long."""

Anchored = tuple[int, int, str, str]
"""(start, end, text, anchor): the own columns of the table."""
Columns = tuple[Sequence[object], ...]
Entity = tuple[str | None, float | None, Anchored, object]
"""(message id, score, anchored span, nested answers as they came)"""


class SourceText:
    """A text that entities are found in."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._searches_left_chars = MAX_SEARCHED_CHARS

    def anchor(self, start: int, end: int, quote: str | None) -> Anchored | Fault:
        """Where the entity is, by the first rule that fits. `quote` is the text it claims, if it claims one."""
        text = self.text
        inside = 0 <= start < end <= len(text)
        if quote is None:
            return (start, end, text[start:end], "exact") if inside else self._outside(start, end)
        if inside and text[start:end] == quote:
            return start, end, quote, "exact"
        if not quote:
            return Fault("span_mismatch", "the entity's text is empty") if inside else self._outside(start, end)
        if (found := self._in_utf16(start, end, quote)) is not None:
            return found, found + len(quote), quote, "utf16"
        if (found := self._moved(start, quote)) is not None:
            return found, found + len(quote), quote, "moved"
        if not inside:
            return self._outside(start, end)
        seen = f"the text at {start}..{end} is {quoted(text[start:end], 40)}, the entity says {quoted(quote, 40)}"
        return Fault("span_mismatch", f"{seen}, which is neither near that place nor in one other place alone")

    def _moved(self, start: int, quote: str) -> int | None:
        """Where the quote is instead: at the start, else nearest to it within `NEAR_CHARS`, else in its only place.

        Of two places that are as near, neither is chosen.
        """
        text, least = self.text, max(start, 0)
        if start >= 0 and text.startswith(quote, start):
            return start
        before = text.rfind(quote, max(start - NEAR_CHARS, 0), max(start - 1 + len(quote), 0))
        after = text.find(quote, least, max(start + NEAR_CHARS + len(quote), 0))
        if before >= 0 and after >= 0:
            return None if start - before == after - start else min(before, after, key=lambda at: abs(at - start))
        return max(before, after) if before >= 0 or after >= 0 else self._only_place(quote)

    def _only_place(self, quote: str) -> int | None:
        """Where the quote is, if it is in one place only. A text is searched so often, and then no more."""
        if self._searches_left_chars < len(self.text):
            return None
        self._searches_left_chars -= len(self.text)
        once = self.text.find(quote)
        return once if once >= 0 and self.text.find(quote, once + 1) < 0 else None

    def _outside(self, start: int, end: int) -> Fault:
        shown = f"{start}..{end}" if max(abs(start), abs(end)) < 2**63 else "offsets beyond 2**63"
        return Fault("span_out_of_range", f"expected 0 <= start < end <= {len(self.text)}, got {shown}")

    def _in_utf16(self, start: int, end: int, quote: str) -> int | None:
        """The code point where `quote` starts, if start and end are its offsets in UTF-16 units."""
        if not self._astral_units or not 0 <= start < end:
            return None
        before = bisect.bisect_left(self._astral_units, start)
        if before and self._astral_units[before - 1] == start - 1:
            return None  # inside a surrogate pair
        units = len(quote) + sum(char > "\uffff" for char in quote)
        fits = end - start == units and self.text.startswith(quote, start - before)
        return start - before if fits else None

    @cached_property
    def _astral_units(self) -> list[int]:
        """The places, in UTF-16 units, of the characters that take two of them."""
        if self.text.isascii():
            return []
        places = (place for place, char in enumerate(self.text) if char > "\uffff")
        return [place + before for before, place in enumerate(places)]


class Texts:
    """What the entities of one data row may stand in: its text, or the messages of its conversation."""

    def __init__(self, text: str | None, messages: Mapping[str, str] | None) -> None:
        self.only = text if messages is None else None
        """The text, where there is one and no message has to be named."""
        self._text = None if text is None else SourceText(text)
        self._messages = messages
        self._opened: dict[str, SourceText] = {}

    def of(self, item: Mapping[str, object]) -> tuple[SourceText, str | None] | Fault:
        """The text that an entity refers to, and its message's id (None where there are no messages)."""
        if self._messages is not None:
            return self._message(item.get("message_id"), self._messages)
        if self._text is None:
            return Fault("span_mismatch", "the data row's text is not there to check the offsets against")
        return self._text, None

    def message_id(self, value: object) -> str | Fault:
        """The id of a message that an answer or entity names."""
        if not isinstance(value, str):
            return wrong_type("message_id as a string", value)
        if self._messages is None:
            return Fault("unknown_message", f"the conversation is not there to look for message {quoted(value)}")
        if value not in self._messages:
            return Fault("unknown_message", f"the conversation has no message {quoted(value)}")
        return value

    def _message(self, message_id: object, messages: Mapping[str, str]) -> tuple[SourceText, str] | Fault:
        if message_id is None:
            if len(messages) != 1:
                return Fault("missing_message_id", f"the conversation has {len(messages)} messages: say which")
            message_id = next(iter(messages))
        if isinstance(known := self.message_id(message_id), Fault):
            return known
        message_id = known
        if message_id not in self._opened:
            self._opened[message_id] = SourceText(messages[message_id])
        return self._opened[message_id], message_id


def read_entities(findings: Findings, feature: Feature, place: Place, value: object, texts: Texts) -> Listed | None:
    """The entities of one feature. None where there is no list to refer to."""
    if not isinstance(value, list):
        findings.reject(place, wrong_type("a list of entities", value), value)
        return None
    listed = Listed(findings.rows(ENTITIES, place), len(value))
    admitted = findings.admit(place, value)
    if (plain := _exact_columns(admitted, texts.only)) is not None:
        listed.rows.add_all(*plain)
        return listed
    for index, item in enumerate(admitted):
        entity = _read_entity(item, texts)
        if isinstance(entity, Fault):
            findings.reject(place.at(index), entity, item, index)
            listed.refused.add(index)
            continue
        message_id, score, anchored, nested = entity
        if message_id is not None:
            listed.rows.of_message(message_id)
        listed.rows.add(index, score, anchored)
        if nested is not None:
            below = place.at(index, "classifications")._replace(message_id=message_id)
            read_nested(findings, feature.questions, below, nested, listed.rows.id_of(index))
    return listed


def _exact_columns(items: list[Any], text: str | None) -> tuple[Columns, list[float | None]] | None:
    """All entities at once, as (own columns, scores), where each just quotes the one text exactly: the usual case.

    None where anything has to be looked into, item by item.
    """
    if text is None or not items:
        return None
    starts, ends, quotes = [], [], []
    try:
        members = set(map(len, items))
        for item in items:
            start, end, quote = item["start"], item["end"], item["text"]
            if text[start:end] != quote:
                return None
            starts.append(start)
            ends.append(end)
            quotes.append(quote)
        scores = [item["score"] for item in items] if members == {4} else [None] * len(items)
    except (KeyError, TypeError):  # a key that is not there, an offset that is none, or an item that is no object
        return None
    if members != {3} and not (members == {4} and plain_numbers(scores, 0.0, 1.0)):
        return None
    if (
        {*map(type, starts), *map(type, ends)} != {int}
        or min(starts) < 0
        or not 0 < min(ends) <= max(ends) <= len(text)
    ):
        return None
    return None if "" in quotes else ((starts, ends, quotes, ["exact"] * len(items)), scores)


def _read_entity(item: object, texts: Texts) -> Entity | Fault:
    """What {"start", "end", "text"?, "score"?, "message_id"?, "classifications"?} says, or what is wrong with it."""
    if not isinstance(item, dict):
        return wrong_type("an entity {start, end, text}", item)
    if "start" not in item or "end" not in item:
        return Fault("missing_key", "an entity needs start and end")
    start, end, quote = item["start"], item["end"], item.get("text")
    if type(start) is not int or type(end) is not int:
        return Fault("wrong_type", f"expected start and end as integers, got {cut(value_seen([start, end]), 80)}")
    if quote is not None and not isinstance(quote, str):
        return wrong_type("text as a string", quote)
    if quote is not None and not is_text(quote):
        return Fault("bad_text", "the entity's text holds half a surrogate pair")
    score = read_score(score_in(item)[1])
    if isinstance(score, Fault):
        return score
    source = texts.of(item)
    if isinstance(source, Fault):
        return source
    text, message_id = source
    anchored = text.anchor(start, end, quote)
    return anchored if isinstance(anchored, Fault) else (message_id, score, anchored, item.get("classifications"))
