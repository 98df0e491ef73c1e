"""Boxes and masks against ground truth: COCO's AP and AR over all scores, and who was taken for whom.

AP and AR are pycocotools' own, to the last digit, over the features of the ground truth's file. The verdicts are at
IoU 0.5 and the run's `min_score`: first within a feature, best score first, then across features for what is left.
Source: cocodataset/cocoapi, `PythonAPI/pycocotools/cocoeval.py`.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from foundry_pipeline.evaluation.measures import (
    BACKGROUND,
    Curve,
    Findings,
    Measure,
    Verdict,
    confusion,
    f1_measures,
)
from foundry_pipeline.evaluation.truth import TrueObject, Truth
from foundry_pipeline.rle import Rle

MATCH_IOU = 0.5
SUMMARY = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""COCO's twelve figures, in its order. AR_10: with at most 10 detections a picture and class."""
_WITHOUT_SCORE = 1.0
_ALL_SIZES, _MOST_DETECTIONS = 0, 2
IouType = str


@dataclass(frozen=True, slots=True)
class FoundObject:
    """A predicted box or mask, under your name of its feature. `rle` for masks."""

    prediction_id: str
    global_key: str
    feature: str
    score: float | None
    box_ltwh: tuple[float, float, float, float]
    rle: Rle | None = None
    frame: int | None = None


Picture = tuple[str, int | None]
"""Global key, and the frame of a video."""
_NO_FRAMES: Mapping[str, Collection[int]] = {}


def evaluate_objects(
    table: str,
    truth: Truth,
    rows: Sequence[str],
    found: Sequence[FoundObject],
    least_score: Callable[[str], float],
    frames: Mapping[str, Collection[int]] = _NO_FRAMES,
) -> Findings:
    """The table `boxes` or `masks` on the data rows `rows`, which both sides have looked at; of videos on `frames`,
    global key -> numbers.

    `found` keeps the order of the replies: among equal scores COCO lets the first win.
    """
    compared = _numbered_pictures(truth, rows, frames)
    truths = [t for t in (truth.masks if table == "masks" else truth.boxes) if _picture_of(t) in compared]
    known = [f for f in found if _picture_of(f) in compared and f.feature in truth.category_ids]
    judged = _coco_eval(table, truth, compared, truths, known)
    features = {number: name for name, number in truth.category_ids.items()}
    best = {features[number]: _best_f1(judged, place) for place, number in enumerate(judged.params.catIds)}
    verdicts = tuple(
        _verdicts(table, truths, [f for f in known if (f.score is None or f.score >= least_score(f.feature))])
    )
    return Findings(
        measures=(
            *_summary(table, judged, len(truths), len(known)),
            *_by_feature(table, judged, features, best),
            *_at_threshold(table, verdicts),
        ),
        verdicts=verdicts,
        confusions=(confusion(f"{table} at IoU {MATCH_IOU}", _pairs(verdicts), list(truth.category_ids)),),
        curves=tuple(_curves(table, judged, features)),
        min_scores={name: b.min_score for name, b in best.items() if b is not None},
        notes=tuple(_notes(table, truth, found, known, compared)),
    )


def _numbered_pictures(
    truth: Truth, rows: Sequence[str], frames: Mapping[str, Collection[int]]
) -> Mapping[Picture, int]:
    """What is compared, numbered from 1 in the order of the file's own numbers, which fixes the order of sums."""
    keys = sorted(rows, key=lambda key: truth.image_ids[key])
    pictures = [(key, frame) for key in keys for frame in (sorted(frames.get(key, ())) or (None,))]
    return {picture: number for number, picture in enumerate(pictures, 1)}


def _picture_of(item: TrueObject | FoundObject) -> Picture:
    return item.global_key, item.frame


def _coco_eval(
    table: str,
    truth: Truth,
    image_ids: Mapping[Picture, int],
    truths: Sequence[TrueObject],
    found: Sequence[FoundObject],
) -> Any:
    iou_type = "segm" if table == "masks" else "bbox"
    about = {
        "images": [{"id": number, "height": 1, "width": 1} for number in image_ids.values()],  # asked for, and not used
        "categories": [{"id": number, "name": name} for name, number in truth.category_ids.items()],
    }
    true_items = [_true_item(truth, image_ids, place, item) for place, item in enumerate(truths, 1)]
    found_items = [_found_item(truth, image_ids, place, item) for place, item in enumerate(found, 1)]
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress to whoever listens
        judged = COCOeval(_coco(about, true_items), _coco(about, found_items), iou_type)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def _coco(about: Mapping[str, object], items: list[dict[str, Any]]) -> COCO:
    """An index of items. `loadRes` fails on an empty list, and copies the rest."""
    index = COCO()
    index.dataset = {**about, "annotations": items}
    index.createIndex()
    return index


