"""The Labelbox export: import NDJSON as the platform's documentation has it, and a count of what it cannot hold."""

from __future__ import annotations

import base64
import io
import json
import uuid

import numpy as np
import pytest
from PIL import Image

from foundry_pipeline.exports import export_run
from foundry_pipeline.exports.units import PER_FEATURE
from foundry_pipeline.store import Store
from tests.warehouse import fill, make_run, mask

PICTURE = {"global_key": "g", "width": 60, "height": 40}
BOX = {"global_key": "g", "feature": "cat", "left": 1.0, "top": 2.0, "width": 3.0, "height": 4.0}


def exported(tmp_path, run, *, data_rows=(PICTURE,), outcomes=None, **tables):
    """(lines, what was lost or changed) of a run with one slice."""
    store = Store(tmp_path)
    fill(store, run, "000000", data_rows=data_rows, outcomes=outcomes, **tables)
    report = export_run(run, store, "labelbox")
    return lines_in(tmp_path, run), {**report.lost, **report.changed}


def lines_in(tmp_path, run):
    files = sorted(tmp_path.glob(f"annotations/run={run.name}/labelbox/*.ndjson"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def without_ids(line):
    return {key: value for key, value in line.items() if key not in ("uuid", "dataRow")}


def test_a_box_is_one_line_with_its_keys_in_a_fixed_order(tmp_path):
    lines, lost = exported(tmp_path, make_run(), boxes=[BOX | {"score": 0.5, "prediction_id": "p1"}])
    assert json.dumps(lines[0]) == json.dumps(
        {
            "uuid": "p1",
            "dataRow": {"globalKey": "g"},
            "name": "cat",
            "confidence": 0.5,
            "bbox": {"top": 2.0, "left": 1.0, "height": 4.0, "width": 3.0},
        }
    )
    assert lost == {}


def test_F056_nul_in_a_text_is_escaped_in_the_file(tmp_path):
    lines, _ = exported(tmp_path, make_run(), texts=[{"global_key": "g", "feature": "summary", "answer": "a\0b"}])
    assert lines[0]["answer"] == "a\0b"
    (file,) = tmp_path.glob("annotations/run=run/labelbox/*.ndjson")
    assert b"\0" not in file.read_bytes()


def test_a_score_of_0_is_written_and_a_missing_one_is_not(tmp_path):
    """The platform reads a missing confidence as 1, and its own SDK drops 0.0."""
    lines, _ = exported(tmp_path, make_run(), boxes=[BOX | {"score": 0.0}, BOX | {"score": None}])
    assert lines[0]["confidence"] == 0.0
    assert "confidence" not in lines[1]


@pytest.mark.parametrize(
    ("ltwh", "bbox"),
    [
        pytest.param((-5.0, -6.0, 15.0, 16.0), {"top": 0, "left": 0, "height": 10, "width": 10}, id="top left"),
        pytest.param((50.0, 30.0, 20.0, 20.0), {"top": 30, "left": 50, "height": 10, "width": 10}, id="bottom right"),
        pytest.param((-1.0, -1.0, 99.0, 99.0), {"top": 0, "left": 0, "height": 40, "width": 60}, id="all around"),
    ],
)
def test_a_box_past_the_edge_is_clipped_and_counted(tmp_path, ltwh, bbox):
    left, top, width, height = ltwh
    box = BOX | {"left": left, "top": top, "width": width, "height": height}
    lines, lost = exported(tmp_path, make_run(), boxes=[box])
    assert lines[0]["bbox"] == bbox
    assert lost == {"clipped_to_picture": 1}


def test_a_box_up_to_the_edge_is_not_changed(tmp_path):
    """0.1 + 59.9 - 0.1 is not 59.9 in floats."""
    box = BOX | {"left": 0.1, "top": 0.0, "width": 59.9, "height": 40.0}
    lines, lost = exported(tmp_path, make_run(), boxes=[box])
    assert lines[0]["bbox"]["width"] == 59.9
    assert lost == {}


def test_where_the_row_has_no_size_boxes_are_clipped_to_the_picture_the_model_saw(tmp_path):
    unknown = {"global_key": "g"}
    seen = BOX | {"left": 10.0, "width": 99.0, "image_width": 30, "image_height": 20}
    lines, _ = exported(tmp_path, make_run(), data_rows=[unknown], boxes=[seen, BOX | {"width": 99.0}])
    assert [line["bbox"]["width"] for line in lines] == [20.0, 99.0]


def test_boxes_that_show_nothing_are_left_out_and_counted(tmp_path):
    boxes = [BOX | {"width": 0.0}, BOX | {"height": 0.0}, BOX | {"left": 60.0}, BOX | {"top": -4.0}, BOX]
    lines, lost = exported(tmp_path, make_run(), boxes=boxes)
    assert len(lines) == 1
    assert lost == {"zero_size": 2, "outside_picture": 2}


def test_a_mask_is_an_8_bit_grey_png_of_0_and_1_with_its_hole(tmp_path):
    dense = np.zeros((40, 60), bool)
    dense[5:25, 5:25] = True
    dense[10:15, 10:15] = False
    lines, _ = exported(tmp_path, make_run(), masks=[mask("g", "lake", dense, score=0.25)])
    picture = Image.open(io.BytesIO(base64.b64decode(lines[0]["mask"]["png"])))
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), dense.astype(np.uint8))
    assert lines[0]["confidence"] == 0.25


