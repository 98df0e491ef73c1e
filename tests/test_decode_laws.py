"""What holds for every reply: the decoder is total, ids are unique and stay, both ways of reading boxes agree."""

from __future__ import annotations

import json
import uuid
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundry_pipeline.decode import REASONS, Limits, SliceDecoder, tables_needed
from foundry_pipeline.decoding.places import WHOLE_ROW, Sent
from foundry_pipeline.decoding.prediction_ids import NAMESPACE, item_id, item_ids, list_name, row_id
from foundry_pipeline.ontology import Ontology
from foundry_pipeline.tables import TABLES
from tests.decoding import ALL_KINDS, EVERYTHING, data_row, decode, decode_tables, values
from tests.strategies import box_replies, replies

EXAMPLES = settings(max_examples=80, deadline=None)
FEW = settings(max_examples=25, deadline=None)
GOOD = [1.5, 2, 3, 4]
ONE_FRAME = Sent(1, frozenset({1}))
TWO_MASKS = '{"tree": {"masks": [{"size": [2, 2], "counts": "04"}, {"size": [2, 2], "counts": "0"}]}}'


def ids(tables: dict[str, pa.Table]) -> list[str]:
    return [found for table in tables.values() for found in table["prediction_id"].to_pylist()]


@EXAMPLES
@example('{"person": [{"start": 0, "end": 1, "text": "\\ud800"}]}', EVERYTHING, "video")
@example("[" * 100_000, EVERYTHING, "image")
@example('{"car": {"boxes": [[1, 2, 3, ' + "9" * 5000 + "]]}}", None, "image")
@example('"' + "\\ud83d" * 3 + '"', None, "text")
@given(replies(), st.sampled_from([EVERYTHING, None]), st.sampled_from(["image", "video", "text"]))
def test_no_reply_makes_the_decoder_raise_and_every_table_keeps_its_schema(
    reply: str, known: Ontology | None, media_type: str
) -> None:
    tables = decode_tables(reply, known, media_type=media_type, text="Tom 😀 and Bob", size_wh=(2, 2))
    assert list(tables) == [spec.name for spec in tables_needed(known, ALL_KINDS)]
    for name, table in tables.items():
        table.validate(full=True)
        assert table.schema.equals(TABLES[name].schema, check_metadata=True)
    assert set(tables["rejects"]["reason"].to_pylist()) <= set(REASONS)
    assert all(len(value.encode()) <= 1024 for value in tables["rejects"]["value"].to_pylist())
    found = ids(tables)
    assert len(set(found)) == len(found)
    assert all(uuid.UUID(one).version == 5 for one in found)


@FEW
@given(replies())
def test_decoding_twice_gives_the_same(reply: str) -> None:
    both = [decode_tables(reply, EVERYTHING, text="Tom 😀 and Bob") for _ in range(2)]
    assert both[0] == both[1]


@EXAMPLES
@example(['{"car": {"boxes": [[5, 2, 3, 4]]}, "car": {"boxes": [[6, 2, 3, 4]]}}'], EVERYTHING, 5, "image", WHOLE_ROW)
@example(['{"car": {"boxes": [[5, 2, 3, 4]], "boxes": [[6, 2, 3, 4]]}}'], EVERYTHING, 5, "image", WHOLE_ROW)
@example(['{"frames": {"1": {"car": {"boxes": [[5, 2, 3, 4]]}}, "1": {}}}'], EVERYTHING, 5, "video", WHOLE_ROW)
@example(['{"frames": {"1": {"car": {"boxes": [[5, 2, 3, 4]]}}, "2": {}}}'], EVERYTHING, 5, "video", ONE_FRAME)
@example(['{"car": {"boxes": [[5, 2, 3, 4], [5, 2, -3, 4]]}}'], EVERYTHING, 5, "video", ONE_FRAME)
@example([TWO_MASKS], None, 5, "image", WHOLE_ROW)
@given(
    st.lists(st.one_of(box_replies(), replies()), max_size=6),
    st.sampled_from([EVERYTHING, None]),
    st.integers(1, 6),
    st.sampled_from(["image", "video"]),
    st.sampled_from([WHOLE_ROW, ONE_FRAME, Sent(None, frozenset({0, 1, 2})), Sent(message_id="m")]),
)
def test_the_short_ways_for_boxes_and_masks_give_the_same_tables(
    bodies: list[str], known: Ontology | None, limit: int, media_type: str, sent: Sent
) -> None:
    both = []
    for shortcut in (True, False):
        decoder = SliceDecoder(
            "run", "model", "dataset", known, ALL_KINDS, media_type, Limits(limit, 2 * limit), shortcut
        )
        for place, body in enumerate(bodies):
            decoder.add(data_row(str(place)), f"call {place}", body, None, sent=sent)
        both.append(decoder.finish())
    for name in both[1]:
        assert both[0][name].to_pylist() == both[1][name].to_pylist()


