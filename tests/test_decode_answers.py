"""Answers: text, radio, checklist; wrapped, nested; and kinds inferred where there is no ontology."""

from __future__ import annotations

from typing import Any

import pytest

from foundry_pipeline.ontology import FeatureKind, Option
from tests.decoding import EVERYTHING, decode, ontology, options, radio, rejected, text, values

GOOD = [1, 2, 3, 4]


def test_answers_may_stand_in_an_object_with_a_score() -> None:
    reply = {
        "weather": {"answer": "sun", "score": 0.93},
        "signs": ["joy", {"answer": "fear", "score": 0.41}],
        "summary": {"answer": "Two people.", "score": 0.8, "why": "more keys are ignored"},
    }
    tables = decode(reply)
    assert values(tables["classifications"], "feature", "index", "kind", "answer", "score") == [
        ("weather", 0, "radio", "sun", 0.93),
        ("signs", 0, "checklist", "joy", None),
        ("signs", 1, "checklist", "fear", 0.41),
    ]
    assert values(tables["texts"], "answer", "score") == [("Two people.", 0.8)]
    assert tables["rejects"] == []


def test_confidence_may_stand_for_score_in_an_answer_and_in_an_entity() -> None:
    """The platform's word for it. Where both are there, the document's counts."""
    reply = {
        "weather": {"answer": "sun", "confidence": 0.93},
        "summary": {"answer": "", "score": 0.5, "confidence": 0.1},
        "person": [{"start": 0, "end": 3, "text": "Tom", "confidence": 0.25}],
    }
    tables = decode(reply, text="Tom")
    found = [tables[table][0]["score"] for table in ("classifications", "texts", "entities")]
    assert found == [0.93, 0.5, 0.25]
    assert rejected(decode({"weather": {"answer": "sun", "confidence": 93}})) == [("$.weather.confidence", "bad_score")]


def test_an_option_is_found_by_its_value_and_then_by_its_label() -> None:
    known = ontology(radio("mood", Option("glad", "sad", 0), Option("sad", "Sad", 1), Option("so_so", "So so", 2)))
    for said, stored in (("glad", "glad"), ("sad", "sad"), ("Sad", "sad"), ("So so", "so_so")):
        assert values(decode({"mood": said}, known)["classifications"], "answer") == [(stored,)]


@pytest.mark.parametrize(
    ("reply", "path", "reason"),
    [
        ({"weather": "hail"}, "$.weather", "unknown_option"),
        ({"weather": ""}, "$.weather", "unknown_option"),
        ({"weather": "SUN"}, "$.weather", "unknown_option"),
        ({"weather": {"answer": "hail"}}, "$.weather.answer", "unknown_option"),
        ({"weather": ["sun"]}, "$.weather", "wrong_type"),
        ({"weather": []}, "$.weather", "wrong_type"),
        ({"weather": 1}, "$.weather", "wrong_type"),
        ({"weather": True}, "$.weather", "wrong_type"),
        ({"weather": {"answer": None}}, "$.weather.answer", "wrong_type"),
        ({"weather": {"value": "sun"}}, "$.weather", "missing_key"),
        ({"weather": {"answer": "sun", "score": 93}}, "$.weather.score", "bad_score"),
        ({"signs": "joy"}, "$.signs", "wrong_type"),
        ({"signs": {"answer": ["joy"]}}, "$.signs", "wrong_type"),
        ({"summary": 5}, "$.summary", "wrong_type"),
        ({"summary": ["a"]}, "$.summary", "wrong_type"),
    ],
)
def test_F079_a_bad_answer_is_rejected_and_not_converted(reply: Any, path: str, reason: str) -> None:
    tables = decode({**reply, "car": {"boxes": [GOOD]}})
    assert rejected(tables) == [(path, reason)]
    assert tables["classifications"] == tables["texts"] == []
    assert len(tables["boxes"]) == 1


def test_F079_an_unknown_option_is_told_with_those_that_are_known() -> None:
    message = decode({"weather": "hail"})["rejects"][0]["message"]
    assert '"rain"' in message
    assert '"sun"' in message
    assert '"hail"' in message


def test_a_bad_item_of_a_checklist_does_not_cost_its_neighbours() -> None:
    tables = decode({"signs": ["joy", "anger", 3, {"answer": "fear", "score": 2}, "fear"]})
    assert values(tables["classifications"], "index", "answer") == [(0, "joy"), (4, "fear")]
    assert rejected(tables) == [
        ("$.signs[1]", "unknown_option"),
        ("$.signs[2]", "wrong_type"),
        ("$.signs[3].score", "bad_score"),
    ]


