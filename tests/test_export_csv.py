"""The CSV export: nothing is lost, what a spreadsheet would run is not run, and readers see the types."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from foundry_pipeline.exports.plain_csv import COLUMNS, _safe
from tests.exporting import AT, BOX, PICTURE, PROBE, TRIANGLE, exported
from tests.warehouse import make_run, mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, decode


def lines_of(found):
    files = sorted(found.folder.glob("predictions-*.csv"))
    return [line for file in files for line in csv.DictReader(file.read_text().splitlines(keepends=True))]


def said(line):
    return {name: value for name, value in line.items() if value}


def test_every_kind_has_its_line_and_nothing_is_lost(tmp_path):
    found = exported(
        tmp_path,
        make_run(),
        "csv",
        boxes=[BOX | {"score": 0.1, "prediction_id": "b"}],
        masks=[mask("g.jpg", "lake", PROBE, score=0.0, prediction_id="m")],
        polygons=[AT | {"feature": "field", "points": TRIANGLE, "prediction_id": "p"}],
        lines=[AT | {"feature": "lane", "points": TRIANGLE[:2], "prediction_id": "l"}],
        points=[AT | {"feature": "nose", "x": 1.5, "y": 2.0, "prediction_id": "n"}],
        edges=[AT | {"feature": "near", "source_id": "b", "target_id": "m", "prediction_id": "e"}],
        classifications=[
            AT | {"feature": "colour", "answer": "red", "parent_id": "b", "prediction_id": "c"},
            AT | {"feature": "signs", "kind": "checklist", "answer": "joy", "prediction_id": "s"},
        ],
        texts=[AT | {"feature": "summary", "answer": 'two\n"lines", ü', "prediction_id": "t"}],
    )
    by_id = {line["prediction_id"]: said(line) for line in lines_of(found)}
    head = {"global_key": "g.jpg", "data_row_id": "id-g.jpg"}
    box = {"left": "5.0", "top": "6.0", "width": "30.0", "height": "20.0"}
    assert by_id["b"] == head | box | {"prediction_id": "b", "feature": "cat", "kind": "rectangle", "score": "0.1"}
    assert np.array_equal(coco_mask.decode(json.loads(by_id["m"]["rle"])), PROBE)
    assert by_id["m"]["score"] == "0.0"
    assert json.loads(by_id["p"]["points"]) == [[point["x"], point["y"]] for point in TRIANGLE]
    assert json.loads(by_id["n"]["points"]) == [[1.5, 2.0]]
    assert (by_id["e"]["source_id"], by_id["e"]["target_id"], by_id["e"]["direction"]) == ("b", "m", "unidirectional")
    assert (by_id["c"]["parent_id"], by_id["c"]["answer"], by_id["c"]["kind"]) == ("b", "red", "radio")
    assert by_id["s"]["kind"] == "checklist"
    assert by_id["t"]["answer"] == 'two\n"lines", ü'
    assert list(lines_of(found)[0]) == list(COLUMNS)
    assert found.lost == {}


def test_entities_of_conversations_say_their_message(tmp_path):
    run, entity = make_run(media_type="conversational"), AT | {"feature": "person", "start": 0, "end": 3, "text": "Tom"}
    (line,) = lines_of(exported(tmp_path, run, "csv", entities=[entity | {"message_id": "4"}]))
    assert {name: line[name] for name in ("start", "end", "text", "message_id", "kind")} == {
        "start": "0",
        "end": "3",
        "text": "Tom",
        "message_id": "4",
        "kind": "named-entity",
    }


def test_polars_reads_numbers_as_numbers_and_nothing_as_null(tmp_path):
    boxes = [BOX | {"score": 0.123456789012345}, BOX | {"left": 1e-7}]
    texts = [AT | {"feature": "summary", "answer": ""}]
    found = exported(tmp_path, make_run(), "csv", boxes=boxes, texts=texts)
    frame = pl.read_csv(found.folder / "predictions-00001.csv")
    assert frame["score"].to_list() == [0.123456789012345, None, None]
    assert frame["left"].to_list() == [5.0, 1e-7, None]
    assert frame["global_key"].to_list() == ["g.jpg"] * 3


def test_a_row_in_which_nothing_was_found_has_a_line_and_an_unanswered_one_none(tmp_path):
    rows = [PICTURE, PICTURE | {"global_key": "failed.jpg"}]
    found = exported(tmp_path, make_run(), "csv", data_rows=rows, outcomes={"failed.jpg": "failed"})
    assert [said(line) for line in lines_of(found)] == [{"global_key": "g.jpg", "data_row_id": "id-g.jpg"}]
    none = exported(tmp_path / "none", replace(make_run(), keep_empty=False), "csv", data_rows=rows)
    assert lines_of(none) == []
    assert none.read("predictions-00001.csv").startswith('"global_key",')


@pytest.mark.parametrize("answer", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://evil")'])
def test_what_a_spreadsheet_would_run_has_an_apostrophe_and_is_counted(tmp_path, answer):
    found = exported(tmp_path, make_run(), "csv", texts=[AT | {"feature": "summary", "answer": answer}])
    with (found.folder / "predictions-00001.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["answer"] == f"'{answer}"
    assert found.lost == {"formula_quoted": 1}


@pytest.mark.parametrize("answer", ["-5", "+3.25", "-1e-7", "a=b", "'quoted", "", "(1)"])
def test_numbers_and_plain_texts_stay_as_they_are(tmp_path, answer):
    found = exported(tmp_path, make_run(), "csv", texts=[AT | {"feature": "summary", "answer": answer}])
    assert lines_of(found)[0]["answer"] == answer
    assert found.lost == {}


def test_run_lengths_never_look_like_a_formula(tmp_path):
    """`=3300000;` is a mask."""
    dense = np.zeros((6, 8), bool)
    dense[1:4, 2:6] = True
    found = exported(tmp_path, make_run(), "csv", masks=[mask("g.jpg", "lake", dense)])
    assert json.loads(lines_of(found)[0]["rle"]) == {"size": [6, 8], "counts": "=3300000;"}
    assert found.lost == {}


def test_nul_is_replaced_and_counted(tmp_path):
    found = exported(tmp_path, make_run(), "csv", texts=[AT | {"feature": "summary", "answer": "a\0b"}])
    assert lines_of(found)[0]["answer"] == "a\ufffdb"
    assert found.lost == {"characters_replaced": 1}


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=6))
def test_no_text_begins_like_a_formula_unless_it_is_a_number(text):
    safe = _safe(text)
    assert "\0" not in safe
    if safe.startswith(("=", "+", "-", "@", "\t", "\r")):
        float(safe)
