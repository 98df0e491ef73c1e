"""Whole replies: JSON and no JSON, strings and fences, limits, duplicate keys, unknown names, frames."""

from __future__ import annotations

import json

import pytest

from foundry_pipeline.decode import REASONS, Limits, tables_needed
from foundry_pipeline.ontology import Classification, FeatureKind, Option, Tool
from tests.decoding import EVERYTHING, STRENGTH, checklist, decode, ontology, options, radio, rejected, text, values

BOX = {"boxes": [[1, 2, 3, 4]]}
NO_TEXT = ontology(Tool("car", FeatureKind.RECTANGLE))
ONE_TEXT = ontology(Tool("car", FeatureKind.RECTANGLE), text("summary"))


@pytest.mark.parametrize(
    "reply",
    ["{}", "[]", " {} ", "\ufeff{}", {"car": None}, {"car": {"boxes": []}}, {"car": {"boxes": None}}, {"car": []},
     {"person": []}, {"signs": []}, {"weather": None}, {"summary": None}, '"{}"',
     {"tree": {"masks": [], "scores": []}}],
)  # fmt: skip
def test_F062_nothing_found_is_neither_a_prediction_nor_a_reject(reply: object) -> None:
    assert not any(decode(reply).values())


@pytest.mark.parametrize("reply", ["[1]", "[{}]", "3", "true", "null", "1.5", "NaN", "[[]]"])
def test_F059_a_reply_that_is_no_object_is_rejected_as_a_whole(reply: str) -> None:
    assert rejected(decode(reply)) == [("$", "wrong_type")]


def test_an_answer_wrapped_in_a_list_is_recognised_in_the_message() -> None:
    assert "wrapped in a list" in decode([{"car": BOX}])["rejects"][0]["message"]


@pytest.mark.parametrize("body", ["", "  \n"])
def test_an_empty_body_is_no_answer(body: str) -> None:
    assert rejected(decode(body, ONE_TEXT)) == [("$", "not_json")]


def test_an_empty_json_string_is_an_empty_answer() -> None:
    assert values(decode('""', ONE_TEXT)["texts"], "answer") == [("",)]


@pytest.mark.parametrize(
    "wrap",
    [
        json.dumps,
        lambda body: json.dumps(f"  {body}\n"),
        lambda body: f"```json\n{body}\n```",
        lambda body: f"Sure! Here it is:\n```\n{body}```\nAnything else?",
        lambda body: json.dumps(f"```json\n{body}\n```"),
        lambda body: f"\ufeff{body}",
    ],
)
def test_F058_an_object_in_a_string_or_fence_is_the_reply(wrap: object) -> None:
    assert callable(wrap)
    tables = decode(wrap(json.dumps({"car": BOX})), NO_TEXT)
    assert values(tables["boxes"], "left", "top", "width", "height") == [(1, 2, 3, 4)]
    assert tables["rejects"] == []


def test_of_two_fences_neither_is_chosen() -> None:
    body = "```json\n{}\n``` or ```json\n{}\n```"
    assert values(decode(body, ONE_TEXT)["texts"], "answer") == [(body,)]


@pytest.mark.parametrize("body", ['{"car": {"boxes": [[1, 2', "[1, 2", '```json\n{"car"', '"half a string'])
def test_a_reply_that_is_cut_off_is_not_an_empty_answer(body: str) -> None:
    assert values(decode(body, ONE_TEXT)["texts"], "feature", "answer") == [("summary", body)]
    assert [path for path, _ in rejected(decode(body, NO_TEXT))] == ["$"]


CUT_OFF = (
    '{"car": {"boxes": [[1, 2', '[{"car"', '{"car": "half a str', '{"a": tru', '{"a": -1.', '```json\n{"car"', "{",
    "[1, ",
)  # fmt: skip


@pytest.mark.parametrize("body", CUT_OFF)
def test_json_that_is_cut_off_and_kept_as_a_text_is_told_to_be_truncated(body: str) -> None:
    for known in (ONE_TEXT, None):
        tables = decode(body, known)
        name = "summary" if known else "response"
        assert values(tables["texts"], "feature", "answer") == [(name, body)]
        assert values(tables["rejects"], "path", "feature", "reason") == [("$", name, "truncated")]
        assert values(decode(json.dumps(body), known)["rejects"], "reason") == [("truncated",)]


