"""The Labelbox export, read back by Labelbox' own SDK, offline: every kind of annotation of every media type."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from foundry_pipeline.exports import export_run
from foundry_pipeline.exports.units import PER_FEATURE
from foundry_pipeline.store import Store
from tests.warehouse import fill, make_run, mask

pytest.importorskip("labelbox", reason="its SDK needs a Python below 3.14")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own dependencies about each other
    from labelbox.data.serialization.ndjson.label import NDLabel
    from labelbox.schema.annotation_import import AnnotationImport

AT = {"global_key": "g"}
CORNERS = [{"x": 1.5, "y": 2.0}, {"x": 30.0, "y": 4.25}, {"x": 5.0, "y": 36.0}]
DENSE = np.zeros((40, 60), bool)
DENSE[5:25, 5:25] = True
DENSE[10:15, 10:15] = False
DENSE[2:17, 40:48] = True


def read_back(tmp_path, run, **tables):
    """(lines, what the SDK makes of each) of a run with the data row `g`."""
    fill(Store(tmp_path), run, "0", data_rows=[AT | {"width": 60, "height": 40}], **tables)
    export_run(run, Store(tmp_path), "labelbox")
    files = sorted(tmp_path.glob("annotations/run=run/labelbox/*.ndjson"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    AnnotationImport._validate_data_rows(lines)
    return lines, [NDLabel(annotations=line).annotations for line in lines]


def test_shapes_of_a_picture(tmp_path):
    lines, found = read_back(
        tmp_path,
        make_run(),
        boxes=[AT | {"feature": "cat", "left": 1.0, "top": 2.0, "width": 3.0, "height": 4.0, "score": 0.25}],
        masks=[mask("g", "lake", DENSE, score=0.5)],
        polygons=[AT | {"feature": "field", "points": CORNERS, "score": 1.0}],
        lines=[AT | {"feature": "lane", "points": CORNERS[:2], "score": 0.0}],
        points=[AT | {"feature": "nose", "x": 7.5, "y": 8.0}],
    )
    assert [type(one).__name__ for one in found] == ["NDRectangle", "NDMask", "NDPolygon", "NDLine", "NDPoint"]
    assert [one.confidence for one in found] == [0.25, 0.5, 1.0, 0.0, None]
    assert [one.uuid for one in found] == [line["uuid"] for line in lines]
    box, drawn, polygon, line, point = (one.to_common() for one in found)
    assert (box.start.x, box.start.y, box.end.x, box.end.y) == (1, 2, 4, 6)
    assert np.array_equal(drawn.mask.value[:, :, 0].astype(bool), DENSE)
    assert [(p.x, p.y) for p in polygon.points[:3]] == [(p["x"], p["y"]) for p in CORNERS]
    assert [(p.x, p.y) for p in line.points] == [(p["x"], p["y"]) for p in CORNERS[:2]]
    assert (point.x, point.y) == (7.5, 8)


def test_answers_with_what_is_nested_in_them(tmp_path):
    _, found = read_back(
        tmp_path,
        make_run(),
        boxes=[AT | {"feature": "cat", "left": 1, "top": 2, "width": 3, "height": 4, "prediction_id": "b"}],
        classifications=[
            AT | {"feature": "colour", "answer": "red", "parent_id": "b", "score": 0.5, "prediction_id": "c"},
            AT | {"feature": "shade", "answer": "dark", "parent_id": "c"},
            AT | {"feature": "signs", "kind": "checklist", "answer": "joy", "score": 0.0},
            AT | {"feature": "signs", "kind": "checklist", "answer": "fear"},
            AT | {"feature": "mood", "answer": "good", "score": 0.75},
        ],
        texts=[AT | {"feature": "summary", "answer": "a\n\0ねこ", "score": 0.0}],
    )
    box, mood, signs, text = found
    assert [type(one).__name__ for one in found] == ["NDRectangle", "NDRadio", "NDChecklist", "NDText"]
    colour = box.classifications[0]
    assert (colour.name, colour.answer.name, colour.answer.confidence) == ("colour", "red", 0.5)
    assert colour.answer.classifications[0].answer.name == "dark"
    assert [(answer.name, answer.confidence) for answer in signs.answer] == [("joy", 0.0), ("fear", None)]
    assert (mood.answer.name, mood.answer.confidence) == ("good", 0.75)
    assert (text.answer, text.confidence) == ("a\n\0ねこ", 0.0)


@pytest.mark.parametrize(("media_type", "message"), [("text", None), ("conversational", "m1")])
def test_entities_and_their_relationships(tmp_path, media_type, message):
    run, at = make_run(media_type=media_type), AT | {"message_id": message}
    entities = [
        at | {"feature": "person", "start": 0, "end": 3, "prediction_id": "tom", "score": 0.0},
        at | {"feature": "company", "start": 33, "end": 36, "prediction_id": "ibm"},
    ]
    edges = [AT | {"feature": "works_at", "source_id": "tom", "target_id": "ibm"}]
    _, found = read_back(tmp_path, run, entities=entities, edges=edges)
    kind = "NDTextEntity" if message is None else "NDConversationEntity"
    assert sorted(type(one).__name__ for one in found) == sorted(["NDRelationship", kind, kind])
    spans = {one.uuid: one.to_common() for one in found if type(one).__name__ == kind}
    assert {uuid: (span.start, span.end) for uuid, span in spans.items()} == {"tom": (0, 2), "ibm": (33, 35)}
    (relationship,) = (one.relationship for one in found if type(one).__name__ == "NDRelationship")
    assert (relationship.source, relationship.target, relationship.type) == ("tom", "ibm", "unidirectional")


def test_objects_and_answers_of_a_video(tmp_path):
    at = AT | {"frame": 13}
    _, found = read_back(
        tmp_path,
        make_run(media_type="video"),
        boxes=[at | {"feature": "cat", "left": 1, "top": 2, "width": 3, "height": 4, "prediction_id": "b"}],
        masks=[mask("g", "lake", DENSE, frame=31)],
        lines=[at | {"feature": "lane", "points": CORNERS}],
        points=[at | {"feature": "nose", "x": 7.5, "y": 8.0}],
        classifications=[
            *(AT | {"feature": "light", "answer": "red", "frame": frame} for frame in (5, 6, 7)),
            at | {"feature": "colour", "answer": "red", "parent_id": "b"},
        ],
        texts=[at | {"feature": "sign", "answer": "stop"}, AT | {"feature": "scene", "answer": "a street"}],
    )
    kinds = ["NDSegments", "NDVideoMasks", "NDSegments", "NDSegments", "NDRadio", "NDVideoText", "NDText"]
    assert [type(one).__name__ for one in found] == kinds
    box, masks, _, _, radio, text, _ = found
    (key_frame,) = box.to_common(name="cat", feature_schema_id=None)
    assert (key_frame.frame, key_frame.value.start.x, key_frame.classifications[0].name) == (13, 1, "colour")
    (frame,), (instance,) = masks.masks.frames, masks.masks.instances
    assert (frame.index, instance.color_rgb, instance.name) == (31, (255, 255, 255), "lake")
    assert [(f.start, f.end) for f in radio.frames] == [(5, 7)]
    assert [(answer.value, answer.frames) for answer in text.answer] == [("stop", [{"start": 13, "end": 13}])]


def test_the_sdk_takes_as_many_of_a_feature_as_are_written(tmp_path):
    points = [AT | {"feature": "nose", "x": 1.0, "y": float(at), "score": 0.5} for at in range(PER_FEATURE + 1)]
    lines, _ = read_back(tmp_path, make_run(), points=points)
    assert len(lines) == PER_FEATURE