def _true_item(truth: Truth, image_ids: Mapping[Picture, int], number: int, item: TrueObject) -> dict[str, Any]:
    """Numbered from 1: COCOeval takes the number 0 for "no match"."""
    return {
        "id": number,
        "image_id": image_ids[_picture_of(item)],
        "category_id": truth.category_ids[item.feature],
        "bbox": list(item.box_ltwh),
        "area": item.area,
        "iscrowd": int(item.crowd),
        **({"segmentation": _segmentation(item.rle)} if item.rle else {}),
    }


def _found_item(truth: Truth, image_ids: Mapping[Picture, int], number: int, item: FoundObject) -> dict[str, Any]:
    _, _, width, height = item.box_ltwh
    return {
        "id": number,
        "image_id": image_ids[_picture_of(item)],
        "category_id": truth.category_ids[item.feature],
        "bbox": list(item.box_ltwh),
        "area": item.rle.area if item.rle else width * height,
        "iscrowd": 0,
        "score": _score(item),
        **({"segmentation": _segmentation(item.rle)} if item.rle else {}),
    }


def _score(item: FoundObject) -> float:
    return _WITHOUT_SCORE if item.score is None else item.score


def _segmentation(rle: Rle) -> dict[str, Any]:
    return {"size": list(rle.size_hw), "counts": rle.counts}


def _summary(table: str, judged: Any, truths: int, predictions: int) -> Iterator[Measure]:
    for name, value in zip(SUMMARY, judged.stats, strict=True):
        yield Measure(table, name, _said(value), truths, predictions)


def _by_feature(
    table: str, judged: Any, features: Mapping[int, str], best: Mapping[str, _Best | None]
) -> Iterator[Measure]:
    truths = Counter(features[item["category_id"]] for item in judged.cocoGt.anns.values())
    predictions = Counter(features[item["category_id"]] for item in judged.cocoDt.anns.values())
    for place, number in enumerate(judged.params.catIds):
        name = features[number]
        of_all = judged.eval["precision"][:, :, place, _ALL_SIZES, _MOST_DETECTIONS]
        values: dict[str, float | None] = {
            "AP": _mean(of_all),
            "AP50": _mean(of_all[0]),
            "AR_100": _mean(judged.eval["recall"][:, place, _ALL_SIZES, _MOST_DETECTIONS]),
        }
        found = best[name]
        if found is not None:
            values |= {"best_f1": found.f1, "best_f1_min_score": found.min_score}
        for metric, value in values.items():
            yield Measure(table, metric, value, truths[name], predictions[name], name)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Over what COCO could say; it writes -1 where there is no truth."""
    sayable = values[values > -1]
    return float(sayable.mean()) if sayable.size else None


def _said(value: float) -> float | None:
    return None if value == -1 else float(value)


def _curves(table: str, judged: Any, features: Mapping[int, str]) -> Iterator[Curve]:
    for place, number in enumerate(judged.params.catIds):
        precision = judged.eval["precision"][0, :, place, _ALL_SIZES, _MOST_DETECTIONS]
        if (precision > -1).any():
            yield Curve(table, features[number], tuple(map(float, precision)))


@dataclass(frozen=True, slots=True)
class _Best:
    f1: float
    min_score: float


def _best_f1(judged: Any, category_place: int) -> _Best | None:
    """The threshold at which a feature's F1 at IoU 0.5 is best; None where there is no truth or no prediction."""
    images = len(judged.params.imgIds)
    begin = category_place * len(judged.params.areaRng) * images  # ordered by category, then size, then image
    shown = [item for item in judged.evalImgs[begin : begin + images] if item is not None]
    truths = sum(int(np.count_nonzero(np.asarray(item["gtIgnore"]) == 0)) for item in shown)
    scores = np.concatenate([item["dtScores"] for item in shown] or [[]])
    if not truths or not scores.size:
        return None
    counted = ~np.concatenate([item["dtIgnore"][0] for item in shown]).astype(bool)
    right = np.concatenate([item["dtMatches"][0] for item in shown]) > 0
    order = np.argsort(-scores, kind="mergesort")
    scores, counted, right = scores[order], counted[order], right[order]
    hits, said = np.cumsum(right & counted), np.cumsum(counted)
    f1 = 2 * hits / (truths + said)
    last_of_score = np.append(scores[1:] != scores[:-1], True)
    place = int(np.argmax(np.where(last_of_score, f1, -1.0)))
    return _Best(float(f1[place]), float(scores[place])) if hits[place] else None


