"""The Label Studio export: regions in its units, and a labeling configuration that has a place for each of them.

The SDK brings some 300 MB, so its rules are spelled out here; `brush` is held to the format's own example.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foundry_pipeline.exports import export_run
from foundry_pipeline.exports.brush import brush_rle
from foundry_pipeline.exports.documents import Utf16
from foundry_pipeline.exports.units import PER_FEATURE
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Option, Tool
from foundry_pipeline.rle import from_dense
from foundry_pipeline.store import Store
from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import fill, make_run, mask

LABELS = {
    "rectanglelabels": "RectangleLabels",
    "brushlabels": "BrushLabels",
    "polygonlabels": "PolygonLabels",
    "keypointlabels": "KeyPointLabels",
    "labels": "Labels",
    "paragraphlabels": "ParagraphLabels",
}


def tasks_of(found):
    return [task for file in sorted(found.folder.glob("tasks-*.json")) for task in json.loads(file.read_text())]


def regions_of(found):
    (task,) = tasks_of(found)
    (prediction,) = task["predictions"]
    config = ET.fromstring(found.read("labeling_config.xml"))
    for region in prediction["result"]:
        assert_has_a_place(config, region)
    return prediction["result"]


def assert_has_a_place(config, region):
    """What `LabelInterface.validate_prediction` of label-studio-sdk 2.1.2 asks, and that labels are in the controls."""
    if region["type"] == "relation":
        assert set(region["labels"]) <= {relation.get("value") for relation in config.iter("Relation")}
        return
    (control,) = (tag for tag in config.iter() if tag.get("name") == region["from_name"])
    (target,) = (tag for tag in config.iter() if tag.get("name") == region["to_name"])
    assert control.get("toName") == target.get("name")
    assert control.tag.lower() == region["type"]
    said = region["value"].get(region["type"], [])
    assert set(said) <= {option.get("value") for option in control}
    for name in ("x", "y", "width", "height"):
        assert 0 <= region["value"].get(name, 0) <= 100


def unpack(packed, height, width):
    """A brush mask's alpha, read bit by bit as the format says."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    at = 0

    def take(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    size, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < size:
        is_run = take(1)
        count = take(lengths[take(2)]) + 1
        values += [take(word)] * count if is_run else [take(word) for _ in range(count)]
    rgba = np.array(values).reshape(height, width, 4)
    assert (rgba == rgba[:, :, :1]).all()
    return rgba[:, :, 3]


def test_the_formats_own_example():
    dense = np.zeros((6, 8), bool)
    dense[1:4, 2:6] = True
    expected = [0, 0, 0, 192, 57, 27, 254, 39, 0, 191, 255, 124, 2, 255, 253, 240, 11, 255, 249, 28, 0]
    assert brush_rle(from_dense(dense)) == expected


@settings(max_examples=100, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_a_brush_mask_unpacks_to_0_and_255(dense):
    assert np.array_equal(unpack(brush_rle(from_dense(dense)), *dense.shape), dense * 255)


def test_a_run_of_more_than_65536_bytes_is_in_pieces():
    dense = np.zeros((200, 300), bool)
    dense[150:] = True
    assert np.array_equal(unpack(brush_rle(from_dense(dense)), 200, 300), dense * 255)


def test_shapes_of_a_picture_in_percent(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "label_studio",
        boxes=[BOX | {"score": 0.9, "prediction_id": "b", "left": 6.0}],
        masks=[mask("g.jpg", "lake", PROBE, score=0.25)],
        polygons=[AT | {"feature": "field", "points": TRIANGLE}],
        points=[AT | {"feature": "nose", "x": 15.0, "y": 10.0}],
    )
    box, drawn, polygon, point = regions_of(found)
    assert box == {
        "id": "b",
        "type": "rectanglelabels",
        "from_name": "boxes",
        "to_name": "image",
        "original_width": 60,
        "original_height": 40,
        "image_rotation": 0,
        "value": {"x": 10.0, "y": 15.0, "width": 50.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["cat"]},
        "score": 0.9,
    }
    assert np.array_equal(unpack(drawn["value"]["rle"], 40, 60), PROBE * 255)
    corners = [[pytest.approx(100 * p["x"] / 60), pytest.approx(100 * p["y"] / 40)] for p in TRIANGLE]
    assert polygon["value"] == {"points": corners, "closed": True, "polygonlabels": ["field"]}
    assert point["value"] == {"x": 25.0, "y": 25.0, "width": 0.5, "keypointlabels": ["nose"]}
    (task,) = tasks_of(found)
    assert task["predictions"][0]["score"] == 0.25
    assert task["predictions"][0]["model_version"] == "model"
    assert found.lost == {}


@pytest.mark.parametrize(
    ("row_data", "image"),
    [
        ("https://host/a%20b.jpg?x=1", "https://host/a%20b.jpg?x=1"),
        ("/data/a b/ü?.jpg", "/data/local-files/?d=data/a%20b/%C3%BC%3F.jpg"),
    ],
)
def test_pictures_are_referred_to(tmp_path, row_data, image):
    (task,) = tasks_of(exported(tmp_path, make_run(), "label_studio", data_rows=[PICTURE | {"row_data": row_data}]))
    assert task["data"] == {"image": image, "global_key": "g.jpg", "data_row_id": "id-g.jpg"}


def test_nothing_found_is_a_prediction_without_regions_and_an_unanswered_row_is_no_task(tmp_path):
    rows = [PICTURE, PICTURE | {"global_key": "failed.jpg"}]
    found = exported(tmp_path, make_run(), "label_studio", data_rows=rows, outcomes={"failed.jpg": "failed"})
    (task,) = tasks_of(found)
    assert task["predictions"] == [{"model_version": "model", "result": []}]
    none = exported(tmp_path / "none", replace(make_run(), keep_empty=False), "label_studio", data_rows=rows)
    assert tasks_of(none) == []


def test_what_is_past_the_edge_is_clipped_or_lost(tmp_path):
    """The SDK lets x of -1 and x + width above 100 pass."""
    found = exported(
        tmp_path,
        make_run(),
        "label_studio",
        boxes=[BOX | {"left": -5.0}, BOX | {"left": 50.0, "width": 20.0}, BOX | {"left": 60.0}],
        points=[AT | {"feature": "nose", "x": 61.0, "y": 1.0}],
    )
    boxes = [region["value"] for region in regions_of(found)]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 100 for box in boxes)
    assert found.lost == {"clipped_to_picture": 2, "outside_picture": 2}


def test_offsets_are_counted_in_utf_16_and_relations_name_their_ends(tmp_path):
    text = "😀 Tom works at IBM"
    entities = [
        AT | {"feature": "person", "start": 2, "end": 5, "prediction_id": "tom", "score": 0.5},
        AT | {"feature": "company", "start": 15, "end": 18, "prediction_id": "ibm"},
        AT | {"feature": "company", "start": 15, "end": 19},
        AT | {"feature": "company", "start": 3, "end": 3},
    ]
    edge = AT | {"feature": "works_at", "source_id": "tom", "target_id": "ibm", "score": 0.5}
    found = exported(
        tmp_path,
        make_run(media_type="text"),
        "label_studio",
        data_rows=[AT | {"row_data": text}],
        entities=entities,
        edges=[edge, edge | {"target_id": "elsewhere", "type": "bidirectional"}],
    )
    relation, ibm, tom = sorted(regions_of(found), key=lambda region: region["type"] != "relation")
    assert tom["value"] == {"start": 3, "end": 6, "text": "Tom", "labels": ["person"]}
    assert ibm["value"] == {"start": 16, "end": 19, "text": "IBM", "labels": ["company"]}
    encoded = text.encode("utf-16-le")
    assert encoded[2 * 16 : 2 * 19].decode("utf-16-le") == "IBM"
    assert relation == {
        "type": "relation",
        "from_id": "tom",
        "to_id": "ibm",
        "direction": "right",
        "labels": ["works_at"],
    }
    assert tasks_of(found)[0]["data"]["text"] == text
    assert found.lost == {
        "span_outside_text": 1,
        "empty_span": 1,
        "relationship_endpoint_missing": 1,
        "score_not_representable": 1,
    }


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("aé😀\u0301\uffff\U00010000"), max_size=8), st.integers(0, 8))
def test_utf_16_offsets_cut_the_same_text(text, at):
    units = Utf16(text).offset(min(at, len(text)))
    assert text.encode("utf-16-le")[: 2 * units].decode("utf-16-le") == text[:at]


