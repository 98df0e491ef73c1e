"""Boxes and masks against ground truth: pycocotools' figures to the last digit, verdicts, thresholds."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foundry_pipeline.evaluation.coco_truth import coco_truth
from foundry_pipeline.evaluation.detection import SUMMARY, FoundObject, evaluate_objects
from foundry_pipeline.evaluation.measures import BACKGROUND, Findings
from foundry_pipeline.rle import Rle, check, from_dense

CATEGORIES = {3: "cat", 7: "dog", 9: "cup"}
SIZE_HW = (60, 80)
Everything: Callable[[str], float] = lambda _: 0.0  # noqa: E731


def dense(box_ltwh: tuple[float, float, float, float]) -> np.ndarray[Any, Any]:
    left, top, width, height = map(int, box_ltwh)
    mask = np.zeros(SIZE_HW, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def truth_item(number: int, image: int, category: int, box: tuple[float, float, float, float], **more: Any) -> Any:
    left, top, width, height = box
    ring = [left, top, left + width, top, left + width, top + height, left, top + height]
    item = {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": width * height}
    return {**item, "iscrowd": 0, "segmentation": [ring], **more}


def document(annotations: list[Any], images: int = 4) -> dict[str, Any]:
    return {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": SIZE_HW[0], "width": SIZE_HW[1]} for n in range(images)
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "annotations": annotations,
    }


def random_world(seed: int) -> tuple[dict[str, Any], list[FoundObject]]:
    """Truths, some of them crowds, and detections near them, far from them, and of other classes; scores tie often."""
    dice = random.Random(seed)
    annotations, found = [], []
    for number in range(1, 30):
        image, category = dice.randrange(4), dice.choice(list(CATEGORIES))
        box = tuple(map(float, (dice.randrange(50), dice.randrange(40), dice.randrange(2, 30), dice.randrange(2, 20))))
        crowd = dice.random() < 0.1
        rle = {"size": list(SIZE_HW), "counts": from_dense(dense(box)).counts}  # type: ignore[arg-type]
        more = {"iscrowd": 1, "segmentation": rle} if crowd else {}
        annotations.append(truth_item(number, image, category, box, **more))  # type: ignore[arg-type]
        for _ in range(dice.randrange(3)):
            near = tuple(float(max(1, value + dice.randrange(-2, 3))) for value in box)
            name = CATEGORIES[category if dice.random() < 0.8 else dice.choice(list(CATEGORIES))]
            mask = from_dense(dense(near))  # type: ignore[arg-type]
            found.append(
                FoundObject(f"p{len(found)}", f"{image}.jpg", name, dice.randrange(1, 10) / 10, near, mask)  # type: ignore[arg-type]
            )
    return document(annotations), found


def expected(truths: dict[str, Any], found: list[FoundObject], iou_type: str) -> Any:
    """What a person gets who writes a results file and runs pycocotools on it."""
    numbers = {name: number for number, name in CATEGORIES.items()}
    results = [
        {
            "image_id": int(item.global_key.removesuffix(".jpg")),
            "category_id": numbers[item.feature],
            "score": item.score,
            **(
                {"bbox": list(item.box_ltwh)}
                if iou_type == "bbox"
                else {"segmentation": {"size": list(SIZE_HW), "counts": item.rle.counts}}  # type: ignore[union-attr]
            ),
        }
        for item in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(truths))
        coco.createIndex()
        judged = COCOeval(coco, coco.loadRes(results), iou_type)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def evaluated(table: str, truths: dict[str, Any], found: list[FoundObject], **more: Any) -> Findings:
    keys = [f"{n}.jpg" for n in range(len(truths["images"]))]
    truth = coco_truth(truths, "truth.json", keys)
    given = [f if table == "masks" else FoundObject(*(getattr(f, n) for n in PLAIN)) for f in found]
    return evaluate_objects(table, truth, keys, given, more.get("least", Everything))


PLAIN = ("prediction_id", "global_key", "feature", "score", "box_ltwh")


def value(findings: Findings, metric: str, feature: str = "") -> float | None:
    (found,) = (m.value for m in findings.measures if (m.metric, m.feature) == (metric, feature))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("table", "iou_type"), [("boxes", "bbox"), ("masks", "segm")])
def test_all_twelve_figures_are_pycocotools_own_to_the_last_digit(seed: int, table: str, iou_type: str) -> None:
    truths, found = random_world(seed)
    stats = expected(truths, found, iou_type).stats
    findings = evaluated(table, truths, found)
    assert [value(findings, name) for name in SUMMARY] == [None if s == -1 else s for s in stats]


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_a_class_is_the_mean_of_its_precisions(seed: int) -> None:
    truths, found = random_world(seed)
    judged = expected(truths, found, "bbox")
    findings = evaluated("boxes", truths, found)
    for place, number in enumerate(judged.params.catIds):
        precision = judged.eval["precision"][:, :, place, 0, 2]
        assert value(findings, "AP", CATEGORIES[number]) == np.mean(precision[precision > -1])


def test_ground_truth_against_itself_is_perfect() -> None:
    truths, _ = random_world(1)
    truths["annotations"] = [item for item in truths["annotations"] if not item["iscrowd"]]
    keys = [f"{n}.jpg" for n in range(4)]
    truth = coco_truth(truths, "truth.json", keys)
    same = [FoundObject(t.truth_id, t.global_key, t.feature, 0.9, t.box_ltwh, t.rle) for t in truth.masks]
    for table in ("boxes", "masks"):
        findings = evaluated(table, truths, same)
        assert value(findings, "AP") == 1.0
        assert value(findings, "f1") == 1.0
        assert {verdict.verdict for verdict in findings.verdicts} == {"match"}


def test_no_prediction_at_all_is_zero_and_not_an_error() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    findings = evaluated("boxes", truths, [])
    assert value(findings, "AP") == 0.0
    assert [verdict.verdict for verdict in findings.verdicts] == ["missed"]
    assert findings.min_scores == {}


def test_a_low_score_counts_for_ap_and_not_for_the_verdicts() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    found = [FoundObject("p", "0.jpg", "cat", 0.2, (10, 10, 20, 20))]
    findings = evaluated("boxes", truths, found, least=lambda _: 0.5)
    assert value(findings, "AP") == pytest.approx(1.0)
    assert value(findings, "recall") == 0.0
    assert findings.min_scores == {"cat": 0.2}


def test_a_box_in_its_place_under_another_name_is_taken_for_it() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    found = [FoundObject("p", "0.jpg", "dog", 0.9, (10, 10, 20, 21))]
    findings = evaluated("boxes", truths, found)
    (verdict,) = findings.verdicts
    assert (verdict.verdict, verdict.feature, verdict.true_feature) == ("wrong", "dog", "cat")
    (confusion,) = findings.confusions
    assert confusion.labels == ("cat", "dog")
    assert confusion.counts == ((0, 1), (0, 0))


def test_the_right_name_is_met_before_a_wrong_one_with_a_higher_score() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    found = [
        FoundObject("wrong", "0.jpg", "dog", 0.9, (10, 10, 20, 20)),
        FoundObject("right", "0.jpg", "cat", 0.3, (11, 10, 20, 20)),
    ]
    verdicts = {v.prediction_id: v.verdict for v in evaluated("boxes", truths, found).verdicts}
    assert verdicts == {"right": "match", "wrong": "extra"}


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong() -> None:
    rle = {"size": list(SIZE_HW), "counts": from_dense(dense((0, 0, 40, 40))).counts}
    truths = document([truth_item(1, 0, 3, (0, 0, 40, 40), iscrowd=1, segmentation=rle)])
    found = [FoundObject("p", "0.jpg", "cat", 0.9, (5, 5, 10, 10))]
    assert evaluated("boxes", truths, found).verdicts == ()


def test_misses_and_extras_stand_against_nothing_in_the_confusion() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    found = [FoundObject("p", "1.jpg", "dog", 0.9, (5, 5, 10, 10))]
    (confusion,) = evaluated("boxes", truths, found).confusions
    assert confusion.labels == ("cat", "dog", BACKGROUND)
    assert confusion.counts == ((0, 0, 1), (0, 0, 0), (0, 1, 0))


def test_the_best_threshold_is_the_one_no_other_beats() -> None:
    truths, found = random_world(2)
    findings = evaluated("boxes", truths, found)
    for feature, least in findings.min_scores.items():
        judged = {score: _f1_at(truths, found, feature, score) for score in {f.score or 0 for f in found}}
        assert value(findings, "best_f1", feature) == pytest.approx(max(judged.values()))
        assert judged[least] == pytest.approx(max(judged.values()))


def _f1_at(truths: dict[str, Any], found: list[FoundObject], feature: str, score: float) -> float:
    """From pycocotools' own matches of what passes the threshold."""
    kept = [f for f in found if f.feature == feature and (f.score or 0) >= score]
    if not kept:
        return 0.0
    judged = expected(truths, kept, "bbox")
    place = judged.params.catIds.index(next(n for n, name in CATEGORIES.items() if name == feature))
    images = len(judged.params.imgIds)
    shown = [e for e in judged.evalImgs[place * 4 * images : place * 4 * images + images] if e is not None]
    hits = sum(int(((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0].astype(bool)).sum()) for e in shown)
    said = sum(int((~e["dtIgnore"][0].astype(bool)).sum()) for e in shown)
    there = sum(int((np.asarray(e["gtIgnore"]) == 0).sum()) for e in shown)
    return 2 * hits / (said + there)


