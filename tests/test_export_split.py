"""`split`: a row's part hangs on its key alone, and every format says it as its tools expect, or says what was done."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from foundry_pipeline.config.split import Split
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.exports import FORMATS, export_run
from foundry_pipeline.home import load_home
from foundry_pipeline.store import Store
from tests.exporting import BOX, exported
from tests.home_folder import write_mood_home
from tests.warehouse import fill, make_run, mask

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
KEYS = [f"{number}.jpg" for number in range(20)]
PART_OF = {key: Split(SHARES).part_of(key) for key in KEYS}
ROWS = [{"global_key": key, "width": 60, "height": 40} for key in KEYS]
BOXES = [BOX | {"global_key": key, "score": 0.5} for key in KEYS]


def of(part):
    return [key for key in KEYS if PART_OF[key] == part]


def split_export(tmp_path, name, split=SHARES, **more):
    tables = {"boxes": BOXES, "masks": [mask(key, "lake", [[1] * 60] * 40) for key in KEYS]} | more
    return exported(tmp_path, make_run(split=split), name, data_rows=ROWS, **tables)


def test_keys_have_the_parts_that_they_have_always_had():
    """A change of the rule would move rows from training to test in datasets that people have."""
    assert [Split(SHARES).part_of(key) for key in ("a", "b", "street/0001.jpg", "köter", "")] == [
        "val",
        "train",
        "val",
        "train",
        "test",
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True), st.integers(0, 1000))
def test_a_row_keeps_its_part_when_the_dataset_grows_and_goes_one_way_when_a_share_does(keys, thousandths):
    share = thousandths / 1000
    less, more = Split({"train": 0.5 * share, "test": 1 - 0.5 * share}), Split({"train": share, "test": 1 - share})
    for key in keys:
        assert (less.part_of(key), more.part_of(key)) != ("train", "test")


def test_parts_are_as_large_as_the_run_says():
    keys = [f"row {number}" for number in range(10_000)]
    parts = [Split(SHARES).part_of(key) for key in keys]
    assert {part: parts.count(part) / len(keys) for part in SHARES} == pytest.approx(SHARES, abs=0.02)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("split: 0.8", r"\$\.split: expected a mapping \(`train: 0.8`\); got 0.8"),
        (
            "split: {train: 0.8, val: 0.1}",
            r"\$\.split: expected shares of train, val and test that add up to 1; got 0.9",
        ),
        ("split: {train: 80, val: 20}", r"\$\.split\.train: expected a number from 0 to 1; got 80"),
        ("split: {train: 0.8, vla: 0.2}", r"\$\.split\.vla: unknown key 'vla' \(did you mean 'val'\?\)"),
        ("split: {}", r"\$\.split: expected shares"),
    ],
)
def test_what_is_no_split_is_refused(tmp_path, lines, message):
    home = load_home(write_mood_home(tmp_path, "http://127.0.0.1:1/", ["a"], f"exports: [csv]\n{lines}\n"), {})
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(home.problems)


def test_a_run_file_has_a_split(tmp_path):
    more = "split: {val: 0.25, train: 0.75, test: 0}\n"
    home = load_home(write_mood_home(tmp_path, "http://127.0.0.1:1/", ["a"], more), {})
    split = home.runs["notes_mood"].split
    assert list(split.shares.items()) == [("train", 0.75), ("val", 0.25)]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("media_type", ["image", "text"])
def test_every_manifest_says_what_was_done_and_counts_the_rows(tmp_path, name, media_type):
    run = make_run(split=SHARES, media_type=media_type)
    rows = [{"global_key": key, "row_data": "Tom works" if media_type == "text" else f"/data/{key}"} for key in KEYS]
    entities = [{"global_key": key, "feature": "person", "start": 0, "end": 3} for key in KEYS]
    tables = {"boxes": BOXES} if media_type == "image" else {"entities": entities}
    manifest = exported(
        tmp_path, run, name, data_rows=[row | {"width": 60, "height": 40} for row in rows], **tables
    ).manifest
    written = manifest["data_rows"]["written"]
    assert manifest["split"]["shares"] == SHARES
    assert manifest["split"]["written_as"]
    assert manifest["split"]["data_rows"] == {part: len(of(part)) if written else 0 for part in SHARES}
    assert written == (len(KEYS) if media_type in FORMATS[name].media_types and written else 0)


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_without_a_split_has_none_in_its_manifest(tmp_path, name):
    assert "split" not in split_export(tmp_path, name, None).manifest


def test_yolo_has_a_folder_a_part_that_its_yaml_names(tmp_path):
    made = split_export(tmp_path, "yolo_detect")
    data = yaml.safe_load(made.read("data.yaml"))
    assert {part: data[part] for part in SHARES} == {part: f"images/{part}" for part in SHARES}
    for part in SHARES:
        labels = sorted(path.stem for path in (made.folder / "labels" / part).iterdir())
        assert labels == sorted(key.removesuffix(".jpg") for key in of(part))
    for picture in made.json_lines("images.jsonl"):
        part, name = picture["file_name"].split("/")
        assert PART_OF[picture["global_key"]] == part
        assert (made.folder / "labels" / part / name).with_suffix(".txt").exists()


def test_yolo_trains_on_what_there_is_where_a_part_that_trainers_need_has_no_share(tmp_path):
    data = yaml.safe_load(split_export(tmp_path, "yolo_segment", {"val": 0.5, "test": 0.5}).read("data.yaml"))
    assert (data["train"], data["val"], data["test"]) == ("images/val", "images/val", "images/test")


def test_coco_has_files_a_part_with_ids_from_1_that_its_tools_read(tmp_path, capsys):
    made = split_export(tmp_path, "coco")
    assert made.names() == sorted(f"{kind}_{part}.json" for kind in ("instances", "results") for part in SHARES)
    for part in SHARES:
        truth = COCO(made.folder / f"instances_{part}.json")
        assert [image["global_key"] for image in truth.dataset["images"]] == of(part)
        assert sorted(truth.getImgIds()) == list(range(1, len(of(part)) + 1))
        found = truth.loadRes(str(made.folder / f"results_{part}.json"))
        assert len(found.getAnnIds()) == len(truth.getAnnIds()) == 2 * len(of(part))
    capsys.readouterr()


def test_hugging_face_has_splits_as_the_hub_calls_them(tmp_path):
    made = split_export(tmp_path, "huggingface")
    listed = yaml.safe_load(made.read("README.md").split("---")[1])["configs"][0]["data_files"]
    called = {"train": "train", "val": "validation", "test": "test"}
    assert listed == [{"split": name, "path": f"data/{name}-*.parquet"} for name in called.values()]
    for part, name in called.items():
        (file,) = (made.folder / "data").glob(f"{name}-*.parquet")
        assert pq.read_table(file)["global_key"].to_pylist() == of(part)


def test_pascal_voc_has_image_sets_and_results_of_each(tmp_path):
    made = split_export(tmp_path, "pascal_voc")
    stems = {part: [key.removesuffix(".jpg") for key in of(part)] for part in SHARES}
    for folder in ("ImageSets/Main", "ImageSets/Segmentation"):
        for part in SHARES:
            assert made.read(f"{folder}/{part}.txt").split() == stems[part]
        both = made.read(f"{folder}/trainval.txt").split()
        assert both == [key.removesuffix(".jpg") for key in KEYS if PART_OF[key] != "test"]
    for part in SHARES:
        lines = made.read(f"results/Main/comp4_det_{part}_cat.txt").splitlines()
        assert [line.split()[0] for line in lines] == stems[part]


def test_cvat_has_a_file_a_part_for_a_task_with_that_subset(tmp_path):
    made = split_export(tmp_path, "cvat")
    for part in SHARES:
        root = ET.parse(made.folder / f"annotations-{part}-00001.xml").getroot()
        assert root.findtext("meta/task/subset") == part
        images = root.findall("image")
        assert [(image.get("id"), image.get("name"), image.get("subset")) for image in images] == [
            (str(number), key, part) for number, key in enumerate(of(part))
        ]
        assert [label.findtext("name") for label in root.iter("label")] == ["cat", "lake"]


@pytest.mark.parametrize(("name", "suffix"), [("spacy", ".jsonl"), ("conll", ".conll")])
def test_texts_have_files_a_part(tmp_path, name, suffix):
    run = make_run(split=SHARES, media_type="text")
    rows = [{"global_key": key, "row_data": f"Tom-{key}"} for key in KEYS]
    made = exported(tmp_path, run, name, data_rows=rows)
    for part in SHARES:
        documents = made.read(f"documents-{part}-00001{suffix}")
        assert documents.count('"text":' if name == "spacy" else "-DOCSTART-") == len(of(part)) > 0
        if name == "spacy":
            assert [json.loads(line)["meta"]["global_key"] for line in documents.splitlines()] == of(part)
    if name == "conll":
        said = {line["global_key"]: line["file"] for line in made.json_lines("documents.jsonl")}
        assert said == {key: f"documents-{PART_OF[key]}-00001.conll" for key in KEYS}


def test_other_formats_have_it_beside_each_row(tmp_path):
    tasks = json.loads(split_export(tmp_path / "a", "label_studio").read("tasks-00001.json"))
    assert {task["data"]["global_key"]: task["data"]["split"] for task in tasks} == PART_OF
    about = split_export(tmp_path / "b", "labelbox").json_lines("data_rows.jsonl")
    assert {row["global_key"]: row["split"] for row in about} == PART_OF
    head, *lines = split_export(tmp_path / "c", "csv").read("predictions-00001.csv").splitlines()
    assert head.endswith(',"split"')
    assert {line.split(",")[0].strip('"'): line.split(",")[-1].strip('"') for line in lines} == PART_OF


def test_a_part_without_rows_has_its_files_all_the_same(tmp_path):
    """A trainer that was told of three splits looks for three."""
    run = make_run(split=SHARES)
    store = Store(tmp_path)
    fill(store, run, "0", data_rows=ROWS[:1])
    for name in ("coco", "huggingface", "cvat", "pascal_voc", "yolo_detect"):
        export_run(run, store, name)
    annotations = tmp_path / "annotations/run=run"
    for part, hub in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert (annotations / f"coco/instances_{part}.json").exists()
        assert pq.read_metadata(annotations / f"huggingface/data/{hub}-00001.parquet").num_rows <= 1
        assert (annotations / f"cvat/annotations-{part}-00001.xml").exists()
        assert (annotations / f"pascal_voc/ImageSets/Main/{part}.txt").exists()
