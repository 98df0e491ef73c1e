"""The words of a text, for formats that label tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

TOKENIZER = "foundry words 1: white space parts tokens; each character of punctuation or of symbols is one"
"""Another tokenizer makes another file."""

_CHUNK = re.compile(r"\S+")


def tokens_of(text: str) -> list[tuple[int, int]]:
    """Start and end of every token: code points, half open, in order.

    What is neither white space, punctuation nor a symbol holds together: letters with their marks in every script.
    """
    return [token for chunk in _CHUNK.finditer(text) for token in _tokens(chunk.group(), chunk.start())]


def _tokens(chunk: str, at: int) -> Iterator[tuple[int, int]]:
    if chunk.isalnum():
        yield at, at + len(chunk)
        return
    begin = 0
    for place, character in enumerate(chunk):
        if unicodedata.category(character)[0] in "PS":
            if begin < place:
                yield at + begin, at + place
            yield at + place, at + place + 1
            begin = place + 1
    if begin < len(chunk):
        yield at + begin, at + len(chunk)