def test_features_that_the_truth_lacks_are_named_and_left_out() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    found = [FoundObject("p", "0.jpg", "unicorn", 0.9, (10, 10, 20, 20))]
    findings = evaluated("boxes", truths, found)
    assert "unicorn" in findings.notes[0]
    assert value(findings, "AP") == 0.0


def test_a_prediction_without_a_score_counts_as_sure_and_that_is_said() -> None:
    truths = document([truth_item(1, 0, 3, (10, 10, 20, 20))])
    findings = evaluated("boxes", truths, [FoundObject("p", "0.jpg", "cat", None, (10, 10, 20, 20))])
    assert value(findings, "AP") == pytest.approx(1.0)
    assert findings.notes == ("boxes: 1 predictions have no score and count as sure",)


def test_masks_of_polygons_are_filled_as_coco_fills_them(tmp_path: Path) -> None:
    ring = [10.3, 10.2, 30.7, 12.1, 20.0, 40.9]
    truths = document([truth_item(1, 0, 3, (10, 10, 21, 31), segmentation=[ring])])
    (mask,) = coco_truth(truths, "truth.json", ["0.jpg"]).masks
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truths
        coco.createIndex()
        oracle = coco.annToRLE(truths["annotations"][0])
    assert isinstance(mask.rle, Rle)
    assert mask.rle == check(oracle["size"], oracle["counts"].decode(), SIZE_HW)
