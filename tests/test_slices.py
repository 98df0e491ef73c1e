from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.rows.content import Kind
from foundry_pipeline.rows.records import Record
from foundry_pipeline.rows.slices import EARLIER_COLUMNS, LAST_SLICE, Known, Spool, same_table, slice_key
from foundry_pipeline.tables import DATA_ROWS


def load(
    keys: Sequence[str], earlier: dict[int, bytes], rows_per_slice: int, *, in_order: bool = True
) -> dict[int, bytes]:
    """The slices' files after a source listed `keys`, where the files were `earlier` before."""
    with Spool("d", "text") as spool:
        for key in keys:
            spool.add(Record(key, key, Kind.INLINE, f"text of {key}"), Known("text/plain", sha256=f"sum of {key}"))
        for number, content in earlier.items():
            rows = pq.ParquetFile(io.BytesIO(content)).read(list(EARLIER_COLUMNS)).to_pylist()
            spool.keep(number, iter(rows), reuse=True)
        spool.append_new(list(earlier), rows_per_slice, in_order=in_order)
        return {number: written(spool, number) for number in {*earlier, *spool.numbers()}}


def written(spool: Spool, number: int) -> bytes:
    target = io.BytesIO()
    with pq.ParquetWriter(target, DATA_ROWS.schema) as writer:
        for chunk in spool.chunks(number):
            if chunk.num_rows:
                writer.write_table(chunk)
    return target.getvalue()


def keys_of(content: bytes) -> list[str]:
    return pq.ParquetFile(io.BytesIO(content)).read(["global_key"])["global_key"].to_pylist()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefghijklmnop"), unique=True, max_size=16), min_size=2, max_size=4),
    st.integers(1, 5),
    st.booleans(),
)
def test_slices_are_stable(versions: list[list[str]], rows_per_slice: int, in_order: bool) -> None:
    """Whatever a source adds, drops and reorders: each of its rows is in exactly one slice; a row keeps its slice and
    its order there; a slice that lost nothing, and gained nothing as the last one, keeps its bytes."""
    earlier: dict[int, bytes] = {}
    for listed in versions:
        now = load(listed, earlier, rows_per_slice, in_order=in_order)
        assert sorted(key for content in now.values() for key in keys_of(content)) == sorted(listed)
        assert all(len(keys_of(content)) <= rows_per_slice for content in now.values())
        assert sorted(now) == list(range(len(now)))
        for number, content in earlier.items():
            before, rows = keys_of(content), keys_of(now[number])
            kept = [key for key in before if key in listed]
            assert rows[: len(kept)] == kept
            assert rows == kept or number == max(earlier)
            assert (rows == before) == (now[number] == content)
        earlier = now


def test_new_rows_come_in_the_sources_order_or_by_their_keys() -> None:
    assert keys_of(load("cab", {}, 10)[0]) == ["c", "a", "b"]
    assert keys_of(load("cab", {}, 10, in_order=False)[0]) == ["a", "b", "c"]


def test_a_long_slice_is_written_in_pieces_that_compare_equal(tmp_path: Path) -> None:
    with Spool("d", "text", tmp_path) as spool:
        for number in range(9_000):
            spool.add(Record("p", f"k{number}", Kind.INLINE, "x"), Known("text/plain", sha256="s"))
        spool.append_new([], 9_000, in_order=True)
        file = pq.ParquetFile(io.BytesIO(written(spool, 0)))
        assert (file.num_row_groups, file.metadata.num_rows) == (2, 9_000)
        assert same_table(spool.chunks(0), file)
        spool.learn(8_999, Known("text/html", sha256="s"))
        assert not same_table(spool.chunks(0), file)


def test_long_texts_make_smaller_pieces() -> None:
    with Spool("d", "text") as spool:
        for number in range(5):
            spool.add(Record("p", f"k{number}", Kind.INLINE, "x" * 9_000_000), None)
        spool.append_new([], 10, in_order=True)
        assert [chunk.num_rows for chunk in spool.chunks(0)] == [2, 2, 1]


def test_a_file_with_more_or_fewer_rows_is_another_table() -> None:
    fewer, same, more = ("ab", "abc", "abcd")
    with Spool("d", "text") as spool:
        for key in same:
            spool.add(Record(key, key, Kind.INLINE, f"text of {key}"), Known("text/plain", sha256=f"sum of {key}"))
        spool.append_new([], 10, in_order=True)
        found = [
            same_table(spool.chunks(0), pq.ParquetFile(io.BytesIO(load(keys, {}, 10)[0])))
            for keys in (fewer, same, more)
        ]
    assert found == [False, True, False]


def test_there_are_never_more_slices_than_keys(tmp_path: Path) -> None:
    assert slice_key(LAST_SLICE) == "99999"
    with Spool("d", "text", tmp_path) as spool:
        for key in "ab":
            spool.add(Record(key, key, Kind.INLINE, key), None)
        with pytest.raises(OverflowError, match="100,000 slices"):
            spool.append_new([LAST_SLICE], 1, in_order=True)
