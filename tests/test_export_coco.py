"""The COCO export: what pycocotools reads, measures and evaluates. pycocotools is the oracle throughout."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foundry_pipeline.exports import export_run
from foundry_pipeline.store import Store
from tests.warehouse import fill, make_run, mask

PICTURE = {"global_key": "g", "width": 60, "height": 40}
BOX = {"global_key": "g", "feature": "cat", "left": 5.0, "top": 5.0, "width": 50.0, "height": 33.0}
TRIANGLE = [{"x": 5.0, "y": 5.0}, {"x": 45.0, "y": 5.0}, {"x": 5.0, "y": 35.0}]


def exported(tmp_path, run, *, data_rows=(PICTURE,), outcomes=None, **tables):
    """(results, instances, what was lost or changed) of a run with one slice."""
    store = Store(tmp_path)
    fill(store, run, "000000", data_rows=data_rows, outcomes=outcomes, **tables)
    report = export_run(run, store, "coco")
    folder = tmp_path / f"annotations/run={run.name}/coco"
    results, instances = (json.loads((folder / name).read_text()) for name in ("results.json", "instances.json"))
    return results, instances, {**report.lost, **report.changed}


@contextlib.contextmanager
def pycocotools():
    """Its prints, and its warnings about its own use of numpy, are not ours."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pixels(rle):
    with pycocotools():
        return coco_mask.decode(rle)


def ground_truth(instances):
    truth = COCO()
    truth.dataset = json.loads(json.dumps(instances))
    truth.createIndex()
    return truth


def stats(instances, results, kind):
    """The twelve figures that COCOeval prints."""
    with pycocotools():
        truth = ground_truth(instances)
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def blob(seed, height=40, width=60):
    """A mask with a hole and a separate part."""
    at = np.random.default_rng(seed).integers(0, 8)
    dense = np.zeros((height, width), bool)
    dense[5 + at : 25 + at, 5:25] = True
    dense[10 + at : 15 + at, 10:15] = False
    dense[2:17, 40 : 48 + at] = True
    return dense


def pictures(count):
    return [PICTURE | {"global_key": f"{i}.jpg", "row_data": f"/data/{i}.jpg"} for i in range(count)]


def test_a_box_is_left_top_width_height_in_both_files_with_its_score(tmp_path):
    results, instances, lost = exported(tmp_path, make_run(), boxes=[BOX | {"score": 0.77}])
    assert results == [{"image_id": 1, "category_id": 1, "bbox": [5.0, 5.0, 50.0, 33.0], "score": 0.77}]
    assert instances["annotations"] == [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [5.0, 5.0, 50.0, 33.0],
            "area": 1650.0,
            "iscrowd": 0,
            "segmentation": [],
            "score": 0.77,
        }
    ]
    assert instances["categories"] == [{"id": 1, "name": "cat", "supercategory": ""}]
    assert lost == {}


def test_a_mask_keeps_hole_and_parts_pixel_for_pixel(tmp_path):
    dense = blob(1)
    results, instances, _ = exported(tmp_path, make_run(), masks=[mask("g", "lake", dense, score=0.0)])
    (result,), (annotation,) = results, instances["annotations"]
    assert np.array_equal(pixels(result["segmentation"]), dense)
    assert np.array_equal(pixels(annotation["segmentation"]), dense)
    with pycocotools():
        box = coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert annotation["area"] == dense.sum() == coco_mask.area(annotation["segmentation"])
    assert annotation["bbox"] == box
    assert (annotation["iscrowd"], result["score"], "bbox" in result) == (0, 0.0, False)


def test_a_polygon_is_its_ring_in_the_dataset_and_rle_in_the_results(tmp_path):
    polygons = [{"global_key": "g", "feature": "lake", "points": TRIANGLE, "score": 0.5}]
    results, instances, _ = exported(tmp_path, make_run(), polygons=polygons)
    (annotation,) = instances["annotations"]
    assert annotation["segmentation"] == [[5.0, 5.0, 45.0, 5.0, 5.0, 35.0]]
    assert annotation["bbox"] == [5.0, 5.0, 40.0, 30.0]
    assert annotation["area"] == pytest.approx(600, rel=0.05)
    with pycocotools():
        drawn = ground_truth(instances).annToMask(annotation)
    assert np.array_equal(pixels(results[0]["segmentation"]), drawn)


def test_boxes_are_not_clipped(tmp_path):
    results, instances, lost = exported(tmp_path, make_run(), boxes=[BOX | {"left": -5.0}])
    assert results[0]["bbox"] == instances["annotations"][0]["bbox"] == [-5.0, 5.0, 50.0, 33.0]
    assert "clipped_to_picture" not in lost


