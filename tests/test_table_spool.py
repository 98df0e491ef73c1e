"""Tables that are written together: the same files whether they were held or laid on the disk in between."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry_pipeline import table_spool
from foundry_pipeline.errors import StorageError
from foundry_pipeline.table_spool import TableSpool
from foundry_pipeline.tables import BOXES, REJECTS, TEXTS
from tests.decoding import decode_tables


def pieces(count: int) -> list[dict[str, pa.Table]]:
    reply = {"car": {"boxes": [[1, 2, 3, 4]] * 5000, "scores": [0.5] * 5000}, "summary": "so", "zebra": 1}
    return [decode_tables(reply)] * count


def spooled(folder: Path, tables: list[dict[str, pa.Table]]) -> dict[str, pa.Table]:
    """The tables as they are in the files that come out."""
    found = {}
    with TableSpool(folder) as spool:
        for part in tables:
            spool.add(part)
        for name, write in spool.contents().items():
            path = folder / f"{name}.parquet"
            with pq.ParquetWriter(path, tables[0][name].schema) as writer:
                write(writer)
            found[name] = pq.read_table(path)
    return found


def test_small_tables_never_touch_the_disk(tmp_path: Path) -> None:
    tables = pieces(3)
    with TableSpool(tmp_path) as spool:
        for part in tables:
            spool.add(part)
        assert list(tmp_path.iterdir()) == []
    assert {name: table.num_rows for name, table in spooled(tmp_path, tables).items() if table.num_rows} == {
        BOXES.name: 15_000,
        TEXTS.name: 3,
        REJECTS.name: 3,
    }


def test_large_tables_are_laid_aside_and_come_back_in_their_order(tmp_path: Path) -> None:
    size = sum(table.nbytes for table in pieces(1)[0].values())
    tables = pieces(2 * table_spool.HELD_BYTES // size + 1)
    found = spooled(tmp_path, tables)
    assert (tmp_path / "boxes.arrows").exists()
    for name in (BOXES.name, TEXTS.name, REJECTS.name):
        assert found[name].equals(pa.concat_tables([part[name] for part in tables]))


def test_a_row_group_is_bounded(tmp_path: Path) -> None:
    spooled(tmp_path, pieces(30))
    file = pq.ParquetFile(tmp_path / "boxes.parquet")
    groups = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
    assert sum(groups) == 150_000
    assert max(groups) < 2 * 65_536
    assert len(groups) <= 4


def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"), TableSpool(tmp_path / "nowhere") as spool:
        for part in pieces(table_spool.HELD_BYTES // 100_000):
            spool.add(part)
