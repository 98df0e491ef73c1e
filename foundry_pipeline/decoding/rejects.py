"""What a reply said and no table took: the fixed list of reasons, and how a refused part is shown.

Nothing a model said is lost: it is in a table, or here with its place, its reason and the JSON seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from foundry_pipeline.decoding.places import is_text

MAX_VALUE_BYTES = 1024

REASONS: Mapping[str, str] = {
    "not_json": "the answer starts like JSON and is not",
    "too_deep": "lists and objects are nested more than 64 deep; nothing was decoded",
    "too_large": "more values, objects, pixels or characters of a name than the limits allow",
    "duplicate_key": "an object has this key twice; the first one stays",
    "bad_text": "a string holds half a surrogate pair and cannot be written as UTF-8",
    "refusal": "the model says that it refuses to answer; what it answered all the same stays",
    "truncated": "the answer stops at the model's limit of tokens, or in the middle of its JSON; what is there stays",
    "content_filter": "the model says that its answer was filtered; what is there stays",
    "unexpected_text": "the whole answer is free text, and the model has not exactly one text feature",
    "wrong_type": "another JSON type was expected here",
    "unknown_feature": "no feature of the ontology has this name; names are compared exactly",
    "wrong_kind": "the feature is of another kind",
    "missing_key": "the key that the feature's kind needs is not there",
    "bad_length": "a box is not four numbers, or a point not two",
    "not_finite": "a number is NaN, infinite, null or beyond 2**53",
    "negative_size": "a box has a negative width or height",
    "bad_score": "the score is not between 0 and 1",
    "length_mismatch": "a list beside the items has another length; the items stay, without it",
    "bad_rle": "the mask's run lengths are malformed",
    "mask_size": "the mask's size is not the picture's",
    "too_few_points": "a polygon has fewer than 3 distinct points, or a line fewer than 2",
    "unknown_option": "the answer is none of the options",
    "span_out_of_range": "the offsets are not inside the text, and the entity's text did not help",
    "span_mismatch": "the entity's text is not at its offsets, nor near them, nor exactly once in the row's text",
    "missing_message_id": "the conversation has several messages, and the entity names none",
    "unknown_message": "the conversation has no message of this id",
    "bad_frame": "a frame's key is not a non-negative decimal integer",
    "bad_reference": "an edge's end does not name an item of this reply",
    "edge_endpoint_rejected": "an edge's end is an item that was rejected itself",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a part of a reply is refused: one of `REASONS`, and what was expected and seen."""

    reason: str
    message: str


def wrong_type(expected: str, seen: object) -> Fault:
    """The fault of a value of another JSON type."""
    return Fault("wrong_type", f"expected {expected}, got {json_type(seen)}")


def json_type(value: object) -> str:
    """A value's type in JSON's words, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def value_seen(value: object) -> str:
    """The JSON of a refused part, at most 1 KiB of UTF-8; what was cut ends in an ellipsis."""
    text = json.dumps(value, ensure_ascii=False)
    if not is_text(text):
        text = json.dumps(value)
    return cut(text, MAX_VALUE_BYTES)


def cut(text: str, limit_bytes: int) -> str:
    """The text where its UTF-8 fits, else its beginning and an ellipsis, `limit_bytes` together."""
    encoded = text.encode()
    if len(encoded) <= limit_bytes:
        return text
    return encoded[: limit_bytes - 3].decode(errors="ignore") + "…"