@pytest.mark.parametrize("kind", ["boxes", "masks", "polygons"])
def test_the_dataset_evaluates_against_the_results_to_ap_1(tmp_path, kind):
    """`iscrowd` 1 would give AP -1, an annotation id 0 would give 0.252."""
    rows = pictures(4)
    keys = [row["global_key"] for row in rows[:3]]
    tables = {
        "boxes": [BOX | {"global_key": k, "left": -9.0 + 4 * i, "score": 0.5} for i, k in enumerate(keys)],
        "masks": [mask(k, "lake", blob(i), score=0.5) for i, k in enumerate(keys)],
        "polygons": [{"global_key": k, "feature": "lake", "points": TRIANGLE, "score": 0.1} for k in keys],
    }
    results, instances, _ = exported(tmp_path, make_run(), data_rows=rows, **{kind: tables[kind]})
    figures = stats(instances, results, "bbox" if kind == "boxes" else "segm")
    assert figures[0] == pytest.approx(1.0)
    assert len(instances["images"]) == 4


def test_the_results_score_exactly_like_the_detections_they_came_from(tmp_path):
    """All twelve figures of COCOeval, on noisy detections over every score, 0.0 too."""
    rng = np.random.default_rng(7)
    rows = pictures(12)
    truth, originals, boxes = [], [], []
    for image_id, row in enumerate(rows, 1):
        for category_id, feature in enumerate(("cat", "dog"), 1):
            for _ in range(int(rng.integers(0, 5))):
                real = [*rng.uniform(0, 30, 2), *rng.uniform(2, 30, 2)]
                same = {"image_id": image_id, "category_id": category_id}
                truth.append(same | {"id": len(truth) + 1, "bbox": real, "area": real[2] * real[3], "iscrowd": 0})
                said = [float(side) for side in np.maximum(np.array(real) + rng.normal(0, 1.5, 4), 0)]
                score = float(rng.choice([0.0, 0.3, rng.random()]))
                originals.append(same | {"bbox": said, "score": score})
                ltwh = dict(zip(("left", "top", "width", "height"), said, strict=True))
                boxes.append({"global_key": row["global_key"], "feature": feature, "score": score, **ltwh})
    run = make_run(features={"cat": "rectangle", "dog": "rectangle"})
    results, instances, _ = exported(tmp_path, run, data_rows=rows, boxes=boxes)
    judged = instances | {"annotations": truth}
    before, after = stats(judged, originals, "bbox"), stats(judged, results, "bbox")
    assert before.tolist() == after.tolist()
    assert 0 < before[0] < 1


def test_boxes_and_masks_in_one_file_can_be_loaded(tmp_path):
    """`loadRes` asks every item for a box once the first has one."""
    results, instances, _ = exported(
        tmp_path, make_run(), boxes=[BOX | {"score": 0.5}], masks=[mask("g", "lake", blob(1), score=0.5)]
    )
    assert ["bbox" in item for item in results] == [True, True]
    assert stats(instances, results, "bbox")[0] == pytest.approx(1.0)


def test_a_missing_score_is_written_as_1_and_counted(tmp_path):
    """COCOeval sorts by score: an item without one is not valid."""
    results, instances, lost = exported(tmp_path, make_run(), boxes=[BOX])
    assert results[0]["score"] == 1.0
    assert "score" not in instances["annotations"][0]
    assert lost == {"score_missing_written_as_1": 1}


def test_boxes_and_masks_without_area_are_results_but_no_instances(tmp_path):
    """Dropping them from the results would change an evaluation; as ground truth they can never be found."""
    results, instances, lost = exported(
        tmp_path,
        make_run(),
        boxes=[BOX | {"width": 0.0, "score": 0.5}],
        masks=[mask("g", "lake", np.zeros((40, 60)), score=0.5)],
    )
    assert len(results) == 2
    assert instances["annotations"] == []
    assert lost == {"zero_size_only_in_results": 2}


def test_images_are_the_answered_pictures_with_or_without_detections(tmp_path):
    rows = [*pictures(3), PICTURE | {"global_key": "failed.jpg"}, PICTURE | {"global_key": "new.jpg"}]
    outcomes = {"failed.jpg": "rejected_by_model", "new.jpg": None}
    _, instances, _ = exported(
        tmp_path, make_run(), data_rows=rows, outcomes=outcomes, boxes=[BOX | {"global_key": "1.jpg"}]
    )
    assert instances["images"] == [
        {
            "id": i + 1,
            "file_name": f"{i}.jpg",
            "width": 60,
            "height": 40,
            "data_row_id": f"id-{i}.jpg",
            "global_key": f"{i}.jpg",
        }
        for i in range(3)
    ]
    assert instances["annotations"][0]["image_id"] == 2


