"""Faults F052 to F082 of docs/reliability.md, the whole way: a hostile body comes from a real endpoint, is kept, and is
decoded into Parquet; and files that are wrong leave nothing to run. Single readers have their own tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.errors import ConfigError
from foundry_pipeline.home import load_home
from foundry_pipeline.manifest import load_manifest
from foundry_pipeline.predictions import DecodeReport, decode_slice
from foundry_pipeline.tables import RESPONSES, TABLES
from tests.decoding import EVERYTHING, decode, rejected, values
from tests.fake_model import FakeModel, Reply
from tests.invoking import Bench
from tests.strategies import boxes_of_feature

GOOD = [1, 2, 3, 4]
TEXT = "Tom said:\r\ncafé, Tom"
DEEP = "[" * 100_000 + "]" * 100_000
BODIES = {
    "nan": '{"car": {"boxes": [[1, 2, 3, 4], [1, 2, NaN, 4], [1, -Infinity, 3, 4]], "scores": [0.5, 0.5, 0.5]}}',
    "nan score": '{"car": {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [NaN, 0.5]}}',
    "1e999": '{"nose": {"points": [[1, 2], [1e999, 2]]}, "weather": "sun"}',
    "2**64": '{"car": {"boxes": [[1, 2, 3, 4], [18446744073709551616, 2, 3, 4]]}}',
    "5000 digits": '{"car": {"boxes": [[1, 2, 3, 4], [1, 2, 3, ' + "9" * 5000 + ']]}, "weather": "sun"}',
    "5000 digits as offset": '{"person": [{"start": ' + "9" * 5000 + ', "end": 3}, {"start": 0, "end": 3}]}',
    "twice": '{"weather": "sun", "car": {"boxes": [[1, 2, 3, 4]]}, "weather": "rain"}',
    "half a pair": '{"summary": "\\ud800", "signs": ["joy", "\\udfff"], "weather": "sun"}',
    "nul": '{"summary": "a\\u0000b"}',
    "deep": '{"weather": "sun", "note": ' + DEEP + "}",
    "many": '{"car": {"boxes": [' + "[]," * 1_000_000 + "[]]}}",
    "fenced": "Here it is:\n```json\n" + '{"weather": "sun"}' + "\n```",
    "string": '"It is a cat."',
    "list": "[1, 2]",
    "number": "7",
    "null": "null",
    "unknown": '{"zebra": {"boxes": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "weather": "sun"}',
    "other case": '{"Car": {"boxes": [[1, 2, 3, 4]]}, "weather ": "sun", "sum\u0301mary": "x"}',
    "nothing": '{"car": {"boxes": []}, "person": []}',
    "missing": "{}",
    "lengths": '{"car": {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [0.5]}}',
    "percent": '{"car": {"boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "scores": [87, 3.5]}}',
    "negative": '{"car": {"boxes": [[1, 2, -3, 4], [1, 2, 3, 0]]}}',
    "odd boxes": '{"car": {"boxes": [[1, 2, 3], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [null, 2, 3, 4], [[1], 2, 3, 4]]}}',
    "masks": '{"tree": {"masks": [{"size": [2, 2], "counts": "04"}, {"size": [3, 3], "counts": "09"}, '
    '{"size": [2, 2], "counts": "35P"}, {"size": [2, 2], "counts": [1, 3]}]}}',
    "polygons": '{"lake": {"polygons": [[[0, 0], [1, 1]], [0, 0, 1, 1, 2], [[0, 0], [1, 0], [0, NaN]], '
    "[[0, 0], [1e9, 0], [0, 1e9]]]}}",
    "entities": '{"person": [{"start": 0, "end": 3, "text": "Ann"}, {"start": 17, "end": 900}, {"start": 3, "end": 0}, '
    '{"start": 0.0, "end": 3.0}, {"start": false, "end": 3}]}',
    "answers": '{"weather": ["sun"], "signs": "joy", "summary": 3}',
    "hail": '{"weather": "hail", "signs": ["joy", "hail"]}',
}
NO_ANSWERS = {
    "comment": '{"weather": "sun"} // the weather',
    "trailing comma": '{"weather": "sun",}',
    "single quotes": "{'weather': 'sun'}",
}


@dataclass(frozen=True)
class Decoded:
    """Responses and tables of one slice, and how to look at one row's."""

    names: list[str]
    responses: dict[str, dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]]
    report: DecodeReport
    bench: Bench

    def of(self, name: str) -> dict[str, list[dict[str, Any]]]:
        key = f"k{self.names.index(name)}"
        return {table: [row for row in rows if row["global_key"] == key] for table, rows in self.tables.items()}

    def response(self, name: str) -> dict[str, Any]:
        return self.responses[f"k{self.names.index(name)}"]

    def rejects(self, name: str) -> list[tuple[str, str]]:
        return rejected(self.of(name))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoded]:
    """Every body is an answer to its own row, all of them in one slice; each row's text is its name."""
    bodies = {**BODIES, **NO_ANSWERS}
    with FakeModel(lambda request: Reply(bodies[request.text].encode("utf-8", "surrogatepass"))) as model:
        bench = Bench(tmp_path_factory.mktemp("payload"), model.url)
        bench.load(list(bodies))
        bench.model(ontology=EVERYTHING, max_concurrency=1)
        bench.run = replace(bench.run, max_failed_share=1.0)
        assert bench.one().failure is None
    report = decode_slice(bench.run, "00000", bench.store, lambda _: TEXT)
    names = [*report.predictions, "rejects"]
    tables = {name: bench.store.read(TABLES[name], "r", "00000").to_pylist() for name in names}
    yield Decoded(list(bodies), bench.responses(), tables, report, bench)


