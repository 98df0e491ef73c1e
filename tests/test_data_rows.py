from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import polars as pl
import pyarrow.dataset
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from foundry_pipeline.data_rows import Attachment, DataRow, data_row_id, rows_of
from foundry_pipeline.errors import ConfigError, StorageError
from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.datasets import DatasetReport, LoadProgress, load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS
from tests.pictures import picture
from tests.row_server import Answer, RowServer

LOCAL = Settings(allow_private_hosts=("127.0.0.1",), row_timeout_s=10.0)


class Home:
    """A home folder with one dataset `d` and its warehouse."""

    def __init__(
        self, root: Path, media_type: str = "text", source: str = "rows.ndjson", rows_per_slice: int = 3
    ) -> None:
        self.root = root
        self.store = Store(root / "warehouse")
        self.dataset = Dataset("d", "d.yaml", root, media_type, source, rows_per_slice)

    def write(self, *records: dict[str, object]) -> None:
        (self.root / "rows.ndjson").write_text("".join(json.dumps(record) + "\n" for record in records))

    def write_keys(self, *keys: str) -> None:
        self.write(*({"row_data": f"the text of {key}", "global_key": key} for key in keys))

    def load(self, settings: Settings = LOCAL, **options: object) -> DatasetReport:
        return load_dataset(self.dataset, self.root, settings, self.store, **options)

    def rows(self) -> dict[str, list[DataRow]]:
        return {key: list(rows_of(table)) for key, table in self.store.read_all(DATA_ROWS, "d")}

    def global_keys(self) -> list[list[str]]:
        return [[row.global_key for row in rows] for rows in self.rows().values()]

    def bytes(self) -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in (self.root / "warehouse/data_rows/dataset=d").glob("*")}

    def all_rows(self) -> dict[str, DataRow]:
        return {row.global_key: row for rows in self.rows().values() for row in rows}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def codes(report: DatasetReport) -> list[tuple[str, str]]:
    return [(problem.place, problem.code) for problem in report.problems]


def test_a_data_row_has_everything_its_source_said(home: Home) -> None:
    full = {
        "row_data": "Tom and Bob",
        "global_key": "k1",
        "external_id": "mine",
        "data_row_id": "clf9",
        "attachments": [{"type": "RAW_TEXT", "value": "more"}, {"type": "IMAGE", "value": "a.png", "name": "n"}],
        "metadata": {"split": "train"},
    }
    home.write(full, {"row_data": "<html>", "global_key": "k2"})
    report = home.load()
    digest = hashlib.sha256(b"Tom and Bob").hexdigest()
    attachments = (Attachment("RAW_TEXT", "more"), Attachment("IMAGE", f"{home.root}/a.png", "n"))
    first, second = home.rows()["00000"]
    assert first == DataRow(
        "clf9",
        "k1",
        "text",
        "Tom and Bob",
        "mine",
        "text/plain",
        None,
        None,
        None,
        attachments,
        {"split": "train"},
        digest,
    )
    assert (second.data_row_id, second.mime_type) == (data_row_id("d", "k2"), "text/html")
    assert (report.rows, report.added, report.slices, report.changed) == (2, 2, ("00000",), ("00000",))
    assert report.mime_types == {"text/html": 1, "text/plain": 1}
    assert report.data_versions == {"00000": hashlib.sha256(home.bytes()["00000"]).hexdigest()}
    assert (report.problem_count, report.unavailable, report.bytes_read) == (0, 0, 17)


def test_ids_do_not_depend_on_machine_run_or_row_data() -> None:
    assert data_row_id("d", "a/1.jpg") == "1003d626-b02e-5b22-8e8f-f6d845549784"
    assert data_row_id("e", "a/1.jpg") != data_row_id("d", "a/1.jpg")


def test_two_folders_with_files_of_one_name_are_two_data_rows(tmp_path: Path) -> None:
    home = Home(tmp_path, "image", "pictures/**/*.jpg")
    for folder, orientation in (("a", 6), ("b", None)):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        (tmp_path / "pictures" / folder / "1.jpg").write_bytes(picture(40, 20, orientation=orientation))
    home.load()
    first, second = home.rows()["00000"]
    assert (first.global_key, first.row_data) == ("a/1.jpg", f"{tmp_path}/pictures/a/1.jpg")
    assert (first.mime_type, first.width, first.height, first.exif_orientation) == ("image/jpeg", 20, 40, 6)
    assert (second.global_key, second.width, second.height, second.exif_orientation) == ("b/1.jpg", 40, 20, None)
    assert len(first.content_sha256 or "") == 64


