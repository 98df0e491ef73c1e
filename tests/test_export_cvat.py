"""The CVAT export: what CVAT's own SDK and globox read, and every attribute declared."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from cvat_sdk.masks import decode_mask, encode_mask
from globox import AnnotationSet
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foundry_pipeline.exports.cvat import row_runs
from foundry_pipeline.exports.units import PER_FEATURE
from foundry_pipeline.rle import from_dense
from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import make_run, mask


def document(found, name="annotations-00001.xml"):
    return ET.fromstring(found.read(name))


def attributes_of(element):
    return {attribute.get("name"): attribute.text or "" for attribute in element.iter("attribute")}


def pixels(element, width=60, height=40):
    """A mask's pixels, by CVAT's SDK: its API has the same runs, and the box's corners behind them."""
    left, top, w, h = (int(element.get(name)) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in element.get("rle").split(", ")]
    return decode_mask([*runs, left, top, left + w - 1, top + h - 1], image_width=width, image_height=height)


def test_a_picture_with_a_shape_of_each_kind(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "cvat",
        boxes=[BOX | {"score": 0.5}],
        polygons=[AT | {"feature": "field", "points": TRIANGLE}],
        lines=[AT | {"feature": "lane", "points": TRIANGLE[:2]}],
        points=[AT | {"feature": "nose", "x": 7.5, "y": 8.0}],
    )
    (image,) = document(found).iter("image")
    assert image.attrib == {"id": "0", "name": "g.jpg", "width": "60", "height": "40"}
    box, polygon, line, point = image
    assert box.attrib == {
        "label": "cat",
        "source": "auto",
        "occluded": "0",
        "xtl": "5.0",
        "ytl": "6.0",
        "xbr": "35.0",
        "ybr": "26.0",
        "z_order": "0",
    }
    assert attributes_of(box) == {"score": "0.5"}
    assert (polygon.tag, polygon.get("points")) == ("polygon", "5.0,5.0;45.0,5.0;5.0,35.0")
    assert (line.tag, line.get("points")) == ("polyline", "5.0,5.0;45.0,5.0")
    assert (point.tag, point.get("points")) == ("points", "7.5,8.0")
    assert attributes_of(point) == {}
    assert found.lost == {}


def test_a_mask_keeps_hole_and_parts_as_cvats_sdk_reads_it(tmp_path):
    found = exported(tmp_path, make_run(), "cvat", masks=[mask("g.jpg", "lake", PROBE, score=0.77)])
    (element,) = document(found).iter("mask")
    assert np.array_equal(pixels(element), PROBE)
    assert attributes_of(element) == {"score": "0.77"}
    assert found.lost == {}


@settings(max_examples=100, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))).filter(np.any))
def test_run_lengths_are_those_of_cvats_sdk(dense):
    assert row_runs(from_dense(dense)) == encode_mask(dense)[:-4]


def test_the_example_of_a_box_of_ones_begins_with_no_zeros(tmp_path):
    dense = np.zeros((40, 60), bool)
    dense[1:4, 2:6] = True
    found = exported(tmp_path, make_run(), "cvat", masks=[mask("g.jpg", "lake", dense)])
    (element,) = document(found).iter("mask")
    assert [element.get(key) for key in ("rle", "left", "top", "width", "height")] == ["0, 12", "2", "1", "4", "3"]


def test_globox_reads_the_boxes(tmp_path):
    rows = [PICTURE, PICTURE | {"global_key": "h.jpg"}, PICTURE | {"global_key": "empty.jpg"}]
    boxes = [BOX | {"score": 0.5}, BOX | {"global_key": "h.jpg", "feature": "dog"}]
    found = exported(tmp_path, make_run(), "cvat", data_rows=rows, boxes=boxes)
    read = AnnotationSet.from_cvat(found.folder / "annotations-00001.xml")
    seen = {image: [(b.label, b.xmin, b.ymin, b.xmax, b.ymax) for b in read[image].boxes] for image in read.image_ids}
    assert seen == {"g.jpg": [("cat", 5, 6, 35, 26)], "h.jpg": [("dog", 5, 6, 35, 26)], "empty.jpg": []}


def test_answers_are_tags_and_nested_ones_attributes_of_their_object(tmp_path):
    at = AT | {"prediction_id": "w", "answer": "rain"}
    found = exported(
        tmp_path,
        make_run(),
        "cvat",
        boxes=[BOX | {"prediction_id": "b"}],
        classifications=[
            AT | {"feature": "colour", "answer": "red", "parent_id": "b", "prediction_id": "c", "score": 0.5},
            AT | {"feature": "shade", "answer": "dark", "parent_id": "c"},
            AT | {"feature": "damage", "kind": "checklist", "answer": "dent", "parent_id": "b"},
            AT | {"feature": "damage", "kind": "checklist", "answer": "rust", "parent_id": "b", "index": 1},
            at | {"feature": "weather", "score": 0.25},
            AT | {"feature": "strength", "answer": "heavy", "parent_id": "w"},
        ],
        texts=[AT | {"feature": "summary", "answer": "two\nlines & <more>"}],
    )
    box, weather, summary = next(document(found).iter("image"))
    assert attributes_of(box) == {
        "colour": "red",
        "colour/red/shade": "dark",
        "damage: dent": "true",
        "damage: rust": "true",
    }
    assert (weather.tag, weather.get("label")) == ("tag", "weather")
    assert attributes_of(weather) == {"answer": "rain", "score": "0.25", "strength": "heavy"}
    assert attributes_of(summary) == {"answer": "two\nlines & <more>"}
    assert found.lost == {"score_not_representable": 1}


