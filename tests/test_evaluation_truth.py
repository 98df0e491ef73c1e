"""Ground truth files: what is read, what is named as unused, and what is refused with its place."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.evaluation.annotation_truth import annotation_truth
from foundry_pipeline.evaluation.coco_truth import coco_truth
from foundry_pipeline.evaluation.evaluate import read_truth
from foundry_pipeline.evaluation.truth import Truth
from foundry_pipeline.png import rle_png
from foundry_pipeline.rle import from_dense

BOX = {"id": 1, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4]}


def document(annotation: dict[str, Any] | None = None, image: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.jpg", "width": 20, "height": 10} | (image or {})],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [BOX | (annotation or {})],
    }


def lines(*items: dict[str, Any]) -> Truth:
    rows = [DataRow("id-a", "a", "text", ""), DataRow("id-b", "b", "text", "")]
    return annotation_truth([json.dumps(item) for item in items], "truth.ndjson", rows)


@pytest.mark.parametrize(
    ("image", "keys", "key"),
    [
        ({}, ["a.jpg"], "a.jpg"),
        ({"file_name": "train/a.jpg"}, ["a.jpg"], "a.jpg"),
        ({}, ["s3://bucket/a.jpg", "b.jpg"], "s3://bucket/a.jpg"),
        ({"global_key": "row-1"}, ["row-1", "a.jpg"], "row-1"),
    ],
)
def test_an_image_finds_its_data_row(image: dict[str, Any], keys: list[str], key: str) -> None:
    assert coco_truth(document(image=image), "truth.json", keys).rows == {key}


def test_a_file_name_that_two_data_rows_end_in_is_neithers() -> None:
    truth = coco_truth(document(), "truth.json", ["x/a.jpg", "y/a.jpg"])
    assert truth.rows == frozenset()
    assert truth.unused == {"image_not_in_the_dataset": 1, "annotation_of_an_image_not_in_the_dataset": 1}


def test_an_image_without_annotations_has_been_looked_at() -> None:
    assert coco_truth(document() | {"annotations": []}, "truth.json", ["a.jpg"]).rows == {"a.jpg"}


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({"bbox": [1, 2, 3]}, r"annotations\[0\].*bbox"),
        ({"bbox": [1, 2, -3, 4]}, "bbox"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox"),
        ({"bbox": None}, "bbox"),
        ({"image_id": 99}, "image 99"),
        ({"image_id": [5]}, "ids of an image"),
        ({"category_id": "cat"}, "category 'cat'"),
        ({"segmentation": {"size": [10, 20], "counts": "35P"}}, "segmentation"),
        ({"segmentation": {"size": [20, 10], "counts": [200]}}, "segmentation"),
        ({"segmentation": [[1, 2, 3, 4]]}, "three at least"),
        ({"segmentation": [[1e30, 2, 3, 4, 5, 6]]}, "three at least"),
        ({"segmentation": "everything"}, "rings"),
    ],
)
def test_a_bad_coco_annotation_is_refused_with_its_place(annotation: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        coco_truth(document(annotation), "truth.json", ["a.jpg"])


@pytest.mark.parametrize("broken", [{"images": 5}, {"categories": [5]}, {"images": [{"id": "five"}]}])
def test_a_document_that_is_no_coco_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        coco_truth(document() | broken, "truth.json", ["a.jpg"])


def test_every_kind_of_line_is_read() -> None:
    dense = np.zeros((6, 8), bool)
    dense[1:3, 2:5] = True
    png = base64.b64encode(rle_png(from_dense(dense))).decode()
    place = {"dataRow": {"globalKey": "a"}}
    truth = lines(
        {**place, "name": "cat", "bbox": {"top": 1, "left": 2, "width": 3, "height": 4}},
        {**place, "name": "sky", "mask": {"png": png}},
        {**place, "name": "person", "location": {"start": 5, "end": 7}},
        {**place, "name": "mood", "answer": {"name": "glad"}},
        {**place, "name": "tags", "answer": [{"name": "x"}, {"name": "y"}]},
        {"dataRow": {"id": "id-b"}, "name": "summary", "answer": "short"},
    )
    assert [box.box_ltwh for box in truth.boxes] == [(2, 1, 3, 4)]
    assert [mask.rle for mask in truth.masks] == [from_dense(dense)]
    assert [(e.start, e.end) for e in truth.entities] == [(5, 8)]
    assert [(c.feature, c.answers) for c in truth.choices] == [("mood", ("glad",)), ("tags", ("x", "y"))]
    assert [(t.global_key, t.answers) for t in truth.texts] == [("b", ("short",))]
    assert truth.rows == {"a", "b"}


def test_lines_that_nothing_is_compared_with_are_counted() -> None:
    truth = lines(
        {"dataRow": {"globalKey": "elsewhere"}, "name": "cat", "bbox": {}},
        {"dataRow": {"globalKey": "a"}, "name": "road", "line": [{"x": 1, "y": 2}]},
        {"dataRow": {"globalKey": "a"}, "name": "sky", "mask": {"instanceURI": "https://example.com/m.png"}},
    )
    assert truth.unused == {
        "line_of_a_data_row_not_in_the_dataset": 1,
        "kind_that_is_not_compared": 1,
        "mask_that_is_not_in_its_line": 1,
    }


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "5",
        '{"name": "cat"}',
        '{"dataRow": {"globalKey": "a"}, "name": "cat", "bbox": {"left": 1}}',
        '{"dataRow": {"globalKey": "a"}, "name": "cat", "bbox": {"left": 1, "top": 1, "width": -1, "height": 1}}',
        '{"dataRow": {"globalKey": "a"}, "name": "sky", "mask": {"png": "not base64!"}}',
        '{"dataRow": {"globalKey": "a"}, "name": "sky", "mask": {"png": "AAAA"}}',
        '{"dataRow": {"globalKey": "a"}, "name": "p", "location": {"start": "x"}}',
        "[" * 100_000,
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str) -> None:
    rows = [DataRow("id-a", "a", "text", "")]
    with pytest.raises(ConfigError, match=r"truth.ndjson:2: "):
        annotation_truth(["", line], "truth.ndjson", rows)


def test_the_content_says_which_format_it_is() -> None:
    row = DataRow("id", "a.jpg", "image", "")
    assert read_truth(json.dumps(document(), indent=1).encode(), "truth.json", [row]).boxes
    line = {"dataRow": {"globalKey": "a.jpg"}, "name": "mood", "answer": {"name": "glad"}}
    assert read_truth(b"\xef\xbb\xbf" + json.dumps(line).encode(), "truth.json", [row]).choices
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_truth(b"\xff\xfe", "truth.json", [row])