def test_a_row_whose_content_cannot_be_had_stays_and_is_reported(tmp_path: Path) -> None:
    home = Home(tmp_path, "image", "pictures")
    (tmp_path / "pictures").mkdir()
    good = picture(64, 64)
    (tmp_path / "pictures" / "1.jpg").write_bytes(good)
    (tmp_path / "pictures" / "2.jpg").write_bytes(good[:-200])
    (tmp_path / "pictures" / "3.jpg").write_bytes(b"")
    (tmp_path / "pictures" / "4.jpg").write_text("<html>")
    (tmp_path / "pictures" / "5.jpg").symlink_to("1.jpg")
    os.mkfifo(tmp_path / "pictures" / "6.jpg")
    report = home.load()
    assert codes(report) == [
        ("2.jpg", "row_truncated"),
        ("3.jpg", "row_unreadable"),
        ("4.jpg", "row_not_media"),
        ("5.jpg", "row_forbidden"),
        ("6.jpg", "row_unreadable"),
    ]
    assert home.global_keys() == [["1.jpg", "2.jpg", "3.jpg"], ["4.jpg", "5.jpg", "6.jpg"]]
    bad = home.all_rows()["2.jpg"]
    assert (bad.mime_type, bad.width, bad.height, bad.content_sha256) == (None, None, None, None)
    assert (report.unavailable, report.mime_types) == (5, {"image/jpeg": 1, "unknown": 5})


def test_texts_in_files_have_to_be_of_the_encoding(tmp_path: Path) -> None:
    home = Home(tmp_path, "text", "*.txt")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert codes(home.load()) == [("a.txt", "row_encoding")]


def test_F093_the_first_of_two_rows_with_one_key_stays_and_the_other_is_reported(home: Home) -> None:
    home.write(
        {"row_data": "one", "global_key": "k"},
        {"row_data": "two", "global_key": "k"},
        {"row_data": "three", "global_key": "l", "data_row_id": "clf"},
        {"row_data": "four", "global_key": "m", "data_row_id": "clf"},
        {"row_data": "five", "global_key": ""},
    )
    report = home.load()
    assert [row.row_data for row in home.all_rows().values()] == ["one", "three"]
    assert [(p.place, p.code, p.message) for p in report.problems] == [
        ("rows.ndjson:2", "duplicate_key", "global key 'k' stands at rows.ndjson:1 too, which is kept"),
        ("rows.ndjson:4", "duplicate_id", "data row id 'clf' stands at rows.ndjson:3 too, which is kept"),
        ("rows.ndjson:5", "empty_key", "global_key: expected a text that is not empty, got ''"),
    ]


def test_no_problem_shows_a_signature(home: Home) -> None:
    home.dataset = Dataset("d", "d.yaml", home.root, "image", "rows.ndjson")
    home.write(
        {"row_data": "http://u:S3CRET@127.0.0.1:1/a?sig=S3CRET"},
        {"row_data": "http://u:S3CRET@127.0.0.1:1/a?sig=S3CRET"},
    )
    report = home.load(Settings())
    assert [code for _, code in codes(report)] == ["duplicate_key", "row_forbidden"]
    assert "S3CRET" not in str(report.problems)


def test_more_problems_than_are_kept_are_still_counted(home: Home) -> None:
    home.write({"row_data": "one"}, *({"global_key": str(number)} for number in range(250)))
    report = home.load()
    assert (len(report.problems), report.problem_count) == (100, 250)
    assert report.problem_counts == {"missing_row_data": 250}


@pytest.fixture
def server_home(tmp_path: Path) -> Home:
    return Home(tmp_path, "image", rows_per_slice=3)


