"""What all exports share: the run's mapping and thresholds, order, repeatability, files and the manifest."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from foundry_pipeline.errors import ConfigError, StorageError
from foundry_pipeline.exports import FORMATS, export_run
from foundry_pipeline.exports.publish import LISTING
from foundry_pipeline.exports.tally import Change, Loss, RowLoss
from foundry_pipeline.home import MinScore
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, DATA_ROWS, PREDICTION_TABLES, RESPONSES
from tests.exporting import assert_accounts_close
from tests.warehouse import fill, make_run, mask

CHECKOUT = Path(__file__).parent.parent
KEYS = [f"{i}.jpg" for i in range(5)]
ROWS = [{"global_key": key, "width": 60, "height": 40} for key in KEYS]
BOX = {"feature": "cat", "left": 1.0, "top": 2.0, "width": 3.0, "height": 4.0}


def some_boxes(keys=KEYS):
    features = ("dog", "cat")
    return [
        BOX | {"global_key": key, "feature": f, "left": 5.0 * i, "score": 0.1 * i}
        for key in keys
        for f in features
        for i in range(3)
    ]


def folder(tmp_path, run, name):
    return tmp_path / f"annotations/run={run.name}/{name}"


def contents(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def manifest_of(path):
    return json.loads((path / "manifest.json").read_text())


def lines_of(path):
    return [json.loads(line) for file in sorted(path.glob("*.ndjson")) for line in file.read_text().splitlines()]


def test_the_documentation_names_every_format_and_every_reason():
    """In the README the formats, in docs/exports.md all of it."""
    readme, page = ((CHECKOUT / name).read_text() for name in ("README.md", "docs/exports.md"))
    assert [name for name in FORMATS if f"| `{name}` |" not in readme or f"**{name}**" not in page] == []
    for section, reasons in (("### lost", Loss), ("### changed", Change), ("### data rows left out", RowLoss)):
        listed = page.split(f"{section}\n")[1].split("\n###")[0]
        assert [reason.value for reason in reasons if f"`{reason.value}`" not in listed] == []


def test_an_unknown_format_says_what_is_known(tmp_path):
    with pytest.raises(ConfigError, match=r"runs/run.yaml: \$.exports: expected one of labelbox, coco, .*; got 'yolo'"):
        export_run(make_run(), Store(tmp_path), "yolo")


@pytest.mark.parametrize("name", FORMATS)
def test_F129_two_exports_are_the_same_bytes(tmp_path, name):
    run, store = make_run(), Store(tmp_path)
    fill(store, run, "0", data_rows=ROWS, boxes=some_boxes(), masks=[mask("0.jpg", "lake", [[1] * 60] * 40)])
    export_run(run, store, name)
    first = contents(folder(tmp_path, run, name))
    export_run(run, store, name)
    assert contents(folder(tmp_path, run, name)) == first


@pytest.mark.parametrize("cut", [0, 2])
@pytest.mark.parametrize("split", [None, {"train": 0.5, "val": 0.25, "test": 0.25}])
def test_neither_slices_nor_the_order_inside_tables_change_the_files(tmp_path, cut, split):
    """Two readers of one dataset may cut it differently; a decoder may list its boxes in any order."""
    run = make_run(features={"dog": "rectangle", "cat": "rectangle"}, split=split)
    boxes = [box | {"index": i % 3, "prediction_id": f"p{i:03}"} for i, box in enumerate(some_boxes())]
    mixed = random.Random(cut).sample(boxes, len(boxes))
    files = []
    for name, slices, order in (("whole", [ROWS], boxes), ("cut", [ROWS[:cut], ROWS[cut:]], mixed)):
        store = Store(tmp_path / name)
        for number, rows in enumerate(slices):
            keys = {row["global_key"] for row in rows}
            fill(store, run, f"{number:06}", data_rows=rows, boxes=[box for box in order if box["global_key"] in keys])
        for format_name in FORMATS:
            export_run(run, store, format_name)
        made = (contents(folder(tmp_path / name, run, format_name)) for format_name in FORMATS)
        files.append([of_format | {"manifest.json": b""} for of_format in made])
    assert files[0] == files[1]
    assert all(len(of_format) > 1 for of_format in files[0])


@pytest.mark.parametrize("cut", [0, 2])
def test_neither_slices_nor_the_order_inside_tables_change_the_files_of_texts(tmp_path, cut):
    run = make_run(media_type="text")
    rows = [{"global_key": key, "row_data": f"Tom works at IBM, {key}"} for key in KEYS]
    spans = [(0, 3, "person"), (4, 9, "verb"), (0, 9, "phrase")]
    entities = [
        {"global_key": key, "feature": feature, "start": start, "end": end, "prediction_id": f"{key}-{feature}"}
        for key in KEYS
        for start, end, feature in spans
    ]
    edges = [
        {"global_key": key, "feature": "does", "source_id": f"{key}-person", "target_id": f"{key}-verb"} for key in KEYS
    ]
    files = []
    for name, slices, order in (("whole", [rows], entities), ("cut", [rows[:cut], rows[cut:]], entities[::-1])):
        store = Store(tmp_path / name)
        for number, of_slice in enumerate(slices):
            keys = {row["global_key"] for row in of_slice}
            tables = ([one for one in table if one["global_key"] in keys] for table in (order, edges))
            fill(
                store, run, f"{number:06}", data_rows=of_slice, **dict(zip(("entities", "edges"), tables, strict=True))
            )
        for format_name in FORMATS:
            export_run(run, store, format_name)
        made = (contents(folder(tmp_path / name, run, format_name)) for format_name in FORMATS)
        files.append([of_format | {"manifest.json": b""} for of_format in made])
    assert files[0] == files[1]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("media_type", ["image", "text", "conversational", "html", "video"])
def test_accounts_close_for_every_media_type_and_every_kind(tmp_path, name, media_type):
    run = make_run(media_type=media_type, min_score=MinScore(0.2), mapping={"gone": None})
    conversation = {"messages": [{"messageId": "m", "content": "Tom works", "user": {"userId": "u", "name": "Ann"}}]}
    text = json.dumps(conversation) if media_type == "conversational" else "Tom works"
    data = "/data/a.x" if media_type in ("image", "video") else text
    at = {"global_key": "0.jpg", "message_id": "m" if media_type == "conversational" else None}
    at["frame"] = 3 if media_type == "video" else None
    corners = [{"x": 1.0, "y": 1.0}, {"x": 9.0, "y": 1.0}, {"x": 9.0, "y": 9.0}]
    radio = at | {"feature": "mood", "answer": "good", "prediction_id": "r"}
    fill(
        Store(tmp_path),
        run,
        "0",
        data_rows=[ROWS[0] | {"row_data": data}, *(row | {"row_data": data} for row in ROWS[1:])],
        outcomes={"1.jpg": "failed", "2.jpg": None},
        boxes=[BOX | at | {"score": s, "prediction_id": f"b{s}"} for s in (0.1, 0.5)],
        masks=[mask("0.jpg", "lake", [[1] * 60] * 40, frame=at["frame"], message_id=at["message_id"])],
        polygons=[at | {"feature": "field", "points": corners}],
        lines=[at | {"feature": "lane", "points": corners}],
        points=[at | {"feature": "nose", "x": 1.0, "y": 1.0}],
        entities=[at | {"feature": f, "start": 0, "end": 3, "prediction_id": f} for f in ("person", "gone")],
        edges=[at | {"feature": "near", "source_id": "person", "target_id": "b0.5"}],
        classifications=[radio, at | {"feature": "why", "answer": "sun", "parent_id": "b0.5"}],
        texts=[at | {"feature": "summary", "answer": "", "parent_id": "r"}, at | {"feature": "summary", "answer": "x"}],
    )
    report = export_run(run, Store(tmp_path), name)
    manifest = manifest_of(folder(tmp_path, run, name))
    assert_accounts_close(manifest)
    assert manifest["lost"] | manifest["changed"] == {**report.lost, **report.changed}
    assert report.predictions_in == 13
    assert manifest["lost"]["below_min_score"] == 1
    assert manifest["lost"]["mapped_to_null"] == 1


NASTY = ["../../evil", "/etc/passwd", "a/b", "a\\b", "A", "a", "k" * 300, "🐱", "CON", "a\nb", "x\0y"]
NASTY += [".hidden", "-rf", " "]


@pytest.mark.parametrize("name", FORMATS)
def test_no_global_key_leads_a_file_out_of_its_folder_or_onto_another(tmp_path, name):
    run, out = make_run(), tmp_path / "deep" / "out"
    rows = [{"global_key": key, "row_data": "https://host/x.jpg", "width": 60, "height": 40} for key in NASTY]
    store = Store(tmp_path / "warehouse")
    fill(store, run, "0", data_rows=rows, boxes=[BOX | {"global_key": key} for key in NASTY])
    report = export_run(run, store, name, out)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["out"]
    assert {written.path for written in report.files} == contents(out).keys() - {"manifest.json"}
    assert len({written.path.casefold() for written in report.files}) == len(report.files)
    if name in ("yolo_detect", "pascal_voc"):
        of_pictures = "labels/" if name == "yolo_detect" else "Annotations/"
        assert sum(written.path.startswith(of_pictures) for written in report.files) == len(NASTY)


def test_predictions_stand_in_the_order_of_rows_tables_ontology_and_reply(tmp_path):
    run, store = make_run(features={"dog": "rectangle", "cat": "rectangle"}), Store(tmp_path)
    texts = [{"global_key": "0.jpg", "feature": "summary", "answer": "a"}]
    fill(store, run, "0", data_rows=ROWS[:2], boxes=some_boxes(KEYS[1::-1]), texts=texts)
    export_run(run, store, "labelbox")
    seen = [(n["dataRow"]["globalKey"], n["name"]) for n in lines_of(folder(tmp_path, run, "labelbox"))]
    of_row = ["dog"] * 3 + ["cat"] * 3
    assert seen == [("0.jpg", n) for n in [*of_row, "summary"]] + [("1.jpg", n) for n in of_row]


def test_frames_of_a_video_stand_in_their_order(tmp_path):
    run = make_run(media_type="video", features={"dog": "rectangle", "cat": "rectangle"})
    said = [("cat", 12), ("dog", 12), ("cat", 3)]
    boxes = [BOX | {"global_key": "0.jpg", "feature": feature, "frame": frame} for feature, frame in said]
    fill(Store(tmp_path), run, "0", data_rows=ROWS[:1], boxes=boxes)
    export_run(run, Store(tmp_path), "labelbox")
    lines = lines_of(folder(tmp_path, run, "labelbox"))
    seen = [(line["name"], line["segments"][0]["keyframes"][0]["frame"]) for line in lines]
    assert seen == [("cat", 3), ("dog", 12), ("cat", 12)]


def test_mapping_and_thresholds_of_the_run_apply_and_are_counted(tmp_path):
    run = make_run(
        mapping={"Person": "pedestrian", "Bird": None},
        min_score=MinScore(0.2, {"pedestrian": 0.5}),
    )
    said = [("Person", 0.5), ("Person", 0.49), ("Person", None), ("Bird", 0.9), ("cat", 0.2), ("cat", 0.19)]
    boxes = [BOX | {"global_key": "0.jpg", "feature": feature, "score": score} for feature, score in said]
    fill(Store(tmp_path), run, "0", data_rows=ROWS, boxes=boxes)
    report = export_run(run, Store(tmp_path), "labelbox")
    lines = lines_of(folder(tmp_path, run, "labelbox"))
    assert sorted((line["name"], line.get("confidence")) for line in lines if line["name"] == "cat") == [("cat", 0.2)]
    assert [line.get("confidence") for line in lines if line["name"] == "pedestrian"] == [0.5, None]
    assert report.lost == {"mapped_to_null": 1, "below_min_score": 2}
    assert manifest_of(folder(tmp_path, run, "labelbox"))["predictions"] == {
        "in": 6,
        "out": 3,
        "features": {
            "Bird": {"in": 1, "out": 0, "lost": {"mapped_to_null": 1}},
            "cat": {"in": 2, "out": 1, "lost": {"below_min_score": 1}},
            "pedestrian": {"in": 3, "out": 2, "lost": {"below_min_score": 1}},
        },
    }


def test_nested_answers_are_mapped_and_thresholded_and_fall_with_their_parent(tmp_path):
    run = make_run(mapping={"colour": "paint", "damage": None}, min_score=MinScore(0.5))
    nested = {"global_key": "0.jpg", "answer": "a", "score": 0.9}
    fill(
        Store(tmp_path),
        run,
        "0",
        data_rows=ROWS,
        boxes=[
            BOX | {"global_key": "0.jpg", "prediction_id": "kept", "score": 0.9},
            BOX | {"global_key": "0.jpg", "prediction_id": "weak", "score": 0.1},
        ],
        classifications=[
            nested | {"feature": "colour", "parent_id": "kept"},
            nested | {"feature": "colour", "parent_id": "kept", "score": 0.4},
            nested | {"feature": "damage", "parent_id": "kept", "prediction_id": "gone"},
            nested | {"feature": "size", "parent_id": "gone"},
            nested | {"feature": "colour", "parent_id": "weak"},
            nested | {"feature": "colour", "parent_id": "of another reply"},
        ],
    )
    report = export_run(run, Store(tmp_path), "labelbox")
    (line,) = lines_of(folder(tmp_path, run, "labelbox"))
    assert line["classifications"] == [{"name": "paint", "answer": {"name": "a", "confidence": 0.9}}]
    assert report.lost == {"mapped_to_null": 1, "below_min_score": 2, "parent_left_out": 3}
    assert (report.predictions_in, report.predictions_out) == (8, 2)


def test_answers_that_are_each_others_parents_are_counted_not_followed_for_ever(tmp_path):
    run, one = make_run(), {"global_key": "0.jpg", "feature": "colour", "answer": "a"}
    circle = [one | {"prediction_id": "a", "parent_id": "b"}, one | {"prediction_id": "b", "parent_id": "a"}]
    fill(Store(tmp_path), run, "0", data_rows=ROWS, classifications=circle)
    assert export_run(run, Store(tmp_path), "labelbox").lost == {"parent_left_out": 2}


@pytest.mark.parametrize("name", FORMATS)
def test_every_prediction_is_written_or_counted(tmp_path, name):
    """in = out + lost, whatever comes."""
    run = make_run(mapping={"dog": None}, min_score=MinScore(0.15))
    points = [{"x": 1.0, "y": 1.0}, {"x": 9.0, "y": 1.0}, {"x": 9.0, "y": 9.0}]
    at = {"global_key": "0.jpg"}
    stray = BOX | {"global_key": "elsewhere.jpg"}
    fill(
        Store(tmp_path),
        run,
        "0",
        data_rows=ROWS,
        outcomes={"1.jpg": "failed"},
        boxes=[*some_boxes(), stray, BOX | at | {"width": 0.0}, BOX | at | {"left": -1.0}, BOX | at | {"left": 99.0}],
        masks=[mask("0.jpg", "lake", [[1] * 60] * 40), mask("0.jpg", "lake", [[0]])],
        polygons=[at | {"feature": "lake", "points": points}],
        points=[at | {"feature": "nose", "x": 1.0, "y": 1.0}],
        edges=[at | {"feature": "near", "source_id": "x", "target_id": "y"}],
        texts=[at | {"feature": "summary", "answer": ""}],
    )
    report = export_run(run, Store(tmp_path), name)
    assert report.predictions_in == 40
    assert report.predictions_out == report.predictions_in - sum(report.lost.values())
    assert_accounts_close(manifest_of(folder(tmp_path, run, name)))
    assert report.lost["data_row_missing"] == 1
    assert report.lost["row_not_answered"] == 6


@pytest.mark.parametrize("name", ["labelbox", "coco"])
def test_what_is_said_to_be_written_is_in_the_files(tmp_path, name):
    run = make_run(mapping={"dog": None}, min_score=MinScore(0.15))
    fill(Store(tmp_path), run, "0", data_rows=ROWS, outcomes={"1.jpg": "failed"}, boxes=some_boxes())
    report = export_run(run, Store(tmp_path), name)
    path = folder(tmp_path, run, name)
    written = lines_of(path) if name == "labelbox" else json.loads((path / "results.json").read_text())
    assert len(written) == report.predictions_out == 4


def test_the_manifest_says_what_went_in_and_what_came_out(tmp_path):
    run, store = make_run(), Store(tmp_path)
    fill(store, run, "a", data_rows=ROWS[:2], outcomes={"1.jpg": "failed"}, boxes=some_boxes(KEYS[:1]))
    fill(store, run, "b", data_rows=ROWS[2:], outcomes={"4.jpg": None})
    report = export_run(run, store, "coco")
    path = folder(tmp_path, run, "coco")
    manifest = manifest_of(path)
    tables = [DATA_ROWS, RESPONSES, *PREDICTION_TABLES]
    for listed in manifest["inputs"]:
        for spec in tables:
            owner = "street" if spec is DATA_ROWS else "run"
            parquet = next(tmp_path.glob(f"{spec.name}/*={owner}/{listed['slice']}.parquet"))
            assert listed["sha256"][spec.name] == hashlib.sha256(parquet.read_bytes()).hexdigest()
    assert [listed["slice"] for listed in manifest["inputs"]] == ["a", "b"]
    assert manifest["data_rows"] == {
        "answered": 3,
        "answered_with_predictions": 1,
        "answered_without_predictions": 2,
        "unanswered": 2,
        "outcomes": {"ok": 3, "failed": 1, "rejected_by_model": 0, "not_sent": 0, "not_asked": 1},
        "written": 3,
        "left_out": {"not_answered": 2},
    }
    assert (report.answered, report.unanswered) == (3, 2)
    assert {file["name"]: file["sha256"] for file in manifest["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in contents(path).items() if name != "manifest.json"
    }
    head = [manifest[key] for key in ("format", "format_version", "run", "model", "dataset", "media_type")]
    assert head == ["coco", 1, "run", "model", "street", "image"]


def test_the_manifest_states_the_conventions_for_offsets(tmp_path):
    run = make_run(media_type="text")
    fill(Store(tmp_path), run, "0", data_rows=[{"global_key": "t"}])
    export_run(run, Store(tmp_path), "labelbox")
    conventions = manifest_of(folder(tmp_path, run, "labelbox"))["conventions"]
    assert (conventions["offset_unit"], conventions["entity_end"]) == ("codepoint", "inclusive")


def test_files_of_an_earlier_export_go_and_what_is_not_ours_stays(tmp_path):
    run, store, out = make_run(), Store(tmp_path), tmp_path / "out"
    fill(store, run, "0", data_rows=ROWS, boxes=some_boxes())
    (out / "annotations").mkdir(parents=True)
    (out / "annotations-00012.ndjson").write_text("a person's own")
    export_run(run, store, "labelbox", out)
    fill(store, run, "0", data_rows=ROWS)
    export_run(run, store, "labelbox", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "annotations",
        "annotations-00012.ndjson",
        "data_rows.jsonl",
        "manifest.json",
    ]


def test_files_of_an_export_that_was_killed_go_with_the_next_one(tmp_path):
    """It had begun to move its files, and left only the list of their names behind."""
    run, store, out = make_run(), Store(tmp_path / "warehouse"), tmp_path / "out"
    fill(store, run, "0", data_rows=ROWS)
    out.mkdir()
    (out / "annotations-00001.ndjson").write_text("half an export")
    (out / LISTING).write_text('{"files": [{"name": "annotations-00001.ndjson"}]}')
    export_run(run, store, "labelbox", out)
    assert sorted(contents(out)) == ["data_rows.jsonl", "manifest.json"]


@pytest.mark.parametrize(
    "listed", ['{"files": [{"name": "../keep.txt"}]}', '{"files": [{"name": "%s"}]}', '{"files": 5}', "[1]", "\0"]
)
def test_a_foreign_manifest_removes_nothing_outside_its_folder(tmp_path, listed):
    run, store, out = make_run(), Store(tmp_path / "warehouse"), tmp_path / "out"
    fill(store, run, "0", data_rows=ROWS)
    out.mkdir()
    (tmp_path / "keep.txt").write_text("precious")
    (out / "manifest.json").write_text(listed.replace("%s", str(tmp_path / "keep.txt")))
    export_run(run, store, "labelbox", out)
    assert (tmp_path / "keep.txt").read_text() == "precious"
    assert manifest_of(out)["format"] == "labelbox"


def test_a_damaged_table_leaves_the_old_export_as_it_was(tmp_path):
    run, store = make_run(), Store(tmp_path)
    fill(store, run, "0", data_rows=ROWS, boxes=some_boxes())
    export_run(run, store, "labelbox")
    before = contents(folder(tmp_path, run, "labelbox"))
    (tmp_path / "boxes/run=run/0.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(StorageError, match=r"boxes/run=run/0.parquet"):
        export_run(run, store, "labelbox")
    assert contents(folder(tmp_path, run, "labelbox")) == before
    assert list(tmp_path.glob("_staging/*")) == []


def test_a_folder_of_the_users_gets_the_same_files_and_nothing_else(tmp_path):
    run, store, out = make_run(), Store(tmp_path / "warehouse"), tmp_path / "deep" / "out"
    fill(store, run, "0", data_rows=ROWS, boxes=some_boxes())
    export_run(run, store, "labelbox")
    report = export_run(run, store, "labelbox", out)
    assert contents(out) == contents(folder(tmp_path / "warehouse", run, "labelbox"))
    assert report.folder == str(out)
    assert [written.path for written in report.files] == sorted(contents(out).keys() - {"manifest.json"})


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    run, store = make_run(), Store(tmp_path)
    fill(store, run, "0", data_rows=ROWS)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        export_run(run, store, "coco", tmp_path / "file" / "out")


def test_two_runs_on_one_dataset_do_not_mix(tmp_path):
    store = Store(tmp_path)
    for run, keys in ((make_run("a"), KEYS[:1]), (make_run("b"), KEYS[1:2])):
        fill(store, run, "0", data_rows=ROWS, boxes=some_boxes(keys))
        export_run(run, store, "labelbox")
    counts = Counter(line["dataRow"]["globalKey"] for line in lines_of(folder(tmp_path, make_run("a"), "labelbox")))
    assert counts == {"0.jpg": 6}


def test_answers_whose_data_rows_are_gone_are_counted(tmp_path):
    run, store = make_run(), Store(tmp_path)
    fill(store, run, "0", data_rows=ROWS, boxes=some_boxes())
    store.remove(DATA_ROWS, "street", "0")
    report = export_run(run, store, "labelbox")
    assert report.lost == {"data_row_missing": len(some_boxes())}
    assert store.read(BOXES, "run", "0").num_rows == 30


def test_tables_that_a_model_does_not_fill_need_no_files(tmp_path):
    run, store = make_run(), Store(tmp_path)
    fill(store, run, "0", data_rows=ROWS, boxes=some_boxes())
    for spec in PREDICTION_TABLES:
        if spec is not BOXES:
            store.remove(spec, "run", "0")
    assert export_run(run, store, "labelbox").predictions_out == 30


@pytest.mark.parametrize("name", FORMATS)
def test_an_object_store_gets_the_same_files(tmp_path, name):
    """A URL takes the road of object stores: no folders, no renames. file:// needs its folder made."""
    run, local = make_run(), Store(tmp_path)
    fill(local, run, "0", data_rows=ROWS, boxes=some_boxes())
    export_run(run, local, name)
    expected = contents(folder(tmp_path, run, name))
    for file in folder(tmp_path, run, name).rglob("*"):
        if file.is_file():
            file.unlink()
    (folder(tmp_path, run, name) / "old").write_text("old")
    (folder(tmp_path, run, name) / "manifest.json").write_text('{"files": [{"name": "old"}]}')
    export_run(run, Store(f"file://{tmp_path}"), name)
    assert contents(folder(tmp_path, run, name)) == expected


def test_calls_without_an_answer_beside_others_about_the_same_data_row_are_counted(tmp_path: Path) -> None:
    run, store = make_run(features={"cat": "rectangle"}, media_type="video"), Store(tmp_path)
    calls = [{"frames": [0]}, {"frames": [1], "outcome": "failed"}, {"frames": [2], "outcome": "not_sent"}]
    fill(store, run, "000000", data_rows=[{"global_key": "a"}, {"global_key": "b"}], calls={"a": calls})
    export_run(run, store, "labelbox")
    rows = manifest_of(tmp_path / "annotations/run=run/labelbox")["data_rows"]
    assert (rows["answered"], rows["outcomes"]["ok"], rows["calls_unanswered"]) == (2, 2, 2)