@FEW
@given(st.lists(st.sampled_from([GOOD, [1, 2, 3], [1, 2, -3, 4], None]), max_size=6))
def test_an_id_does_not_depend_on_neighbours_that_are_rejected(boxes: list[Any]) -> None:
    alone = {
        place: decode({"car": {"boxes": [*[GOOD] * place, box]}})["boxes"][-1]["prediction_id"]
        for place, box in enumerate(boxes)
        if box == GOOD
    }
    together = decode({"car": {"boxes": boxes}})["boxes"]
    assert {box["index"]: box["prediction_id"] for box in together} == alone


def test_an_id_is_the_uuid5_that_the_page_describes() -> None:
    reply = {"frames": {"7": {"car": {"boxes": [GOOD, GOOD], "classifications": [None, {"colour": "red"}]}}}}
    tables = decode(reply, media_type="video")
    row = uuid.uuid5(NAMESPACE, '["run","dataset","row"]')
    box = str(uuid.uuid5(row, '["boxes",7,null,"car",1]'))
    assert tables["boxes"][1]["prediction_id"] == box
    nested = str(uuid.uuid5(row, f'["classifications",7,"{box}","colour",0]'))
    assert values(tables["classifications"], "prediction_id", "parent_id") == [(nested, box)]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=3), st.integers(0, 250), st.integers(0, 2**31 - 1)), min_size=1, max_size=12),
    st.none() | st.integers(0, 9),
    st.sampled_from([1, 1, 700]),
)
def test_a_column_of_ids_is_hashed_as_uuid5_does(
    items: list[tuple[str, int, int]], frame: int | None, many: int
) -> None:
    """Names of every length, since SHA-1 works on blocks of 64 bytes; few items and many, which go another way."""
    rows = [row_id("run", "dataset", key) for key, _, _ in items]
    names = [list_name("boxes", frame, None, "x" * length) for _, length, _ in items]
    column = item_ids(
        np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16),
        np.arange(len(items) * many) % len(items),
        names * many,
        np.arange(len(items) * many),
        np.array([index for _, _, index in items] * many),
    )
    expected = []
    for row, name, (key, length, index) in zip(rows, names, items, strict=True):
        assert uuid.UUID(bytes=row) == uuid.uuid5(NAMESPACE, orjson.dumps(["run", "dataset", key]).decode())
        text = orjson.dumps(["boxes", frame, None, "x" * length, index]).decode()
        expected.append(str(uuid.uuid5(uuid.UUID(bytes=row), text)))
        assert item_id(row, name, index) == expected[-1]
    assert column.to_pylist() == expected * many


def test_rejects_of_one_place_and_reason_have_ids_of_their_own() -> None:
    body = '{"car": {"boxes": []}, "car": 1, "car": 2}'
    tables = decode(body)
    assert values(tables["rejects"], "path", "value") == [("$.car", "1"), ("$.car", "2")]
    assert len({reject["prediction_id"] for reject in tables["rejects"]}) == 2


def test_ids_differ_between_runs_datasets_and_data_rows() -> None:
    found = []
    for run, dataset, key in (("a", "d", "k"), ("b", "d", "k"), ("a", "e", "k"), ("a", "d", "l"), ("a d", "", "k")):
        decoder = SliceDecoder(run, "model", dataset, EVERYTHING, (), "image")
        decoder.add(data_row(key), "call", json.dumps({"car": {"boxes": [GOOD]}}), None)
        found += ids(decoder.finish())
    assert len(set(found)) == 5


def test_rows_stay_in_the_order_added_over_many_blocks() -> None:
    """Boxes are turned into Arrow some ten thousand at a time, and replies with a fault are read a second time."""
    decoder = SliceDecoder("run", "model", "dataset", EVERYTHING, (), "image")
    fine = json.dumps({"car": {"boxes": [GOOD] * 9000}})
    faulty = json.dumps({"car": {"boxes": [GOOD, [1, 2, -3, 4], GOOD]}})
    mixed = json.dumps({"car": {"boxes": [GOOD]}, "weather": "hail"})
    bodies = [fine, faulty, mixed, faulty, fine] * 5
    for place, body in enumerate(bodies):
        decoder.add(data_row(f"{place:02}"), "call", body, None)
    tables = decoder.finish()
    assert tables["boxes"]["global_key"].num_chunks > 1
    keys = tables["boxes"]["global_key"].to_pylist()
    assert keys == sorted(keys)
    assert len(keys) == 5 * (2 * 9000 + 2 * 2 + 1)
    assert tables["boxes"]["index"].to_pylist()[9000:9005] == [0, 2, 0, 0, 2]
    rejects = tables["rejects"].to_pylist()
    assert values(rejects, "global_key", "reason")[:3] == [
        ("01", "negative_size"),
        ("02", "unknown_option"),
        ("03", "negative_size"),
    ]
    assert [reject["global_key"] for reject in rejects] == sorted(reject["global_key"] for reject in rejects)
    assert len(set(ids(tables))) == len(ids(tables))