CONVERSATION = json.dumps(
    {
        "type": "application/vnd.labelbox.conversational",
        "version": 1,
        "messages": [
            {"messageId": "m1", "content": "Hello 😀", "user": {"userId": "1", "name": "Ann"}},
            {"messageId": "m2", "content": "I am Bob", "user": {"userId": "2", "name": "Bob"}},
        ],
    }
)


def test_a_conversation_is_paragraphs_and_an_entity_names_its_own(tmp_path):
    found = exported(
        tmp_path,
        make_run(media_type="conversational"),
        "label_studio",
        data_rows=[AT | {"row_data": CONVERSATION}],
        entities=[
            AT | {"feature": "person", "start": 5, "end": 8, "message_id": "m2"},
            AT | {"feature": "person", "start": 0, "end": 1, "message_id": "m3"},
        ],
        classifications=[
            AT | {"feature": "mood", "answer": "good"},
            AT | {"feature": "mood", "answer": "bad", "message_id": "m1"},
        ],
    )
    entity, mood = regions_of(found)
    assert entity["value"] == {
        "start": "1",
        "end": "1",
        "startOffset": 5,
        "endOffset": 8,
        "text": "Bob",
        "paragraphlabels": ["person"],
    }
    assert mood["value"] == {"choices": ["good"]}
    assert tasks_of(found)[0]["data"]["dialogue"][1] == {"author": "Bob", "text": "I am Bob"}
    assert found.lost == {"message_missing": 1, "kind_not_representable": 1}


