"""Stable slices: which data row is in which slice of its dataset, and the slices' tables.

A row keeps its slice and its order there for as long as the source lists its global key. Rows that the source no
longer lists leave their slice; new rows fill the last slice up to `rows_per_slice`, then new slices. So more rows
change no earlier slice's bytes, and calls already paid for stay where they are. A slice that lost its last row keeps
an empty file: its partition, and tables computed from it, then become empty as well. Where `rows_per_slice` changed,
slices that exist stay as they are.

Rows are held in a temporary SQLite database, so that memory does not grow with the dataset.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from foundry_pipeline.data_rows import DataRow, data_row_id
from foundry_pipeline.errors import StorageError, shown
from foundry_pipeline.rows.addresses import shown_url
from foundry_pipeline.rows.content import Kind
from foundry_pipeline.rows.records import LoadProblem, Record
from foundry_pipeline.tables import DATA_ROWS, build, empty

LAST_SLICE = 99_999
"""Keys have five digits, so that their order as text is their order."""

_CHUNK_ROWS = 8192
_CHUNK_CHARS = 16 * 1024 * 1024
"""A chunk, one row group, ends where either is reached: texts may be long."""

_SCHEMA = """
CREATE TABLE listed (
    seq INTEGER PRIMARY KEY, global_key TEXT NOT NULL UNIQUE, place TEXT NOT NULL, kind TEXT NOT NULL,
    row_data TEXT NOT NULL, given_id TEXT UNIQUE, external_id TEXT, attachments TEXT NOT NULL, metadata TEXT NOT NULL,
    labels TEXT NOT NULL
);
CREATE TABLE known (
    seq INTEGER PRIMARY KEY, mime_type TEXT, width INTEGER, height INTEGER, exif_orientation INTEGER, sha256 TEXT,
    frame_count INTEGER, frames_per_second REAL
);
CREATE TABLE earlier (seq INTEGER PRIMARY KEY, sha256 TEXT);
CREATE TABLE placed (slice INTEGER, position INTEGER, seq INTEGER NOT NULL, PRIMARY KEY (slice, position))
    WITHOUT ROWID;
"""
_PRAGMAS = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a row's content; all None where it cannot be had."""

    mime_type: str | None = None
    width: int | None = None
    height: int | None = None
    exif_orientation: int | None = None
    sha256: str | None = None
    frame_count: int | None = None
    frames_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """A placed row whose content was not looked at yet."""

    seq: int
    slice_number: int
    place: str
    row: DataRow


def slice_key(number: int) -> str:
    """A slice's name as Dagster partition and file, such as `00012`; numbers count from 0."""
    return f"{number:05d}"


