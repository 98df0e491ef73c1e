"""Entities: offsets are code points, checked against the text; wrong ones are re-anchored by five rules or rejected."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.decoding.entities import SourceText
from foundry_pipeline.decoding.rejects import Fault
from tests.decoding import decode, rejected, values

TEXT = "Tom and Bob are happy. Tom works at IBM."
TWICE = "Tom . Tom"
FAR = f"Tom{'.' * 400}Tom Bob"
EMOJI = "😀 Tom and 😀 Bob, Tom"


def spans(text: str | None, *entities: Any, **more: Any) -> dict[str, list[dict[str, Any]]]:
    return decode({"person": list(entities)}, media_type="text", text=text, **more)


def entity(start: Any, end: Any, text: Any = None, **more: Any) -> dict[str, Any]:
    return {"start": start, "end": end, **({} if text is None else {"text": text}), **more}


@pytest.mark.parametrize(
    ("text", "said", "found"),
    [
        (TEXT, entity(0, 3, "Tom"), (0, 3, "Tom", "exact")),
        (TEXT, entity(23, 26, "Tom"), (23, 26, "Tom", "exact")),
        (TEXT, entity(0, 3), (0, 3, "Tom", "exact")),
        (TEXT, {"start": 0, "end": 3, "text": None}, (0, 3, "Tom", "exact")),
        (TEXT, entity(8, 9, "Bob"), (8, 11, "Bob", "moved")),
        (TEXT, entity(23, 30, "Tom"), (23, 26, "Tom", "moved")),
        (TEXT, entity(5, 8, "Bob"), (8, 11, "Bob", "moved")),
        (TEXT, entity(-3, 900, "IBM"), (36, 39, "IBM", "moved")),
        (TEXT, entity(36, 900, "IBM."), (36, 40, "IBM.", "moved")),
        ("😀😀", entity(1, 3, "😀"), (1, 2, "😀", "moved")),
        (TEXT, entity(5, 8, "Tom"), (0, 3, "Tom", "moved")),
        (TEXT, entity(18, 21, "Tom"), (23, 26, "Tom", "moved")),
        (TEXT, entity(-4, -1, "Tom"), (0, 3, "Tom", "moved")),
        (TEXT, entity(38, 41, "Tom"), (23, 26, "Tom", "moved")),
        (TEXT, entity(5, 900, "Tom"), (0, 3, "Tom", "moved")),
        (FAR, entity(100, 103, "Tom"), (0, 3, "Tom", "moved")),
        (FAR, entity(303, 306, "Tom"), (403, 406, "Tom", "moved")),
        (FAR, entity(150, 153, "Bob"), (407, 410, "Bob", "moved")),
        (TEXT, entity(8, 8, "Bob"), (8, 11, "Bob", "moved")),
        (TEXT, entity(2**62, -(2**62), "Bob"), (8, 11, "Bob", "moved")),
        (EMOJI, entity(2, 5, "Tom"), (2, 5, "Tom", "exact")),
        (EMOJI, entity(3, 6, "Tom"), (2, 5, "Tom", "utf16")),
        (EMOJI, entity(14, 17, "Bob"), (12, 15, "Bob", "utf16")),
        (EMOJI, entity(0, 2, "😀"), (0, 1, "😀", "utf16")),
        (EMOJI, entity(11, 17, "😀 Bob"), (10, 15, "😀 Bob", "utf16")),
        ("é e\u0301", entity(2, 3, "e"), (2, 3, "e", "exact")),
    ],
)
def test_F075_an_entity_is_found_by_the_first_rule_that_fits(
    text: str, said: dict[str, Any], found: tuple[Any, ...]
) -> None:
    tables = spans(text, said)
    assert values(tables["entities"], "start", "end", "text", "anchor") == [found]
    assert tables["rejects"] == []


@pytest.mark.parametrize(
    ("text", "said", "reason"),
    [
        (TWICE, entity(3, 6, "Tom"), "span_mismatch"),
        (FAR, entity(200, 203, "Tom"), "span_mismatch"),
        (FAR, entity(-200, -197, "Tom"), "span_out_of_range"),
        (FAR, entity(2**62, 2**62 + 3, "Tom"), "span_out_of_range"),
        (TEXT, entity(5, 8, "Ada"), "span_mismatch"),
        (TEXT, entity(5, 8, ""), "span_mismatch"),
        (FAR, entity(200, 900, "Tom"), "span_out_of_range"),
        (TEXT, entity(3, 3), "span_out_of_range"),
        (TEXT, entity(5, 3), "span_out_of_range"),
        (TEXT, entity(-3, 3), "span_out_of_range"),
        (TEXT, entity(38, 41), "span_out_of_range"),
        (TEXT, entity(0, 2**63), "span_out_of_range"),
        (TEXT, entity(0, 2**80, "Tom"), "wrong_type"),
        (TEXT, entity(0, 0, ""), "span_out_of_range"),
        (EMOJI, entity(19, 22), "span_out_of_range"),
        ("", entity(0, 0, "Tom"), "span_out_of_range"),
        ("Bob\r\nTom", entity(3, 6, "\nTo\n"), "span_mismatch"),
        (TEXT, entity(0.0, 3.0, "Tom"), "wrong_type"),
        (TEXT, entity(0, True, "Tom"), "wrong_type"),
        (TEXT, entity("0", 3, "Tom"), "wrong_type"),
        (TEXT, entity(None, 3, "Tom"), "wrong_type"),
        (TEXT, entity(0, 3, 7), "wrong_type"),
        (TEXT, entity(0, 3, "Tom", score="0.5"), "wrong_type"),
        (TEXT, entity(0, 3, "Tom", score=1.5), "bad_score"),
        (TEXT, {"start": 0, "text": "Tom"}, "missing_key"),
        (TEXT, {"text": "Tom"}, "missing_key"),
        (TEXT, "Tom", "wrong_type"),
        (TEXT, None, "wrong_type"),
        (TEXT, [0, 3, "Tom"], "wrong_type"),
    ],
)
def test_F076_a_bad_entity_does_not_cost_its_neighbours(text: str, said: Any, reason: str) -> None:
    good = entity(0, 1, text[:1]) if text else entity(0, 0, "x")
    tables = spans(text, good, said, good)
    assert values(tables["entities"], "index") == ([(0,), (2,)] if text else [])
    assert ("$.person[1]", reason) in rejected(tables)


def test_a_text_is_not_searched_without_end() -> None:
    """10,000 wrong entities in a book of 2 MB would be 20 GB to look through."""
    book = "ab " * 700_000 + "Tom"
    tables = spans(book, *[entity(5, 8, f"Nobody {place}") for place in range(9_000)], entity(5, 8, "Tom"))
    assert len(tables["rejects"]) == 9_001
    assert {reject["reason"] for reject in tables["rejects"]} == {"span_mismatch"}
    assert values(spans(book, entity(5, 8, "Tom"))["entities"], "start", "anchor") == [(2_100_000, "moved")]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab 😀é"), min_size=1, max_size=12), st.data())
def test_F077_the_true_utf16_offsets_of_a_span_lead_to_that_span(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    units = [len(text[:place].encode("utf-16-le")) // 2 for place in (start, end)]
    found = SourceText(text).anchor(*units, text[start:end])
    assert not isinstance(found, Fault)
    assert found[2] == text[found[0] : found[1]] == text[start:end]
    if found[3] != "exact":
        assert found == (start, end, text[start:end], "utf16")


@settings(max_examples=150, deadline=None)
@given(st.text("ab😀", max_size=8), st.integers(-2, 10), st.integers(-2, 10), st.none() | st.text("ab😀", max_size=3))
def test_what_is_found_is_always_the_text_at_its_offsets(text: str, start: int, end: int, quote: str | None) -> None:
    found = SourceText(text).anchor(start, end, quote)
    if isinstance(found, Fault):
        assert quote is None or text[max(start, 0) : max(end, 0)] != quote or not 0 <= start < end <= len(text)
        return
    assert 0 <= found[0] < found[1] <= len(text)
    assert text[found[0] : found[1]] == found[2]
    assert quote in (None, found[2])
    assert (found[3] == "exact") == (found[:2] == (start, end) and text[start:end] == found[2])


def test_entities_read_at_once_are_those_read_one_by_one() -> None:
    """A list in which every entity just quotes its text is read as columns; one other entity takes that way away."""
    plain = [entity(0, 3, "Tom", score=0.5), entity(8, 11, "Bob", score=0.25)]
    at_once, one_by_one = spans(TEXT, *plain)["entities"], spans(TEXT, *plain, entity(36, 39, "IBM"))["entities"]
    assert at_once == one_by_one[:2]
    assert values(at_once, "score", "anchor", "index") == [(0.5, "exact", 0), (0.25, "exact", 1)]


@pytest.mark.parametrize("last", [True, 1.5, None, "0.5", 1])
def test_a_score_is_read_alike_in_both_ways(last: Any) -> None:
    said = [entity(0, 3, "Tom", score=0.5), entity(8, 11, "Bob", score=last)]
    assert spans(TEXT, *said)["entities"] == spans(TEXT, *said, "x")["entities"]


@pytest.mark.parametrize("text", [None])
def test_without_a_text_entities_are_rejected_and_nothing_else(text: None) -> None:
    tables = decode({"person": [entity(0, 3, "Tom")], "weather": "sun"}, media_type="text", text=text)
    assert rejected(tables) == [("$.person[0]", "span_mismatch")]
    assert values(tables["classifications"], "answer") == [("sun",)]


def test_entities_that_are_no_list_are_rejected() -> None:
    assert rejected(decode({"person": entity(0, 3, "Tom")}, text=TEXT)) == [("$.person", "wrong_type")]
    assert rejected(decode({"person": "Tom"}, text=TEXT)) == [("$.person", "wrong_type")]


MESSAGES = {"1": "Hi, Tom here", "4": "Tom and Bob"}


def test_offsets_refer_to_the_message_that_is_named() -> None:
    said = [
        entity(0, 3, "Tom", message_id="4"),
        entity(4, 7, "Tom", message_id="1"),
        entity(8, 11, "Bob", message_id="4"),
    ]
    tables = spans(None, *said, messages=MESSAGES)
    assert values(tables["entities"], "message_id", "start", "end", "index") == [
        ("4", 0, 3, 0),
        ("1", 4, 7, 1),
        ("4", 8, 11, 2),
    ]
    assert tables["rejects"] == []


@pytest.mark.parametrize(
    ("message_id", "reason"),
    [(None, "missing_message_id"), ("2", "unknown_message"), (4, "wrong_type"), ("", "unknown_message")],
)
def test_an_entity_without_a_message_is_rejected(message_id: Any, reason: str) -> None:
    tables = spans(None, entity(0, 3, "Tom", message_id=message_id), messages=MESSAGES)
    assert rejected(tables) == [("$.person[0]", reason)]


def test_a_conversation_of_one_message_needs_no_name() -> None:
    tables = spans(None, entity(4, 7, "Tom"), messages={"1": MESSAGES["1"]})
    assert values(tables["entities"], "message_id", "start") == [("1", 4)]
    assert rejected(spans(None, entity(4, 7, "Tom"), messages={})) == [("$.person[0]", "missing_message_id")]


def test_questions_about_an_entity_are_rows_under_it() -> None:
    said = entity(0, 3, "Tom", message_id="4", classifications={"role": "speaker"})
    tables = spans(None, said, messages=MESSAGES)
    assert values(tables["texts"], "feature", "answer", "parent_id", "message_id") == [
        ("role", "speaker", tables["entities"][0]["prediction_id"], "4")
    ]
