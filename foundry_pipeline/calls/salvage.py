"""What can still be read of a damaged SQLite ledger, in a sound one; the damaged one is kept aside.

A SQLite file is a tree of pages, so a bad page costs the rows below it and no others: rows are asked for one by one.
Where the first page, which says what the file is, is bad, it is replaced in a copy by that of a new ledger, whose
tables begin at the same pages.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from foundry_pipeline.calls.ledger_tables import ANSWER_COLUMNS, ATTEMPTS, CALLS, read
from foundry_pipeline.calls.sqlite import SqliteFile, files_of
from foundry_pipeline.errors import StorageError

LEAST_ROW_BYTES = 64
"""A row holds a call id at least."""
GAP = 100_000
"""So many row numbers in a row without a row: there are no more."""


@dataclass(frozen=True, slots=True)
class Salvage:
    """What came out of a damaged ledger. `refused` are answers whose reply is not what was written."""

    answers: int
    refused: int
    attempts: int
    kept_aside: Path


def is_damaged(path: Path) -> bool:
    """True where SQLite finds fault with the structure of a ledger that exists."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            return bool(said != "ok")
    except sqlite3.DatabaseError:
        return True


def salvage(path: Path) -> Salvage:
    """Put what is readable into a new ledger at `path`, and the damaged files beside it under another name.

    To be called by the holder of the slice's lease. Raises StorageError where the disk refuses.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    prefix = f".salvage-{path.stem}-"
    try:
        for left_behind in path.parent.glob(f"{prefix}*"):
            shutil.rmtree(left_behind)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
            source, fresh = Path(folder, "source"), Path(folder, "fresh")
            for file in files_of(path):
                shutil.copy2(file, _renamed(file, path, source))
                shutil.copy2(file, _renamed(file, path, aside))
            _make_readable(source, Path(folder, "empty"))
            found = _copied(source, SqliteFile(fresh), aside)
            for file in files_of(path)[1:]:
                file.unlink()  # a log that is left would be applied to the new file
            fresh.replace(path)
    except OSError as err:
        raise StorageError(f"ledger {path}: cannot be salvaged: {err.strerror or err}") from err
    return found


def _renamed(file: Path, old: Path, new: Path) -> Path:
    """One of a database's files, had the database another name."""
    return new.with_name(new.name + file.name.removeprefix(old.name))


def _copied(source: Path, target: SqliteFile, aside: Path) -> Salvage:
    counts = Counter[str]()

    def write(connection: sa.Connection) -> None:
        for row in _readable_rows(source, CALLS):
            is_whole = row["outcome"] is None or read([row[name] for name in (*ANSWER_COLUMNS, "sha256")])[1]
            counts["refused"] += not is_whole
            counts["answers"] += is_whole and row["outcome"] is not None
            if is_whole:
                connection.execute(_CALL, row)
        for row in _readable_rows(source, ATTEMPTS):
            counts["attempts"] += 1
            connection.execute(_ATTEMPT, row)

    try:
        target.commit(write)
    finally:
        target.close()
    return Salvage(counts["answers"], counts["refused"], counts["attempts"], aside)


_CALL, _ATTEMPT = (sa.insert(table).prefix_with("OR IGNORE") for table in (CALLS, ATTEMPTS))


_CALL_ID = re.compile("[0-9a-f]{64}")


def _fits(table: sa.Table, row: dict[str, Any]) -> bool:
    """True where the values are of the columns' types; SQLite itself does not mind."""
    for column in table.columns:
        value, kind = row[column.name], column.type.python_type
        if value is None and not column.nullable:
            return False
        if value is not None and not isinstance(value, int if kind is bool else kind):
            return False
    if not _CALL_ID.fullmatch(row["call_id"]):
        return False
    return row.get("outcome") in (None, "ok", "failed", "rejected_by_model", "not_sent")


def _readable_rows(path: Path, table: sa.Table) -> Iterator[dict[str, Any]]:
    """Every row that SQLite can read and that is one of ours, by its number."""
    names = [column.name for column in table.columns]
    statement = f"SELECT {', '.join(names)} FROM {table.name} WHERE rowid = ?"  # noqa: S608, names of our own
    with contextlib.closing(_connect(path)) as connection:
        last_seen = 0
        for number in range(1, _most_rows(connection, path, table) + 1):
            if number - last_seen > GAP:
                return
            with contextlib.suppress(sqlite3.DatabaseError, UnicodeDecodeError, OverflowError):
                values: Sequence[Any] | None = connection.execute(statement, (number,)).fetchone()
                if values is None:
                    continue
                last_seen = number
                row = dict(zip(names, values, strict=True))
                if _fits(table, row):
                    yield row


def _most_rows(connection: sqlite3.Connection, path: Path, table: sa.Table) -> int:
    """The largest row number; where that cannot be read, more than fit into the files."""
    with contextlib.suppress(sqlite3.DatabaseError):
        (largest,) = connection.execute(f"SELECT max(rowid) FROM {table.name}").fetchone()  # noqa: S608
        return largest or 0
    return sum(file.stat().st_size for file in files_of(path)) // LEAST_ROW_BYTES


def _make_readable(path: Path, empty: Path) -> None:
    """Give a copy a first page again, where it has none that SQLite takes for a ledger's."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            known = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if {CALLS.name, ATTEMPTS.name} <= known:
            return
    except sqlite3.DatabaseError:
        pass
    SqliteFile(empty).close()
    page = bytearray(empty.read_bytes()[: _page_bytes(empty)])
    content = path.read_bytes()
    pages = max(1, len(content) // len(page))
    page[28:32] = pages.to_bytes(4, "big")  # the size of the file in pages
    page[92:96] = page[24:28]  # which is to be believed where these two are the same
    path.write_bytes(page + content[len(page) :])


def _page_bytes(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[16:18], "big")


def _connect(path: Path) -> sqlite3.Connection:
    """For reading; a file that is not there is not made."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None)
