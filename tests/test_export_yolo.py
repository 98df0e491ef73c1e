"""The YOLO exports: what Ultralytics' trainer takes, read back by globox and by pycocotools."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import yaml
from globox import Annotation
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from foundry_pipeline.exports.pictures import ltwh_of
from foundry_pipeline.exports.yolo import _number
from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import make_run, mask


def numbers_in(text):
    return [[float(word) for word in line.split()] for line in text.splitlines()]


def assert_trainable(text, classes):
    """What the trainer's loader asks of a label file, else it leaves the picture out."""
    lines = [line.split() for line in text.strip().splitlines()]
    if any(len(line) > 6 for line in lines):
        assert all(len(line) % 2 == 1 and len(line) >= 7 for line in lines)
    else:
        assert all(len(line) == 5 for line in lines)
    for line in lines:
        assert 0 <= int(line[0]) < classes
        assert all(0 <= float(word) <= 1 for word in line[1:])


def drawn(numbers, width=60, height=40):
    """The pixels of a line's polygon, by pycocotools."""
    ring = (np.array(numbers[1:]).reshape(-1, 2) * [width, height]).ravel().tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(coco_mask.frPyObjects([ring], height, width)[0]).astype(bool)


def test_a_box_is_its_class_and_its_centre_and_size_as_shares(tmp_path):
    found = exported(tmp_path, make_run(), "yolo_detect", boxes=[BOX | {"score": 0.77, "prediction_id": "p"}])
    assert numbers_in(found.read("labels/g.txt")) == [pytest.approx([0, 20 / 60, 16 / 40, 0.5, 0.5])]
    assert found.json_lines("scores.jsonl") == [
        {"file": "labels/g.txt", "line": 1, "prediction_id": "p", "score": 0.77}
    ]
    assert found.lost == {}


def test_data_yaml_lists_the_pictures_and_numbers_the_classes_in_the_ontologys_order(tmp_path):
    run = make_run(features={"Zebra": "rectangle", "no": "rectangle", "nose": "point"}, mapping={"Zebra": "1e3: x"})
    boxes = [BOX | {"feature": "no"}, BOX | {"feature": "Zebra"}, BOX | {"feature": "ant"}]
    found = exported(tmp_path, run, "yolo_detect", boxes=boxes)
    data = yaml.safe_load(found.read("data.yaml"))
    assert data == {"train": "images.txt", "val": "images.txt", "names": {0: "1e3: x", 1: "no", 2: "ant"}}
    assert sorted(int(line[0]) for line in numbers_in(found.read("labels/g.txt"))) == [0, 1, 2]
    assert found.read("images.txt") == "./images/g.jpg\n"
    (about,) = found.json_lines("images.jsonl")
    assert (about["file_name"], about["row_data"]) == ("g.jpg", "/data/g.jpg")


def test_globox_reads_the_boxes_that_were_written(tmp_path):
    rng = np.random.default_rng(3)
    rows = [PICTURE | {"global_key": f"{i}.jpg"} for i in range(4)]
    boxes = []
    for row in rows:
        for _ in range(5):
            ltwh = zip(
                ("left", "top", "width", "height"), [*rng.uniform(0, 30, 2), *rng.uniform(0.5, 10, 2)], strict=True
            )
            boxes.append(dict(ltwh) | {"global_key": row["global_key"], "feature": str(rng.choice(["cat", "dog"]))})
    found = exported(tmp_path, make_run(), "yolo_detect", data_rows=rows, boxes=boxes)
    names = yaml.safe_load(found.read("data.yaml"))["names"]
    for row in rows:
        path = found.folder / "labels" / row["global_key"].replace(".jpg", ".txt")
        assert_trainable(path.read_text(), 2)
        read = Annotation.from_yolo_v5(path, image_size=(60, 40))
        seen = sorted((names[int(b.label)], b.xmin, b.ymin, b.width, b.height) for b in read.boxes)
        said = sorted((b["feature"], *ltwh_of(b)) for b in boxes if b["global_key"] == row["global_key"])
        assert [one[0] for one in seen] == [one[0] for one in said]
        assert np.array([one[1:] for one in seen]) == pytest.approx(np.array([one[1:] for one in said]), abs=1e-5)