def test_an_empty_text_is_an_answer_and_an_empty_checklist_chooses_nothing() -> None:
    tables = decode({"summary": "", "signs": []})
    assert values(tables["texts"], "answer") == [("",)]
    assert tables["classifications"] == tables["rejects"] == []


def test_nested_answers_are_rows_under_their_object() -> None:
    nested = [{"colour": {"answer": "red", "score": 0.8}, "damage": ["dent"]}, None]
    tables = decode({"car": {"boxes": [GOOD, GOOD], "classifications": nested}})
    first = tables["boxes"][0]["prediction_id"]
    assert values(tables["classifications"], "feature", "kind", "answer", "score", "parent_id") == [
        ("colour", "radio", "red", 0.8, first),
        ("damage", "checklist", "dent", None, first),
    ]
    assert tables["rejects"] == []


def test_nested_answers_are_rows_under_their_answer_of_any_depth() -> None:
    deep = radio("b", Option("y", "Y", 0, (text("why"),)))
    known = ontology(radio("a", Option("x", "X", 0, (deep,)), Option("z", "Z", 1)))
    reply = {"a": {"answer": "X", "classifications": {"b": {"answer": "y", "classifications": {"why": "so"}}}}}
    tables = decode(reply, known)
    first, second = tables["classifications"]
    assert values([first, second], "feature", "answer", "parent_id") == [
        ("a", "x", None),
        ("b", "y", first["prediction_id"]),
    ]
    assert values(tables["texts"], "feature", "answer", "parent_id") == [("why", "so", second["prediction_id"])]


def test_nested_answers_between_items_of_one_checklist_keep_every_index() -> None:
    """Both are rows of one table, read in turns."""
    item = Option("x", "X", 0, (radio("why", *options("a", "b")),))
    known = ontology(radio("r", item, Option("y", "Y", 1)), checklist_of(item, Option("y", "Y", 1)))
    reply = {
        "c": [{"answer": "x", "classifications": {"why": "b"}}, "y", {"answer": "x", "classifications": {"why": "a"}}]
    }
    rows = decode(reply, known)["classifications"]
    assert values(rows, "feature", "index", "answer") == [
        ("c", 0, "x"),
        ("why", 0, "b"),
        ("c", 1, "y"),
        ("c", 2, "x"),
        ("why", 0, "a"),
    ]
    assert [row["parent_id"] for row in rows] == [None, rows[0]["prediction_id"], None, None, rows[3]["prediction_id"]]
    assert len({row["prediction_id"] for row in rows}) == 5


def checklist_of(*choices: Option) -> Any:
    from foundry_pipeline.ontology import Classification

    return Classification("c", FeatureKind.CHECKLIST, "c", choices)


@pytest.mark.parametrize(
    ("nested", "path", "reason"),
    [
        ([{"wheels": "four"}, None], "$.car.classifications[0].wheels", "unknown_feature"),
        ([{"colour": "green"}, None], "$.car.classifications[0].colour", "unknown_option"),
        ([{"damage": "dent"}, None], "$.car.classifications[0].damage", "wrong_type"),
        (["red", None], "$.car.classifications[0]", "wrong_type"),
        ([{"colour": "red"}], "$.car.classifications", "length_mismatch"),
        ({"colour": "red"}, "$.car.classifications", "wrong_type"),
    ],
)
def test_a_bad_nested_answer_does_not_cost_its_object(nested: Any, path: str, reason: str) -> None:
    tables = decode({"car": {"boxes": [GOOD, GOOD], "classifications": nested}})
    assert len(tables["boxes"]) == 2
    assert tables["classifications"] == []
    assert rejected(tables) == [(path, reason)]


def test_questions_of_another_option_are_unknown() -> None:
    tables = decode({"weather": {"answer": "sun", "classifications": {"strength": "heavy"}}})
    assert values(tables["classifications"], "answer") == [("sun",)]
    assert rejected(tables) == [("$.weather.classifications.strength", "unknown_feature")]


def test_without_an_ontology_each_kind_follows_from_the_shape() -> None:
    reply = {
        "cat": {"boxes": [GOOD], "classifications": [{"mood": ["calm"]}]},
        "sky": {"masks": [{"size": [1, 2], "counts": [1, 1]}]},
        "lake": {"polygons": [[[0, 0], [1, 0], [0, 1]]]},
        "lane": {"lines": [[[0, 0], [1, 0]]]},
        "nose": {"points": [[1, 2]]},
        "link": {"edges": [{"source": {"feature": "cat", "index": 0}, "target": {"feature": "nose", "index": 0}}]},
        "person": [{"start": 0, "end": 3, "text": "Tom"}, {"start": 0}],
        "emotion": ["joy", {"answer": "fear", "score": 0.5}, 3],
        "summary": "so",
        "title": {"answer": "so", "score": 0.5},
    }
    tables = decode(reply, None, text="Tom")
    assert {name: len(rows) for name, rows in tables.items()} == {
        "boxes": 1, "masks": 1, "polygons": 1, "lines": 1, "points": 1, "edges": 1, "entities": 1, "classifications": 3,
        "texts": 2, "rejects": 2,
    }  # fmt: skip
    assert rejected(tables) == [("$.person[1]", "missing_key"), ("$.emotion[2]", "wrong_type")]