def test_every_hostile_body_is_an_answer_that_is_kept_as_it_came(run: Decoded) -> None:
    for name, body in BODIES.items():
        response = run.response(name)
        assert (response["outcome"], response["reply"], response["attempts"]) == ("ok", body, 1), name
    assert run.report.rows == len(BODIES)


def test_every_reader_reads_the_tables_that_come_of_them(run: Decoded) -> None:
    for name in run.tables:
        path = run.bench.store.path(TABLES[name], "r", "00000")
        assert pl.read_parquet(path).height == pq.read_table(path).num_rows == len(run.tables[name])
    assert pl.read_parquet(run.bench.store.path(RESPONSES, "r", "00000")).height == len(run.names)


def test_F052_nan_and_infinity_cost_their_item_and_no_neighbour(run: Decoded) -> None:
    tables = run.of("nan")
    assert values(tables["boxes"], "index", "left", "score") == [(0, 1, 0.5)]
    assert values(tables["rejects"], "path", "reason", "value") == [
        ("$.car.boxes[1]", "not_finite", "[1, 2, NaN, 4]"),
        ("$.car.boxes[2]", "not_finite", "[1, -Infinity, 3, 4]"),
    ]
    assert run.rejects("nan score") == [("$.car.scores[0]", "bad_score")]
    assert values(run.of("nan score")["boxes"], "left") == [(5,)]


def test_F053_numbers_beyond_all_bounds_cost_their_item_and_no_neighbour(run: Decoded) -> None:
    assert run.rejects("1e999") == [("$.nose.points[1]", "not_finite")]
    assert values(run.of("1e999")["classifications"], "answer") == [("sun",)]
    assert run.rejects("2**64") == run.rejects("5000 digits") == [("$.car.boxes[1]", "not_finite")]
    assert run.rejects("5000 digits as offset") == [("$.person[0]", "wrong_type")]
    assert values(run.of("5000 digits as offset")["entities"], "index", "text") == [(1, "Tom")]


