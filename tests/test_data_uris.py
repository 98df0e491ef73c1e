"""`data:` URIs: read strictly under the size limit, and never shown."""

from __future__ import annotations

import base64
import json
import tracemalloc
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.rows.data_uris import is_data_uri, read_data_uri
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS
from tests.pictures import picture

LIMIT = 1_000_000
PICTURE = picture(40, 20, orientation=6)


def uri(data: bytes, mime_type: str = "image/jpeg") -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def refusal(text: str, limit: int = LIMIT) -> RowUnavailable:
    with pytest.raises(RowUnavailable) as caught:
        read_data_uri(text, limit)
    return caught.value


@given(st.binary(min_size=1, max_size=60), st.integers(0, 80))
def test_what_was_encoded_comes_back(data: bytes, at: int) -> None:
    """With its padding or without it, with line breaks, and with its signs percent-encoded."""
    encoded = base64.b64encode(data).decode()
    for body in (encoded, encoded.rstrip("="), encoded[:at] + "\r\n " + encoded[at:], quote(encoded, safe="")):
        assert read_data_uri(f"data:image/png;base64,{body}", LIMIT).data == data
    assert read_data_uri(f"data:,{quote(data, safe='')}", LIMIT).data == data


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("data:image/png;base64", "row_not_media"),
        ("data:", "row_not_media"),
        ("data:image/png;base64,####", "row_not_media"),
        ("data:image/png;base64,A", "row_not_media"),
        ("data:image/png;base64,AAAA=AAA", "row_not_media"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "row_not_media"),
        ("data:image/png;base64,\ud800AAA", "row_not_media"),
        ("data:,\ud800", "row_not_media"),
        ("data:image/png;base64,", "row_unreadable"),
        ("data:,", "row_unreadable"),
        ("data:image /png,x", "row_not_media"),
    ],
)
def test_a_malformed_uri_is_refused_with_its_reason(text: str, code: str) -> None:
    assert refusal(text).code == code


def test_a_hundred_megabytes_are_refused_without_being_decoded() -> None:
    encoded, plain = "data:image/png;base64," + "A" * 100_000_000, "data:," + "x" * 100_000_000
    tracemalloc.start()
    assert refusal(encoded).code == "row_too_large"
    assert refusal(plain).code == "row_too_large"
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert "max_row_bytes = 10 " in refusal(uri(b"x" * 11), 10).message
    assert read_data_uri(uri(b"x" * 10), 10).data == b"x" * 10


def test_a_text_of_a_charset_is_read_in_it(tmp_path: Path) -> None:
    texts = {
        uri("naïve".encode("latin-1"), "text/plain;charset=latin-1"): "naïve",
        "data:text/plain;charset=utf-8,na%C3%AFve": "naïve",
        "data:,plain": "plain",
    }
    with RowReader(tmp_path, Settings()) as reader:
        for text, expected in texts.items():
            assert reader.text(DataRow("i", "k", "text", text)) == expected
        for charset in ("nosuch", "punycode", "zlib_codec"):
            with pytest.raises(RowUnavailable, match="row_encoding"):
                reader.text(DataRow("i", "k", "text", f"data:text/plain;charset={charset},x"))


def test_no_message_shows_what_a_uri_holds() -> None:
    secret = base64.b64encode(b"not for anybody's eyes" * 99).decode()
    for value in (
        uri(b"x" * 999),
        [uri(b"x" * 999)],
        {"row_data": f"data:image/png;base64,{secret}"},
        "DATA:,abcdefgh",
    ):
        assert "…" in shown(value, 300)
        assert secret[:8] not in shown(value, 300)
        assert "eHh4" not in shown(value, 300)
        assert "abcd" not in shown(value, 300)


@given(st.text(max_size=30))
def test_only_the_heads_of_uris_are_taken_for_one(text: str) -> None:
    if is_data_uri(text):
        assert text[:5].lower() == "data:"
        assert "," in text


def test_a_data_row_may_be_its_picture_and_nothing_else_holds_it(tmp_path: Path) -> None:
    rows = [
        {"row_data": uri(PICTURE), "global_key": "a", "imageUrl": uri(PICTURE)},
        {"row_data": uri(picture(8, 8, "PNG"), "image/png")},
        {"row_data": "data:image/png;base64,####", "global_key": "broken"},
        {"row_data": uri(b"no picture"), "global_key": "none"},
    ]
    (tmp_path / "rows.ndjson").write_text("\n".join(map(json.dumps, rows)))
    store = Store(tmp_path / "warehouse")
    dataset = Dataset("ds", "ds.yaml", tmp_path, "image", "rows.ndjson")
    report = load_dataset(dataset, tmp_path, Settings(), store)
    assert [(p.place, p.code) for p in report.problems] == [
        ("rows.ndjson:3", "row_not_media"),
        ("rows.ndjson:4", "row_not_media"),
    ]
    table = store.read(DATA_ROWS, "ds", "00000")
    assert table is not None
    first, second, *_ = rows_of(table)
    assert (first.width, first.height, first.exif_orientation) == (20, 40, 6)
    assert first.metadata["imageUrl"].startswith("data: URI, sha256:")
    assert second.global_key.startswith("sha256:")
    encoded = base64.b64encode(PICTURE).decode()
    everything_else = repr([{**r, "row_data": ""} for r in table.to_pylist()]) + repr(report)
    assert encoded[:40] not in everything_else
    again = load_dataset(dataset, tmp_path, Settings(), store)
    assert again.changed == ()