@pytest.mark.parametrize("body", ["[1] Smith et al.", "{curly} words", "```python\nx = {1}", "[see below", "1.5 m"])
def test_a_text_that_only_looks_like_json_is_not_called_truncated(body: str) -> None:
    tables = decode(body, ONE_TEXT)
    assert values(tables["texts"], "answer") == [(body,)]
    assert tables["rejects"] == []


def test_free_text_needs_exactly_one_text_feature() -> None:
    two = ontology(text("summary"), text("title"))
    assert rejected(decode("hello", two)) == rejected(decode('"hello"', NO_TEXT)) == [("$", "unexpected_text")]


@pytest.mark.parametrize("body", ["hello", '"hello"'])
def test_without_an_ontology_free_text_is_the_feature_response(body: str) -> None:
    assert values(decode(body, None)["texts"], "feature", "answer") == [("response", "hello")]
    assert rejected(decode("hello", None, kinds=(FeatureKind.RADIO,))) == [("$", "unexpected_text")]


@pytest.mark.parametrize("depth", [63, 64, 65, 1000, 100_000])
def test_F057_what_is_nested_too_deep_is_not_decoded(depth: int) -> None:
    """65,000 levels would end Python's recursion; here the deep part is one that nobody would have read."""
    inner = "[" * (depth - 2) + "]" * (depth - 2)
    tables = decode('{"car": {"boxes": [[1, 2, 3, 4]], "note": ' + inner + "}}")
    assert (len(tables["boxes"]), rejected(tables)) == ((1, []) if depth <= 64 else (0, [("$", "too_deep")]))


def test_brackets_in_strings_are_no_depth() -> None:
    note = json.dumps('\\"[[[[' * 100)
    tables = decode('{"car": {"boxes": [[1, 2, 3, 4]], "note": ' + note + "}}")
    assert len(tables["boxes"]) == 1
    assert tables["rejects"] == []


@pytest.mark.parametrize(("value", "most"), [("[]", 999_997), ("{}", 999_997), ('""', 999_996), ("1", 3_999_998)])
def test_F057_a_reply_of_too_many_values_is_not_decoded(value: str, most: int) -> None:
    """10 MB of `[],` would take 300 MB as Python objects."""
    before, after = '{"car": {"boxes": [[1, 2, 3, 4]], "note": [', "]}}"
    for count, fits in ((most - 20, True), (most + 20, False)):
        tables = decode(before + ",".join([value] * count) + after)
        assert rejected(tables) == ([] if fits else [("$", "too_large")])
        assert len(tables["boxes"]) == fits


def test_a_long_text_is_not_many_values() -> None:
    long_text = decode({"summary": ",:[" * 500_000})
    assert long_text["rejects"] == []


def test_F128_more_objects_than_a_row_may_have_are_rejected_together() -> None:
    reply = {"car": {"boxes": [[1, 2, 3, 4]] * 7}, "lake": {"polygons": [[[0, 0], [1, 0], [0, 1]]]}, "signs": ["joy"]}
    for shortcut in (True, False):
        tables = decode(reply, limits=Limits(5), shortcut=shortcut)
        assert values(tables["boxes"], "index") == [(0,), (1,), (2,), (3,), (4,)]
        assert rejected(tables) == [
            ("$.car.boxes[5]", "too_large"),
            ("$.lake.polygons[0]", "too_large"),
            ("$.signs[0]", "too_large"),
        ]


