"""One slice's ledger as a SQLite file of its own: write-ahead log, every commit on the disk before it returns."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from foundry_pipeline.calls.ballast import Ballast
from foundry_pipeline.calls.lease import make_private_folder
from foundry_pipeline.calls.ledger_layout import upgrade
from foundry_pipeline.calls.ledger_tables import METADATA, Scope
from foundry_pipeline.errors import StorageError

T = TypeVar("T")
PAGE_ROWS = 16
"""Rows that are in memory at once, each perhaps with a reply of megabytes."""


class SqliteFile:
    """A `ledger.Database` in a file, which is made if it is missing. One writer: whoever has the slice's lease."""

    scope = Scope()

    def __init__(self, path: Path, ballast: Ballast | None = None, *, is_ours: bool = True) -> None:
        """`ballast` is given up where a write fails; `is_ours` as in Database.

        Raises StorageError where the file cannot be read or written, or is no database.
        """
        self.path = path
        self.is_ours = is_ours
        self._ballast = ballast
        make_private_folder(path.parent)
        # A pool of two keeps the writer's connection: closing the last one would copy the whole log back each time.
        self._engine = sa.create_engine(
            f"sqlite+pysqlite:///{path}", poolclass=sa.pool.QueuePool, pool_size=2, hide_parameters=True
        )
        sa.event.listen(self._engine, "connect", _durable)
        if is_ours:
            self.run(upgrade)
        self.run(METADATA.create_all)

    def __str__(self) -> str:
        return str(self.path)

    def run(self, work: Callable[[sa.Connection], T]) -> T:
        """See Database."""
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as err:
            raise _storage_error(self.path, err) from err

    def pages(self, calls: sa.Select[Any]) -> Iterator[Sequence[Any]]:
        """See Database: in the order of the file, which is the fastest."""
        try:
            with self._engine.begin() as connection:
                yield from connection.execution_options(yield_per=PAGE_ROWS).execute(calls).partitions()
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as err:
            raise _storage_error(self.path, err) from err

    def commit(self, work: Callable[[sa.Connection], None]) -> None:
        """See Database. Nothing is tried twice: after a failed sync nobody knows what the disk holds."""
        self.run(work)

    def begin_spare(self) -> SqliteFile:
        """See Database: a file beside this one. The connection that failed is not used again, since the kernel may have
        dropped its pages."""
        self.close()
        if self._ballast is not None:
            self._ballast.free()
        return SqliteFile(spare_of(self.path))

    def spare_left(self) -> SqliteFile | None:
        """See Database."""
        spare = spare_of(self.path)
        return SqliteFile(spare) if spare.exists() else None

    def close(self) -> None:
        """See Database."""
        self._engine.dispose()

    def remove(self) -> None:
        """See Database."""
        self.close()
        for file in files_of(self.path):
            file.unlink(missing_ok=True)


def requests_in(path: Path) -> int:
    """Requests that a ledger records, which another process may be writing. Raises StorageError."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("PRAGMA busy_timeout=10000")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'calls'").fetchone():
                return 0
            requests: int = connection.execute("SELECT COALESCE(SUM(attempts), 0) FROM calls").fetchone()[0]
            return requests
    except sqlite3.Error as err:
        if path.exists():
            raise _storage_error(path, err) from err
        return 0  # its slice has just been committed


SPARE = ".spare.sqlite"


def spare_of(path: Path) -> Path:
    """Where answers go that find no place in the ledger at `path`."""
    return path.with_suffix(SPARE)


def is_spare(path: Path) -> bool:
    """True where a file is beside a ledger, and none itself."""
    return path.name.endswith(SPARE)


def slice_of(path: Path) -> str:
    """The slice that a ledger's, a spare's or a lock's file is named after."""
    return path.name.removesuffix(SPARE) if is_spare(path) else path.stem


def files_of(path: Path) -> list[Path]:
    """The files of a database that exist: itself, its log, the log's index."""
    every = (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))
    return [file for file in every if file.exists()]


def _durable(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA busy_timeout=10000")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    # A damaged text is no reason to refuse all others.
    connection.text_factory = lambda raw: raw.decode("utf-8", errors="surrogateescape")


_DAMAGED = ("malformed", "not a database", "disk I/O error")


def _storage_error(path: Path, err: Exception) -> StorageError:
    original = getattr(err, "orig", None) or err
    if getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageError(f"disk full at {path}; what it holds is kept, nothing more is sent")
    cause = next(iter(str(original).splitlines()), type(err).__name__)
    hint = "; `foundry-pipeline ledger --recover` saves what can be read" if cause.endswith(_DAMAGED[:2]) else ""
    return StorageError(f"ledger {path}: {cause}; what it holds is kept, nothing more is sent{hint}")
