"""Quality checks as functions of tables: a planted fault is found with its number and rows, a sound run has none."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.config.checks_source import CanaryRule, Checks, DuplicatesRule, Rule, Severity
from foundry_pipeline.errors import StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.quality.answers import answered_finding
from foundry_pipeline.quality.audit import audit_answers
from foundry_pipeline.quality.duplicates import near_duplicates
from foundry_pipeline.quality.finding import Finding, Worst, WorstRows
from foundry_pipeline.quality.histogram import beyond_chance, distance
from foundry_pipeline.quality.table_checks import check_table
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, CLASSIFICATIONS, DATA_ROWS, MASKS, POLYGONS, RESPONSES, build
from tests.warehouse import fill, make_run, mask

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COUNTS = st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def run() -> Run:
    return make_run("objects", features={"cat": "rectangle", "dog": "rectangle"})


def with_checks(run: Run, **rules: Any) -> Run:
    return replace(run, checks=replace(Checks(), **rules))


def box(key: str, feature: str = "cat", **values: Any) -> dict[str, Any]:
    size = {"image_width": 100, "image_height": 100}
    return {"global_key": key, "feature": feature, "left": 1, "top": 2, "width": 30, "height": 40} | size | values


def boxes_like(
    count: int, *, seed: int, per_row: float = 3.0, score: float = 0.7, cats: float = 0.5
) -> list[dict[str, Any]]:
    """Boxes of `count` rows, drawn from one distribution; places never repeat."""
    draw = np.random.default_rng(seed)
    return [
        box(
            f"{row}.jpg",
            "cat" if draw.random() < cats else "dog",
            left=float(at),
            top=float(at),
            width=1.0,
            height=1.0,
            score=float(np.clip(draw.normal(score, 0.1), 0, 1)),
        )
        for row in range(count)
        for at in range(draw.poisson(per_row))
    ]


def put(store: Store, run: Run, slice_key: str, rows: int, boxes: Sequence[Mapping[str, Any]], **more: Any) -> None:
    fill(store, run, slice_key, data_rows=[{"global_key": f"{at}.jpg"} for at in range(rows)], boxes=boxes, **more)


def found(run: Run, store: Store) -> dict[str, Finding]:
    return check_table(run, store, BOXES, NOW)


def over(findings: Mapping[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.over}


@given(COUNTS, st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_identical_distributions_are_never_apart(counts: dict[str, int], times: int) -> None:
    more = {label: count * times for label, count in counts.items()}
    assert distance(counts, counts) == 0.0
    assert distance(counts, more) == pytest.approx(0.0, abs=1e-6)
    assert not beyond_chance(counts, more, sum(counts.values()), sum(more.values()))


@given(COUNTS, COUNTS)
@settings(deadline=None, max_examples=60)
def test_the_distance_is_symmetric_and_from_0_to_1(one: dict[str, int], other: dict[str, int]) -> None:
    assert 0.0 <= distance(one, other) <= 1.0
    assert distance(one, other) == pytest.approx(distance(other, one), abs=1e-6)


def test_distributions_with_nothing_in_common_are_1_apart() -> None:
    assert distance({"a": 5}, {"b": 1}) == 1.0
    assert beyond_chance({"a": 500}, {"b": 100}, 500, 100)
    assert not beyond_chance({"a": 1}, {"b": 1}, 1, 1)


@given(st.integers(0, 10_000), st.integers(1, 400), st.integers(1, 400), st.integers(2, 21))
@settings(deadline=None, max_examples=200)
def test_two_samples_of_one_distribution_differ_by_chance(seed: int, n: int, m: int, bins: int) -> None:
    draw = random.Random(seed)
    weights = [draw.random() + 0.01 for _ in range(bins)]
    names = [str(at) for at in range(bins)]
    one, other = (Counter(draw.choices(names, weights, k=size)) for size in (n, m))
    assert not beyond_chance(one, other, n, m)


@given(st.integers(0, 50))
@settings(deadline=None, max_examples=5)
def test_a_run_made_again_of_the_same_distribution_has_not_drifted(tmp_path_factory: Any, seed: int) -> None:
    run, store = make_run("objects", features={"cat": "rectangle"}), Store(tmp_path_factory.mktemp("w"))
    put(store, run, "00000", 300, boxes_like(300, seed=seed))
    assert over(found(run, store)) == set()
    put(store, run, "00000", 300, boxes_like(300, seed=seed + 1000))
    second = found(run, store)
    assert over(second) == set()
    assert second["score_drift"].facts["distance_of_whole_run"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({"score": 0.45}, "score_drift"),
        ({"per_row": 0.8}, "predictions_per_row"),
        ({"cats": 0.95}, "class_balance"),
    ],
    ids=["scores", "fewer", "classes"],
)
def test_a_planted_drift_is_found_with_its_rows_and_is_no_new_baseline(
    run: Run, store: Store, planted: dict[str, float], expected: str
) -> None:
    put(store, run, "00000", 300, boxes_like(300, seed=1))
    found(run, store)
    kept = store.read_file("quality/run=objects/boxes.json")
    put(store, run, "00000", 300, boxes_like(300, seed=2, **planted))
    findings = found(run, store)
    assert over(findings) == {expected}
    assert findings[expected].number > 0.2
    assert len(findings[expected].worst) == 20
    assert findings[expected].worst[0].global_key.endswith(".jpg")
    assert "->" in findings[expected].words
    assert store.read_file("quality/run=objects/boxes.json") == kept


def test_a_drift_stays_found_until_the_run_is_as_it_was(run: Run, store: Store) -> None:
    good, bad = boxes_like(200, seed=1), boxes_like(200, seed=1, score=0.3)
    for boxes, expected in ((good, set()), (bad, {"score_drift"}), (bad, {"score_drift"}), (good, set())):
        put(store, run, "00000", 200, boxes)
        assert over(found(run, store)) == expected


def test_a_drift_of_one_slice_among_many_is_found_and_named(run: Run, store: Store) -> None:
    """In the whole run it is lost: one of thirty."""
    for at in range(30):
        put(store, run, f"{at:05}", 60, boxes_like(60, seed=at))
    assert over(found(run, store)) == set()
    put(store, run, "00007", 60, boxes_like(60, seed=7, score=0.3))
    finding = found(run, store)["score_drift"]
    assert finding.over
    assert finding.facts["where"] == "slice 00007"
    assert finding.facts["distance_of_whole_run"] < 0.2  # type: ignore[operator]


def test_a_new_slice_is_compared_with_all_there_was(run: Run, store: Store) -> None:
    put(store, run, "00000", 200, boxes_like(200, seed=1))
    found(run, store)
    put(store, run, "00001", 200, boxes_like(200, seed=2))
    assert over(found(run, store)) == set()
    put(store, run, "00002", 200, boxes_like(200, seed=3, score=0.3))
    finding = found(run, store)["score_drift"]
    assert finding.over
    assert "1 new slice from 00002" in finding.words


def test_an_incomplete_run_is_no_baseline(run: Run, store: Store) -> None:
    put(store, run, "00000", 50, boxes_like(50, seed=1))
    store.commit("street", "00001", {"data_rows": store.read(DATA_ROWS, "street", "00000")})
    found(run, store)
    assert store.file_names("quality/run=objects") == []


def test_a_state_with_an_error_is_no_baseline(run: Run, store: Store) -> None:
    put(store, run, "00000", 50, [*boxes_like(50, seed=1), box("0.jpg", score=7.0)])
    assert over(found(run, store)) == {"scores_in_0_1"}
    assert store.file_names("quality/run=objects") == []


def test_a_few_rows_prove_no_drift(run: Run, store: Store) -> None:
    put(store, run, "00000", 3, [box("0.jpg", score=0.9)])
    found(run, store)
    put(store, run, "00000", 3, [box("1.jpg", "dog", score=0.1), box("2.jpg", "dog", score=0.1)])
    assert over(found(run, store)) == set()


def test_a_baseline_is_small_and_a_damaged_one_says_what_to_do(run: Run, store: Store) -> None:
    put(store, run, "00000", 1000, boxes_like(1000, seed=1))
    found(run, store)
    content = store.read_file("quality/run=objects/boxes.json")
    assert content is not None
    assert len(content) < 2000
    store.write_file("quality/run=objects/boxes.json", content[: len(content) // 2])
    with pytest.raises(StorageError, match="foundry-pipeline accept objects"):
        found(run, store)


def test_a_baseline_survives_that_the_tables_are_made_anew(run: Run, store: Store) -> None:
    put(store, run, "00000", 200, boxes_like(200, seed=1))
    found(run, store)
    for spec in (BOXES, RESPONSES):
        store.remove(spec, "objects", "00000")
    found(run, store)
    put(store, run, "00000", 200, boxes_like(200, seed=1, score=0.3))
    assert over(found(run, store)) == {"score_drift"}


def test_answers_of_a_question_are_classes(store: Store) -> None:
    run = make_run("mood", features={"mood": "radio"}, options=("good", "bad"), media_type="text")

    def answer(count: int) -> None:
        rows = [{"global_key": str(at)} for at in range(200)]
        answers = [
            {"global_key": str(at), "feature": "mood", "answer": "bad" if at < count else "good"} for at in range(200)
        ]
        fill(store, run, "00000", data_rows=rows, classifications=answers)

    answer(20)
    check_table(run, store, CLASSIFICATIONS, NOW)
    answer(120)
    finding = check_table(run, store, CLASSIFICATIONS, NOW)["class_balance"]
    assert finding.over
    assert "mood: bad 10.0% -> 60.0%" in finding.words
    assert finding.worst[0] == Worst("0", "mood: bad: 10.0% -> 60.0%")


def test_a_class_that_a_model_made_up_reaches_no_terminal_as_it_came(store: Store) -> None:
    run = make_run("open")
    put(store, run, "00000", 200, boxes_like(200, seed=1))
    found(run, store)
    put(store, run, "00000", 200, [one | {"feature": "\x1b[2J" + "x" * 500} for one in boxes_like(200, seed=1)])
    words = found(run, store)["class_balance"].words
    assert words.isprintable()
    assert len(words) < 400


def test_a_check_that_is_off_is_not_made_and_stops_no_baseline(run: Run, store: Store) -> None:
    run = with_checks(run, scores_in_0_1=Rule(Severity.OFF), duplicates=DuplicatesRule(Severity.OFF))
    put(store, run, "00000", 1, [box("0.jpg", score=3.0)])
    assert set(found(run, store)) == {
        "boxes_inside_picture",
        "predictions_per_row",
        "score_drift",
        "class_balance",
    }
    assert store.file_names("quality/run=objects") == ["boxes.json"]


@pytest.mark.parametrize(
    ("other", "same_place", "high_iou"),
    [
        ({}, 1, 0),
        ({"left": 2}, 0, 1),
        ({"left": 8}, 0, 0),
        ({"feature": "dog"}, 0, 0),
        ({"global_key": "1.jpg"}, 0, 0),
        ({"frame": 3}, 0, 0),
    ],
    ids=["equal", "nearly", "apart", "another feature", "another row", "another frame"],
)
def test_duplicates_are_of_one_feature_in_one_place_of_one_row(
    run: Run, store: Store, other: dict[str, Any], same_place: int, high_iou: int
) -> None:
    second = box("0.jpg", index=1) | other
    put(store, run, "00000", 2, [box("0.jpg", index=0), second])
    finding = found(run, store)["duplicates"]
    assert (finding.facts["same_place"], finding.facts["high_iou"]) == (same_place, high_iou)
    assert finding.over == bool(same_place + high_iou)
    assert finding.worst == ((Worst("0.jpg", "1 duplicate"),) if finding.over else ())


def test_duplicate_masks_and_polygons_are_found(store: Store) -> None:
    run = make_run("shapes", features={"sky": "raster-segmentation", "roof": "polygon"})
    roof = {"global_key": "a", "feature": "roof", "points": [{"x": 1.0, "y": 1.0}, {"x": 5.0, "y": 1.0}]}
    masks = [mask("a", "sky", [[0, 1], [1, 1]]), mask("a", "sky", [[0, 1], [1, 1]]), mask("a", "sky", [[1, 1], [1, 1]])]
    fill(store, run, "00000", data_rows=[{"global_key": "a"}], masks=masks, polygons=[roof, roof])
    assert check_table(run, store, MASKS, NOW)["duplicates"].facts["same_place"] == 1
    assert check_table(run, store, POLYGONS, NOW)["duplicates"].facts["same_place"] == 1


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return float(shared / union) if union > 0 else 0.0


@given(st.integers(0, 10_000), st.integers(0, 40), st.sampled_from([0.3, 0.5, 0.9, 1.0]))
@settings(deadline=None, max_examples=60)
def test_near_duplicates_are_those_that_all_pairs_give(seed: int, count: int, iou: float) -> None:
    draw = np.random.default_rng(seed)
    boxes = draw.integers(0, 6, (count, 4)).astype(float)
    groups = draw.integers(0, 3, count).astype(np.uint64)
    marks = near_duplicates(groups, boxes, iou)
    order = np.lexsort((boxes[:, 0], groups))
    for place, at in enumerate(order):
        earlier = [other for other in order[:place] if groups[other] == groups[at]]
        assert marks[at] == any(_iou(boxes[other], boxes[at]) >= iou for other in earlier)


def test_the_worst_rows_are_named_first(run: Run, store: Store) -> None:
    boxes = [box("0.jpg", left=-3.0), box("1.jpg", left=-50.0), box("2.jpg")]
    put(store, run, "00000", 3, boxes)
    finding = found(run, store)["boxes_inside_picture"]
    assert finding.number == 2 / 3
    assert [worst.global_key for worst in finding.worst] == ["1.jpg", "0.jpg"]
    assert "by up to 50.0 px" in finding.words


def test_worst_rows_keep_the_worst_of_many() -> None:
    rows = WorstRows(3)
    rows.add((float(at % 10), Worst(str(at), "")) for at in range(30))
    assert [worst.global_key for worst in rows.rows()] == ["9", "19", "29"]


CANARY = CanaryRule(Severity.ERROR, rows=("0.jpg", "1.jpg"))


@pytest.mark.parametrize(
    ("boxes", "changed"),
    [
        ([box("0.jpg", score=0.5), box("0.jpg", "dog", score=0.9)], []),
        ([box("0.jpg", "dog", score=0.9), box("0.jpg", score=0.5)], []),
        ([box("0.jpg", score=0.505, left=1.9), box("0.jpg", "dog", score=0.9)], []),
        ([box("0.jpg", score=0.52), box("0.jpg", "dog", score=0.9)], ["0.jpg"]),
        ([box("0.jpg", score=0.5, left=3.0), box("0.jpg", "dog", score=0.9)], ["0.jpg"]),
        ([box("0.jpg", score=0.5)], ["0.jpg"]),
        ([], ["0.jpg"]),
        ([box("0.jpg", score=0.5), box("0.jpg", "dog", score=0.9), box("1.jpg")], ["1.jpg"]),
        ([box("0.jpg", score=0.5), box("0.jpg", "dog", score=0.9), box("2.jpg")], []),
    ],
    ids=["same", "order", "within", "score", "place", "one gone", "all gone", "one new", "another row"],
)
def test_a_canary_rows_answer_may_not_change_beyond_its_tolerance(
    run: Run, store: Store, boxes: list[dict[str, Any]], changed: list[str]
) -> None:
    run = with_checks(run, canary_rows=CANARY)
    put(store, run, "00000", 3, [box("0.jpg", score=0.5), box("0.jpg", "dog", score=0.9)])
    assert found(run, store)["canary_rows"].passed
    put(store, run, "00000", 3, boxes)
    finding = found(run, store)["canary_rows"]
    assert [worst.global_key for worst in finding.worst] == changed
    assert finding.is_error == bool(changed)
    assert finding.number == len(changed) / 2


def test_a_canary_kept_before_a_table_had_a_column_is_compared_by_the_others(run: Run, store: Store) -> None:
    run = with_checks(run, canary_rows=CANARY)
    put(store, run, "00000", 3, [box("0.jpg", score=0.5)])
    found(run, store)
    name = "quality/run=objects/boxes.canaries.json"
    kept = json.loads(store.read_file(name) or b"")
    del kept["0.jpg"][0]["message_id"]
    store.write_file(name, json.dumps(kept).encode())
    assert found(run, store)["canary_rows"].passed
    put(store, run, "00000", 3, [box("0.jpg", score=0.9)])
    assert found(run, store)["canary_rows"].over


def test_the_first_answer_of_a_canary_is_kept_whatever_comes_later(run: Run, store: Store) -> None:
    """Within the tolerance each time, and far away in the end."""
    run = with_checks(run, canary_rows=CANARY)
    for score, passed in ((0.5, True), (0.508, True), (0.516, False)):
        put(store, run, "00000", 3, [box("0.jpg", score=score)])
        assert found(run, store)["canary_rows"].passed == passed


def test_a_canary_without_a_good_answer_or_that_is_no_data_row_is_named(run: Run, store: Store) -> None:
    run = with_checks(run, canary_rows=replace(CANARY, rows=("0.jpg", "nobody.jpg")))
    put(store, run, "00000", 3, [], outcomes={"0.jpg": "failed"})
    assert found(run, store)["canary_rows"].worst == (
        Worst("0.jpg", "has no good answer"),
        Worst("nobody.jpg", "is no data row of the dataset"),
    )


def test_a_data_row_with_several_responses_is_one_row_asked_and_answered_where_all_are_good(
    run: Run, store: Store
) -> None:
    run = replace(with_checks(run, canary_rows=CANARY), generate="every")
    put(store, run, "00000", 3, [])
    table = store.read(RESPONSES, "objects", "00000")
    assert table is not None
    again = [record | {"call_id": "second", "outcome": "failed"} for record in table.to_pylist()[:1]]
    rows = [*again, *table.to_pylist()]
    columns = {name: [row[name] for row in rows] for name in RESPONSES.schema.names}
    store.commit("objects", "00000", {"responses": build(RESPONSES, columns)})
    finding = answered_finding(run, audit_answers(run, store))
    assert finding.passed
    assert finding.words == "3 data rows asked, 3 with an outcome"
    findings = found(run, store)
    assert findings["canary_rows"].worst == (Worst("0.jpg", "has no good answer"),)


def test_rows_that_were_swapped_for_others_are_named(run: Run, store: Store) -> None:
    put(store, run, "00000", 2, [])
    fill(store, make_run("other"), "00000", data_rows=[{"global_key": "0.jpg"}, {"global_key": "new.jpg"}])
    finding = answered_finding(run, audit_answers(run, store))
    assert finding.is_error
    assert finding.worst == (
        Worst("new.jpg", "has no response"),
        Worst("1.jpg", "has a response and is no data row"),
    )
