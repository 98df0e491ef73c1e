"""Tables in the making that are written together at the end: in memory while they are small, on a local disk then.

So memory does not grow with the rows of a slice. Where the tables go at last is `store.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from foundry_pipeline.errors import StorageError
from foundry_pipeline.store import ROW_GROUP_ROWS, Write
from foundry_pipeline.tables import TABLES

HELD_BYTES = 16 * 1024 * 1024
"""What is held of all tables together, before it goes to the disk."""
ROW_GROUP_BYTES = 32 * 1024 * 1024


class TableSpool:
    """Grows tables piece by piece. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes files and is removed by whoever made it."""
        self._folder = folder
        self._held: dict[str, list[pa.Table]] = {}
        self._held_bytes = 0
        self._files: dict[str, ipc.RecordBatchStreamWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, tables: Mapping[str, pa.Table]) -> None:
        """The next rows of some tables, by name. Raises StorageError where the disk refuses."""
        for name, table in tables.items():
            self._held.setdefault(name, []).append(table)
            self._held_bytes += table.nbytes
        if self._held_bytes > HELD_BYTES:
            for name, pieces in self._held.items():
                self._spill(name, pieces)
            self._held_bytes = 0

    def _spill(self, name: str, pieces: list[pa.Table]) -> None:
        try:
            if name not in self._files:
                options = ipc.IpcWriteOptions(compression="lz4")
                self._files[name] = ipc.new_stream(str(self._path(name)), TABLES[name].schema, options=options)
            for piece in pieces:
                self._files[name].write_table(piece)
        except OSError as err:
            raise StorageError(f"cannot write {self._path(name)}: {err}") from err
        pieces.clear()

    def contents(self) -> dict[str, Write]:
        """What `Store.commit` writes: every table that was added to, all rows in their order."""
        for file in self._files.values():
            file.close()
        return {name: self._writer(name) for name in self._held}

    def _writer(self, name: str) -> Write:
        def write(writer: pq.ParquetWriter) -> None:
            group = [TABLES[name].schema.empty_table()]
            rows, size = 0, 0
            for piece in self._pieces(name):
                group.append(piece)
                rows, size = rows + piece.num_rows, size + piece.nbytes
                if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
                    writer.write_table(pa.concat_tables(group))
                    group, rows, size = [], 0, 0
            if group:
                writer.write_table(pa.concat_tables(group))

        return write

    def _pieces(self, name: str) -> Iterator[pa.Table]:
        if name in self._files:
            with pa.OSFile(str(self._path(name))) as file, ipc.open_stream(file) as stream:
                for batch in stream:
                    yield pa.Table.from_batches([batch])
        yield from self._held[name]

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.arrows"