class Spool:
    """The rows of one load: first what the source lists, then where each belongs, then what its content is."""

    def __init__(self, dataset: str, media_type: str, scratch: Path | None = None) -> None:
        """`scratch` is where the temporary database goes; the system's folder for temporary files by default.

        Raises StorageError where no folder can be made.
        """
        self._dataset = dataset
        self._media_type = media_type
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="foundry-load-", dir=scratch)
        except OSError as err:
            raise StorageError(f"no folder for temporary files: {err}") from err
        self._db = sqlite3.connect(Path(self._folder.name, "rows.sqlite"), isolation_level=None)
        self._db.executescript(_PRAGMAS + _SCHEMA + "BEGIN;")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._db.close()
        self._folder.cleanup()

    def add(self, record: Record, known: Known | None) -> LoadProblem | None:
        """Keep a listed row, and what is known of its content; or say which earlier row has its key or its id."""
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO listed VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.global_key,
                record.place,
                record.kind,
                record.row_data,
                record.data_row_id,
                record.external_id,
                orjson.dumps(record.attachments).decode(),
                orjson.dumps(dict(record.metadata)).decode(),
                record.labels,
            ),
        )
        if cursor.rowcount == 0:
            return self._duplicate(record)
        if known is not None:
            assert cursor.lastrowid is not None
            self.learn(cursor.lastrowid, known)
        return None

    def _duplicate(self, record: Record) -> LoadProblem:
        place, key = self._db.execute(
            "SELECT place, global_key FROM listed WHERE global_key = ? OR given_id = ?",
            (record.global_key, record.data_row_id),
        ).fetchone()
        if key == record.global_key:
            name = shown_url(key) if record.kind.is_remote else shown(key)
            return LoadProblem(record.place, "duplicate_key", f"global key {name} stands at {place} too, which is kept")
        name = shown(record.data_row_id)
        return LoadProblem(record.place, "duplicate_id", f"data row id {name} stands at {place} too, which is kept")

    def learn(self, seq: int, known: Known) -> None:
        """Note what a row's content is."""
        self._db.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (seq, *astuple(known)))

    def keep(self, number: int, rows: Iterator[Mapping[str, object]], *, reuse: bool) -> int:
        """Place the rows of an earlier slice that are still listed, in its order; the count of those that are not.

        `rows` have the columns `EARLIER_COLUMNS`. With `reuse`, what was known of a URL's content holds on.
        """
        vanished = 0
        for position, row in enumerate(rows):
            found = self._db.execute(
                "SELECT seq, kind FROM listed WHERE global_key = ? AND seq NOT IN (SELECT seq FROM earlier)",
                (row["global_key"],),
            ).fetchone()
            if found is None:
                vanished += 1
                continue
            seq, kind = found
            self._db.execute("INSERT INTO placed VALUES (?, ?, ?)", (number, position, seq))
            self._db.execute("INSERT INTO earlier VALUES (?, ?)", (seq, row["content_sha256"]))
            if reuse and Kind(kind).is_remote and self._is_known(row):
                self._reuse(seq, row)
        return vanished

    def _is_known(self, row: Mapping[str, object]) -> bool:
        """Whether an earlier row says what its content is; a video's frames were not always counted."""
        if not row["content_sha256"] or row["media_type"] != self._media_type:
            return False
        return self._media_type != "video" or row.get("frame_count") is not None

    def _reuse(self, seq: int, row: Mapping[str, object]) -> None:
        values = (seq, *(row.get(name) for name in EARLIER_FACTS), seq, row["row_data"])
        self._db.execute(
            "INSERT INTO known SELECT ?, ?, ?, ?, ?, ?, ?, ? FROM listed WHERE seq = ? AND row_data = ?", values
        )

    def append_new(self, existing: Sequence[int], rows_per_slice: int, *, in_order: bool) -> int:
        """Place the rows that no earlier slice has: into the last slice up to `rows_per_slice`, then into new ones.

        Their order is the source's, or that of their global keys where the source has none. Gives their count;
        raises OverflowError where there would be more slices than keys.
        """
        number = max(existing, default=0)
        size = self._one("SELECT count(*) FROM placed WHERE slice = ?", number)
        position = 1 + self._one("SELECT coalesce(max(position), -1) FROM placed WHERE slice = ?", number)
        order = "seq" if in_order else "global_key"
        fresh = self._db.execute(
            f"SELECT seq FROM listed WHERE seq NOT IN (SELECT seq FROM earlier) ORDER BY {order}"  # noqa: S608
        )
        count = 0
        for (seq,) in fresh:
            if size >= rows_per_slice:
                number, size, position = number + 1, 0, 0
            if number > LAST_SLICE:
                raise OverflowError(f"more than {LAST_SLICE + 1:,} slices")
            self._db.execute("INSERT INTO placed VALUES (?, ?, ?)", (number, position, seq))
            size, position, count = size + 1, position + 1, count + 1
        return count

    def unread(self) -> Iterator[Unread]:
        """Rows whose content nobody looked at, slice by slice; `learn` may be called meanwhile."""
        at = (-1, -1)
        while page := self._db.execute(
            "SELECT slice, position, seq, place, given_id, global_key, row_data FROM placed JOIN listed USING (seq) "
            "WHERE (slice, position) > (?, ?) AND seq NOT IN (SELECT seq FROM known) "
            "ORDER BY slice, position LIMIT 256",
            at,
        ).fetchall():
            for number, _, seq, place, given_id, key, row_data in page:
                row_id = given_id or data_row_id(self._dataset, key)
                yield Unread(seq, number, place, DataRow(row_id, key, self._media_type, row_data))
            at = page[-1][:2]

    def numbers(self) -> list[int]:
        """The slices that have rows, ascending."""
        return [number for (number,) in self._db.execute("SELECT DISTINCT slice FROM placed ORDER BY slice")]

    def chunks(self, number: int) -> Iterator[pa.Table]:
        """A slice's table in pieces, the same pieces for the same rows."""
        rows: list[tuple[object, ...]] = []
        chars = 0
        cursor = self._db.execute(
            "SELECT given_id, global_key, external_id, row_data, mime_type, width, height, exif_orientation, "
            "attachments, metadata, sha256, frame_count, frames_per_second "
            "FROM placed JOIN listed USING (seq) LEFT JOIN known USING (seq) "
            "WHERE slice = ? ORDER BY position",
            (number,),
        )
        for row in cursor:
            rows.append(row)
            chars += len(row[3])
            if len(rows) == _CHUNK_ROWS or chars >= _CHUNK_CHARS:
                yield self._table(rows)
                rows, chars = [], 0
        yield self._table(rows)

    def _table(self, rows: Sequence[tuple[object, ...]]) -> pa.Table:
        if not rows:
            return empty(DATA_ROWS)
        columns: dict[str, Sequence[Any]] = dict(zip(_CHUNK_COLUMNS, zip(*rows, strict=True), strict=True))
        given = zip(columns["data_row_id"], columns["global_key"], strict=True)
        columns["data_row_id"] = [found or data_row_id(self._dataset, key) for found, key in given]
        columns["media_type"] = [self._media_type] * len(rows)
        columns["attachments"] = [orjson.loads(value) for value in columns["attachments"]]
        columns["metadata"] = [list(orjson.loads(value).items()) for value in columns["metadata"]]
        return build(DATA_ROWS, columns)

    def labels(self) -> Iterator[str]:
        """The annotation lines of the rows that have some, row by row in the order of the slices."""
        query = "SELECT labels FROM placed JOIN listed USING (seq) WHERE labels <> '' ORDER BY slice, position"
        return (labels for (labels,) in self._db.execute(query))

    def row_count(self) -> int:
        """Rows listed."""
        return self._one("SELECT count(*) FROM listed")

    def changed_contents(self) -> int:
        """Rows whose content was known earlier and is another one now."""
        return self._one("SELECT count(*) FROM earlier JOIN known USING (seq) WHERE earlier.sha256 <> known.sha256")

    def mime_types(self) -> dict[str, int]:
        """Rows by type of content; `unknown` where it cannot be had."""
        return dict(
            self._db.execute(
                "SELECT coalesce(mime_type, 'unknown'), count(*) FROM listed LEFT JOIN known USING (seq) "
                "GROUP BY 1 ORDER BY 1"
            )
        )

    def _one(self, query: str, *values: object) -> int:
        found: int = self._db.execute(query, values).fetchone()[0]
        return found