def _verdicts(table: str, truths: Sequence[TrueObject], found: Sequence[FoundObject]) -> Iterator[Verdict]:
    by_picture: defaultdict[Picture, tuple[list[TrueObject], list[FoundObject]]] = defaultdict(lambda: ([], []))
    for true in truths:
        by_picture[_picture_of(true)][0].append(true)
    for said in found:
        by_picture[_picture_of(said)][1].append(said)
    for picture in sorted(by_picture):
        there, here = by_picture[picture]
        yield from _row_verdicts(table, there, sorted(here, key=_score, reverse=True))


def _row_verdicts(table: str, truths: list[TrueObject], found: list[FoundObject]) -> Iterator[Verdict]:
    """Crowds excuse what lies in them, and are neither met nor missed."""
    ious = _ious(found, truths)
    same = np.array([[said.feature == true.feature for true in truths] for said in found], bool).reshape(ious.shape)
    crowd = np.array([true.crowd for true in truths], bool)
    met = _greedy(np.where(same & ~crowd, ious, 0.0), {})
    in_crowd = (np.where(same & crowd, ious, 0.0) >= MATCH_IOU).any(axis=1)
    excused = {int(place) for place in np.flatnonzero(in_crowd)} - set(met)
    met |= _greedy(np.where(crowd, 0.0, ious), met, skipped=excused)
    for place, said in enumerate(found):
        if place not in excused:
            true = truths[met[place]] if place in met else None
            yield _object_verdict(table, said, true, float(ious[place, met[place]]) if true else None)
    for place, true in enumerate(truths):
        if place not in met.values() and not true.crowd:
            yield Verdict(
                table,
                true.global_key,
                "missed",
                true_feature=true.feature,
                truth_id=true.truth_id,
                frame=true.frame,
            )


def _object_verdict(table: str, said: FoundObject, true: TrueObject | None, iou: float | None) -> Verdict:
    verdict = "extra" if true is None else "match" if true.feature == said.feature else "wrong"
    return Verdict(
        table,
        said.global_key,
        verdict,
        feature=said.feature,
        true_feature=true.feature if true else None,
        score=said.score,
        overlap=iou,
        prediction_id=said.prediction_id,
        truth_id=true.truth_id if true else None,
        frame=said.frame,
    )


def _greedy(ious: npt.NDArray[np.float64], met: Mapping[int, int], skipped: Collection[int] = ()) -> dict[int, int]:
    """Found -> truth: each takes the free truth that it overlaps most. The pairs in `met` are taken already."""
    taken, pairs = set(met.values()), {}
    for said in range(ious.shape[0]):
        if said in met or said in skipped:
            continue
        free = [place for place in np.flatnonzero(ious[said] >= MATCH_IOU) if place not in taken]
        if free:
            best = max(free, key=lambda place: ious[said, place])
            pairs[said] = int(best)
            taken.add(int(best))
    return pairs


def _ious(found: Sequence[FoundObject], truths: Sequence[TrueObject]) -> npt.NDArray[np.float64]:
    """Shape (found, truths). The overlap with a crowd is the found one's own share, as COCO has it."""
    if not found or not truths:
        return np.zeros((len(found), len(truths)))
    crowd = [int(true.crowd) for true in truths]
    if found[0].rle is None:
        ious = coco_mask.iou([list(f.box_ltwh) for f in found], [list(t.box_ltwh) for t in truths], crowd)
    else:
        masks = [_segmentation(t.rle) for t in truths if t.rle]
        ious = coco_mask.iou([_segmentation(f.rle) for f in found if f.rle], masks, crowd)
    return np.asarray(ious, float).reshape(len(found), len(truths))


def _pairs(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, str]]:
    for verdict in verdicts:
        yield verdict.true_feature or BACKGROUND, verdict.feature or BACKGROUND


def _at_threshold(table: str, verdicts: Sequence[Verdict]) -> Iterator[Measure]:
    """Precision, recall and F1 as the run's `min_score` would have them; a wrong class is an extra and a miss."""
    by_feature: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        if verdict.verdict == "match" and verdict.feature is not None:
            by_feature[verdict.feature]["match"] += 1
            continue
        if verdict.feature is not None:
            by_feature[verdict.feature]["extra"] += 1
        if verdict.true_feature is not None:
            by_feature[verdict.true_feature]["missed"] += 1
    yield from f1_measures(table, sum(by_feature.values(), Counter()))
    for feature in sorted(by_feature):
        yield from f1_measures(table, by_feature[feature], feature=feature)


def _notes(
    table: str, truth: Truth, found: Sequence[FoundObject], known: Sequence[FoundObject], compared: Collection[Picture]
) -> Iterator[str]:
    strange = Counter(f.feature for f in found if f.feature not in truth.category_ids and _picture_of(f) in compared)
    for feature, count in sorted(strange.items()):
        yield f"{table}: {count} of feature {feature!r}, which the ground truth does not have, were left out"
    without = sum(item.score is None for item in known)
    if without:
        yield f"{table}: {without} predictions have no score and count as sure"
