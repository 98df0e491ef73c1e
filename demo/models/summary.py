"""An extractive summary: the one sentence of a text that says most of what the text keeps saying."""

from __future__ import annotations

import re
from collections import Counter

SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")  # noqa: RUF001 (full-width marks end sentences too)
WORD = re.compile(r"\w{4,}")


def summarize(text: str) -> str | None:
    """The sentence whose words are the most frequent in the text, on average; the first of equals.

    Words under four letters do not count: they are mostly articles and prepositions. None for a text without a
    sentence.
    """
    pieces = (found.group().strip() for found in SENTENCE.finditer(text))
    sentences = [piece for piece in pieces if any(character.isalnum() for character in piece)]
    frequency = Counter(_words(text))
    return max(sentences, key=lambda sentence: _weight(sentence, frequency), default=None)


def _weight(sentence: str, frequency: Counter[str]) -> float:
    words = set(_words(sentence))
    return sum(frequency[word] for word in words) / len(words) if words else 0.0


def _words(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]