_CHUNK_COLUMNS = (
    "data_row_id",
    "global_key",
    "external_id",
    "row_data",
    "mime_type",
    "width",
    "height",
    "exif_orientation",
    "attachments",
    "metadata",
    "content_sha256",
    "frame_count",
    "frames_per_second",
)
"""What `Spool.chunks` selects, in its order."""

EARLIER_FACTS = (
    "mime_type",
    "width",
    "height",
    "exif_orientation",
    "content_sha256",
    "frame_count",
    "frames_per_second",
)
"""The columns of the table that hold what is known of a row's content, in the order of `Known`."""
EARLIER_COLUMNS = ("global_key", "media_type", "row_data", *EARLIER_FACTS)
"""What `Spool.keep` needs to see of an earlier slice."""


def same_table(chunks: Iterator[pa.Table], file: pq.ParquetFile) -> bool:
    """Whether a slice's file holds exactly these pieces, so that writing it again would give the same bytes."""
    if not file.schema_arrow.equals(DATA_ROWS.schema):
        return False
    groups = 0
    for chunk in chunks:
        if chunk.num_rows == 0:
            continue
        if groups == file.num_row_groups or not file.read_row_group(groups).equals(chunk):
            return False
        groups += 1
    return bool(groups == file.num_row_groups)