def test_urls_are_fetched_once_and_again_only_when_told_to(server_home: Home) -> None:
    home = server_home
    with RowServer() as server:
        server.routes = {f"/{n}": Answer(picture(seed=n)) for n in range(5)}
        server.routes["/5"] = Answer(status=404)
        home.write(*({"row_data": server.url(f"/{n}"), "global_key": str(n)} for n in range(6)))
        report = home.load()
        assert (report.rows, codes(report)) == (6, [("rows.ndjson:6", "row_missing")])
        assert sorted(server.asked) == [f"/{n}" for n in range(6)]

        server.asked.clear()
        report = home.load()
        assert server.asked == ["/5"], "only what could not be had is asked for again"
        assert (report.changed, report.content_changed, report.bytes_read) == ((), 0, 0)

        server.asked.clear()
        server.routes["/1"] = Answer(picture(seed=99))
        report = home.load(reread=True)
        assert sorted(server.asked) == [f"/{n}" for n in range(6)]
        assert (report.changed, report.content_changed) == (("00000",), 1)

        server.asked.clear()
        server.routes["/new"] = Answer(picture(seed=7))
        home.write(
            *({"row_data": server.url("/new" if n == 4 else f"/{n}"), "global_key": str(n)} for n in range(6)),
        )
        report = home.load()
        assert sorted(server.asked) == ["/5", "/new"], "another URL for the same key is another content to look at"
        assert (report.changed, report.content_changed) == (("00001",), 1)


def test_private_addresses_are_refused_by_default(server_home: Home) -> None:
    with RowServer() as server:
        server.routes["/a"] = Answer(picture())
        server_home.write({"row_data": server.url("/a")})
        assert codes(server_home.load(Settings())) == [("rows.ndjson:1", "row_forbidden")]
        assert server.asked == []


def test_local_files_are_always_read_again(tmp_path: Path) -> None:
    home = Home(tmp_path, "image", "*.jpg")
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(picture(seed=n))
    home.load()
    before = home.bytes()
    assert home.load().changed == ()
    (tmp_path / "3.jpg").write_bytes(picture(seed=33))
    report = home.load()
    assert (report.changed, report.content_changed) == (("00001",), 1)
    assert home.bytes()["00000"] == before["00000"]


def test_a_file_that_sorts_first_changes_no_earlier_slice(tmp_path: Path) -> None:
    home = Home(tmp_path, "text", "*.txt")
    for name in "bcdefg":
        (tmp_path / f"{name}.txt").write_text(name)
    home.load()
    before = home.bytes()
    (tmp_path / "a.txt").write_text("a")
    report = home.load()
    assert home.global_keys() == [["b.txt", "c.txt", "d.txt"], ["e.txt", "f.txt", "g.txt"], ["a.txt"]]
    assert report.changed == ("00002",)
    assert {key: home.bytes()[key] for key in before} == before


def test_slices_that_exist_keep_their_size_when_rows_per_slice_changes(home: Home) -> None:
    home.write_keys(*"abcdefg")
    home.load()
    home.dataset = Dataset("d", "d.yaml", home.root, "text", "rows.ndjson", rows_per_slice=2)
    assert home.load().changed == ()
    home.write_keys(*"abcdefghij")
    home.load()
    assert ["".join(keys) for keys in home.global_keys()] == ["abc", "def", "gh", "ij"]


def test_a_slice_that_lost_all_its_rows_stays_as_an_empty_file(home: Home) -> None:
    home.write_keys(*"abcdef")
    home.load()
    home.write_keys(*"defg")
    report = home.load()
    assert home.global_keys() == [[], ["d", "e", "f"], ["g"]]
    assert (report.emptied, report.vanished, report.added) == (("00000",), 3, 1)
    assert report.slices == ("00000", "00001", "00002")
    assert home.load().changed == ()


def test_a_source_that_suddenly_lists_nothing_changes_nothing(home: Home) -> None:
    home.write_keys(*"abcd")
    home.load()
    before = home.bytes()
    home.write()
    with pytest.raises(ConfigError, match="lists no data row, while the dataset has 4"):
        home.load()
    assert home.bytes() == before


def test_a_source_that_never_listed_anything_has_no_slices(home: Home) -> None:
    home.write()
    report = home.load()
    assert (report.rows, report.slices, home.store.slices(DATA_ROWS, "d")) == (0, (), [])


