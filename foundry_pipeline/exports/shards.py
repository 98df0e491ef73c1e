"""Numbered files of a bounded number of data rows and bytes, for formats that are files of many data rows."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from foundry_pipeline.exports.format import parts_of
from foundry_pipeline.home import Run

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
        self._number = 0
        self._rows = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._always and not self._number and kind is None:
            self._open()
        self._close()

    def add(self, content: bytes) -> str:
        """The content of one data row, into one file, whose name this is."""
        full = self._rows == ROWS_PER_FILE or self._bytes + len(content) > MAX_FILE_BYTES
        if self._file is None or (full and self._rows):
            self._close()
            self._open()
        assert self._file is not None
        self._bytes += self._file.write((self._between if self._rows else b"") + content)
        self._rows += 1
        return self._name

    @property
    def _name(self) -> str:
        """Of the file that was opened last; the first has number 1."""
        return f"{self._prefix}-{self._number:05}{self._suffix}"

    def _open(self) -> None:
        self._number += 1
        self._file = (self._folder / self._name).open("wb")
        self._bytes, self._rows = self._file.write(self._head), 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.write(self._tail)
            self._file.close()
            self._file = None


def part_prefix(prefix: str, part: str | None) -> str:
    """How the names of a part's files begin."""
    return prefix if part is None else f"{prefix}-{part}"


class PartedShards:
    """`Shards` for every part of the run's split: `<prefix>-train-00001<suffix>`; where it has none, the plain ones."""

    def __init__(self, run: Run, folder: Path, prefix: str, suffix: str, **shape: Any) -> None:
        """`shape` is what `Shards` takes by name."""
        self._parts = {part: Shards(folder, part_prefix(prefix, part), suffix, **shape) for part in parts_of(run)}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for shards in self._parts.values():
            self._open.enter_context(shards)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.__exit__(kind, error, at)

    def add(self, content: bytes, part: str | None) -> str:
        """The content of one data row of this part, into one file, whose name this is."""
        return self._parts[part].add(content)
