from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from foundry_pipeline.data_rows import Attachment
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.content import Kind
from foundry_pipeline.rows.local_files import LocalFiles
from foundry_pipeline.rows.records import LoadProblem, Record
from foundry_pipeline.rows.sources import list_source


def listed(
    base: Path,
    source: str,
    media_type: str = "image",
    *,
    home: Path | None = None,
    settings: Settings | None = None,
    encoding: str = "utf-8",
) -> tuple[list[Record], list[LoadProblem]]:
    """What a source lists: records (sorted by key where the source has no order) and problems."""
    settings = settings or Settings()
    dataset = Dataset("d", "datasets/d.yaml", base, media_type, source, encoding=encoding)
    listing = list_source(dataset, LocalFiles(home or base, settings.allow_folders), settings)
    found = list(listing.records)
    records = [item for item in found if isinstance(item, Record)]
    if not listing.in_order:
        records.sort(key=lambda record: record.global_key)
    return records, [item for item in found if isinstance(item, LoadProblem)]


def keys(records: list[Record]) -> list[str]:
    return [record.global_key for record in records]


def touch(base: Path, *names: str) -> None:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"x")


def ndjson(base: Path, *lines: object, name: str = "rows.ndjson") -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (base / name).write_text(text + "\n")
    return name


TREE = [
    "p/1.jpg",
    "p/2.JPG",
    "p/a/1.jpg",
    "p/a/b/3.png",
    "p/.hidden.jpg",
    "p/.cache/4.jpg",
    "p/notes.txt",
    "p/5",
    "6.jpg",
]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("p/*.jpg", ["1.jpg"]),
        ("p/*.[jJ][pP][gG]", ["1.jpg", "2.JPG"]),
        ("p/**/*.jpg", ["1.jpg", "a/1.jpg"]),
        ("**/*.png", ["p/a/b/3.png"]),
        ("p/*/1.jpg", ["a/1.jpg"]),
        ("p/a/**", ["1.jpg", "b/3.png"]),
        ("p/**/b/*", ["a/b/3.png"]),
        ("p/?.jpg", ["1.jpg"]),
        ("p/", ["1.jpg", "2.JPG", "5", "a/1.jpg", "a/b/3.png"]),
        ("p", ["1.jpg", "2.JPG", "5", "a/1.jpg", "a/b/3.png"]),
        ("p/1.jpg", ["1.jpg"]),
        ("./p/../6.jpg", ["6.jpg"]),
    ],
)
def test_a_glob_or_folder_lists_files_by_their_path_below_its_fixed_folder(
    source: str, expected: list[str], tmp_path: Path
) -> None:
    touch(tmp_path, *TREE)
    records, _ = listed(tmp_path, source)
    assert keys(records) == expected
    assert all(record.kind is Kind.PATH and Path(record.row_data).is_file() for record in records)


def test_a_folder_leaves_out_and_counts_files_of_other_kinds(tmp_path: Path) -> None:
    touch(tmp_path, *TREE, "p/other.txt", "p/Thumbs.db")
    _, problems = listed(tmp_path, "p")
    assert [(p.code, p.message) for p in problems] == [
        ("left_out", "1 '.db' files left out"),
        ("left_out", "2 '.txt' files left out"),
    ]


def test_a_folder_whose_name_looks_like_a_pattern_is_that_folder(tmp_path: Path) -> None:
    touch(tmp_path, "run[1]/1.jpg")
    assert keys(listed(tmp_path, "run[1]")[0]) == ["1.jpg"]
    assert keys(listed(tmp_path, "run[1]/1.jpg")[0]) == ["1.jpg"]


def test_linked_folders_are_not_entered(tmp_path: Path) -> None:
    """A link to a folder above would otherwise never end."""
    touch(tmp_path, "p/1.jpg")
    (tmp_path / "p" / "up").symlink_to(tmp_path)
    records, problems = listed(tmp_path, "p/**/*.jpg")
    assert keys(records) == ["1.jpg"]
    assert [(p.code, p.message) for p in problems] == [("left_out", "1 linked folders left out")]


def test_a_glob_that_matches_nothing_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "p/1.jpg")
    records, problems = listed(tmp_path, "p/*.png")
    assert (records, [p.code for p in problems]) == ([], ["source_empty"])