def test_without_keep_empty_pictures_without_a_detection_are_left_out(tmp_path):
    run = replace(make_run(), keep_empty=False)
    _, instances, _ = exported(tmp_path, run, data_rows=pictures(3), boxes=[BOX | {"global_key": "1.jpg"}])
    assert [(image["id"], image["file_name"]) for image in instances["images"]] == [(1, "1.jpg")]
    manifest = json.loads((tmp_path / "annotations/run=run/coco/manifest.json").read_text())
    assert manifest["data_rows"]["left_out"] == {"nothing_written": 2}


def test_no_detections_at_all_are_an_empty_array_and_a_valid_dataset(tmp_path):
    results, instances, _ = exported(tmp_path, make_run(features={"cat": "rectangle"}))
    assert (results, instances["annotations"], len(instances["images"])) == ([], [], 1)
    assert [c["name"] for c in instances["categories"]] == ["cat"]


def test_file_names_are_basenames_and_keys_where_two_share_one(tmp_path):
    rows = [
        {"global_key": "a/1.jpg", "row_data": "/data/a/1.jpg"},
        {"global_key": "b/1.jpg", "row_data": "https://host/b/1.jpg?size=5&x=/no.png"},
        {"global_key": "c", "row_data": "https://host/a%20cat.jpg#top"},
        {"global_key": "d", "row_data": "/data/100%25.jpg"},
        {"global_key": "e", "row_data": "https://host/folder/"},
        {"global_key": "picture.jpg", "row_data": "/data/f.jpg"},
        {"global_key": "g", "row_data": "/data/picture.jpg"},
    ]
    _, instances, _ = exported(tmp_path, make_run(), data_rows=rows)
    names = [image["file_name"] for image in instances["images"]]
    assert names == ["a/1.jpg", "b/1.jpg", "a cat.jpg", "100%25.jpg", "e", "f.jpg", "g"]
    assert len(set(names)) == len(names)


def test_categories_follow_the_ontology_after_mapping_then_the_alphabet(tmp_path):
    run = make_run(
        features={
            "Person": "rectangle",
            "Zebra": "rectangle",
            "Rider": "rectangle",
            "Bird": "rectangle",
            "nose": "point",
        },
        mapping={"Person": "pedestrian", "Rider": "pedestrian", "Bird": None},
    )
    boxes = [BOX | {"feature": name} for name in ("yak", "ant", "Rider", "Bird", "Zebra")]
    results, instances, lost = exported(tmp_path, run, boxes=boxes)
    names = {c["id"]: c["name"] for c in instances["categories"]}
    assert names == {1: "pedestrian", 2: "Zebra", 3: "ant", 4: "yak"}
    assert sorted(names[item["category_id"]] for item in results) == ["Zebra", "ant", "pedestrian", "yak"]
    assert lost["mapped_to_null"] == 1


def test_the_pictures_size_falls_back_to_what_the_model_saw(tmp_path):
    rows = [{"global_key": name} for name in ("box", "mask", "neither")]
    _, instances, _ = exported(
        tmp_path,
        make_run(),
        data_rows=rows,
        boxes=[BOX | {"global_key": "box", "image_width": 64, "image_height": 48}],
        masks=[mask("mask", "lake", np.ones((3, 5)))],
    )
    assert [(i.get("width"), i.get("height")) for i in instances["images"]] == [(64, 48), (5, 3), (None, None)]


def test_F074_what_coco_cannot_hold_is_counted(tmp_path):
    same = {"global_key": "g"}
    far = [{"x": 1e9, "y": 0.0}, {"x": 5.0, "y": 5.0}, {"x": 0.0, "y": 1e9}]
    results, _, lost = exported(
        tmp_path,
        make_run(),
        boxes=[BOX | {"prediction_id": "b", "score": 0.5}],
        masks=[mask("g", "lake", np.ones((6, 8)))],
        polygons=[same | {"feature": "lake", "points": far}],
        points=[same | {"feature": "nose", "x": 1.0, "y": 1.0}],
        lines=[same | {"feature": "lane", "points": TRIANGLE}],
        entities=[same | {"feature": "person", "start": 0, "end": 1}],
        classifications=[same | {"feature": "colour", "answer": "red", "parent_id": "b"}],
        texts=[same | {"feature": "summary", "answer": "a cat"}],
    )
    assert len(results) == 1
    assert lost == {"kind_not_representable": 5, "outside_picture": 1, "mask_size_differs": 1}


def test_a_video_has_no_pictures_to_hold_its_boxes(tmp_path):
    results, instances, lost = exported(tmp_path, make_run(media_type="video"), boxes=[BOX | {"frame": 3}])
    assert (results, instances["images"]) == ([], [])
    assert lost == {"not_importable_for_media": 1}
