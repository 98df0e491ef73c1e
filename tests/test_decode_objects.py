"""Objects: one bad item does not cost its neighbours, and nothing is repaired by guess."""

from __future__ import annotations

from typing import Any

import pytest

from foundry_pipeline.decode import Limits
from foundry_pipeline.ontology import FeatureKind, Tool
from tests.decoding import decode, ontology, rejected, values

GOOD = [1, 2, 3, 4]
RLE = {"size": [6, 8], "counts": "=3300000;"}


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([1, 2, 3], "bad_length"),
        ([1, 2, 3, 4, 5], "bad_length"),
        ([], "bad_length"),
        ([1, 2, -3, 4], "negative_size"),
        ([30, 40, 3, -0.5], "negative_size"),
        ([None, None, None, None], "not_finite"),
        ([1, 2, None, 4], "not_finite"),
        ([1, 2, float("nan"), 4], "not_finite"),
        ([1, float("-inf"), 3, 4], "not_finite"),
        ([1, 2, 2**64, 4], "not_finite"),
        ([1, 2, 1e300, 4], "not_finite"),
        (["1", "2", "3", "4"], "wrong_type"),
        ([True, 2, 3, 4], "wrong_type"),
        ([1, 2, 3, False], "wrong_type"),
        ([[1], 2, 3, 4], "wrong_type"),
        ([1, None, "3", 4], "wrong_type"),
        (None, "wrong_type"),
        (7, "wrong_type"),
        ("1234", "wrong_type"),
        ({"x": 1, "y": 2, "width": 3, "height": 4}, "wrong_type"),
        ([GOOD], "bad_length"),
    ],
)
def test_F069_a_bad_box_does_not_cost_its_neighbours(box: Any, reason: str) -> None:
    tables = decode({"car": {"boxes": [GOOD, box, GOOD], "scores": [0.1, 0.2, 0.3]}})
    assert values(tables["boxes"], "index", "score", "left", "top", "width", "height") == [
        (0, 0.1, *GOOD),
        (2, 0.3, *GOOD),
    ]
    assert values(tables["rejects"], "path", "reason", "feature", "index") == [("$.car.boxes[1]", reason, "car", 1)]


@pytest.mark.parametrize("body", ["1e999", "-1e999", "9" * 41, "9" * 5000, "-" + "9" * 5000, "Infinity"])
def test_F053_a_number_without_end_is_a_bad_number_and_nothing_more(body: str) -> None:
    tables = decode('{"car": {"boxes": [[1, 2, 3, 4], [1, 2, 3, ' + body + "]]}}")
    assert values(tables["boxes"], "index") == [(0,)]
    assert rejected(tables) == [("$.car.boxes[1]", "not_finite")]


def test_F066_boxes_are_kept_as_said() -> None:
    """Past the edge, of no size, integers beside floats, overlapping: thresholds and clipping belong to exports."""
    boxes = [[-5, -5.5, 0, 0], [600, 400, 900, 900], [1, 2, 3, 4], [1, 2, 3, 4]]
    tables = decode({"car": {"boxes": boxes, "scores": [0, 1, 0.001, None]}}, size_wh=(640, 480))
    assert values(tables["boxes"], "left", "top", "width", "height") == [tuple(box) for box in boxes]
    assert values(tables["boxes"], "score") == [(0,), (1,), (0.001,), (None,)]


@pytest.mark.parametrize(
    ("score", "reason"),
    [(1.01, "bad_score"), (-0.1, "bad_score"), (87, "bad_score"), (float("nan"), "bad_score"), (10**400, "bad_score"),
     ("0.9", "wrong_type"), (True, "wrong_type"), ([0.9], "wrong_type")],
)  # fmt: skip
def test_F065_a_bad_score_rejects_its_item_alone(score: Any, reason: str) -> None:
    tables = decode({"car": {"boxes": [GOOD, GOOD], "scores": [score, 0.5]}})
    assert values(tables["boxes"], "index", "score") == [(1, 0.5)]
    assert values(tables["rejects"], "path", "reason", "index") == [("$.car.scores[0]", reason, 0)]


