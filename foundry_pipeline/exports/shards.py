"""Numbered files of a bounded number of data rows and bytes, for formats that are files of many data rows."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

ROWS_PER_FILE = 1_000
"""More in one import have failed for users of annotation platforms."""
MAX_FILE_BYTES = 100_000_000
"""A data row is never cut in two: one that is larger is a file of its own."""


class Shards:
    """Writes `<prefix>-00001<suffix>` and further; a new file begins at either limit. Use as a context manager.

    Every file begins with `head` and ends with `tail`; between the contents of two data rows stands `between`. With
    `always`, there is a file even where no data row is.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        suffix: str,
        *,
        head: bytes = b"",
        between: bytes = b"",
        tail: bytes = b"",
        always: bool = False,
    ) -> None:
        self._folder, self._prefix, self._suffix = folder, prefix, suffix
        self._head, self._between, self._tail = head, between, tail
        self._always = always
        self._file: BinaryIO | None = None
        self.number = 0
        """Of the file that was written last, from 1."""
        self._rows = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._always and not self.number and kind is None:
            self._open()
        self._close()

    def add(self, content: bytes) -> None:
        """The content of one data row, into one file."""
        full = self._rows == ROWS_PER_FILE or self._bytes + len(content) > MAX_FILE_BYTES
        if self._file is None or (full and self._rows):
            self._close()
            self._open()
        assert self._file is not None
        self._bytes += self._file.write((self._between if self._rows else b"") + content)
        self._rows += 1

    def _open(self) -> None:
        self.number += 1
        self._file = (self._folder / f"{self._prefix}-{self.number:05}{self._suffix}").open("wb")
        self._bytes, self._rows = self._file.write(self._head), 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.write(self._tail)
            self._file.close()
            self._file = None