def test_a_source_that_breaks_off_changes_nothing(home: Home) -> None:
    home.write_keys("a")
    home.load()
    before = home.bytes()
    (home.root / "rows.parquet").write_bytes(b"PAR1")
    home.dataset = Dataset("d", "d.yaml", home.root, "text", "rows.parquet")
    with pytest.raises(ConfigError):
        home.load()
    assert home.bytes() == before


def test_a_damaged_slice_is_named(home: Home) -> None:
    home.write_keys("a")
    home.load()
    path = home.root / "warehouse/data_rows/dataset=d/00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match=r"00000\.parquet"):
        home.load()


def test_an_encoding_that_does_not_exist_is_a_config_error(home: Home) -> None:
    home.write_keys("a")
    home.dataset = Dataset("d", "d.yaml", home.root, "text", "rows.ndjson", encoding="utf-88")
    with pytest.raises(ConfigError, match="utf-88"):
        home.load()


def test_progress_is_told(home: Home) -> None:
    (home.root / "a.txt").write_text("a")
    home.write({"row_data": "a.txt"}, *({"row_data": f"text {n}"} for n in range(4)))
    seen: list[LoadProgress] = []
    home.load(on_progress=seen.append)
    assert LoadProgress("d", "reading", 1, 5) in seen
    assert seen[-1] == LoadProgress("d", "writing", 2, 2)


def test_nothing_is_left_in_the_scratch_folder(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    home.write_keys("a")
    home.load(scratch=scratch)
    assert list(scratch.iterdir()) == []


def test_other_readers_see_the_table_as_it_is(home: Home) -> None:
    home.write({"row_data": "x", "global_key": "k", "metadata": {"a": "b"}}, *({"row_data": str(n)} for n in range(5)))
    home.load()
    frame = pl.scan_parquet(f"{home.root}/warehouse/data_rows/**/*.parquet").collect()
    assert frame.height == 6
    assert frame["row_data"].to_list() == ["x", *"01234"]
    assert frame["content_sha256"].null_count() == 0
    hive = pyarrow.dataset.dataset(f"{home.root}/warehouse/data_rows", partitioning="hive").to_table()
    assert hive["metadata"][0].as_py() == [("a", "b")]
    assert hive["dataset"][0].as_py() == "d"


@hypothesis_settings(max_examples=5, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=8), min_size=2, max_size=3),
    st.integers(2, 5),
)
def test_only_slices_that_changed_are_written(
    tmp_path_factory: pytest.TempPathFactory, versions: list[list[str]], rows_per_slice: int
) -> None:
    """`test_slices.py` holds the law of which slice a row is in; this, that files and reports follow it."""
    home = Home(tmp_path_factory.mktemp("home"), rows_per_slice=rows_per_slice)
    before: dict[str, bytes] = {}
    for listed in versions:
        home.write_keys(*listed)
        report = home.load()
        now = home.bytes()
        assert sorted(key for keys in home.global_keys() for key in keys) == sorted(listed)
        assert set(report.changed) == {key for key, content in now.items() if before.get(key) != content}
        assert report.data_versions == {key: hashlib.sha256(content).hexdigest() for key, content in now.items()}
        before = now


@hypothesis_settings(max_examples=8, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(str.strip), unique=True, min_size=1, max_size=12))
def test_F093_any_key_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    home.write_keys(*keys)
    report = home.load()
    assert list(home.all_rows()) == keys
    assert report.problems == ()
    assert home.load().changed == ()


def test_a_load_killed_between_slices_is_finished_by_the_next(tmp_path: Path) -> None:
    home = Home(tmp_path, rows_per_slice=2)
    home.write_keys(*"abcdefgh")
    script = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_data_rows import Home
        def stop(moment):
            if moment.phase == "writing" and moment.done == 2:
                os.kill(os.getpid(), 9)
        Home(Path({str(tmp_path)!r}), rows_per_slice=2).load(on_progress=stop, scratch=Path({str(tmp_path)!r}))
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parent.parent, check=False
    )
    assert killed.returncode == -9
    assert home.global_keys() == [["a", "b"], ["c", "d"]]
    assert home.load().changed == ("00002", "00003")
    assert home.global_keys() == [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