def test_every_label_and_attribute_is_declared_in_every_file_and_as_raw_labels(tmp_path):
    rows = [PICTURE | {"global_key": f"{i:04}.jpg"} for i in range(1_001)]
    first, last = rows[0]["global_key"], rows[-1]["global_key"]
    boxes = [BOX | {"global_key": first}, BOX | {"global_key": last, "score": 0.5, "prediction_id": "b"}]
    damage = {"global_key": last, "feature": "damage", "kind": "checklist", "answer": "dent", "parent_id": "b"}
    found = exported(tmp_path, make_run(), "cvat", data_rows=rows, boxes=boxes, classifications=[damage])
    names = [name for name in found.names() if name.endswith(".xml")]
    assert names == ["annotations-00001.xml", "annotations-00002.xml"]
    for name in names:
        (label,) = document(found, name).iter("label")
        declared = {(a.findtext("name"), a.findtext("input_type")) for a in label.iter("attribute")}
        assert (label.findtext("name"), declared) == ("cat", {("score", "text"), ("damage: dent", "checkbox")})
    images = [image.get("id") for name in names for image in document(found, name).iter("image")]
    assert images == [str(i) for i in range(1_001)]
    (raw,) = json.loads(found.read("labels.json"))
    assert raw["name"] == "cat"
    assert [attribute["name"] for attribute in raw["attributes"]] == ["damage: dent", "score"]


def test_an_empty_export_is_a_valid_file(tmp_path):
    run = replace(make_run(), keep_empty=False)
    assert list(document(exported(tmp_path, run, "cvat")).iter("image")) == []


def test_pictures_have_names_by_which_cvat_finds_them(tmp_path):
    rows = [PICTURE | {"global_key": f"{c}/1.jpg", "row_data": f"/data/{c}/1.jpg"} for c in "ab"]
    found = exported(tmp_path, make_run(), "cvat", data_rows=[*rows, {"global_key": "unsized.jpg"}])
    assert [image.get("name") for image in document(found).iter("image")] == ["a/1.jpg", "b/1.jpg", "unsized.jpg"]
    assert [about["row_data"] for about in found.json_lines("images.jsonl")][:2] == ["/data/a/1.jpg", "/data/b/1.jpg"]


def test_what_is_past_the_edge_is_clipped_or_lost(tmp_path):
    outside = [{"x": 100.0, "y": 5.0}, {"x": 130.0, "y": 5.0}, {"x": 100.0, "y": 30.0}]
    found = exported(
        tmp_path,
        make_run(),
        "cvat",
        boxes=[BOX | {"left": -5.0}, BOX | {"left": 60.0}],
        polygons=[AT | {"feature": "field", "points": points} for points in (outside, [*TRIANGLE, outside[0]])],
        points=[AT | {"feature": "nose", "x": 61.0, "y": 1.0}],
        masks=[mask("g.jpg", "lake", np.zeros((40, 60))), mask("g.jpg", "lake", np.ones((4, 6)))],
    )
    assert next(document(found).iter("box")).get("xtl") == "0.0"
    assert found.lost == {
        "clipped_to_picture": 2,
        "outside_picture": 3,
        "zero_size": 1,
        "mask_size_differs": 1,
    }


@pytest.mark.parametrize("text", ["a\0b", "a\x1bb", "a\ufffeb"])
def test_characters_that_xml_cannot_hold_are_replaced_and_counted(tmp_path, text):
    found = exported(tmp_path, make_run(), "cvat", texts=[AT | {"feature": "summary", "answer": text}])
    (tag,) = document(found).iter("tag")
    assert attributes_of(tag) == {"answer": "a\ufffdb"}
    assert found.lost == {"characters_replaced": 1}


def test_more_than_5000_of_a_feature_keep_the_highest_scores(tmp_path):
    points = [AT | {"feature": "nose", "x": 1.0, "y": 1.0, "score": float(i > 0)} for i in range(PER_FEATURE + 1)]
    found = exported(tmp_path, make_run(), "cvat", points=points)
    scores = [attributes_of(point)["score"] for point in document(found).iter("points")]
    assert (len(scores), set(scores)) == (PER_FEATURE, {"1.0"})
    assert found.lost == {"too_many_per_feature": 1}


def test_what_cvat_cannot_hold_is_counted(tmp_path):
    edge = AT | {"feature": "near", "source_id": "a", "target_id": "b"}
    assert exported(tmp_path, make_run(), "cvat", edges=[edge]).lost == {"kind_not_representable": 1}