def test_answers_and_those_nested_under_objects_and_answers(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "label_studio",
        boxes=[BOX | {"prediction_id": "b"}],
        masks=[mask("g.jpg", "lake", PROBE, prediction_id="m")],
        classifications=[
            AT | {"feature": "colour", "answer": "red", "parent_id": "b", "prediction_id": "c", "score": 0.5},
            AT | {"feature": "shade", "answer": "dark", "parent_id": "c"},
            AT | {"feature": "depth", "answer": "deep", "parent_id": "m"},
            AT | {"feature": "signs", "kind": "checklist", "answer": "joy", "score": 0.25},
            AT | {"feature": "signs", "kind": "checklist", "answer": "fear", "score": 0.75, "index": 1},
        ],
        texts=[AT | {"feature": "summary", "answer": "a cat", "score": 0.5}],
    )
    box, colour, shade, drawn, depth, signs, summary = regions_of(found)
    assert (colour["id"], colour["value"]["choices"], colour["value"]["x"]) == ("b", ["red"], box["value"]["x"])
    assert (shade["id"], shade["value"]["choices"]) == ("b", ["dark"])
    assert (depth["id"], depth["value"]) == (drawn["id"], {"choices": ["deep"]})
    assert (signs["value"], signs["score"]) == ({"choices": ["joy", "fear"]}, 0.25)
    assert (summary["type"], summary["value"], summary["score"]) == ("textarea", {"text": ["a cat"]}, 0.5)
    config = ET.fromstring(found.read("labeling_config.xml"))
    (control,) = (tag for tag in config if tag.get("name") == colour["from_name"])
    asked = [control.get(key) for key in ("perRegion", "whenTagName", "whenLabelValue", "choice")]
    assert asked == ["true", "boxes", "cat", "single"]
    assert found.lost == {"score_not_representable": 1}


