"""The Hugging Face export: plain Parquet for every reader, and the features as `datasets` writes them.

`datasets` itself reads it in test_export_readers.py, where it is installed.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from pycocotools import mask as coco_mask

from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import make_run, mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, decode


def rows_of(found):
    return ds.dataset(found.folder / "data").to_table().to_pylist()


def features_of(found):
    """The features in the metadata, as `datasets` looks for them."""
    about = pq.read_schema(found.folder / "data/train-00001.parquet").metadata[b"huggingface"]
    return json.loads(about)["info"]["features"]


def test_every_shape_of_a_picture_is_an_object_and_nothing_is_lost(tmp_path):
    found = exported(
        tmp_path,
        make_run(features={"cat": "rectangle", "lake": "raster-segmentation"}),
        "huggingface",
        boxes=[BOX | {"score": 0.1, "prediction_id": "b"}],
        masks=[mask("g.jpg", "lake", PROBE, score=0.0)],
        polygons=[AT | {"feature": "field", "points": TRIANGLE}],
        lines=[AT | {"feature": "lane", "points": TRIANGLE[:2]}],
        points=[AT | {"feature": "nose", "x": 1.5, "y": 2.0}],
        edges=[AT | {"feature": "near", "source_id": "b", "target_id": "m"}],
        classifications=[AT | {"feature": "colour", "answer": "red", "parent_id": "b", "score": 0.5}],
        texts=[AT | {"feature": "summary", "answer": "a\0cat"}],
    )
    (row,) = rows_of(found)
    objects = row["objects"]
    assert row["image"] == {"bytes": None, "path": "/data/g.jpg"}
    assert (row["global_key"], row["width"], row["height"]) == ("g.jpg", 60, 40)
    names = features_of(found)["objects"]["category"]["feature"]["names"]
    assert names == ["cat", "lake", "field", "lane", "nose"]
    assert [names[category] for category in objects["category"]] == names
    assert objects["kind"] == ["rectangle", "raster-segmentation", "polygon", "line", "point"]
    assert objects["score"] == [0.1, 0.0, None, None, None]
    assert objects["bbox"][:2] == [[5.0, 6.0, 30.0, 20.0], [5.0, 2.0, 43.0, 23.0]]
    assert objects["area"] == [600.0, 495.0, 600.0, 0.0, 0.0]
    assert objects["points"][2] == [[point["x"], point["y"]] for point in TRIANGLE]
    rle = {"size": objects["size_hw"][1], "counts": objects["counts"][1]}
    assert np.array_equal(coco_mask.decode(rle), PROBE)
    answers = {question: i for i, question in enumerate(row["answers"]["question"])}
    assert row["answers"]["parent_id"][answers["colour"]] == "b"
    assert row["answers"]["answer"][answers["summary"]] == "a\0cat"
    assert row["relations"]["target_id"] == ["m"]
    assert found.lost == {}


def test_the_features_are_spelled_as_datasets_5_writes_them(tmp_path):
    features = features_of(exported(tmp_path, make_run(features={"cat": "rectangle"}), "huggingface"))
    assert features["image"] == {"_type": "Image"}
    assert features["width"] == {"dtype": "int32", "_type": "Value"}
    assert features["objects"]["area"] == {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "List"}
    assert features["objects"]["bbox"] == {
        "feature": {"feature": {"dtype": "float64", "_type": "Value"}, "length": 4, "_type": "List"},
        "_type": "List",
    }
    assert features["objects"]["category"]["feature"] == {"names": ["cat"], "_type": "ClassLabel"}


def test_the_metadata_names_every_column_and_field_of_the_schema(tmp_path):
    found = exported(tmp_path, make_run(), "huggingface")
    schema, features = pq.read_schema(found.folder / "data/train-00001.parquet"), features_of(found)
    assert schema.names == list(features)
    for name in ("objects", "answers", "relations"):
        assert [field.name for field in schema.field(name).type] == list(features[name])


def test_texts_stand_in_the_file_with_their_entities(tmp_path):
    found = exported(
        tmp_path,
        make_run(media_type="text"),
        "huggingface",
        data_rows=[AT | {"row_data": "Tom works"}, {"global_key": "elsewhere", "row_data": "https://host/a.txt"}],
        entities=[AT | {"feature": "person", "start": 0, "end": 3, "text": "Tom", "score": 0.5}],
        boxes=[BOX],
    )
    (row,) = rows_of(found)
    assert row["text"] == "Tom works"
    entities = row["entities"]
    assert (entities["start"], entities["end"], entities["label"], entities["score"]) == ([0], [3], [0], [0.5])
    assert found.lost == {"not_importable_for_media": 1}
    assert found.manifest["data_rows"]["left_out"] == {"text_unavailable": 1}


def test_a_conversation_is_a_list_of_messages(tmp_path):
    conversation = {"messages": [{"messageId": "m", "content": "Hello", "user": {"userId": "1", "name": "Ann"}}]}
    found = exported(
        tmp_path,
        make_run(media_type="conversational"),
        "huggingface",
        data_rows=[AT | {"row_data": json.dumps(conversation)}],
        entities=[AT | {"feature": "person", "start": 0, "end": 3, "message_id": "m"}],
    )
    (row,) = rows_of(found)
    assert row["messages"] == [{"message_id": "m", "speaker": "Ann", "text": "Hello"}]
    assert row["entities"]["message_id"] == ["m"]


def test_objects_of_a_video_have_their_frames(tmp_path):
    (row,) = rows_of(exported(tmp_path, make_run(media_type="video"), "huggingface", boxes=[BOX | {"frame": 7}]))
    assert (row["video"], row["objects"]["frame"]) == ("/data/g.jpg", [7])


def test_empty_rows_are_kept_and_a_file_is_there_though_no_row_is(tmp_path):
    (row,) = rows_of(exported(tmp_path, make_run(), "huggingface"))
    assert row["objects"]["id"] == []
    none = exported(tmp_path / "none", replace(make_run(), keep_empty=False), "huggingface")
    assert rows_of(none) == []


def test_files_hold_1000_rows_and_the_readme_finds_them_all(tmp_path):
    rows = [PICTURE | {"global_key": f"{i:04}.jpg"} for i in range(1_001)]
    found = exported(tmp_path, make_run(), "huggingface", data_rows=rows)
    files = sorted((found.folder / "data").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [1000, 1]
    head = yaml.safe_load(found.read("README.md").split("---\n")[1])
    assert head == {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
    }
    assert pl.scan_parquet(found.folder / "data/*.parquet").select(pl.len()).collect().item() == 1_001