def test_a_picture_in_which_nothing_was_found_has_an_empty_file_and_an_unanswered_one_none(tmp_path):
    rows = [PICTURE | {"global_key": f"{name}.jpg"} for name in ("found", "empty", "failed", "new")]
    outcomes = {"failed.jpg": "failed", "new.jpg": None}
    boxes = [BOX | {"global_key": "found.jpg"}]
    found = exported(tmp_path, make_run(), "yolo_detect", data_rows=rows, outcomes=outcomes, boxes=boxes)
    assert [name for name in found.names() if name.endswith(".txt")] == [
        "images.txt",
        "labels/empty.txt",
        "labels/found.txt",
    ]
    assert found.read("labels/empty.txt") == ""
    assert found.read("images.txt") == "./images/found.jpg\n./images/empty.jpg\n"


def test_without_keep_empty_there_are_no_empty_files(tmp_path):
    run = replace(make_run(), keep_empty=False)
    found = exported(tmp_path, run, "yolo_detect")
    assert [name for name in found.names() if name.startswith("labels/")] == []
    assert found.manifest["data_rows"]["left_out"] == {"nothing_written": 1}


def test_a_file_of_an_earlier_export_is_gone_with_its_picture(tmp_path):
    exported(tmp_path, make_run(), "yolo_detect", data_rows=[PICTURE | {"global_key": "old.jpg"}])
    found = exported(tmp_path, make_run(), "yolo_detect")
    assert [name for name in found.names() if name.startswith("labels/")] == ["labels/g.txt"]


@pytest.mark.parametrize(
    ("ltwh", "line"),
    [
        pytest.param((-6.0, -4.0, 36.0, 24.0), [0.25, 0.25, 0.5, 0.5], id="top left"),
        pytest.param((30.0, 20.0, 99.0, 99.0), [0.75, 0.75, 0.5, 0.5], id="bottom right"),
    ],
)
def test_boxes_are_clipped_and_counted(tmp_path, ltwh, line):
    """The trainer leaves out a picture whose labels go past its edge."""
    box = BOX | dict(zip(("left", "top", "width", "height"), ltwh, strict=True))
    found = exported(tmp_path, make_run(), "yolo_detect", boxes=[box])
    assert numbers_in(found.read("labels/g.txt")) == [[0, *line]]
    assert found.lost == {"clipped_to_picture": 1}


def test_boxes_that_show_nothing_are_lost(tmp_path):
    boxes = [BOX | {"width": 0.0}, BOX | {"left": 60.0}, BOX | {"top": -20.0}]
    found = exported(tmp_path, make_run(), "yolo_detect", boxes=boxes)
    assert found.read("labels/g.txt") == ""
    assert found.lost == {"zero_size": 1, "outside_picture": 2}


def test_other_shapes_are_reduced_to_their_box_and_counted(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "yolo_detect",
        masks=[mask("g.jpg", "lake", PROBE), mask("g.jpg", "lake", np.zeros((40, 60)))],
        polygons=[AT | {"feature": "field", "points": TRIANGLE}],
        points=[AT | {"feature": "nose", "x": 1.0, "y": 1.0}],
    )
    assert numbers_in(found.read("labels/g.txt")) == [
        pytest.approx([1, 26.5 / 60, 13.5 / 40, 43 / 60, 23 / 40]),
        pytest.approx([0, 25 / 60, 0.5, 40 / 60, 0.75]),
    ]
    assert found.lost == {"reduced_to_box": 2, "zero_size": 1, "kind_not_representable": 1}


