"""Text analysis: language (py3langid), sentiment (VADER), address parts (usaddress), an extractive summary."""

from __future__ import annotations

from py3langid.langid import MODEL_FILE, LanguageIdentifier
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from demo.models.addresses import AddressTagger
from demo.models.params import Params, chosen
from demo.models.summary import summarize

TASKS = ("language", "sentiment", "address", "summary")
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "ja", "zh")
NEUTRAL_BELOW = 0.05
"""VADER's own rule: a compound score nearer to zero than this is neutral."""
SENTIMENT_CHARS = 10_000
"""VADER is made for short texts, and its time grows with the square of their length."""


class TextAnalyst:
    """Answers the questions of `TASKS` about a text. Safe to call from several threads."""

    def __init__(self) -> None:
        self._languages = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        self._languages.set_languages(LANGUAGES)
        self._lexicon = SentimentIntensityAnalyzer()
        self._addresses = AddressTagger()

    def predict(self, text: str, params: Params) -> dict[str, object]:
        """The document's reply. Parameter: `tasks`, some of `TASKS`; all by default.

        A question without an honest answer is left out: the sentiment of a text that is not English, because the
        lexicon is; anything about a text without a letter.
        """
        tasks = chosen(params, "tasks", TASKS)
        if not any(character.isalpha() for character in text):
            return {}
        language, certainty = self._languages.classify(text)
        reply: dict[str, object] = {}
        if "language" in tasks:
            reply["language"] = {"answer": language, "score": round(min(certainty, 1.0), 4)}
        if "sentiment" in tasks and language == "en":
            reply["sentiment"] = self._sentiment(text)
        if "summary" in tasks and (summary := summarize(text)):
            reply["summary"] = summary
        if "address" in tasks:
            reply |= self._addresses.predict(text)
        return reply

    def _sentiment(self, text: str) -> dict[str, object]:
        """Of the first `SENTIMENT_CHARS`. The score is how far VADER's compound (-1 to 1) is from zero; for `neutral`,
        how near.
        """
        compound = float(self._lexicon.polarity_scores(text[:SENTIMENT_CHARS])["compound"])
        if abs(compound) < NEUTRAL_BELOW:
            return {"answer": "neutral", "score": round(1.0 - abs(compound), 4)}
        return {"answer": "positive" if compound > 0 else "negative", "score": round(abs(compound), 4)}
