"""usaddress: the parts of United States addresses, as spans of the text.

The tagger is a CRF over the words of one address; a sentence around it would be tagged as if it were one. So the
address is looked for first: a house number, then words, then a two-letter state and a ZIP code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from threading import Lock

import usaddress

ADDRESS = re.compile(
    r"\b\d{1,6}[A-Z]?\s+(?=[A-Z]|\d+(?:st|nd|rd|th)\b)"  # a house number, before a name or a numbered street
    r"[^?!;]{3,100}?"
    r"\b[A-Z]{2}\s+\d{5}(?:-\d{4})?\b"  # the state and the ZIP code
)
AMPERSAND = re.compile("&(?:amp|#38);")
FEATURE_OF_LABEL = {
    "AddressNumber": "house_number",
    "StreetNamePreModifier": "street_name",
    "StreetNamePreDirectional": "street_name",
    "StreetNamePreType": "street_name",
    "StreetName": "street_name",
    "StreetNamePostType": "street_name",
    "StreetNamePostDirectional": "street_name",
    "OccupancyType": "unit",
    "OccupancyIdentifier": "unit",
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip_code",
}
"""usaddress's labels that are asked for; the others (a recipient, a post box) are not part of any feature."""

ONE_AT_A_TIME = Lock()
"""usaddress has one tagger, which keeps the words it tagged last until their probabilities are asked for."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of an address: the feature it belongs to (None for the rest), its span, and how sure the tagger is."""

    feature: str | None
    start: int
    end: int
    score: float


class AddressTagger:
    """Finds addresses and their parts. Safe to call from several threads."""

    def predict(self, text: str) -> dict[str, object]:
        """The document's reply: feature -> entities in the order of the text, with code points, half open.

        `score` is the lowest marginal probability of the entity's words.
        """
        reply: dict[str, list[dict[str, object]]] = {}
        for found in ADDRESS.finditer(AMPERSAND.sub(_padded, text)):
            words = self._words(found.group(), found.start())
            for feature, group in groupby(words, key=lambda word: word.feature):
                if feature is not None:
                    reply.setdefault(feature, []).append(_entity(text, list(group)))
        return dict(reply)

    def _words(self, address: str, offset: int) -> list[Word]:
        """The address's words with spans in the whole text, which starts `offset` characters before the address."""
        tokens = usaddress.tokenize(address)
        with ONE_AT_A_TIME:
            labels = usaddress.TAGGER.tag(usaddress.tokens2features(tokens))
            scores = [usaddress.TAGGER.marginal(label, place) for place, label in enumerate(labels)]
        spans = _spans(address, tokens)
        return [
            Word(FEATURE_OF_LABEL.get(label), offset + start, offset + end, score)
            for label, (start, end), score in zip(labels, spans, scores, strict=True)
        ]


def _padded(escaped: re.Match[str]) -> str:
    """A bare ampersand, as the tokenizer will read it, and blanks that keep every other character in its place."""
    return "&".ljust(len(escaped.group()))


def _spans(address: str, tokens: list[str]) -> Iterator[tuple[int, int]]:
    """Where each token stands, without the punctuation that the tokenizer leaves on it."""
    position = 0
    for token in tokens:
        word = token.strip("(),;\n") or token
        start = address.index(word, position)
        position = start + len(word)
        yield start, position


def _entity(text: str, words: list[Word]) -> dict[str, object]:
    start, end = words[0].start, words[-1].end
    score = round(min(min(word.score for word in words), 1.0), 4)
    return {"start": start, "end": end, "text": text[start:end], "score": score}