def test_F054_of_two_keys_the_first_stays_and_the_second_is_on_record(run: Decoded) -> None:
    tables = run.of("twice")
    assert values(tables["classifications"], "answer") == [("sun",)]
    assert values(tables["rejects"], "path", "reason", "value") == [("$.weather", "duplicate_key", '"rain"')]


def test_F055_half_a_surrogate_pair_costs_its_string_and_not_the_slice(run: Decoded) -> None:
    tables = run.of("half a pair")
    assert rejected(tables) == [("$.summary", "bad_text"), ("$.signs[1]", "bad_text")]
    assert values(tables["classifications"], "answer") == [("joy",), ("sun",)]
    assert tables["rejects"][0]["value"] == '"\\ud800"'


def test_F056_nul_comes_through_to_the_table(run: Decoded) -> None:
    assert values(run.of("nul")["texts"], "answer") == [("a\0b",)]


def test_F057_what_is_too_deep_or_too_much_is_kept_and_not_decoded(run: Decoded) -> None:
    assert run.rejects("deep") == [("$", "too_deep")]
    assert run.rejects("many") == [("$", "too_large")]
    messages = [run.of(name)["rejects"][0]["message"] for name in ("deep", "many")]
    assert "the limit is 64" in messages[0]
    assert "the limit is 1000000" in messages[1]


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_F058_what_is_nearly_json_is_no_answer(run: Decoded, name: str) -> None:
    response = run.response(name)
    assert (response["outcome"], response["error"], response["reply"]) == ("failed", "not_json", NO_ANSWERS[name])
    assert not any(run.of(name).values()), "and is not decoded"


def test_F058_an_object_in_a_fence_is_the_reply(run: Decoded) -> None:
    assert values(run.of("fenced")["classifications"], "answer") == [("sun",)]


def test_F059_a_string_is_the_answer_in_words_and_other_values_are_rejected_whole(run: Decoded) -> None:
    assert values(run.of("string")["texts"], "feature", "answer") == [("summary", "It is a cat.")]
    for name in ("list", "number", "null"):
        assert run.rejects(name) == [("$", "wrong_type")]


def test_F060_an_unknown_class_is_rejected_once_and_never_added(run: Decoded) -> None:
    tables = run.of("unknown")
    assert rejected(tables) == [("$.zebra", "unknown_feature")]
    assert "items: 2" in tables["rejects"][0]["message"]
    assert values(tables["classifications"], "answer") == [("sun",)]


def test_F061_names_are_compared_exactly_and_the_nearest_is_proposed(run: Decoded) -> None:
    tables = run.of("other case")
    assert [reason for _, reason in rejected(tables)] == ["unknown_feature"] * 3
    for name, reject in zip(("car", "weather", "summary"), tables["rejects"], strict=True):
        assert f'did you mean "{name}"' in reject["message"]


def test_F062_nothing_found_is_an_answer_however_it_is_said(run: Decoded) -> None:
    for name in ("nothing", "missing"):
        assert run.response(name)["outcome"] == "ok"
        assert not any(run.of(name).values())


def test_F063_scores_of_another_length_are_never_zipped(run: Decoded) -> None:
    tables = run.of("lengths")
    assert values(tables["boxes"], "index", "score") == [(0, None), (1, None)]
    assert rejected(tables) == [("$.car.scores", "length_mismatch")]


def test_F064_absent_scores_are_null(run: Decoded) -> None:
    assert values(run.of("twice")["boxes"], "score") == [(None,)]


def test_F065_scores_in_percent_are_rejected_and_named(run: Decoded) -> None:
    tables = run.of("percent")
    assert tables["boxes"] == []
    assert rejected(tables) == [("$.car.scores[0]", "bad_score"), ("$.car.scores[1]", "bad_score")]
    assert all("looks like percent" in reject["message"] for reject in tables["rejects"])
    assert values(tables["rejects"], "value") == [("87",), ("3.5",)]


def test_F067_a_negative_size_is_rejected_and_a_zero_size_kept(run: Decoded) -> None:
    assert run.rejects("negative") == [("$.car.boxes[0]", "negative_size")]
    assert values(run.of("negative")["boxes"], "index", "height") == [(1, 0)]


