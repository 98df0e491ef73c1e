"""A partner for conversations of support: rules on keywords, and the speaker's own words turned around.

After Weizenbaum, J. (1966), ELIZA. It understands nothing, and says nothing twice while it knows another way to say it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

REFLECTED = {
    "i": "you",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "am": "are",
    "we": "you",
    "our": "your",
    "you": "we",
    "your": "our",
}
WORD = re.compile(r"[A-Za-z']+")

Rule = tuple[re.Pattern[str], Sequence[str]]


def _rule(pattern: str, *answers: str) -> Rule:
    return re.compile(pattern, re.IGNORECASE), answers


RULES: Sequence[Rule] = (
    _rule(r"\b(?:thanks|thank you)\b", "You are welcome.", "Gladly."),
    _rule(r"\b(?:broken|damaged|cracked)\b", "I am sorry that it arrived like that. Shall we send a new one?"),
    _rule(
        r"\b(?:refund|money back)\b", "You can have your money back. Which order is it?", "A refund takes three days."
    ),
    _rule(r"\b(?:where|when)\b.*\?", "May I have the number of your order, so that I can look it up?"),
    _rule(r"\border\b.*?(\d{3,})", "Order {0}: I have it here. What happened to it?"),
    _rule(r"\bi (?:need|want) ([^.!?]+)", "Why do you need {0}?", "Would {0} settle it?"),
    _rule(r"\b(?:i am|i'm) ([^.!?]+)", "How long have you been {0}?"),
    _rule(r"\b(?:hello|hi|good (?:morning|evening))\b", "Hello! What can I do for you?"),
)
OTHERWISE = ("Please tell me more.", "What would help you now?", "I see. And then?")


def answer_to(text: str, said_before: Collection[str]) -> str:
    """What to say to a text: the first rule that fits and has an answer that was not given before."""
    for pattern, answers in RULES:
        if (found := pattern.search(text)) is not None:
            own_words = [turned_around(group) for group in found.groups()]
            for answer in answers:
                if (said := answer.format(*own_words)) not in said_before:
                    return said
    return next((answer for answer in OTHERWISE if answer not in said_before), OTHERWISE[0])


def turned_around(text: str) -> str:
    """The speaker's words from the other side: my order -> your order."""
    return WORD.sub(lambda found: REFLECTED.get(found[0].lower(), found[0]), text.strip())