def test_an_empty_mask_and_one_of_another_size_are_left_out(tmp_path):
    masks = [mask("g", "lake", np.zeros((40, 60))), mask("g", "lake", np.ones((60, 40)))]
    lines, lost = exported(tmp_path, make_run(), masks=masks)
    assert lines == []
    assert lost == {"zero_size": 1, "mask_size_differs": 1}


def test_polygons_close_and_lines_do_not(tmp_path):
    corners = [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}, {"x": 5.0, "y": 6.0}]
    shape = {"global_key": "g", "points": corners}
    lines, lost = exported(
        tmp_path,
        make_run(),
        polygons=[shape | {"feature": "lake"}, shape | {"feature": "lake", "points": corners[:2]}],
        lines=[shape | {"feature": "lane"}, shape | {"feature": "lane", "points": corners[:1]}],
        points=[{"global_key": "g", "feature": "nose", "x": 1166.6, "y": 1441.7}],
    )
    assert [without_ids(line) for line in lines] == [
        {"name": "lake", "polygon": [*corners, corners[0]]},
        {"name": "lane", "line": corners},
        {"name": "nose", "point": {"x": 1166.6, "y": 1441.7}},
    ]
    assert lost == {"too_few_points": 2}


def test_entity_ends_are_inclusive(tmp_path):
    """Import {"start": 112, "end": 128} and the platform exports 17 characters."""
    run = make_run(media_type="text")
    tom = {"global_key": "g", "feature": "person", "start": 0, "end": 3, "text": "Tom", "score": 0.9}
    lines, lost = exported(tmp_path, run, data_rows=[{"global_key": "g"}], entities=[tom, tom | {"end": 0, "text": ""}])
    assert [without_ids(line) for line in lines] == [
        {"name": "person", "confidence": 0.9, "location": {"start": 0, "end": 2}}
    ]
    assert lost == {"empty_span": 1}


def test_an_entity_of_a_conversation_names_its_message(tmp_path):
    run = make_run(media_type="conversational")
    entity = {"global_key": "g", "feature": "ner", "start": 0, "end": 9}
    lines, lost = exported(
        tmp_path, run, data_rows=[{"global_key": "g"}], entities=[entity | {"message_id": "4"}, entity]
    )
    assert [without_ids(line) for line in lines] == [
        {"name": "ner", "messageId": "4", "location": {"start": 0, "end": 8}}
    ]
    assert lost == {"message_missing": 1}


def test_answers_have_their_confidence_where_the_platform_reads_it(tmp_path):
    radio = {"global_key": "g", "feature": "mood", "answer": "good", "score": 0.0}
    text = {"global_key": "g", "feature": "summary", "answer": "", "score": 0.75}
    lines, _ = exported(tmp_path, make_run(), classifications=[radio, radio | {"score": None}], texts=[text])
    assert [without_ids(line) for line in lines] == [
        {"name": "mood", "answer": {"name": "good", "confidence": 0.0}},
        {"name": "mood", "answer": {"name": "good"}},
        {"name": "summary", "answer": "", "confidence": 0.75},
    ]


def chosen(answer, **more):
    return {"global_key": "g", "feature": "emotion", "kind": "checklist", "answer": answer} | more