def test_odd_file_names_are_fine_as_keys_and_impossible_ones_reported(tmp_path: Path) -> None:
    odd = ["a b.jpg", "😀.jpg", "x" * 250 + ".jpg", "'\".jpg", "...jpg"[1:]]
    touch(tmp_path / "p", *[name for name in odd if not name.startswith(".")])
    Path(os.fsdecode(os.fsencode(tmp_path / "p") + b"/\xff.jpg")).touch()
    records, problems = listed(tmp_path, "p/*.jpg")
    assert set(keys(records)) == {name for name in odd if not name.startswith(".")}
    assert [p.code for p in problems] == ["malformed"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("../outside/*.jpg", "outside the home"),
        ("/etc/*.conf", "outside the home"),
        ("s3://bucket/*.jpg", "outside the home"),
        ("gone/*.jpg", "no such file"),
        ("gone", "no such file or folder"),
        ("gone.ndjson", "no such file or folder"),
        ("linked/*.jpg", "symbolic link"),
    ],
)
def test_a_source_that_cannot_be_used_is_a_config_error(source: str, reason: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    touch(tmp_path, "outside/1.jpg", "home/p/1.jpg")
    (home / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match=reason) as caught:
        listed(home, source)
    assert (caught.value.problems[0].file, caught.value.problems[0].path) == ("datasets/d.yaml", "$.source")


def test_an_allowed_folder_outside_the_home_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "outside/1.jpg", "home/x")
    allowed = Settings(allow_folders=(tmp_path / "outside",))
    assert keys(listed(tmp_path / "home", "../outside/*.jpg", settings=allowed)[0]) == ["1.jpg"]


FULL = {
    "row_data": "http://h/1.jpg",
    "global_key": "k1",
    "external_id": "mine",
    "data_row_id": "clf9",
    "media_type": "IMAGE",
    "attachments": [
        {"type": "IMAGE_OVERLAY", "value": "over.png", "name": "o"},
        {"type": "RAW_TEXT", "value": "a text"},
    ],
    "metadata": {"split": "train", "n": 3, "ok": True, "none": None, "deep": {"a": [1]}},
}
METADATA = (("split", "train"), ("n", "3"), ("ok", "true"), ("deep", '{"a":[1]}'))


def expected_record(base: Path, place: str) -> Record:
    attachments = (Attachment("IMAGE_OVERLAY", f"{base}/over.png", "o"), Attachment("RAW_TEXT", "a text"))
    return Record(place, "k1", Kind.URL, "http://h/1.jpg", "clf9", "mine", attachments, METADATA)


def test_ndjson_records(tmp_path: Path) -> None:
    records, problems = listed(tmp_path, ndjson(tmp_path, "", FULL))
    assert (records, problems) == ([expected_record(tmp_path, "rows.ndjson:2")], [])


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data_rows": rows}])
def test_json_records(wrap: object, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(wrap([FULL])))
    records, problems = listed(tmp_path, "rows.json")
    assert (records, problems) == ([expected_record(tmp_path, "rows.json[0]")], [])


def test_csv_records(tmp_path: Path) -> None:
    fields = {**FULL, "attachments": json.dumps(FULL["attachments"]), "metadata": json.dumps(FULL["metadata"])}
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, [*fields, "camera"])
        writer.writeheader()
        writer.writerow({**fields, "camera": "left\nor right"})
    records, problems = listed(tmp_path, "rows.csv")
    expected = expected_record(tmp_path, "rows.csv:2")
    assert problems == []
    assert dict(records[0].metadata) == {**dict(METADATA), "camera": "left\nor right"}
    assert (records[0].attachments, records[0].data_row_id) == (expected.attachments, "clf9")