def test_F065_scores_that_look_like_percent_are_named_so() -> None:
    messages = [r["message"] for r in decode({"car": {"boxes": [GOOD, GOOD], "scores": [87, 3.5]}})["rejects"]]
    assert all("looks like percent" in message for message in messages)
    mixed = decode({"car": {"boxes": [GOOD, GOOD], "scores": [87, 0.5]}})["rejects"]
    assert "percent" not in mixed[0]["message"]


@pytest.mark.parametrize("scores", [[0.9], [0.9, 0.8, 0.7], []])
def test_F063_scores_of_another_length_are_left_out_and_the_items_stay(scores: list[float]) -> None:
    tables = decode({"car": {"boxes": [GOOD, GOOD], "scores": scores}})
    assert values(tables["boxes"], "index", "score") == [(0, None), (1, None)]
    assert rejected(tables) == [("$.car.scores", "length_mismatch")]
    assert f"{len(scores)} scores beside 2 items" in tables["rejects"][0]["message"]


def test_scores_that_are_no_list_are_left_out_and_the_items_stay() -> None:
    tables = decode({"car": {"boxes": [GOOD], "scores": 0.9}})
    assert values(tables["boxes"], "score") == [(None,)]
    assert rejected(tables) == [("$.car.scores", "wrong_type")]


def test_F064_a_missing_score_is_unknown_and_not_one() -> None:
    assert values(decode({"car": {"boxes": [GOOD]}})["boxes"], "score") == [(None,)]
    assert values(decode({"car": {"boxes": [GOOD], "scores": None}})["boxes"], "score") == [(None,)]


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ([GOOD], "$.car", "wrong_type"),
        ("car", "$.car", "wrong_type"),
        (3, "$.car", "wrong_type"),
        ({"boxes": {"0": GOOD}}, "$.car.boxes", "wrong_type"),
        ({"bboxes": [GOOD], "scores": [0.5]}, "$.car", "missing_key"),
        ({}, "$.car", "missing_key"),
        ({"masks": [RLE]}, "$.car.masks", "wrong_kind"),
    ],
)
def test_a_feature_of_another_shape_is_rejected(value: Any, path: str, reason: str) -> None:
    tables = decode({"car": value, "nose": {"points": [[1, 2]]}})
    assert rejected(tables) == [(path, reason)]
    assert len(tables["points"]) == 1


def test_of_two_geometry_keys_the_one_of_the_features_kind_is_kept() -> None:
    tables = decode({"car": {"masks": [RLE], "boxes": [GOOD], "note": 1, "points": []}})
    assert len(tables["boxes"]) == 1
    assert rejected(tables) == [("$.car.masks", "wrong_kind")]


@pytest.mark.parametrize("feature", ["person", "weather", "signs", "summary"])
def test_boxes_for_a_feature_that_has_no_shape_are_of_the_wrong_kind(feature: str) -> None:
    assert rejected(decode({feature: {"boxes": [GOOD]}})) == [(f"$.{feature}", "wrong_kind")]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ({"size": [6, 8], "counts": "35P"}, "bad_rle"),
        ({"size": [6, 8], "counts": "=330000"}, "bad_rle"),
        ({"size": [6, 8], "counts": [40]}, "bad_rle"),
        ({"size": [6.0, 8], "counts": "=3300000;"}, "bad_rle"),
        ({"size": [100_000, 100_000], "counts": "04"}, "too_large"),
        ({"size": [8, 6], "counts": "=3300000;"}, "mask_size"),
        ({"size": [6, 8]}, "missing_key"),
        ({"counts": "=3300000;"}, "missing_key"),
        ([6, 8, "=3300000;"], "wrong_type"),
        ("=3300000;", "wrong_type"),
        (None, "wrong_type"),
    ],
)
def test_F070_a_bad_mask_does_not_cost_its_neighbours(mask: Any, reason: str) -> None:
    tables = decode({"tree": {"masks": [RLE, mask, RLE]}}, size_wh=(8, 6))
    assert values(tables["masks"], "index", "counts", "area") == [(0, "=3300000;", 12), (2, "=3300000;", 12)]
    assert rejected(tables) == [("$.tree.masks[1]", reason)]


