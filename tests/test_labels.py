"""A platform export loads with its labels: annotation lines, the form of ground truth, beside the data rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.datasets import DatasetReport, load_dataset
from foundry_pipeline.rows.labels import lines_of_export, stored_labels
from foundry_pipeline.store import Store
from tests.strategies import json_values


def thing(kind: str, name: str, **geometry: Any) -> dict[str, Any]:
    head = {"feature_id": f"f-{name}", "feature_schema_id": "s", "name": name, "value": name.replace(" ", "_")}
    return head | {"annotation_kind": kind, "classifications": []} | geometry


def line(annotations: dict[str, Any], key: str | None = "k", **label: Any) -> dict[str, Any]:
    labels = [{"label_kind": "Default", "id": "l", "annotations": annotations} | label]
    row = {"id": "clf9", "external_id": "e", "row_data": "a text"} | ({} if key is None else {"global_key": key})
    return {"data_row": row, "media_attributes": {}, "projects": {"p": {"name": "P", "labels": labels}}}


RADIO = {
    "name": "first question",
    "value": "first_question",
    "feature_id": "c1",
    "radio_answer": {"name": "Yes!", "value": "yes", "classifications": []},
}
CHECKLIST = {
    "name": "which",
    "feature_id": "c2",
    "checklist_answers": [{"name": "A", "value": "a", "classifications": []}, {"name": "B", "value": "b"}],
}
TEXT = {"name": "note", "feature_id": "c3", "text_answer": {"content": "fine"}}
HEAD = {"dataRow": {"globalKey": "k"}}
BOX = {"top": 977, "left": 1690, "height": 330, "width": 225}
RING = [{"x": 1.0, "y": 2.0}, {"x": 3, "y": 4}, {"x": 5, "y": 6}, {"x": 1.0, "y": 2.0}]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (thing("ImageBoundingBox", "box", bounding_box=BOX), {"bbox": BOX}),
        (thing("ImagePolygon", "ring", polygon=RING), {"polygon": RING}),
        (thing("ImagePolyline", "way", line=RING[:2]), {"line": RING[:2]}),
        (thing("ImagePoint", "dot", point=RING[0]), {"point": RING[0]}),
        (thing("ImageSegmentationMask", "m", mask={"url": "https://h/m"}), {"mask": {"instanceURI": "https://h/m"}}),
        (
            thing("ImageSegmentationMask", "m", composite_mask={"url": "https://h/c", "color_rgb": [1, 2, 3]}),
            {"mask": {"instanceURI": "https://h/c", "colorRGB": [1, 2, 3]}},
        ),
        (
            thing("TextEntity", "who", location={"start": 67, "end": 128, "token": "x"}),
            {"location": {"start": 67, "end": 128}},
        ),
        (
            thing(
                "ConversationalTextEntity",
                "who",
                conversational_location={"message_id": "4", "location": {"start": 0, "end": 8}},
            ),
            {"location": {"start": 0, "end": 8}, "messageId": "4"},
        ),
    ],
)
def test_an_object_becomes_the_line_that_would_import_it(found: dict[str, Any], expected: dict[str, Any]) -> None:
    lines, lost = lines_of_export(line({"objects": [found]}))
    assert lines == [{"uuid": found["feature_id"], "name": found["name"]} | HEAD | expected]
    assert not lost


def test_answers_go_by_their_options_values_and_keep_what_is_nested() -> None:
    nested = {**RADIO, "radio_answer": {"value": "yes", "classifications": [CHECKLIST, TEXT]}}
    box = {**thing("ImageBoundingBox", "box", bounding_box=BOX), "classifications": [RADIO]}
    lines, lost = lines_of_export(line({"objects": [box], "classifications": [nested, CHECKLIST, TEXT]}))
    which = {"name": "which", "answer": [{"name": "a"}, {"name": "b"}]}
    note = {"name": "note", "answer": "fine"}
    first = {"name": "first question", "answer": {"name": "yes"}}
    assert [{key: value for key, value in each.items() if key not in ("uuid", "dataRow")} for each in lines] == [
        {"name": "box", "bbox": BOX, "classifications": [first]},
        {"name": "first question", "answer": {"name": "yes", "classifications": [which, note]}},
        which,
        note,
    ]
    assert not lost


def test_answers_about_a_message_say_which() -> None:
    about = {"name": "mood", "feature_id": "c", "message_id": "3", "conversational_radio_answer": {"value": "glad"}}
    lines, _ = lines_of_export(line({"classifications": [about]}))
    assert lines == [{"uuid": "c", "name": "mood", "answer": {"name": "glad"}, "messageId": "3"} | HEAD]


def test_a_video_has_a_line_an_object_with_its_key_frames_and_a_line_an_answer_with_its_frames() -> None:
    def frame(left: int, **more: Any) -> dict[str, Any]:
        found = thing("VideoBoundingBox", "car", bounding_box=BOX | {"left": left})
        return {"objects": {"f1": found}, "classifications": [RADIO], **more}

    frames = {"7": frame(1), "8": frame(2), "18": frame(3), "19": frame(4, classifications=[])}
    lines, lost = lines_of_export(line({"frames": frames, "segments": {"f1": [[7, 13], [18, 19]]}}))
    car, answer = lines
    keyframes = [[(k["frame"], k["bbox"]["left"]) for k in s["keyframes"]] for s in car["segments"]]
    assert (car["uuid"], car["name"], keyframes) == ("f1", "car", [[(7, 1), (8, 2)], [(18, 3), (19, 4)]])
    assert answer["frames"] == [{"start": 7, "end": 8}, {"start": 18, "end": 18}]
    assert answer["answer"] == {"name": "yes"}
    assert not lost


def test_the_label_changed_last_counts_and_a_skipped_one_does_not() -> None:
    raw = line({"classifications": [TEXT]}, label_details={"updated_at": "2024-01-01T00:00:00"})
    newer = {"annotations": {"classifications": [RADIO]}, "label_details": {"updated_at": "2024-02-01T00:00:00"}}
    skipped = {"annotations": {}, "performance_details": {"skipped": True}, "label_details": {"updated_at": "2025"}}
    raw["projects"]["q"] = {"labels": [newer, skipped]}
    lines, lost = lines_of_export(raw)
    assert [each["name"] for each in lines] == ["first question"]
    assert lost == {"older label": 1}


def test_what_has_no_line_is_counted() -> None:
    annotations = {
        "objects": [thing("DocumentEntityToken", "page"), thing("TextEntity", "who", location={"start": "1"})],
        "classifications": [{"name": "empty"}],
        "relationships": [{"name": "r"}, {"name": "s"}],
        "frames": {"x": {}, "9" * 5000: {}},
    }
    lines, lost = lines_of_export(line(annotations))
    assert lines == []
    assert lost == {
        "DocumentEntityToken": 1,
        "TextEntity": 1,
        "classification without an answer": 1,
        "relationship": 2,
        "frame without a number": 2,
    }


KEYS = ("objects", "classifications", "frames", "segments", "relationships")


@given(st.dictionaries(st.sampled_from(KEYS), json_values() | st.lists(json_values()), max_size=5), json_values())
def test_nothing_in_a_label_breaks_the_load(annotations: dict[str, Any], other: Any) -> None:
    for raw in (line(annotations), line({"objects": [{"name": "a", "classifications": other, "bounding_box": other}]})):
        lines_of_export(raw)
    lines_of_export({**line({}), "projects": other})
    lines_of_export({"data_row": other, "projects": {"p": {"labels": [{"annotations": annotations}]}}})


def test_nesting_has_an_end() -> None:
    deep: dict[str, Any] = TEXT
    for _ in range(500):
        deep = {"name": "n", "radio_answer": {"value": "v", "classifications": [deep]}}
    assert len(lines_of_export(line({"classifications": [deep]}))[0]) == 1


def load(root: Path, *lines: dict[str, Any]) -> tuple[DatasetReport, Store]:
    (root / "export.ndjson").write_text("\n".join(map(json.dumps, lines)))
    store = Store(root / "warehouse")
    dataset = Dataset("ds", "ds.yaml", root, "text", "export.ndjson")
    return load_dataset(dataset, root, Settings(), store), store


def test_an_export_loads_as_it_is_labels_included(tmp_path: Path) -> None:
    entity = thing("TextEntity", "who", location={"start": 0, "end": 0})
    first, second = line({"objects": [entity]}, "k1"), line({"classifications": [TEXT]}, "k2")
    second["data_row"]["id"] = "clf8"
    unlabelled = {"data_row": {"id": "clf7", "row_data": "another"}}
    report, store = load(tmp_path, first, unlabelled, second, line({}, "k1"))
    assert (report.rows, report.labelled) == (3, 2)
    assert [(p.place, p.code) for p in report.problems] == [("export.ndjson:4", "duplicate_key")]
    assert [(each["dataRow"], each["name"]) for each in stored_labels(store, "ds")] == [
        ({"globalKey": "k1"}, "who"),
        ({"globalKey": "k2"}, "note"),
    ]
    content = (tmp_path / "warehouse/ground_truth/dataset=ds/labels.ndjson").read_bytes()
    load(tmp_path, first, unlabelled, second)
    assert (tmp_path / "warehouse/ground_truth/dataset=ds/labels.ndjson").read_bytes() == content


def test_labels_that_are_gone_from_the_source_are_gone(tmp_path: Path) -> None:
    load(tmp_path, line({"classifications": [TEXT]}))
    report, store = load(tmp_path, line({}))
    assert (report.labelled, list(stored_labels(store, "ds"))) == (0, [])


def test_what_is_lost_is_reported_with_its_line(tmp_path: Path) -> None:
    report, _ = load(tmp_path, line({"classifications": [TEXT], "relationships": [{}]}))
    assert [(p.place, p.code) for p in report.problems] == [("export.ndjson:1", "label_left_out")]
    assert "'relationship' 1" in report.problems[0].message


def test_a_row_without_a_global_key_is_named_by_its_id() -> None:
    lines, _ = lines_of_export(line({"classifications": [TEXT]}, None))
    assert lines[0]["dataRow"] == {"id": "clf9"}
