"""One slice: stored replies become tables and rejects, all together, without a call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable, StorageError
from foundry_pipeline.home import Run
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.predictions import DecodeReport, decode_slice
from foundry_pipeline.rows.conversations import parse_conversation
from foundry_pipeline.store import Store
from foundry_pipeline.tables import BOXES, REJECTS, RESPONSES, TABLES
from tests.decoding import rejected, values
from tests.slices import SLICE, commit_replies, commit_rows, make_run

TOM = {"person": [{"start": 0, "end": 3, "text": "Tom"}], "weather": "sun"}


def no_text(row: DataRow) -> str:
    raise AssertionError(f"nobody needs the text of {row.global_key}")


def decode(store: Store, run: Run, read_text: Any = no_text) -> tuple[DecodeReport, dict[str, list[dict[str, Any]]]]:
    report = decode_slice(run, SLICE, store, read_text)
    names = [*report.predictions, "rejects"]
    tables: dict[str, pa.Table] = {name: store.read(TABLES[name], "run", SLICE) for name in names}
    return report, {name: table.to_pylist() for name, table in tables.items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "warehouse")


def test_good_replies_become_tables_and_the_report_counts_them(store: Store) -> None:
    size = {"width": [100, 100, None], "height": [100, 100, None]}
    commit_rows(store, "image", ["a", "b", "c"], **size)
    boxes = [[0, 0, 50, 50], [90, 0, 11, 5], [1, 2, 3]]
    commit_replies(
        store, {"a": {"car": {"boxes": boxes}, "weather": "hail"}, "b": {}, "c": {"car": {"boxes": [[-1, 0, 5, 5]]}}}
    )
    report, tables = decode(store, make_run())
    assert values(tables["boxes"], "global_key", "data_row_id", "call_id", "index", "left", "image_width") == [
        ("a", "id-a", "call-a", 0, 0, 100),
        ("a", "id-a", "call-a", 1, 90, 100),
        ("c", "id-c", "call-c", 0, -1, None),
    ]
    assert (report.slice_key, report.rows) == (SLICE, 3)
    assert {name: count for name, count in report.predictions.items() if count} == {"boxes": 3}
    assert report.rejects == {"bad_length": 1, "unknown_option": 1}
    assert report.boxes_outside == 1
    assert report.unread_texts == 0
    assert report.hints == ()


def test_all_tables_the_model_needs_are_committed_together_with_their_sums(store: Store) -> None:
    commit_rows(store, "image", ["a"])
    commit_replies(store, {"a": {}})
    report, _ = decode(store, make_run())
    names = [*report.predictions, "rejects"]
    assert len(names) == 10
    for name in names:
        record = store.record("run", SLICE, name)
        assert record is not None
        assert record["sha256"] == report.data_versions[name]
        assert record["tables"] == sorted(names)
        assert record["about"]["rows"] == 1
        assert record["about"]["responses"] == store.record("run", SLICE, "responses")["sha256"]  # type: ignore[index]


def test_decoding_again_writes_the_same_bytes(store: Store) -> None:
    commit_rows(store, "image", ["a", "b"])
    commit_replies(store, {"a": {"car": {"boxes": [[1, 2, 3, 4]]}, "zebra": 1}, "b": "no json {"})
    assert decode(store, make_run())[0].data_versions == decode(store, make_run())[0].data_versions


def test_only_rows_with_a_good_answer_that_the_dataset_still_has_are_decoded(store: Store) -> None:
    commit_rows(store, "image", ["new", "failed", "ok", "refused"])
    box = {"car": {"boxes": [[1, 2, 3, 4]]}}
    outcomes = {"failed": "failed", "refused": "rejected_by_model"}
    commit_replies(store, {"gone": box, "failed": None, "ok": box, "refused": box}, outcomes)
    report, tables = decode(store, make_run())
    assert report.rows == 1
    assert values(tables["boxes"], "global_key") == [("ok",)]
    assert tables["rejects"] == []


def test_a_good_answer_without_a_body_is_a_reject_and_no_crash(store: Store) -> None:
    commit_rows(store, "image", ["a"])
    commit_replies(store, {"a": None})
    _, tables = decode(store, make_run())
    assert rejected(tables) == [("$", "not_json")]


def test_more_rows_than_a_batch_stay_in_the_order_of_the_responses(store: Store) -> None:
    keys = [f"{(place * 7919) % 1000:03}" for place in range(300)]
    commit_rows(store, "image", sorted(keys))
    commit_replies(store, {key: {"nose": {"points": [[int(key), 0]]}} for key in keys})
    _, tables = decode(store, make_run())
    assert values(tables["points"], "global_key", "x") == [(key, int(key)) for key in keys]


def test_entities_are_checked_against_the_text_read_again(store: Store) -> None:
    commit_rows(store, "text", ["a"])
    commit_replies(store, {"a": TOM})
    report, tables = decode(store, make_run("text"), lambda row: f"Tom, {row.row_data}")
    assert values(tables["entities"], "text", "anchor") == [("Tom", "exact")]
    assert report.rejects == {}


def test_a_text_that_cannot_be_read_again_costs_the_rows_entities_only(store: Store) -> None:
    commit_rows(store, "text", ["a", "b"])
    commit_replies(store, {"a": TOM, "b": TOM})

    def read_text(row: DataRow) -> str:
        if row.global_key == "a":
            raise RowUnavailable("row_missing", "404")
        return "Tom"

    report, tables = decode(store, make_run("text"), read_text)
    assert values(tables["entities"], "global_key") == [("b",)]
    assert values(tables["classifications"], "global_key", "answer") == [("a", "sun"), ("b", "sun")]
    assert values(tables["rejects"], "global_key", "path", "reason") == [("a", "$.person[0]", "span_mismatch")]
    assert report.unread_texts == 1


def test_texts_are_read_only_where_an_answer_may_have_entities(store: Store) -> None:
    """A text may be a download."""
    commit_rows(store, "text", ["a", "b"])
    commit_replies(store, {"a": {"weather": "sun"}, "b": {}})
    report, _ = decode(store, make_run("text"), no_text)
    assert (report.rows, report.unread_texts) == (2, 0)
    commit_replies(store, {"a": TOM})
    assert decode(store, make_run("text", None, (FeatureKind.TEXT,)), no_text)[0].rows == 1


def test_an_escaped_key_does_not_hide_that_a_text_is_needed(store: Store) -> None:
    commit_rows(store, "text", ["a"])
    commit_replies(store, {"a": json.dumps(TOM).replace("start", "st\\u0061rt")})
    _, tables = decode(store, make_run("text"), lambda _: "Tom")
    assert values(tables["entities"], "text") == [("Tom",)]


def conversation(*messages: tuple[str, str]) -> str:
    user = {"userId": "u", "name": "User"}
    return json.dumps({"messages": [{"messageId": i, "content": text, "user": user} for i, text in messages]})


def test_entities_of_a_conversation_refer_to_its_messages(store: Store) -> None:
    commit_rows(store, "conversational", ["a", "b", "c"])
    named = {"person": [{"start": 4, "end": 7, "text": "Tom", "message_id": "m2"}]}
    commit_replies(store, {"a": named, "b": TOM, "c": named})
    texts = {
        "a": conversation(("m1", "Tom"), ("m2", "Hi, Tom")),
        "b": conversation(("m1", "Tom")),
        "c": "no conversation",
    }
    report, tables = decode(store, make_run("conversational"), lambda row: texts[row.global_key])
    assert values(tables["entities"], "global_key", "message_id", "start", "anchor") == [
        ("a", "m2", 4, "exact"),
        ("b", "m1", 0, "exact"),
    ]
    assert rejected(tables) == [("$.person[0]", "span_mismatch")]
    assert report.unread_texts == 1


def test_tables_that_the_model_needs_no_more_are_left_alone(store: Store) -> None:
    commit_rows(store, "image", ["a"])
    commit_replies(store, {"a": {"car": {"boxes": [[1, 2, 3, 4]]}, "x": "y"}})
    decode(store, make_run())
    before = store.record("run", SLICE, "boxes")
    report, _ = decode(store, make_run("image", None, (FeatureKind.TEXT,)))
    assert list(report.predictions) == ["texts"]
    assert store.record("run", SLICE, "boxes") == before


def test_readers_of_the_warehouse_read_the_tables_as_they_are(store: Store) -> None:
    commit_rows(store, "image", ["a"])
    commit_replies(store, {"a": {"lake": {"polygons": [[[0, 0], [1, 0], [0, 1]]]}}})
    decode(store, make_run())
    found = pads.dataset(f"{store.root}/polygons", partitioning="hive").to_table()
    assert found["points"].to_pylist() == [[{"x": 0, "y": 0}, {"x": 1, "y": 0}, {"x": 0, "y": 1}]]


@pytest.mark.parametrize("missing", ["responses", "data_rows"])
def test_a_slice_without_responses_or_data_rows_is_named(store: Store, missing: str) -> None:
    if missing != "data_rows":
        commit_rows(store, "image", ["a"])
    if missing != "responses":
        commit_replies(store, {"a": {}})
    with pytest.raises(StorageError, match=f"{missing}.*{SLICE}"):
        decode_slice(make_run(), SLICE, store, no_text)


def test_a_damaged_file_stops_decoding_and_leaves_the_tables_as_they_were(store: Store) -> None:
    commit_rows(store, "image", ["a"])
    commit_replies(store, {"a": {"car": {"boxes": [[1, 2, 3, 4]] * 50}}})
    decode(store, make_run())
    before = store.record("run", SLICE, BOXES.name)
    path = Path(store.path(RESPONSES, "run", SLICE))
    replies = pq.ParquetFile(path).metadata.row_group(0).column(RESPONSES.schema.names.index("reply"))
    content = bytearray(path.read_bytes())
    content[replies.data_page_offset + replies.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        decode_slice(make_run(), SLICE, store, no_text)
    assert store.record("run", SLICE, BOXES.name) == before
    assert store.read(REJECTS, "run", SLICE) is not None


def test_F067_boxes_that_fit_only_as_corners_are_named_and_not_converted(store: Store) -> None:
    commit_rows(store, "image", ["a"], width=[100], height=[100])
    corners = [[50, 60, 70, 80], [40, 40, 90, 99], [55, 10, 60, 95]]
    commit_replies(store, {"a": {"car": {"boxes": corners}}})
    report, tables = decode(store, make_run())
    assert "left, top, right, bottom" in report.hints[0]
    assert values(tables["boxes"], "left", "top", "width", "height") == [tuple(box) for box in corners]


def test_F068_boxes_that_look_normalised_are_named_and_not_converted(store: Store) -> None:
    commit_rows(store, "image", ["a"], width=[100], height=[100])
    commit_replies(store, {"a": {"car": {"boxes": [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]]}}})
    report, tables = decode(store, make_run())
    assert "normalised" in report.hints[0]
    assert len(tables["boxes"]) == 2


def test_a_conversation_is_read_message_by_message() -> None:
    text = (
        '{"type": "application/vnd.labelbox.conversational", "version": 1, "messages": [{"messageId": "0", '
        '"timestampUsec": 1530718491, "content": "Hi", "user": {"userId": "7", "name": "Bot"}, "align": "left", '
        '"canLabel": false}, {"messageId": 1, "content": "", "user": {"userId": 8}}]}'
    )
    first, second = parse_conversation(text)
    assert (first.message_id, first.user_id, first.user_name, first.content) == ("0", "7", "Bot", "Hi")
    assert (first.align, first.can_label) == ("left", False)
    assert (second.message_id, second.user_id, second.content, second.align, second.can_label) == (
        "1",
        "8",
        "",
        None,
        True,
    )
    assert parse_conversation('\ufeff{"messages": []}') == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Hi", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "messages"),
        ('{"messages": {}}', "messages"),
        ('{"messages": ["Hi"]}', "messages[0]"),
        ('{"messages": [{"messageId": "1", "content": "Hi"}]}', "user"),
        ('{"messages": [{"content": "Hi", "user": {"userId": "1"}}]}', "messageId"),
        ('{"messages": [{"messageId": "1", "content": null, "user": {"userId": "1"}}]}', "content"),
        (conversation(("1", "a"), ("1", "b")), "one messageId"),
    ],
)
def test_what_is_no_conversation_is_no_content(text: str, why: str) -> None:
    with pytest.raises(RowUnavailable) as caught:
        parse_conversation(text)
    assert caught.value.code == "row_not_media"
    assert why in caught.value.message
