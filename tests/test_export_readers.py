"""Exports read by the tools they are for, where these are installed: `pip install -e '.[readers]'`.

They are large (some 600 MB), so the formats' own tests do without them.
"""

from __future__ import annotations

import json
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import make_run, mask

pytestmark = pytest.mark.filterwarnings("ignore")  # the tools' own
TEXT = "😀 Tom and Bob are happy to work at IBM"
ENTITIES = [
    AT | {"feature": "person", "start": 2, "end": 5, "score": 0.5, "prediction_id": "tom"},
    AT | {"feature": "person", "start": 10, "end": 13},
    AT | {"feature": "company", "start": 35, "end": 38, "prediction_id": "ibm"},
]


def imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason="the extra `readers` is not installed", exc_type=ImportError)


def test_datasets_loads_the_folder_with_its_features(tmp_path):
    datasets = imported("datasets")
    found = exported(
        tmp_path,
        make_run(features={"cat": "rectangle", "lake": "raster-segmentation"}),
        "huggingface",
        data_rows=[PICTURE, PICTURE | {"global_key": "empty.jpg"}],
        boxes=[BOX | {"score": 0.5, "prediction_id": "b"}],
        masks=[mask("g.jpg", "lake", PROBE)],
        polygons=[AT | {"feature": "field", "points": TRIANGLE}],
        classifications=[AT | {"feature": "colour", "answer": "red", "parent_id": "b"}],
    )
    loaded = datasets.load_dataset(str(found.folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["objects"]["category"].feature.names == ["cat", "lake", "field"]
    row = loaded.cast_column("image", datasets.Image(decode=False))[0]
    assert row["image"]["path"] == "/data/g.jpg"
    assert row["objects"]["bbox"][0] == [5.0, 6.0, 30.0, 20.0]
    assert row["objects"]["score"] == [0.5, None, None]
    assert row["answers"]["answer"] == ["red"]
    assert loaded.num_rows == 2


def test_datasets_loads_texts(tmp_path):
    datasets = imported("datasets")
    rows = [AT | {"row_data": TEXT}]
    found = exported(tmp_path, make_run(media_type="text"), "huggingface", data_rows=rows, entities=ENTITIES)
    (row,) = datasets.load_dataset(str(found.folder), cache_dir=str(tmp_path / "cache"), split="train")
    places = zip(row["entities"]["start"], row["entities"]["end"], strict=True)
    assert sorted(row["text"][start:end] for start, end in places) == ["Bob", "IBM", "Tom"]


def test_spacy_finds_every_span_on_tokens_of_its_own(tmp_path):
    spacy = imported("spacy")
    run = make_run(media_type="text")
    found = exported(tmp_path, run, "spacy", data_rows=[AT | {"row_data": TEXT}], entities=ENTITIES)
    (line,) = found.json_lines("documents-*.jsonl")
    document = spacy.blank("en")(line["text"])
    spans = [document.char_span(span["start"], span["end"], label=span["label"]) for span in line["spans"]]
    assert [(span.text, span.label_) for span in spans] == [("Tom", "person"), ("Bob", "person"), ("IBM", "company")]
    document.ents = spans


def test_spacy_reads_the_conll_file(tmp_path):
    imported("spacy")
    from spacy.training.converters import conll_ner_to_docs

    run = make_run(media_type="text")
    found = exported(tmp_path, run, "conll", data_rows=[AT | {"row_data": TEXT}], entities=ENTITIES)
    (document,) = conll_ner_to_docs(found.read("documents-00001.conll"), n_sents=0, no_print=True)
    assert [(entity.text, entity.label_) for entity in document.ents] == [
        ("Tom", "person"),
        ("Bob", "person"),
        ("IBM", "company"),
    ]


def test_label_studio_finds_every_prediction_valid_and_reads_its_masks(tmp_path):
    imported("label_studio_sdk.label_interface")
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    found = exported(
        tmp_path,
        make_run(features={"cat": "rectangle", "colour": "radio"}, options=("red", "blue")),
        "label_studio",
        boxes=[BOX | {"score": 0.5, "prediction_id": "b"}],
        masks=[mask("g.jpg", "lake", PROBE)],
        polygons=[AT | {"feature": "field", "points": TRIANGLE}],
        points=[AT | {"feature": "nose", "x": 1.0, "y": 1.0}],
        classifications=[
            AT | {"feature": "shade", "answer": "dark", "parent_id": "b"},
            AT | {"feature": "colour", "answer": "red"},
        ],
        texts=[AT | {"feature": "summary", "answer": "a cat"}],
    )
    interface = LabelInterface(found.read("labeling_config.xml"))
    (task,) = json.loads(found.read("tasks-00001.json"))
    (prediction,) = task["predictions"]
    assert interface.validate_prediction(prediction, return_errors=True) == []
    (brush,) = (region for region in prediction["result"] if region["type"] == "brushlabels")
    alpha = np.array(decode_rle(brush["value"]["rle"])).reshape(40, 60, 4)[:, :, 3]
    assert np.array_equal(alpha, PROBE * 255)


def test_label_studio_finds_predictions_on_texts_valid(tmp_path):
    imported("label_studio_sdk.label_interface")
    from label_studio_sdk.label_interface import LabelInterface

    edges = [AT | {"feature": "works_at", "source_id": "tom", "target_id": "ibm"}]
    rows = [AT | {"row_data": TEXT}]
    found = exported(
        tmp_path, make_run(media_type="text"), "label_studio", data_rows=rows, entities=ENTITIES, edges=edges
    )
    interface = LabelInterface(found.read("labeling_config.xml"))
    assert ET.fromstring(found.read("labeling_config.xml")).find("Relations") is not None
    (task,) = json.loads(found.read("tasks-00001.json"))
    assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