def test_F072_masks_of_other_spellings_are_stored_as_one() -> None:
    runs = {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]}
    split = {"size": [6, 8], "counts": [13, 1, 0, 2, 3, 3, 3, 3, 3, 3, 14]}
    quoted = {"size": [6, 8], "counts": "b'=3300000;'"}
    tables = decode({"tree": {"masks": [RLE, runs, split, quoted]}})
    assert values(tables["masks"], "counts") == [("=3300000;",)] * 4


def test_a_mask_is_not_compared_with_a_picture_of_unknown_size() -> None:
    assert len(decode({"tree": {"masks": [RLE]}}, size_wh=(8, None))["masks"]) == 1


def test_an_empty_mask_is_kept() -> None:
    tables = decode({"tree": {"masks": [{"size": [6, 8], "counts": [48]}]}})
    assert values(tables["masks"], "area", "left", "top", "width", "height") == [(0, 0, 0, 0, 0)]


TRIANGLE = [[0, 0], [10, 0], [0, 10.5]]


def xy(points: list[list[float]]) -> list[dict[str, float]]:
    return [{"x": x, "y": y} for x, y in points]


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([[0, 0], [1, 1]], "too_few_points"),
        ([[0, 0]], "too_few_points"),
        ([], "too_few_points"),
        ([[0, 0], [1, 1], [0, 0], [1, 1]], "too_few_points"),
        ([[0, 0], [1, 1], [0, 0]], "too_few_points"),
        ([[0, 0], [1, 1], [2, float("nan")]], "not_finite"),
        ([[0, 0], [1, 1], [2, None]], "not_finite"),
        ([[0, 0], [1, 1], [2]], "bad_length"),
        ([[0, 0], [1, 1], [2, 3, 4]], "bad_length"),
        ([0, 0, 10, 0, 0, 10], "wrong_type"),
        ([[[0, 0], [9, 0], [0, 9]], [[1, 1], [2, 1], [1, 2]]], "bad_length"),
        ([[[0, 0], [9, 0]], [[1, 1], [2, 1]], [[1, 1], [2, 1]]], "wrong_type"),
        ({"x": [0], "y": [1]}, "wrong_type"),
    ],
)
def test_F074_a_bad_polygon_does_not_cost_its_neighbours(polygon: Any, reason: str) -> None:
    tables = decode({"lake": {"polygons": [TRIANGLE, polygon, TRIANGLE]}})
    assert values(tables["polygons"], "index", "points") == [(0, xy(TRIANGLE)), (2, xy(TRIANGLE))]
    assert rejected(tables) == [("$.lake.polygons[1]", reason)]


def test_a_closed_polygon_is_stored_open() -> None:
    closed = decode({"lake": {"polygons": [[*TRIANGLE, TRIANGLE[0]], TRIANGLE]}})["polygons"]
    assert values(closed, "points") == [(xy(TRIANGLE),)] * 2


def test_lines_and_points() -> None:
    tables = decode(
        {
            "lane": {"lines": [[[0, 200], [120, 180]], [[1, 2]], [[1, 2], [1, 2]]], "scores": [0.8, 0.7, 0.6]},
            "nose": {"points": [[101.5, 88], [1], [1, "2"]], "scores": [0.99, 0.5, 0.5]},
        }
    )
    assert values(tables["lines"], "index", "score", "points") == [
        (0, 0.8, xy([[0, 200], [120, 180]])),
        (2, 0.6, xy([[1, 2], [1, 2]])),
    ]
    assert values(tables["points"], "index", "score", "x", "y") == [(0, 0.99, 101.5, 88)]
    assert rejected(tables) == [
        ("$.lane.lines[1]", "too_few_points"),
        ("$.nose.points[1]", "bad_length"),
        ("$.nose.points[2]", "wrong_type"),
    ]


def edges(*pairs: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"edges": [{"source": source, "target": target, **more} for source, target in pairs]}


def end(feature: str, index: Any) -> dict[str, Any]:
    return {"feature": feature, "index": index}