def test_a_checklist_is_one_line_with_all_chosen_answers(tmp_path):
    lines, lost = exported(tmp_path, make_run(), classifications=[chosen("joy"), chosen("fear", score=0.41)])
    assert [without_ids(line) for line in lines] == [
        {"name": "emotion", "answer": [{"name": "joy"}, {"name": "fear", "confidence": 0.41}]}
    ]
    assert lost == {}


def test_a_checklist_keeps_its_uuid_when_other_answers_are_chosen(tmp_path):
    """The uuid is the platform's key of an import: a new one would double the line there."""
    one, _ = exported(tmp_path / "one", make_run(), classifications=[chosen("joy"), chosen("fear")])
    other, _ = exported(tmp_path / "other", make_run(), classifications=[chosen("fear")])
    assert one[0]["uuid"] == other[0]["uuid"] == str(uuid.UUID(one[0]["uuid"]))
    assert one[0]["answer"] != other[0]["answer"]


def test_checklists_of_two_questions_or_messages_are_not_mixed(tmp_path):
    run = make_run(media_type="conversational")
    answers = [chosen("joy", message_id="1"), chosen("fear", message_id="2"), chosen("x", feature="tone")]
    lines, _ = exported(tmp_path, run, data_rows=[{"global_key": "g"}], classifications=answers)
    assert sorted(
        (line["name"], line.get("messageId"), len(line["answer"])) for line in lines if "messageId" in line
    ) == [
        ("emotion", "1", 1),
        ("emotion", "2", 1),
    ]
    assert len({line["uuid"] for line in lines}) == 3


def test_nested_answers_stand_under_their_object_and_under_their_answer(tmp_path):
    colour = {"global_key": "g", "feature": "colour", "answer": "red", "prediction_id": "c", "parent_id": "b"}
    lines, lost = exported(
        tmp_path,
        make_run(),
        boxes=[BOX | {"prediction_id": "b"}],
        classifications=[
            colour | {"score": 0.8},
            chosen("dent", feature="damage", parent_id="b"),
            chosen("rust", feature="damage", parent_id="b", index=1),
            {"global_key": "g", "feature": "shade", "answer": "dark", "prediction_id": "s", "parent_id": "c"},
        ],
        texts=[{"global_key": "g", "feature": "why", "answer": "it looks so", "parent_id": "s", "score": 0.5}],
    )
    assert lines[0]["classifications"] == [
        {
            "name": "colour",
            "answer": {
                "name": "red",
                "confidence": 0.8,
                "classifications": [
                    {
                        "name": "shade",
                        "answer": {
                            "name": "dark",
                            "classifications": [{"name": "why", "answer": "it looks so", "confidence": 0.5}],
                        },
                    }
                ],
            },
        },
        {"name": "damage", "answer": [{"name": "dent"}, {"name": "rust"}]},
    ]
    assert len(lines) == 1
    assert lost == {}


def test_a_relationship_names_the_lines_of_its_ends(tmp_path):
    run = make_run(media_type="text", mapping={"person": None})
    entity = {"global_key": "g", "start": 0, "end": 3}
    edge = {"global_key": "g", "feature": "works_at", "source_id": "tom", "target_id": "ibm"}
    lines, lost = exported(
        tmp_path,
        run,
        data_rows=[{"global_key": "g"}],
        entities=[
            entity | {"feature": "staff", "prediction_id": "tom"},
            entity | {"feature": "company", "prediction_id": "ibm"},
            entity | {"feature": "person", "prediction_id": "bob"},
        ],
        edges=[edge | {"score": 0.7, "type": "bidirectional"}, edge | {"source_id": "bob"}],
    )
    assert [line["relationship"] for line in lines if "relationship" in line] == [
        {"source": "tom", "target": "ibm", "type": "bidirectional"}
    ]
    assert {"tom", "ibm"} <= {line["uuid"] for line in lines}
    assert lost == {"mapped_to_null": 1, "score_not_representable": 1, "relationship_endpoint_missing": 1}


