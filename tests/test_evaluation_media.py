"""Evaluation of what has parts: frames of videos, messages of conversations; truth from an export; stored pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.evaluation.annotation_truth import annotation_truth
from foundry_pipeline.evaluation.evaluate import WHOLE_RUN, Evaluation, evaluate_run, read_truth
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import MATCHES
from tests.test_labels import line as export_line
from tests.test_labels import thing
from tests.warehouse import fill, make_run

PLACE = {"dataRow": {"globalKey": "a"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def ltwh(left: float, top: float = 0, width: float = 10, height: float = 10) -> dict[str, float]:
    return {"left": left, "top": top, "width": width, "height": height}


def evaluate(run: Run, store: Store, lines: Sequence[dict[str, Any]]) -> Evaluation:
    content = "\n".join(map(json.dumps, lines)).encode()
    return evaluate_run(run, store, lambda rows: read_truth(content, "truth.ndjson", rows))


def values(found: Evaluation, feature: str = "") -> dict[str, float | None]:
    return {m.metric: m.value for m in found.findings.measures if (m.feature, m.answer) == (feature, "")}


def matches(run: Run, store: Store) -> list[tuple[Any, ...]]:
    table = store.read(MATCHES, run.name, WHOLE_RUN)
    assert table is not None
    columns = ("frame", "message_id", "verdict", "feature", "true_feature")
    return [tuple(record[name] for name in columns) for record in table.to_pylist()]


VIDEO = [{"global_key": "a", "frame_count": 20, "frames_per_second": 1.0}]


def test_boxes_are_compared_in_the_frames_that_were_answered_and_move_between_key_frames(store: Store) -> None:
    run = make_run(features={"car": "rectangle"}, media_type="video")
    found = [{"global_key": "a", "feature": "car", "frame": n, "score": 0.9, **ltwh(at)} for n, at in ((0, 0), (4, 40))]
    calls = [{"frames": [0]}, {"frames": [4]}, {"frames": [8]}, {"frames": [12]}, {"frames": [16], "outcome": "failed"}]
    fill(store, run, "00000", data_rows=VIDEO, calls={"a": calls}, boxes=found)
    segments = [{"keyframes": [{"frame": 0, "bbox": ltwh(0)}, {"frame": 10, "bbox": ltwh(100)}]}]
    segments.append({"keyframes": [{"frame": 16, "bbox": ltwh(0)}]})
    result = evaluate(run, store, [{**PLACE, "name": "car", "segments": segments}])
    assert matches(run, store) == [
        (0, None, "match", "car", "car"),
        (4, None, "match", "car", "car"),
        (8, None, "missed", None, "car"),
    ], "frame 12 is between the segments, 16 has no answer"
    assert (values(result)["precision"], values(result)["recall"]) == (1.0, pytest.approx(2 / 3))
    assert (result.compared, result.unanswered) == (1, 0)


def test_what_is_seen_in_a_frame_is_no_match_of_another(store: Store) -> None:
    run = make_run(features={"car": "rectangle"}, media_type="video")
    boxes = [{"global_key": "a", "feature": "car", "frame": 1, "score": 0.9, **ltwh(5)}]
    fill(store, run, "00000", data_rows=VIDEO, calls={"a": [{"frames": [0, 1]}]}, boxes=boxes)
    evaluate(run, store, [{**PLACE, "name": "car", "segments": [{"keyframes": [{"frame": 0, "bbox": ltwh(5)}]}]}])
    assert matches(run, store) == [(0, None, "missed", None, "car"), (1, None, "extra", "car", None)]


def test_answers_are_compared_frame_by_frame(store: Store) -> None:
    run = make_run(features={"mood": "radio"}, options=("good", "bad"), media_type="video")
    said = [
        {"global_key": "a", "feature": "mood", "frame": n, "answer": answer}
        for n, answer in ((0, "good"), (1, "bad"), (5, "bad"))
    ]
    calls = [{"frames": [n]} for n in (0, 1, 2, 5)]
    fill(store, run, "00000", data_rows=VIDEO, calls={"a": calls}, classifications=said)
    truth = {**PLACE, "name": "mood", "answer": {"name": "good"}, "frames": [{"start": 0, "end": 3}]}
    result = evaluate(run, store, [truth])
    assert values(result, "mood")["accuracy"] == pytest.approx(1 / 3)
    assert [(frame, verdict) for frame, _, verdict, *_ in matches(run, store)] == [
        (0, "match"),
        (1, "wrong"),
        (2, "missed"),
    ]


def test_answers_about_messages_are_compared_with_those_about_the_same_message(store: Store) -> None:
    run = make_run(features={"mood": "radio"}, options=("good", "bad"), media_type="conversational")
    said = [
        {"global_key": "a", "feature": "mood", "message_id": message, "answer": answer, "index": place}
        for place, (message, answer) in enumerate((("1", "good"), ("2", "good"), (None, "bad")))
    ]
    fill(store, run, "00000", data_rows=[{"global_key": "a"}], classifications=said)
    truths = [{"messageId": "1"}, {"messageId": "2"}, {}]
    evaluate(run, store, [{**PLACE, "name": "mood", "answer": {"name": "bad"}, **about} for about in truths])
    assert [(message, verdict) for _, message, verdict, *_ in matches(run, store)] == [
        ("1", "wrong"),
        ("2", "wrong"),
        (None, "match"),
    ]


def test_an_export_is_ground_truth_as_it_is(store: Store) -> None:
    run = make_run(features={"cat": "rectangle"})
    rows = [{"global_key": key, "width": 60, "height": 40} for key in ("k", "empty", "skipped", "other")]
    boxes = [{"global_key": key, "feature": "cat", "score": 0.9, **ltwh(1, 2)} for key in ("k", "empty", "skipped")]
    fill(store, run, "00000", data_rows=rows, boxes=boxes)
    mask = thing("ImageSegmentationMask", "cat", mask={"url": "https://h/m"})
    lines = [
        export_line({"objects": [thing("ImageBoundingBox", "cat", bounding_box=ltwh(1, 2)), mask]}),
        export_line({"objects": []}, "empty"),
        export_line({"objects": []}, "skipped", performance_details={"skipped": True}),
        export_line({"objects": []}, "not in the dataset"),
    ]
    result = evaluate(run, store, lines)
    assert result.truth.rows == {"k", "empty"}, "a label without annotations says that there is nothing"
    assert sorted(verdict for _, _, verdict, *_ in matches(run, store)) == ["extra", "match"]
    assert result.truth.unused == {"mask_that_is_not_in_its_line": 1}


def test_a_line_separator_in_a_text_ends_no_line() -> None:
    text = json.dumps({**PLACE, "name": "summary", "answer": "one\u2028two"}, ensure_ascii=False)
    rows = [DataRow("id-a", "a", "text", "")]
    assert read_truth(text.encode(), "truth.ndjson", rows).texts[0].answers == ("one\u2028two",)
    assert annotation_truth([text], "truth.ndjson", rows).rows == {"a"}


def test_pictures_that_the_model_saw_as_they_are_stored_are_compared_as_people_see_them(store: Store) -> None:
    run = make_run(features={"cat": "rectangle"})
    run = replace(run, model=replace(run.model, exif="keep"))
    rows = [{"global_key": "a", "width": 60, "height": 40, "exif_orientation": 6}]
    stored = {"left": 5.0, "top": 10.0, "width": 20.0, "height": 8.0}  # in 40 x 60 pixels turned by a quarter
    fill(store, run, "00000", data_rows=rows, boxes=[{"global_key": "a", "feature": "cat", "score": 1.0, **stored}])
    shown = {"left": 60 - 10 - 8, "top": 5, "width": 8, "height": 20}
    evaluate(run, store, [{**PLACE, "name": "cat", "bbox": shown}])
    assert [verdict for _, _, verdict, *_ in matches(run, store)] == ["match"]