def test_edges_name_their_ends_by_place_before_anything_is_rejected() -> None:
    reply = {
        "owns": edges((end("person", 0), end("car", 1)), (end("person", 0), end("car", 0))),
        "car": {"boxes": [[1, 2, 3], GOOD]},
        "person": [{"start": 0, "end": 3, "text": "Tom"}],
    }
    tables = decode(reply, text="Tom and Bob")
    assert values(tables["edges"], "index", "source_id", "target_id", "type") == [
        (0, tables["entities"][0]["prediction_id"], tables["boxes"][0]["prediction_id"], "unidirectional")
    ]
    assert rejected(tables) == [("$.car.boxes[0]", "bad_length"), ("$.owns.edges[1]", "edge_endpoint_rejected")]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (end("car", 2), "bad_reference"),
        (end("car", -1), "bad_reference"),
        (end("car", True), "bad_reference"),
        (end("car", "0"), "bad_reference"),
        (end("lake", 0), "bad_reference"),
        (end("weather", 0), "bad_reference"),
        (end("owns", 0), "bad_reference"),
        ("car", "bad_reference"),
        ({"index": 0}, "bad_reference"),
        (end("zebra", 0), "edge_endpoint_rejected"),
        (end("tree", 0), "edge_endpoint_rejected"),
        (end("nose", 0), "edge_endpoint_rejected"),
        (None, "missing_key"),
    ],
)
def test_an_edge_without_an_end_is_rejected_and_nothing_else(reference: Any, reason: str) -> None:
    reply = {
        "car": {"boxes": [GOOD, GOOD]},
        "weather": "sun",
        "zebra": {"boxes": [GOOD]},
        "tree": {"boxes": [GOOD]},
        "nose": {"points": [[1]]},
        "owns": edges((end("car", 0), reference), (end("car", 0), end("car", 1)), (reference, end("car", 0))),
    }
    tables = decode(reply)
    assert values(tables["edges"], "index") == [(1,)]
    assert rejected(tables)[-2:] == [("$.owns.edges[0]", reason), ("$.owns.edges[2]", reason)]


def test_edges_are_read_last_so_a_full_row_has_no_room_for_them() -> None:
    reply = {"owns": edges((end("car", 0), end("car", 1))), "car": {"boxes": [GOOD] * 3}}
    tables = decode(reply, limits=Limits(2))
    assert rejected(tables) == [("$.car.boxes[2]", "too_large"), ("$.owns.edges[0]", "too_large")]
    assert len(decode(reply, limits=Limits(4))["edges"]) == 1


def test_edges_have_types_and_scores() -> None:
    pair = (end("car", 0), end("car", 1))
    reply = {"car": {"boxes": [GOOD, GOOD]}, "owns": edges(pair, type="bidirectional") | {"scores": [0.7]}}
    assert values(decode(reply)["edges"], "type", "score") == [("bidirectional", 0.7)]
    for kind, reason in (("diagonal", "unknown_option"), (3, "wrong_type")):
        assert rejected(decode(reply | {"owns": edges(pair, type=kind)})) == [("$.owns.edges[0]", reason)]


def test_both_ends_of_an_edge_are_in_its_frame() -> None:
    frames = {
        "1": {"car": {"boxes": [GOOD, GOOD]}, "owns": edges((end("car", 0), end("car", 1)))},
        "2": {"owns": edges((end("car", 0), end("car", 1)))},
    }
    tables = decode({"frames": frames}, media_type="video")
    assert values(tables["edges"], "frame", "source_id") == [(1, tables["boxes"][0]["prediction_id"])]
    assert rejected(tables) == [('$.frames["2"].owns.edges[0]', "bad_reference")]


def test_names_of_any_kind_keep_their_path_readable() -> None:
    known = ontology(*(Tool(name, FeatureKind.POINT) for name in ("big dog", "größe", 'a"b', "a.b", "")))
    tables = decode(dict.fromkeys(("big dog", "größe", 'a"b', "a.b", ""), 1), known)
    assert [path for path, _ in rejected(tables)] == ['$["big dog"]', "$.größe", '$["a\\"b"]', '$["a.b"]', '$[""]']