def test_parquet_records(tmp_path: Path) -> None:
    table = pa.table(
        {
            "row_data": ["http://h/1.jpg", "2.jpg"],
            "global_key": pa.array([1, None], pa.int64()),
            "metadata": pa.array([[("split", "train")], []], pa.map_(pa.string(), pa.string())),
            "attachments": [[{"type": "IMAGE", "value": "http://h/a"}], None],
            "taken": pa.array([0, None], pa.timestamp("s")),
            "score": [0.5, float("nan")],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    records, problems = listed(tmp_path, "rows.parquet")
    assert problems == []
    assert keys(records) == ["1", "2.jpg"]
    assert dict(records[0].metadata) == {"split": "train", "taken": "1970-01-01 00:00:00", "score": "0.5"}
    assert records[0].attachments == (Attachment("IMAGE", "http://h/a"),)
    assert (records[1].row_data, records[1].place) == (f"{tmp_path}/2.jpg", "rows.parquet: row 2")


def test_old_names_of_the_create_form_are_read(tmp_path: Path) -> None:
    name = ndjson(
        tmp_path,
        {"imageUrl": "http://h/1", "externalId": "mine", "id": "clf9"},
        {"data": "http://h/2", "metadata_fields": [{"name": "split", "value": "a"}, {"schema_id": "cko8", "value": 1}]},
        {"row_data": "http://h/3", "data": "just a column", "dataset_id": "x", "embeddings": []},
    )
    records, problems = listed(tmp_path, name)
    assert problems == []
    assert [(r.row_data, r.external_id, r.data_row_id, r.metadata) for r in records] == [
        ("http://h/1", "mine", "clf9", ()),
        ("http://h/2", None, None, (("split", "a"), ("cko8", "1"))),
        ("http://h/3", None, None, (("data", "just a column"),)),
    ]


def test_a_line_of_an_export_v2_is_a_data_row(tmp_path: Path) -> None:
    line = {
        "data_row": {
            "id": "clf9",
            "global_key": "k",
            "external_id": "e",
            "row_data": "https://h/1?sig=1",
            "details": {},
        },
        "media_attributes": {"height": 17, "width": 25, "mime_type": "image/jpeg"},
        "attachments": [],
        "metadata_fields": [{"schema_id": "c", "schema_name": "split", "value": "train"}],
        "embeddings": [],
        "projects": {"p": {"labels": [{"annotations": {"objects": []}}]}},
    }
    keyless = {"data_row": {"id": "clf0", "row_data": "https://h/2?sig=2"}}
    name = ndjson(tmp_path, line, keyless)
    records, problems = listed(tmp_path, name)
    assert problems == []
    assert records == [
        Record("rows.ndjson:1", "k", Kind.URL, "https://h/1?sig=1", "clf9", "e", (), (("split", "train"),)),
        Record("rows.ndjson:2", "clf0", Kind.URL, "https://h/2?sig=2", "clf0"),
    ]
    assert [p.code for p in listed(tmp_path, name, "video")[1]] == ["media_type"]


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_F094_an_export_v1_is_recognised_and_refused(suffix: str, tmp_path: Path) -> None:
    line = {"ID": "label", "DataRow ID": "row", "Labeled Data": "https://h/1", "Label": "x"}
    text = json.dumps([line]) if suffix == "json" else ",".join(line) + "\n" + ",".join(line.values()) + "\n"
    (tmp_path / f"rows.{suffix}").write_text(text)
    with pytest.raises(ConfigError, match=r"export v1.*export again as v2"):
        listed(tmp_path, f"rows.{suffix}")


BAD_RECORDS = [
    ('{"row_data": "http://h/1', "malformed"),
    ("[1, 2]", "malformed"),
    ("NaN", "malformed"),
    ('"a text"', "malformed"),
    ({"global_key": "k"}, "missing_row_data"),
    ({"row_data": ""}, "missing_row_data"),
    ({"row_data": 3}, "malformed"),
    ({"row_data": {"messages": []}}, "malformed"),
    ({"row_data": "http://h/1", "global_key": ""}, "empty_key"),
    ({"row_data": "http://h/1", "global_key": " "}, "empty_key"),
    ({"row_data": "http://h/1", "global_key": ["k"]}, "empty_key"),
    ({"row_data": "http://h/1", "media_type": "TEXT"}, "media_type"),
    ({"row_data": "http://h/1", "external_id": {}}, "malformed"),
    ({"row_data": "http://h/1", "attachments": {"type": "IMAGE"}}, "malformed"),
    ({"row_data": "http://h/1", "attachments": [{"type": "IMAGE"}]}, "malformed"),
    ({"row_data": "http://h/1", "attachments": "[{"}, "malformed"),
    ({"row_data": "http://h/1", "metadata": 3}, "malformed"),
    ({"row_data": "http://h/1", "metadata_fields": [{"value": 3}]}, "malformed"),
    ({"row_data": "s3://bucket/1.jpg"}, "row_forbidden"),
    ({"row_data": "data:image/png;base64,AAAA"}, "row_forbidden"),
    ({"row_data": "file:///etc/passwd"}, "row_forbidden"),
    ("[" * 100_000, "malformed"),
    ('{"row_data": "\\ud800"}', "malformed"),
]


@pytest.mark.parametrize(("bad", "code"), BAD_RECORDS)
def test_a_bad_record_costs_itself_alone_and_is_reported_with_its_line(bad: object, code: str, tmp_path: Path) -> None:
    name = ndjson(tmp_path, {"row_data": "http://h/0"}, bad, {"row_data": "http://h/2"})
    records, problems = listed(tmp_path, name)
    assert keys(records) == ["http://h/0", "http://h/2"]
    assert [(p.place, p.code) for p in problems] == [("rows.ndjson:2", code)]
    assert len(problems[0].message) < 300


def test_F094_a_torn_last_line_is_reported_and_the_others_load(tmp_path: Path) -> None:
    (tmp_path / "rows.ndjson").write_bytes(b'\xef\xbb\xbf{"row_data":"http://h/1"}\r\n{"row_data":"http')
    records, problems = listed(tmp_path, "rows.ndjson")
    assert keys(records) == ["http://h/1"]
    assert [(p.place, p.code) for p in problems] == [("rows.ndjson:2", "malformed")]


def test_F094_a_line_has_a_length_limit(tmp_path: Path) -> None:
    lines = [json.dumps({"row_data": "http://h/" + "x" * length}) for length in (10, 2_000_000, 20)]
    (tmp_path / "rows.ndjson").write_text("\n".join(lines))
    records, problems = listed(tmp_path, "rows.ndjson", settings=Settings(max_row_bytes=1000))
    assert [len(r.row_data) for r in records] == [19, 29]
    assert [(p.place, p.code) for p in problems] == [("rows.ndjson:2", "line_too_long")]


def test_bad_csv_lines_are_reported_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(
        b"row_data,split\r\n"
        b'http://h/1,"a\r\nb"\r\n'
        b"http://h/2\r\n"
        b'"http://h/3"x,b\r\n'
        b"http://h/4,\xff\r\n"
        b"\r\n"
        b"http://h/5,c\r\n"
        b'http://h/6,"never closed'
    )
    records, problems = listed(tmp_path, "rows.csv")
    assert keys(records) == ["http://h/1", "http://h/5"]
    assert [(p.place, p.code) for p in problems] == [
        ("rows.csv:4", "malformed"),
        ("rows.csv:5", "malformed"),
        ("rows.csv:6", "row_encoding"),
        ("rows.csv:9", "malformed"),
    ]


def test_a_csv_may_be_in_another_encoding_and_hold_long_texts(tmp_path: Path) -> None:
    text = "naïve " * 50_000
    (tmp_path / "rows.csv").write_bytes(f"row_data\n{text}\n".encode("latin-1"))
    records, problems = listed(tmp_path, "rows.csv", "text", encoding="latin-1")
    assert ([r.row_data for r in records], problems) == ([text], [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.csv", b"url,split\nhttp://h/1,a\n", "expected a column row_data, got 'url, split'"),
        ("rows.csv", b"row_data,split,split\n", "stands there twice"),
        ("rows.csv", b"", "expected a column row_data"),
        ("rows.json", b"{", "not JSON"),
        ("rows.json", b'{"rows": []}', "expected a list"),
        ("rows.parquet", b"PAR1 no", "not readable as Parquet"),
    ],
)
def test_a_table_that_is_none_is_a_config_error(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        listed(tmp_path, name)


def test_paths_are_relative_to_the_table_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    name = ndjson(tmp_path / "lists", {"row_data": "../p/1.jpg"}, {"row_data": "/p/2.jpg"})
    records, _ = listed(tmp_path, f"lists/{name}")
    assert [(r.global_key, r.row_data) for r in records] == [
        ("../p/1.jpg", f"{tmp_path}/p/1.jpg"),
        ("/p/2.jpg", "/p/2.jpg"),
    ]


def test_texts_without_a_key_are_named_by_what_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    name = ndjson(tmp_path, {"row_data": "Tom and Bob"}, {"row_data": "a.txt"}, {"row_data": "http://h/a"})
    records, _ = listed(tmp_path, name, "text")
    # sha256 of "Tom and Bob", first 32 digits
    assert keys(records) == ["sha256:d23969d71e5f6aab18a5d675fabb1eba", "a.txt", "http://h/a"]
    assert [r.kind for r in records] == [Kind.INLINE, Kind.PATH, Kind.URL]


def test_a_conversation_may_stand_in_the_record(tmp_path: Path) -> None:
    conversation = {"type": "application/vnd.labelbox.conversational", "version": 1, "messages": []}
    name = ndjson(tmp_path, {"row_data": conversation}, {"conversationalData": [{"role": "user"}]})
    records, problems = listed(tmp_path, name, "conversational")
    assert problems == []
    assert [r.row_data for r in records] == [json.dumps(conversation, separators=(",", ":")), '[{"role":"user"}]']


def test_a_glob_may_list_tables(tmp_path: Path) -> None:
    ndjson(tmp_path, {"row_data": "http://h/2"}, name="b.ndjson")
    ndjson(tmp_path, {"row_data": "http://h/1"}, name="a.ndjson")
    records, _ = listed(tmp_path, "*.ndjson")
    assert [(r.place, r.global_key) for r in records] == [("a.ndjson:1", "http://h/1"), ("b.ndjson:1", "http://h/2")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [*FULL, "metadata_fields", "data_row", "media_attributes", "id", "data", "imageUrl", "other"]


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(FIELDS), json_values | st.just("http://h/1")) | json_values, max_size=5)
)
def test_every_record_is_a_data_row_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, values: list[object]
) -> None:
    base = tmp_path_factory.mktemp("any")
    (base / "rows.ndjson").write_text("".join(json.dumps(value) + "\n" for value in values))
    for media_type in ("image", "text", "conversational"):
        records, problems = listed(base, "rows.ndjson", media_type)
        assert len(records) + len(problems) == len(values)
