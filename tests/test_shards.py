"""Numbered files: never more than their limits, and a data row is never cut in two."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.exports import shards
from foundry_pipeline.exports.shards import ROWS_PER_FILE, Shards


def contents(folder):
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def test_a_file_holds_1000_data_rows(tmp_path):
    with Shards(tmp_path, "rows", ".txt") as files:
        for _ in range(2 * ROWS_PER_FILE + 1):
            files.add(b"x\n")
    assert [content.count(b"x") for content in contents(tmp_path)] == [1000, 1000, 1]
    assert [file.name for file in sorted(tmp_path.iterdir())] == [f"rows-0000{i}.txt" for i in (1, 2, 3)]


def test_a_file_begins_before_it_would_be_too_large(tmp_path):
    part = b"x" * (shards.MAX_FILE_BYTES // 2)
    with Shards(tmp_path, "rows", ".txt") as files:
        for content in (part, part, b"y", b"z" * (shards.MAX_FILE_BYTES + 1), b"w"):
            files.add(content)
    assert [len(content) for content in contents(tmp_path)] == [2 * len(part), 1, shards.MAX_FILE_BYTES + 1, 1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=3), max_size=5))
def test_every_file_has_its_head_and_tail_and_nothing_between_files(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("shards")
    with Shards(folder, "rows", ".json", head=b"[", between=b",", tail=b"]", always=True) as files:
        for row in rows:
            files.add(row)
    assert contents(folder) == [b"[" + b",".join(rows) + b"]"]


def test_without_data_rows_there_is_no_file_unless_one_is_wanted(tmp_path):
    with Shards(tmp_path, "rows", ".txt"):
        pass
    assert contents(tmp_path) == []


def test_what_fails_while_writing_is_not_hidden_by_closing(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), Shards(tmp_path, "rows", ".txt", always=True):
        raise RuntimeError("broken")
