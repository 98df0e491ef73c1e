"""The mood of every message of a conversation's user, by the VADER lexicon."""

from __future__ import annotations

from collections.abc import Iterable

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

NEUTRAL_BELOW = 0.05
"""VADER's own rule: a compound score nearer to zero than this is neutral."""
MESSAGE_CHARS = 10_000


class MoodReader:
    """Reads messages in English. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lexicon = SentimentIntensityAnalyzer()

    def predict(self, messages: Iterable[tuple[str, str]]) -> dict[str, object]:
        """The document's reply for (message id, text) pairs: `mood`, an answer a message with its id and score."""
        moods = [self._mood(message_id, text) for message_id, text in messages]
        return {"mood": moods} if moods else {}

    def _mood(self, message_id: str, text: str) -> dict[str, object]:
        """The score is how far VADER's compound (-1 to 1) is from zero; for `neutral`, how near."""
        compound = float(self._lexicon.polarity_scores(text[:MESSAGE_CHARS])["compound"])
        answer = "neutral" if abs(compound) < NEUTRAL_BELOW else "glad" if compound > 0 else "annoyed"
        score = 1.0 - abs(compound) if answer == "neutral" else abs(compound)
        return {"answer": answer, "score": round(score, 4), "message_id": message_id}