def test_a_video_object_is_a_segment_of_one_key_frame_without_confidence(tmp_path):
    run = make_run(media_type="video")
    lines, lost = exported(
        tmp_path,
        run,
        boxes=[BOX | {"frame": 13, "score": 0.5, "prediction_id": "b"}, BOX],
        polygons=[{"global_key": "g", "feature": "lake", "frame": 1, "points": [{"x": 1.0, "y": 1.0}] * 3}],
        points=[{"global_key": "g", "feature": "nose", "frame": 2, "x": 1.0, "y": 2.0}],
        classifications=[
            {"global_key": "g", "feature": "colour", "answer": "red", "parent_id": "b", "frame": 13},
            {"global_key": "g", "feature": "scene", "answer": "street", "frame": 7, "score": 0.5},
        ],
        texts=[{"global_key": "g", "feature": "sign", "answer": "stop", "frame": 5, "score": 0.5}],
    )
    bbox = {"top": 2.0, "left": 1.0, "height": 4.0, "width": 3.0}
    nested = [{"name": "colour", "answer": {"name": "red"}}]
    assert [without_ids(line) for line in lines] == [
        {"name": "cat", "segments": [{"keyframes": [{"frame": 13, "bbox": bbox, "classifications": nested}]}]},
        {"name": "nose", "segments": [{"keyframes": [{"frame": 2, "point": {"x": 1.0, "y": 2.0}}]}]},
        {"name": "scene", "answer": {"name": "street", "confidence": 0.5}, "frames": [{"start": 7, "end": 7}]},
        {"name": "sign", "answer": [{"value": "stop", "frames": [{"start": 5, "end": 5}]}]},
    ]
    assert lost == {"frame_missing": 1, "not_importable_for_media": 1, "score_not_representable": 2}


def test_equal_answers_about_neighbouring_frames_are_one_line(tmp_path):
    """20,000 frames with one radio would pass the limit of 5,000 annotations of a feature."""
    run = make_run(media_type="video")
    light = [{"global_key": "g", "feature": "light", "frame": frame, "score": 0.5} for frame in (7, 8, 9, 12, 13)]
    answers = [light[at] | {"answer": "red" if at < 4 else "green"} for at in range(5)]
    signs = [chosen(answer, frame=frame) for frame in (1, 2) for answer in ("joy", "fear")]
    texts = [{"global_key": "g", "feature": "t", "answer": "stop", "frame": f, "score": f / 10} for f in (1, 2)]
    lines, lost = exported(tmp_path, run, classifications=[*answers, *signs, chosen("joy", frame=3)], texts=texts)
    joy, fear = {"name": "joy"}, {"name": "fear"}
    assert [without_ids(line) for line in lines] == [
        {"name": "emotion", "answer": [joy, fear], "frames": [{"start": 1, "end": 2}]},
        {"name": "emotion", "answer": [joy], "frames": [{"start": 3, "end": 3}]},
        {"name": "light", "answer": {"name": "red", "confidence": 0.5}, "frames": [{"start": 7, "end": 9}]},
        {"name": "light", "answer": {"name": "red", "confidence": 0.5}, "frames": [{"start": 12, "end": 12}]},
        {"name": "light", "answer": {"name": "green", "confidence": 0.5}, "frames": [{"start": 13, "end": 13}]},
        {"name": "t", "answer": [{"value": "stop", "frames": [{"start": 1, "end": 2}]}]},
    ]
    assert len({line["uuid"] for line in lines}) == len(lines)
    assert lost == {"score_not_representable": 2}


def test_answers_with_something_nested_are_not_joined_over_frames(tmp_path):
    run = make_run(media_type="video")
    radio = {"global_key": "g", "feature": "light", "answer": "red"}
    answers = [radio | {"frame": 1, "prediction_id": "a"}, radio | {"frame": 2}]
    nested = {"global_key": "g", "feature": "why", "answer": "rain", "parent_id": "a", "frame": 1}
    lines, _ = exported(tmp_path, run, classifications=answers, texts=[nested])
    assert [line["frames"][0]["start"] for line in lines] == [1, 2]


def test_a_video_mask_is_a_colour_picture_of_one_instance(tmp_path):
    dense = np.eye(40, 60, dtype=bool)
    run = make_run(media_type="video")
    lines, lost = exported(tmp_path, run, masks=[mask("g", "lake", dense, frame=31, score=0.5, prediction_id="m")])
    (frame,) = lines[0]["masks"]["frames"]
    (instance,) = lines[0]["masks"]["instances"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(frame["imBytes"]))))
    assert (frame["index"], instance["name"]) == (31, "lake")
    assert np.array_equal((picture == instance["colorRGB"]).all(axis=2), dense)
    assert lost == {"score_not_representable": 1}


