"""What a model says about its own answer: that it refused, or that it had to stop early.

The words are those of the well-known generation servers. A remark is no prediction: what it is about stays where it
is, and the remark goes to the rejects, so that nobody takes half an answer for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from foundry_pipeline.decoding.places import quoted
from foundry_pipeline.decoding.rejects import Fault

REMARKS = ("refusal", "finish_reason", "stop_reason")
"""Keys beside features, or beside an `answer`; a feature of the ontology that is called so is none."""

_REASONS: Mapping[str, str] = {
    "length": "truncated",
    "max_tokens": "truncated",
    "max_length": "truncated",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "refusal",
}
"""How an answer ended -> reject reason. Every other word, such as stop or end_turn, is a good end."""


def remarks_in(value: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The remarks in an object, as (key, what is said). What is no string is none."""
    for key in REMARKS:
        said = value.get(key)
        if isinstance(said, str):
            yield key, said


def fault_of(key: str, said: str) -> Fault | None:
    """What a remark has against the answer; None where it has nothing."""
    reason = _REASONS.get(said.strip().lower()) if key != "refusal" else "refusal" if said.strip() else None
    return None if reason is None else Fault(reason, f"the model says {key}: {quoted(said)}")