def test_without_an_ontology_a_string_is_a_radio_where_text_is_not_allowed() -> None:
    tables = decode({"mood": "glad", "why": {"answer": "x"}}, None, kinds=(FeatureKind.RADIO,))
    assert values(tables["classifications"], "feature", "kind", "answer") == [
        ("mood", "radio", "glad"),
        ("why", "radio", "x"),
    ]
    assert rejected(decode({"mood": ""}, None, kinds=(FeatureKind.RADIO,))) == [("$.mood", "unknown_option")]


@pytest.mark.parametrize(
    "value",
    [{"boxes": [GOOD]}, ["joy"], [{"start": 0, "end": 1}], 5, True, {"colour": "red"}, [1, 2], {}, [[1, 2, 3, 4]]],
)
def test_without_an_ontology_what_fits_no_allowed_kind_is_rejected(value: Any) -> None:
    tables = decode({"x": value}, None, kinds=(FeatureKind.TEXT, FeatureKind.POINT))
    assert rejected(tables) == [("$.x", "wrong_kind")]
    assert list(tables) == ["points", "texts", "rejects"]


def test_without_an_ontology_of_several_geometry_keys_the_first_allowed_is_the_kind() -> None:
    reply = {"cat": {"masks": [{"size": [1, 2], "counts": [1, 1]}], "boxes": [GOOD]}}
    assert [name for name, rows in decode(reply, None).items() if rows] == ["boxes", "rejects"]
    only_masks = decode(reply, None, kinds=(FeatureKind.MASK,))
    assert len(only_masks["masks"]) == 1
    assert rejected(only_masks) == [("$.cat.boxes", "wrong_kind")]


@pytest.mark.parametrize(
    ("key", "said", "reason"),
    [
        ("finish_reason", "length", "truncated"),
        ("finish_reason", "MAX_TOKENS", "truncated"),
        ("stop_reason", "max_tokens", "truncated"),
        ("finish_reason", "content_filter", "content_filter"),
        ("stop_reason", "refusal", "refusal"),
        ("refusal", "I cannot help with that.", "refusal"),
    ],
)
def test_what_the_model_says_about_its_answer_is_on_record_and_the_answer_stays(
    key: str, said: str, reason: str
) -> None:
    for known in (EVERYTHING, None):
        tables = decode({"summary": "Once upon a", key: said}, known)
        assert values(tables["texts"], "feature", "answer") == [("summary", "Once upon a")]
        assert values(tables["rejects"], "path", "reason", "feature", "value") == [
            (f"$.{key}", reason, None, f'"{said}"')
        ]
    tables = decode({"summary": {"answer": "Once upon a", "score": 0.5, key: said}})
    assert values(tables["texts"], "answer", "score") == [("Once upon a", 0.5)]
    assert values(tables["rejects"], "path", "reason", "feature") == [(f"$.summary.{key}", reason, "summary")]


@pytest.mark.parametrize("said", ["stop", "end_turn", "eos_token", "", None])
def test_an_answer_that_came_to_its_end_is_no_news(said: Any) -> None:
    for key in ("finish_reason", "stop_reason"):
        for known in (EVERYTHING, None):
            tables = decode({"summary": {"answer": "so", key: said}, key: said}, known)
            assert [name for name, rows in tables.items() if rows] == ["texts"]
            assert values(tables["texts"], "answer") == [("so",)]


def test_a_refusal_without_an_answer_is_one_reject_and_no_answer() -> None:
    tables = decode({"summary": {"answer": None, "refusal": "I will not."}, "signs": [{"refusal": "No."}, "joy"]})
    assert rejected(tables) == [("$.summary.refusal", "refusal"), ("$.signs[0].refusal", "refusal")]
    assert values(tables["classifications"], "index", "answer") == [(1, "joy")]


def test_a_feature_of_the_ontology_may_be_called_like_a_remark() -> None:
    known = ontology(radio("refusal", *options("yes", "no")), text("finish_reason"))
    tables = decode({"refusal": "no", "finish_reason": "length"}, known)
    assert values(tables["classifications"], "feature", "answer") == [("refusal", "no")]
    assert values(tables["texts"], "feature", "answer") == [("finish_reason", "length")]
    assert tables["rejects"] == []