@pytest.mark.parametrize(
    ("media_type", "kept"),
    [
        ("image", {"boxes", "masks", "polygons", "lines", "points", "classifications", "texts"}),
        ("text", {"entities", "classifications", "texts"}),
        ("conversational", {"entities", "classifications", "texts"}),
        ("html", {"classifications", "texts"}),
        ("video", {"boxes", "masks", "lines", "points", "classifications", "texts"}),
    ],
)
def test_what_a_media_type_cannot_import_is_left_out_and_counted(tmp_path, media_type, kept):
    points = [{"x": 1.0, "y": 1.0}, {"x": 2.0, "y": 1.0}, {"x": 2.0, "y": 2.0}]
    same = {"global_key": "g", "frame": 1 if media_type == "video" else None}
    tables = {
        "boxes": [BOX | same],
        "masks": [mask("g", "masks", np.ones((40, 60)), frame=same["frame"])],
        "polygons": [same | {"feature": "polygons", "points": points}],
        "lines": [same | {"feature": "lines", "points": points}],
        "points": [same | {"feature": "points", "x": 1.0, "y": 1.0}],
        "entities": [same | {"feature": "entities", "start": 0, "end": 1, "message_id": "1"}],
        "classifications": [same | {"feature": "classifications", "answer": "a"}],
        "texts": [same | {"feature": "texts", "answer": "a"}],
    }
    lines, lost = exported(tmp_path, make_run(media_type=media_type), **tables)
    assert len(lines) == len(kept)
    assert lost.get("not_importable_for_media", 0) == len(tables) - len(kept)


def test_more_than_5000_of_a_feature_keep_the_highest_scores_in_their_order(tmp_path):
    scores = [0.1, *[0.5] * 4998, 0.2, None, 0.9]
    boxes = [BOX | {"score": score} for score in scores]
    lines, lost = exported(tmp_path, make_run(), boxes=[*boxes, BOX | {"feature": "dog", "score": 0.0}])
    cats = [line.get("confidence") for line in lines if line["name"] == "cat"]
    assert cats == [*[0.5] * 4998, None, 0.9]
    assert len(lines) == PER_FEATURE + 1
    assert lost == {"too_many_per_feature": 2}


def test_files_hold_at_most_1000_data_rows_wherever_slices_end(tmp_path):
    """Every line of a data row is in one file, and so is a relationship with its ends."""
    run, store = make_run(), Store(tmp_path)
    keys = [f"{i:05}" for i in range(2_100)]
    for slice_key, of_slice in (("0", keys[:1_500]), ("1", keys[1_500:])):
        boxes = [BOX | {"global_key": key} for key in of_slice if key != "00003" for _ in range(2)]
        fill(store, run, slice_key, data_rows=[PICTURE | {"global_key": key} for key in of_slice], boxes=boxes)
    export_run(run, store, "labelbox")
    files = sorted(tmp_path.glob("annotations/run=run/labelbox/*.ndjson"))
    rows = [{json.loads(line)["dataRow"]["globalKey"] for line in file.read_text().splitlines()} for file in files]
    assert [file.name for file in files] == [f"annotations-0000{i}.ndjson" for i in (1, 2, 3)]
    assert [len(of_file) for of_file in rows] == [1000, 1000, 99]
    assert len(set.union(*rows)) == 2_099


def test_rows_without_lines_are_told_apart_from_rows_never_answered(tmp_path):
    run = make_run()
    rows = [{"global_key": key, "width": 60, "height": 40} for key in ("found", "nothing", "failed", "new")]
    outcomes = {"failed": "failed", "new": None}
    exported(tmp_path, run, data_rows=rows, outcomes=outcomes, boxes=[BOX | {"global_key": "found"}])
    about = (tmp_path / "annotations/run=run/labelbox/data_rows.jsonl").read_text().splitlines()
    assert [tuple(json.loads(line).values()) for line in about] == [
        ("found", "id-found", "ok", 1),
        ("nothing", "id-nothing", "ok", 0),
        ("failed", "id-failed", "failed", 0),
        ("new", "id-new", "not_asked", 0),
    ]


def test_names_of_any_script_and_quotes_survive(tmp_path):
    lines, _ = exported(tmp_path, make_run(), boxes=[BOX | {"feature": 'ねこ "x"\n\\'}])
    assert lines[0]["name"] == 'ねこ "x"\n\\'