def test_each_frame_may_have_as_many_objects_as_a_picture() -> None:
    """A video of an hour is not a flood: what is limited is a frame, and the whole only far above."""
    frames = {str(frame): {"car": {"boxes": [[1, 2, 3, 4]] * 3}} for frame in range(4)}
    for shortcut in (True, False):
        tables = decode({"frames": frames, "signs": ["joy", "fear"]}, media_type="video", limits=Limits(3, 14))
        assert len(tables["boxes"]) == 12
        assert len(tables["classifications"]) == 2
        assert tables["rejects"] == []
        frames_alone = {"frames": frames}
        tables = decode(frames_alone, media_type="video", limits=Limits(2, 100), shortcut=shortcut)
        assert values(tables["boxes"], "frame", "index") == [(frame, index) for frame in range(4) for index in range(2)]
        assert rejected(tables) == [(f'$.frames["{frame}"].car.boxes[2]', "too_large") for frame in range(4)]
        tables = decode(frames_alone, media_type="video", limits=Limits(3, 7), shortcut=shortcut)
        assert len(tables["boxes"]) == 7
        assert rejected(tables)[0] == ('$.frames["2"].car.boxes[1]', "too_large")


def test_a_name_that_would_fill_the_table_is_rejected_where_no_ontology_knows_it() -> None:
    for name, kept in (("n" * 1024, 1), ("n" * 1025, 0), ("\u00e9" * 512, 1), ("\u00e9" * 513, 0)):
        tables = decode({name: BOX}, None)
        assert len(tables["boxes"]) == kept
        assert [reason for _, reason in rejected(tables)] == ["too_large"] * (1 - kept)


def test_a_flood_of_rejects_ends_in_one_that_says_so() -> None:
    tables = decode({f"unknown {place}": 1 for place in range(100)}, limits=Limits(rejects_a_reply=10))
    assert len(tables["rejects"]) == 11
    assert rejected(tables)[-1] == ("$", "too_large")


def test_F054_the_first_of_duplicate_keys_stays() -> None:
    body = (
        '{"car": {"boxes": [[1, 2, 3, 4]], "boxes": [[5, 6, 7, 8]]}, "car": {"boxes": []}, '
        '"person": [{"start": 0, "start": 1, "end": 3}], "note:": "a:b\\u003ac"}'
    )
    tables = decode(body, media_type="text", text="Tom and Bob")
    assert values(tables["boxes"], "left") == [(1,)]
    assert values(tables["entities"], "start", "end") == [(0, 3)]
    duplicates = [reject for reject in tables["rejects"] if reject["reason"] == "duplicate_key"]
    assert values(duplicates, "path", "feature", "value") == [
        ("$.car", "car", '{"boxes": []}'),
        ("$.car.boxes", "car", "[[5, 6, 7, 8]]"),
        ("$.person[0].start", "person", "1"),
    ]


def test_a_duplicate_key_in_a_frame_is_told_with_its_frame() -> None:
    body = '{"frames": {"3": {"car": {"boxes": [[1, 2, 3, 4]]}, "car": 1}, "3": {}}}'
    tables = decode(body, media_type="video")
    assert values(tables["rejects"], "path", "reason", "feature", "frame") == [
        ('$.frames["3"]', "duplicate_key", None, 3),
        ('$.frames["3"].car', "duplicate_key", "car", 3),
    ]


def test_F060_an_unknown_feature_is_rejected_once_with_its_items_and_the_nearest_name() -> None:
    tables = decode({"Cars": {"boxes": [[1, 2, 3, 4]] * 3}, " Car": BOX, "zebra": ["a", "b"]})
    assert values(tables["rejects"], "feature", "path", "reason") == [
        ("Cars", "$.Cars", "unknown_feature"),
        (" Car", '$[" Car"]', "unknown_feature"),
        ("zebra", "$.zebra", "unknown_feature"),
    ]
    messages = [reject["message"] for reject in tables["rejects"]]
    assert "items: 3" in messages[0]
    assert 'did you mean "car"' in messages[0]
    assert 'did you mean "car"' in messages[1]
    assert "did you mean" not in messages[2]


def test_F055_half_a_surrogate_pair_is_rejected_escaped() -> None:
    tables = decode(
        '{"\\ud800": 1, "summary": "\\udfff", "person": [{"start": 0, "end": 1, "text": "\\ud800"}]}', text="T"
    )
    assert values(tables["rejects"], "feature", "path", "reason", "value") == [
        ("\\ud800", '$["\\ud800"]', "bad_text", "1"),
        ("summary", "$.summary", "bad_text", '"\\udfff"'),
        ("person", "$.person[0]", "bad_text", '{"start": 0, "end": 1, "text": "\\ud800"}'),
    ]


