"""The Pascal VOC export: pixels counted from 1, palette pictures, and scores in the challenge's result files."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from globox import Annotation
from PIL import Image

from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import make_run, mask


def corners_in(found, name="Annotations/g.xml"):
    boxes = ET.fromstring(found.read(name)).iter("bndbox")
    return [tuple(int(box.findtext(corner)) for corner in ("xmin", "ymin", "xmax", "ymax")) for box in boxes]


def picture(found, name):
    """The places in the palette."""
    opened = Image.open(found.folder / name)
    assert opened.mode == "P"
    return np.asarray(opened)


def results(found, word="cat"):
    return [line.split() for line in found.read(f"results/Main/comp4_det_test_{word}.txt").splitlines()]


@pytest.mark.parametrize(
    ("ltwh", "corners", "lost"),
    [
        pytest.param((0.0, 0.0, 1.0, 1.0), (1, 1, 1, 1), {}, id="one pixel"),
        pytest.param((5.0, 6.0, 30.0, 20.0), (6, 7, 35, 26), {}, id="whole"),
        pytest.param((5.5, 6.5, 30.0, 20.0), (6, 7, 36, 27), {"rounded_to_pixels": 1}, id="between pixels"),
        pytest.param((2.1, 0.0, 3.9, 0.3), (3, 1, 6, 1), {"rounded_to_pixels": 1}, id="a sum of floats"),
        pytest.param((-5.0, 30.0, 99.0, 99.0), (1, 31, 60, 40), {"clipped_to_picture": 1}, id="past the edge"),
    ],
)
def test_corners_are_whole_pixels_from_1_both_inclusive(tmp_path, ltwh, corners, lost):
    box = BOX | dict(zip(("left", "top", "width", "height"), ltwh, strict=True)) | {"score": 0.5}
    found = exported(tmp_path, make_run(), "pascal_voc", boxes=[box])
    assert corners_in(found) == [corners]
    assert found.lost == lost


def test_globox_reads_the_annotation(tmp_path):
    boxes = [BOX | {"score": 0.5}, BOX | {"feature": "dog", "left": 0.0}]
    found = exported(tmp_path, make_run(), "pascal_voc", boxes=boxes)
    read = Annotation.from_pascal_voc(found.folder / "Annotations/g.xml")
    assert (read.image_id, read.image_size) == ("g.jpg", (60, 40))
    assert [(b.label, b.xmin, b.ymin, b.xmax, b.ymax) for b in read.boxes] == [
        ("cat", 6, 7, 35, 26),
        ("dog", 1, 7, 30, 26),
    ]


def test_scores_stand_in_the_result_files_unrounded(tmp_path):
    boxes = [BOX | {"left": 5.25, "score": 0.77}, BOX | {"score": 0.0}, BOX]
    found = exported(tmp_path, make_run(features={"cat": "rectangle", "dog": "rectangle"}), "pascal_voc", boxes=boxes)
    assert results(found) == [
        ["g", "0.77", "6.25", "7", "35.25", "26"],
        ["g", "0", "6", "7", "35", "26"],
        ["g", "1", "6", "7", "35", "26"],
    ]
    assert results(found, "dog") == []
    assert found.lost == {"score_missing_written_as_1": 1, "rounded_to_pixels": 1}


def test_a_mask_keeps_hole_and_parts_in_both_palette_pictures(tmp_path):
    run = make_run(features={"tree": "raster-segmentation", "lake": "raster-segmentation"})
    found = exported(tmp_path, run, "pascal_voc", masks=[mask("g.jpg", "lake", PROBE, score=0.5)])
    assert np.array_equal(picture(found, "SegmentationClass/g.png"), PROBE * 2)
    assert np.array_equal(picture(found, "SegmentationObject/g.png"), PROBE)
    assert corners_in(found) == [(6, 3, 48, 25)]
    assert found.lost == {}
    colours = Image.open(found.folder / "SegmentationClass/g.png").convert("RGB")
    assert (colours.getpixel((6, 6)), colours.getpixel((0, 0))) == ((0, 128, 0), (0, 0, 0))
    assert found.read("labelmap.txt").splitlines()[1:] == [
        "background:0,0,0::",
        "tree:128,0,0::",
        "lake:0,128,0::",
    ]


def test_of_overlapping_masks_the_higher_score_is_on_top(tmp_path):
    left, right = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    left[:, :40] = True
    right[:, 20:] = True
    masks = [mask("g.jpg", "lake", left, score=0.9), mask("g.jpg", "lake", right, score=0.1, index=1)]
    found = exported(tmp_path, make_run(), "pascal_voc", masks=masks)
    instances = picture(found, "SegmentationObject/g.png")
    assert (instances[0, 30], instances[0, 50]) == (1, 2)
    assert found.lost == {"partly_hidden": 1}


def test_a_polygon_is_drawn_and_counted(tmp_path):
    polygons = [AT | {"feature": "field", "points": TRIANGLE, "score": 0.5}]
    found = exported(tmp_path, make_run(), "pascal_voc", polygons=polygons)
    assert picture(found, "SegmentationObject/g.png").sum() == pytest.approx(600, rel=0.05)
    assert corners_in(found) == [(6, 6, 45, 35)]
    assert found.lost == {"drawn_as_pixels": 1}


def test_what_the_palette_has_no_room_for_is_counted(tmp_path):
    dense = np.zeros((40, 60), bool)
    dense[0, 0] = True
    masks = [mask("g.jpg", "lake", dense, score=0.5, index=i) for i in range(256)]
    found = exported(tmp_path, make_run(), "pascal_voc", masks=masks)
    assert len(corners_in(found)) == 256
    assert found.lost == {"partly_hidden": 253, "mask_not_drawn": 2}


def test_a_picture_in_which_nothing_was_found_has_an_xml_and_empty_pictures(tmp_path):
    run = make_run(features={"lake": "raster-segmentation"})
    rows = [PICTURE, PICTURE | {"global_key": "failed.jpg"}]
    found = exported(tmp_path, run, "pascal_voc", data_rows=rows, outcomes={"failed.jpg": "failed"})
    assert corners_in(found) == []
    assert not picture(found, "SegmentationClass/g.png").any()
    assert found.read("ImageSets/Main/trainval.txt") == "g\n"
    assert found.read("ImageSets/Segmentation/trainval.txt") == "g\n"
    none = exported(tmp_path / "none", replace(run, keep_empty=False), "pascal_voc", data_rows=rows)
    assert none.read("ImageSets/Main/trainval.txt") == ""


def test_a_run_without_masks_has_no_palette_pictures(tmp_path):
    found = exported(tmp_path, make_run(), "pascal_voc", boxes=[BOX])
    assert not [name for name in found.names() if name.startswith("Segmentation")]


def test_names_are_one_word_in_lists_that_separate_by_spaces(tmp_path):
    rows = [PICTURE | {"global_key": "k", "row_data": "/data/a b.jpg"}]
    found = exported(tmp_path, make_run(), "pascal_voc", data_rows=rows, boxes=[BOX | {"global_key": "k"}])
    (stem,) = found.read("ImageSets/Main/trainval.txt").splitlines()
    assert stem.startswith("k-")
    assert f"Annotations/{stem}.xml" in found.names()
    assert results(found)[0][0] == stem
    (about,) = found.json_lines("images.jsonl")
    assert (about["file_name"], about["row_data"]) == (f"{stem}.jpg", "/data/a b.jpg")


def test_names_that_xml_cannot_hold_are_replaced_and_counted(tmp_path):
    found = exported(tmp_path, make_run(), "pascal_voc", boxes=[BOX | {"feature": "<c&\0at>", "score": 0.5}])
    assert ET.fromstring(found.read("Annotations/g.xml")).findtext("object/name") == "<c&\ufffdat>"
    assert found.lost == {"characters_replaced": 1}


def test_what_voc_cannot_hold_is_counted(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "pascal_voc",
        data_rows=[PICTURE, {"global_key": "unsized.jpg"}],
        boxes=[BOX | {"width": 0.0}, BOX | {"global_key": "unsized.jpg"}],
        masks=[mask("g.jpg", "lake", np.ones((4, 6)))],
        points=[AT | {"feature": "nose", "x": 1.0, "y": 1.0}],
        texts=[AT | {"feature": "summary", "answer": "a cat"}],
    )
    assert found.lost == {
        "kind_not_representable": 2,
        "zero_size": 1,
        "picture_size_unknown": 1,
        "mask_size_differs": 1,
    }