def test_the_configuration_has_all_of_the_ontology_though_nothing_was_found(tmp_path):
    colour = Classification(
        "colour",
        FeatureKind.RADIO,
        "Which?",
        (
            Option("red", "Red", 0, (Classification("why", FeatureKind.TEXT, "Why?"),)),
            Option("blue", "Blue", 1),
        ),
    )
    tools = (
        Tool("car", FeatureKind.RECTANGLE, (colour,)),
        Tool("lake", FeatureKind.MASK),
        Tool("gone", FeatureKind.POINT),
    )
    signs = Classification("image", FeatureKind.CHECKLIST, "", (Option("a,b", "", 0),))
    run = make_run(mapping={"gone": None, "car": "vehicle"})
    run = replace(run, model=replace(run.model, ontology=Ontology(None, (signs,), tools)))
    config = ET.fromstring(exported(tmp_path, run, "label_studio").read("labeling_config.xml"))
    assert [tag.tag for tag in config] == [
        "Image",
        "RectangleLabels",
        "BrushLabels",
        "Header",
        "Choices",
        "Header",
        "TextArea",
        "Header",
        "Choices",
    ]
    assert [label.get("value") for label in config.iter("Label")] == ["vehicle", "lake"]
    assert [choice.get("value") for choice in config.iter("Choice")] == ["red", "blue", "a,b"]
    names = [tag.get("name") for tag in config if tag.get("name")]
    assert len(set(names)) == len(names)
    assert [header.get("value") for header in config.iter("Header")] == ["colour", "why", "image"]


def test_names_that_xml_cannot_hold_are_the_same_in_tasks_and_configuration(tmp_path):
    radio = AT | {"feature": 'mo"o&\0d', "answer": "<g\0>"}
    found = exported(tmp_path, make_run(), "label_studio", boxes=[BOX | {"feature": "c\0at"}], classifications=[radio])
    box, answer = regions_of(found)
    assert box["value"]["rectanglelabels"] == ["c\ufffdat"]
    assert answer["value"]["choices"] == ["<g\ufffd>"]
    assert found.lost == {"characters_replaced": 2}


def test_a_text_that_cannot_be_read_leaves_its_row_out(tmp_path):
    run, entity = make_run(media_type="text"), AT | {"feature": "person", "start": 0, "end": 1}
    found = exported(
        tmp_path, run, "label_studio", data_rows=[AT | {"row_data": "https://host/a.txt"}], entities=[entity]
    )
    assert tasks_of(found) == []
    assert found.lost == {"text_unavailable": 1}
    assert found.manifest["data_rows"]["left_out"] == {"text_unavailable": 1}


def test_texts_elsewhere_are_read_where_a_reader_is_given(tmp_path):
    run, store = make_run(media_type="text"), Store(tmp_path)
    fill(store, run, "0", data_rows=[AT | {"row_data": "https://host/a.txt"}])
    export_run(run, store, "label_studio", tmp_path / "out", read_text=lambda row: f"read from {row.row_data}")
    (task,) = json.loads((tmp_path / "out/tasks-00001.json").read_text())
    assert task["data"]["text"] == "read from https://host/a.txt"


def test_what_label_studio_cannot_hold_is_counted(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "label_studio",
        data_rows=[PICTURE, {"global_key": "unsized.jpg"}],
        boxes=[BOX | {"width": 0.0}, BOX | {"global_key": "unsized.jpg"}],
        lines=[AT | {"feature": "lane", "points": TRIANGLE}],
        masks=[mask("g.jpg", "lake", np.ones((4, 6)))],
    )
    assert found.lost == {
        "kind_not_representable": 1,
        "zero_size": 1,
        "picture_size_unknown": 1,
        "mask_size_differs": 1,
    }


def test_a_video_has_answers_about_all_of_it(tmp_path):
    found = exported(
        tmp_path,
        make_run(media_type="video"),
        "label_studio",
        boxes=[BOX | {"frame": 1}],
        classifications=[
            AT | {"feature": "scene", "answer": "street"},
            AT | {"feature": "x", "answer": "y", "frame": 1},
        ],
    )
    (scene,) = regions_of(found)
    assert (scene["to_name"], scene["value"]) == ("video", {"choices": ["street"]})
    assert found.lost == {"kind_not_representable": 2}


def test_more_than_5000_of_a_feature_keep_the_highest_scores(tmp_path):
    points = [AT | {"feature": "nose", "x": 1.0, "y": 1.0, "score": float(i > 0)} for i in range(PER_FEATURE + 1)]
    found = exported(tmp_path, make_run(), "label_studio", points=points)
    (task,) = tasks_of(found)
    assert len(task["predictions"][0]["result"]) == PER_FEATURE
    assert task["predictions"][0]["score"] == 1.0
    assert found.lost == {"too_many_per_feature": 1}