def test_F056_nul_in_a_string_is_kept() -> None:
    assert values(decode({"summary": "a\0b"})["texts"], "answer") == [("a\0b",)]


def test_the_value_seen_is_at_most_a_kibibyte() -> None:
    picture = "iVBOR" * 10_000
    tables = decode({"picture": picture, "weather": "☂" * 2000, "e" * 5000: 1})
    for reject in tables["rejects"]:
        assert len(reject["value"].encode()) <= 1024
        assert len(reject["message"]) < 500
        assert len(reject["path"]) < 300
        assert len(reject["feature"].encode()) <= 1024
    assert tables["rejects"][0]["value"].endswith("…")


def test_frames_hold_what_a_picture_would_and_stand_beside_the_whole_video() -> None:
    reply = {"frames": {"12": {"car": BOX, "weather": "sun"}, "13": {"car": BOX}, "14": None, "15": []}, "car": BOX}
    tables = decode(reply, media_type="video")
    assert values(tables["boxes"], "frame", "index") == [(12, 0), (13, 0), (None, 0)]
    assert values(tables["classifications"], "frame", "answer") == [(12, "sun")]
    assert len({box["prediction_id"] for box in tables["boxes"]}) == 3
    assert tables["rejects"] == []


@pytest.mark.parametrize("key", ["-1", "1.5", "012", "x", "", " 1", "\u0661", "99999999999", "2147483648", "1e3"])
def test_a_frame_that_is_no_number_is_rejected_alone(key: str) -> None:
    tables = decode({"frames": {key: {"car": BOX}, "0": {"car": BOX}, "2147483647": {"car": BOX}}}, media_type="video")
    assert values(tables["boxes"], "frame") == [(0,), (2147483647,)]
    assert values(tables["rejects"], "reason") == [("bad_frame",)]


def test_frames_of_another_type_are_rejected() -> None:
    assert rejected(decode({"frames": [1]}, media_type="video")) == [("$.frames", "wrong_type")]
    assert rejected(decode({"frames": {"1": [1]}}, media_type="video")) == [('$.frames["1"]', "wrong_type")]


def test_frames_is_a_name_like_any_other_where_there_is_no_video() -> None:
    assert rejected(decode({"frames": {"1": {"car": BOX}}})) == [("$.frames", "unknown_feature")]
    tables = decode({"frames": BOX}, ontology(Tool("frames", FeatureKind.RECTANGLE)))
    assert values(tables["boxes"], "feature") == [("frames",)]


def names(*args: object) -> list[str]:
    return [spec.name for spec in tables_needed(*args)]  # type: ignore[arg-type]


def test_the_tables_a_model_needs_come_from_its_ontology_nested_questions_included() -> None:
    car = Tool("car", FeatureKind.RECTANGLE, (radio("colour", *options("red")),))
    assert names(ontology(car), (FeatureKind.TEXT,)) == ["boxes", "classifications", "rejects"]
    deep = radio("a", Option("x", "x", 0, (Classification("why", FeatureKind.TEXT, "why"),)))
    assert names(ontology(deep), ()) == ["classifications", "texts", "rejects"]
    assert names(ontology(checklist("a", "b"), STRENGTH), ()) == ["classifications", "rejects"]


def test_without_an_ontology_the_tables_come_from_the_allowed_kinds() -> None:
    assert names(None, (FeatureKind.TEXT, FeatureKind.POINT, FeatureKind.MASK)) == [
        "masks",
        "points",
        "texts",
        "rejects",
    ]
    assert names(None, ()) == [*names(EVERYTHING, ())]
    assert names(EVERYTHING, ())[-1] == "rejects"


def test_every_table_the_model_needs_is_given_even_if_empty() -> None:
    assert list(decode("{}")) == names(EVERYTHING, ())


def test_every_reason_has_a_meaning() -> None:
    assert len(REASONS) == 29
    assert all(REASONS.values())