def test_F069_boxes_of_odd_shape_are_rejected_one_by_one(run: Decoded) -> None:
    reasons = ["bad_length", "bad_length", "wrong_type", "not_finite", "wrong_type"]
    assert run.rejects("odd boxes") == [(f"$.car.boxes[{at}]", reason) for at, reason in enumerate(reasons)]


def test_F070_F073_each_mask_is_decoded_alone_whatever_the_sizes_of_the_others(run: Decoded) -> None:
    tables = run.of("masks")
    assert values(tables["masks"], "index", "size_h", "size_w", "area") == [(0, 2, 2, 4), (1, 3, 3, 9), (3, 2, 2, 3)]
    assert rejected(tables) == [("$.tree.masks[2]", "bad_rle")]
    assert "rule " in tables["rejects"][0]["message"]


def test_F073_masks_of_another_size_than_the_picture_are_rejected_alone() -> None:
    masks = [{"size": [2, 3], "counts": "06"}, {"size": [3, 3], "counts": "09"}, {"size": [3, 2], "counts": "06"}]
    tables = decode({"tree": {"masks": masks}}, size_wh=(3, 2))
    assert values(tables["masks"], "index") == [(0,)]
    assert rejected(tables) == [("$.tree.masks[1]", "mask_size"), ("$.tree.masks[2]", "mask_size")]


def test_F074_bad_polygons_are_rejected_and_far_ones_kept_as_said(run: Decoded) -> None:
    tables = run.of("polygons")
    assert rejected(tables) == [
        ("$.lake.polygons[0]", "too_few_points"),
        ("$.lake.polygons[1]", "wrong_type"),
        ("$.lake.polygons[2]", "not_finite"),
    ]
    assert values(tables["polygons"], "index") == [(3,)]


def test_F075_F076_entities_that_fit_nowhere_are_rejected_one_by_one(run: Decoded) -> None:
    reasons = ["span_mismatch", "span_out_of_range", "span_out_of_range", "wrong_type", "wrong_type"]
    assert run.rejects("entities") == [(f"$.person[{at}]", reason) for at, reason in enumerate(reasons)]


def test_F077_an_offset_inside_a_grapheme_is_legal_and_inside_a_pair_is_not() -> None:
    """`e` and its accent are two code points: each may be said. Half of an emoji is no place in the text."""
    family = "👩\u200d👧 e\u0301"
    offsets = [(0, 1, "👩"), (4, 5, "e"), (1, 2, "👩")]
    said = [{"start": start, "end": end, "text": text} for start, end, text in offsets]
    tables = decode({"person": said}, media_type="text", text=family)
    assert values(tables["entities"], "start", "end", "anchor") == [(0, 1, "exact"), (4, 5, "exact"), (0, 1, "moved")]


def test_F078_a_text_that_the_model_normalised_is_found_again_or_rejected() -> None:
    lines = decode({"person": [{"start": 10, "end": 14, "text": "café"}]}, media_type="text", text=TEXT)
    assert values(lines["entities"], "start", "end", "anchor") == [(11, 15, "moved")], "CRLF counts two"
    composed = decode({"person": [{"start": 0, "end": 4, "text": "café"}]}, media_type="text", text="cafe\u0301")
    assert rejected(composed) == [("$.person[0]", "span_mismatch")]


def test_F079_answers_are_not_converted(run: Decoded) -> None:
    expected = [("$.weather", "wrong_type"), ("$.signs", "wrong_type"), ("$.summary", "wrong_type")]
    assert run.rejects("answers") == expected
    assert run.rejects("hail") == [("$.weather", "unknown_option"), ("$.signs[1]", "unknown_option")]
    assert values(run.of("hail")["classifications"], "answer") == [("joy",)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["car", "zebra"]), boxes_of_feature()), max_size=4))