def test_a_mask_is_one_polygon_a_part_with_its_holes_filled_and_counted(tmp_path):
    """A usual writer makes two objects of it without a word, with IoU 0.242 and 0.758, or none."""
    found = exported(tmp_path, make_run(), "yolo_segment", masks=[mask("g.jpg", "lake", PROBE, score=0.5)])
    text = found.read("labels/g.txt")
    assert_trainable(text, 1)
    filled = PROBE.copy()
    filled[10:15, 10:15] = True
    lines = numbers_in(text)
    assert len(lines) == 2
    assert np.array_equal(drawn(lines[0]) | drawn(lines[1]), filled)
    assert found.lost == {"holes_filled": 1, "split_into_parts": 1}
    scores = found.json_lines("scores.jsonl")
    assert [(score["line"], score["score"]) for score in scores] == [(1, 0.5), (2, 0.5)]
    assert scores[0]["prediction_id"] == scores[1]["prediction_id"]


def test_a_polygon_is_clipped_to_the_picture(tmp_path):
    corners = [{"x": -10.0, "y": 0.0}, {"x": 30.0, "y": 0.0}, {"x": 30.0, "y": 20.0}, {"x": -10.0, "y": 20.0}]
    beside = [{"x": point["x"] + 100, "y": point["y"]} for point in corners]
    polygons = [AT | {"feature": "field", "points": p} for p in (corners, beside, TRIANGLE, TRIANGLE[:2])]
    found = exported(tmp_path, make_run(), "yolo_segment", polygons=polygons, boxes=[BOX])
    text = found.read("labels/g.txt")
    assert_trainable(text, 2)
    assert drawn(numbers_in(text)[0]).sum() == 600
    assert len(text.splitlines()) == 2
    lost = {"clipped_to_picture": 1, "outside_picture": 1, "too_few_points": 1, "kind_not_representable": 1}
    assert found.lost == lost


def test_a_picture_of_unknown_size_has_no_file_unless_nothing_was_found(tmp_path):
    """Shares of an unknown size cannot be said; an empty file would say that there is nothing."""
    rows = [{"global_key": "a.jpg"}, {"global_key": "b.jpg"}, {"global_key": "c.jpg"}]
    seen = BOX | {"global_key": "c.jpg", "image_width": 60, "image_height": 40}
    boxes = [BOX | {"global_key": "b.jpg"}, seen]
    found = exported(tmp_path, make_run(), "yolo_detect", data_rows=rows, boxes=boxes)
    assert found.read("images.txt") == "./images/a.jpg\n./images/c.jpg\n"
    assert found.lost == {"picture_size_unknown": 1}
    assert found.manifest["data_rows"]["left_out"] == {"picture_size_unknown": 1}


def test_a_picture_whose_key_is_no_file_name_gets_one_in_all_files(tmp_path):
    rows = [PICTURE | {"global_key": "../../evil", "row_data": "https://host/"}, PICTURE | {"global_key": "k" * 300}]
    found = exported(tmp_path, make_run(), "yolo_detect", data_rows=rows)
    labels = {name for name in found.names() if name.startswith("labels/")}
    assert len(labels) == 2
    assert {
        f"labels/{about['file_name'].rpartition('.')[0] or about['file_name']}.txt"
        for about in found.json_lines("images.jsonl")
    } == labels


def test_nested_answers_are_lost_and_counted(tmp_path):
    nested = AT | {"feature": "colour", "answer": "red", "parent_id": "b"}
    found = exported(
        tmp_path, make_run(), "yolo_detect", boxes=[BOX | {"prediction_id": "b"}], classifications=[nested]
    )
    assert found.lost == {"kind_not_representable": 1}


def test_other_media_have_no_place(tmp_path):
    run = make_run(media_type="text")
    found = exported(tmp_path, run, "yolo_detect", classifications=[AT | {"feature": "mood", "answer": "good"}])
    assert found.lost == {"not_importable_for_media": 1}
    assert found.manifest["data_rows"]["left_out"] == {"other_media_type": 1}


@settings(max_examples=200, deadline=None)
@given(st.floats(-0.001, 1.001))
def test_a_share_is_written_without_exponent_inside_0_to_1(share):
    text = _number(share)
    assert "e" not in text
    assert float(text) == pytest.approx(min(max(share, 0), 1), abs=1e-8)
