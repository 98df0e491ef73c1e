"""The exports for named entities: spaCy's and Prodigy's JSONL, and CoNLL with IOB2 tags."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.exports.tokens import TOKENIZER, tokens_of
from tests.exporting import AT, exported
from tests.warehouse import make_run

RUN = make_run(media_type="text")
TEXT = "Tom and Bob are happy to work at IBM"


def entity(start, end, feature="person", **more):
    return AT | {"feature": feature, "start": start, "end": end} | more


def from_text(tmp_path, format_name, text, *entities, run=RUN, **tables):
    return exported(tmp_path, run, format_name, data_rows=[AT | {"row_data": text}], entities=entities, **tables)


def sentences(found):
    """Sentences of (token, tag), as a reader of the format sees them."""
    text = "".join(file.read_text() for file in sorted(found.folder.glob("documents-*.conll")))
    blocks = [[line.split(" ") for line in block.split("\n")] for block in text.strip("\n").split("\n\n")]
    assert all(len(columns) == 4 and columns[1] == "-X-" for block in blocks for columns in block)
    return [[(columns[0], columns[3]) for columns in block] for block in blocks if block[0][0] != "-DOCSTART-"]


def entities_in(sentence):
    """(label, tokens) of every entity of a sentence; IOB2: no I- without its B-."""
    found = []
    for token, tag in sentence:
        if tag.startswith("B-"):
            found.append((tag[2:], [token]))
        elif tag.startswith("I-"):
            assert found[-1][0] == tag[2:]
            found[-1][1].append(token)
    return found


def test_spacy_spans_are_code_points_half_open_with_their_scores(tmp_path):
    found = from_text(
        tmp_path,
        "spacy",
        f"😀 {TEXT}",
        entity(35, 38, "company", prediction_id="ibm"),
        entity(2, 5, score=0.0, prediction_id="tom"),
    )
    (line,) = found.json_lines("documents-*.jsonl")
    assert line == {
        "text": f"😀 {TEXT}",
        "spans": [
            {"start": 2, "end": 5, "label": "person", "score": 0.0, "id": "tom"},
            {"start": 35, "end": 38, "label": "company", "id": "ibm"},
        ],
        "meta": {"global_key": "g.jpg", "data_row_id": "id-g.jpg"},
    }
    assert [line["text"][span["start"] : span["end"]] for span in line["spans"]] == ["Tom", "IBM"]
    assert found.lost == {}


def test_spacy_keeps_overlapping_spans_and_any_text(tmp_path):
    found = from_text(tmp_path, "spacy", "New York\u2028City\0\n", entity(0, 8, "a b"), entity(0, 13), entity(4, 8))
    (line,) = found.json_lines("documents-*.jsonl")
    assert [(span["start"], span["end"]) for span in line["spans"]] == [(0, 8), (0, 13), (4, 8)]
    assert line["text"] == "New York\u2028City\0\n"
    assert found.lost == {}


CONVERSATION = json.dumps(
    {
        "messages": [
            {"messageId": "m1", "content": "I am Tom", "user": {"userId": "1", "name": "Tom"}},
            {"messageId": "m2", "content": "I work at IBM", "user": {"userId": "2", "name": ""}},
        ]
    }
)


@pytest.mark.parametrize("format_name", ["spacy", "conll"])
def test_a_conversation_is_a_document_a_message(tmp_path, format_name):
    run = make_run(media_type="conversational")
    entities = [entity(5, 8, message_id="m1"), entity(10, 13, "company", message_id="m2"), entity(0, 1)]
    found = from_text(tmp_path, format_name, CONVERSATION, *entities, run=run)
    assert found.lost == {"message_missing": 1}
    if format_name == "spacy":
        lines = found.json_lines("documents-*.jsonl")
        assert [(line["meta"]["message_id"], line["spans"][0]["label"]) for line in lines] == [
            ("m1", "person"),
            ("m2", "company"),
        ]
    else:
        assert [entities_in(sentence) for sentence in sentences(found)] == [
            [("person", ["Tom"])],
            [("company", ["IBM"])],
        ]
        assert [about["message_id"] for about in found.json_lines("documents.jsonl")] == ["m1", "m2"]


@pytest.mark.parametrize("format_name", ["spacy", "conll"])
def test_what_has_no_place_among_entities_is_counted(tmp_path, format_name):
    found = from_text(
        tmp_path,
        format_name,
        TEXT,
        entity(0, 3, prediction_id="tom"),
        entity(3, 3),
        entity(30, 99),
        entity(-1, 2),
        classifications=[AT | {"feature": "mood", "answer": "good"}],
        texts=[AT | {"feature": "role", "answer": "boss", "parent_id": "tom"}],
        edges=[AT | {"feature": "knows", "source_id": "tom", "target_id": "tom"}],
    )
    assert found.lost == {"kind_not_representable": 3, "empty_span": 1, "span_outside_text": 2}


@pytest.mark.parametrize("format_name", ["spacy", "conll"])
def test_texts_without_entities_are_kept_unless_the_run_says_otherwise(tmp_path, format_name):
    rows = [AT | {"row_data": TEXT}, {"global_key": "url", "row_data": "https://host/a.txt"}]
    found = exported(tmp_path, RUN, format_name, data_rows=rows)
    assert found.manifest["data_rows"]["written"] == 1
    assert found.manifest["data_rows"]["left_out"] == {"text_unavailable": 1}
    none = exported(tmp_path / "none", replace(RUN, keep_empty=False), format_name, data_rows=rows)
    assert none.manifest["data_rows"]["written"] == 0


def test_conll_is_four_columns_and_the_first_token_of_an_entity_is_b(tmp_path):
    found = from_text(tmp_path, "conll", "Ann Lee, Bob", entity(0, 3), entity(4, 7), entity(9, 12))
    assert found.read("documents-00001.conll") == (
        "-DOCSTART- -X- _ O\n\nAnn -X- _ B-person\nLee -X- _ B-person\n, -X- _ O\nBob -X- _ B-person\n\n"
    )
    assert found.json_lines("documents.jsonl") == [
        {"file": "documents-00001.conll", "global_key": "g.jpg", "data_row_id": "id-g.jpg", "message_id": None}
    ]
    assert found.manifest["conventions"]["tokenizer"] == TOKENIZER


def test_of_overlapping_entities_the_longer_stays_then_the_higher_score(tmp_path):
    found = from_text(
        tmp_path,
        "conll",
        "New York City Hall",
        entity(0, 8, "city", score=0.99),
        entity(0, 13, "place", score=0.1),
        entity(14, 18, "low", score=0.2),
        entity(14, 18, "high", score=0.8),
    )
    (sentence,) = sentences(found)
    assert entities_in(sentence) == [("place", ["New", "York", "City"]), ("high", ["Hall"])]
    assert found.lost == {"overlaps_a_longer_one": 2, "score_not_representable": 2}


def test_partial_tokens_are_expanded_and_white_space_at_the_ends_is_cut(tmp_path):
    found = from_text(tmp_path, "conll", "Tom  works", entity(0, 2), entity(4, 7, "verb"), entity(3, 5, "gap"))
    (sentence,) = sentences(found)
    assert entities_in(sentence) == [("person", ["Tom"]), ("verb", ["works"])]
    assert found.lost == {"moved_to_tokens": 2, "only_white_space": 1}


def test_line_ends_part_sentences_but_no_entity(tmp_path):
    found = from_text(tmp_path, "conll", "\nOne two\n\nthree\nfour\n", entity(5, 14, "x"))
    assert [[token for token, _ in sentence] for sentence in sentences(found)] == [["One", "two", "three"], ["four"]]


def test_what_would_part_a_column_is_replaced_and_counted(tmp_path):
    found = from_text(tmp_path, "conll", "a\0b c", entity(0, 3, "my label"), entity(4, 5, "plain"))
    (sentence,) = sentences(found)
    assert sentence == [("a\ufffdb", "B-my_label"), ("c", "B-plain")]
    assert found.lost == {"characters_replaced": 1}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_tokens_hold_every_character_but_white_space_once(text):
    tokens = tokens_of(text)
    assert "".join(text[start:end] for start, end in tokens) == "".join(c for c in text if not c.isspace())
    assert all(start < end for start, end in tokens)
    assert tokens == sorted(tokens)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't stop.", ["don", "'", "t", "stop", "."]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("e\u0301te\u0301 €5", ["e\u0301te\u0301", "€", "5"]),
        ("日本語", ["日本語"]),
        ("😀😀", ["😀", "😀"]),
    ],
)
def test_letters_and_their_marks_hold_together_in_every_script(text, words):
    assert [text[start:end] for start, end in tokens_of(text)] == words


WORDS = st.lists(st.sampled_from(["Tom", "IBM", "a.b", "é", "-DOCSTART-", "\n", "😀", "x y"]), max_size=8)


@settings(max_examples=25, deadline=None)
@given(WORDS, st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from("xyz")), max_size=5))
def test_entities_read_back_from_iob2_are_those_that_are_said_to_be_written(tmp_path_factory, words, spans):
    text = " ".join(words)
    entities = [entity(start, start + length, feature) for start, length, feature in spans]
    found = from_text(tmp_path_factory.mktemp("conll"), "conll", text, *entities)
    read = [one for sentence in (sentences(found) if text.strip() else []) for one in entities_in(sentence)]
    assert len(read) == found.manifest["predictions"]["out"]