def test_predictions_said_are_table_rows_and_rejects(members: list[tuple[str, Any]]) -> None:
    """P5: every item of a list that is there is a row or a reject; an unknown feature is one reject for all of its."""
    body = "{" + ",".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in members) + "}"
    tables = decode(body)
    first = dict(reversed(members))
    said = len(first["car"]["boxes"]) if "car" in first else 0
    of_items = [r for r in tables["rejects"] if r["feature"] == "car" and r["index"] is not None]
    refused = {reject["index"] for reject in of_items}
    assert len(tables["boxes"]) + len(refused) == said
    reasons = Counter(reject["reason"] for reject in tables["rejects"])
    assert reasons["unknown_feature"] == ("zebra" in first)
    assert reasons["duplicate_key"] >= len(members) - len(first)


# Files that people write

MANIFEST = "name: m\ninference_endpoint: http://h/x\nrequests_per_second: 5\n"
SOUND = {
    "models/m.yaml": MANIFEST,
    "datasets/d.yaml": "media_type: text\nsource: ../rows.ndjson\n",
    "runs/r.yaml": "model: m\ndataset: d\n",
    "rows.ndjson": '{"row_data": "a"}\n',
}
SCHEMA = """inference_params_json_schema:
  properties: {confidence: {type: number, maximum: 1}}
  required: [confidence]
"""


def problems_of(root: Path, files: dict[str, str]) -> list[str]:
    """What `check` says of a home with these files; no run is left that could call."""
    for name, content in {**SOUND, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    home = load_home(root, {})
    assert not home.runs
    return [str(problem) for problem in home.problems]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("", "$.inference_params.confidence: the model requires a value for 'confidence'"),
        ("inference_params: {confidence: 2}\n", "$.inference_params.confidence: 2 is greater than the maximum of 1"),
        ("inference_params: {confidence: high}\n", "$.inference_params.confidence: 'high' is not of type 'number'"),
    ],
)
def test_F080_bad_parameters_leave_no_run_to_start(tmp_path: Path, params: str, says: str) -> None:
    run = SOUND["runs/r.yaml"] + params
    (problem,) = problems_of(tmp_path, {"models/m.yaml": MANIFEST + SCHEMA, "runs/r.yaml": run})
    assert problem.startswith("runs/r.yaml:")
    assert says in problem


@pytest.mark.parametrize("rate", ["0", "-1", ".inf", ".nan", "1e3", ""])
def test_F081_a_rate_that_is_none_leaves_no_run_to_start(tmp_path: Path, rate: str) -> None:
    manifest = MANIFEST.replace("5\n", f"{rate}\n")
    first, *_ = problems_of(tmp_path, {"models/m.yaml": manifest})
    assert first.startswith("models/m.yaml:3: $.requests_per_second: ")


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (MANIFEST + "name: n\n", "models/m.yaml:4: $: 'name' stands twice; first in line 1"),
        (MANIFEST.replace("name: m", "name: no"), "models/m.yaml:1: $.name: expected text; got"),
        (MANIFEST + "ontology:\n\ttools: []\n", "models/m.yaml:5: $: not YAML: a tab; YAML is indented with spaces"),
        (MANIFEST + "ontology: &o [*o]\n", "models/m.yaml:4: $: anchors and aliases (&, *) are not read"),
    ],
)
def test_F082_what_yaml_gets_wrong_leaves_no_run_to_start(tmp_path: Path, manifest: str, says: str) -> None:
    first, *_ = problems_of(tmp_path, {"models/m.yaml": manifest})
    assert first.startswith(says)


def test_F082_a_name_that_yaml_takes_for_no_is_to_be_quoted(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(MANIFEST.replace("name: m", "name: no"))
    with pytest.raises(ConfigError, match="quote it"):
        load_manifest(path, {})
    path.write_text(MANIFEST.replace("name: m", 'name: "no"'))
    assert load_manifest(path, {}).name == "no"
