"""What a dataset's source lists: the files of a folder or glob, or the records of tables (`record_files.py`).

Everything is streamed. Nothing is dropped in silence: what cannot be a data row comes out as a LoadProblem with its
place.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.content import Kind
from foundry_pipeline.rows.local_files import LocalFiles
from foundry_pipeline.rows.record_files import TABLE_SUFFIXES, Listed, read_tables, source_error
from foundry_pipeline.rows.records import LoadProblem, Record

_SHARD_SUFFIXES = TABLE_SUFFIXES - {".json"}
"""Tables that a glob may list several of; a glob's .json files are contents, such as conversations."""
_EXTENSIONS = {
    "image": frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".avif"}),
    "text": frozenset({".txt", ".text", ".md", ".log"}),
    "html": frozenset({".html", ".htm", ".xhtml"}),
    "conversational": frozenset({".json"}),
    "video": frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"}),
}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source lists. `in_order` says whether the records' order means something: a table's does, a folder's is
    whatever the disk gives."""

    records: Iterator[Listed]
    in_order: bool


def list_source(dataset: Dataset, files: LocalFiles, settings: Settings) -> Listing:
    """Open a dataset's source: a folder (its files at any depth), a glob, one file, or tables of records.

    Raises ConfigError, here or while the records are read, where the source as a whole cannot be used: missing, of
    an unknown kind, outside the allowed folders, not Parquet or JSON at all, without a row_data column, an export v1.
    """
    path = os.path.normpath(Path(dataset.base.absolute(), dataset.source))
    if "://" in dataset.source or files.root_of(path) is None:
        raise source_error(dataset, "outside the home folder; allow_folders in foundry.yaml lists what else is read")
    folder, pattern = _split(path)
    suffix = PurePosixPath(path).suffix.lower()
    if pattern is not None and suffix in _SHARD_SUFFIXES:
        paths = sorted(f"{folder}/{name}" for name in _matching(dataset, files, folder, pattern, Counter()))
        return Listing(read_tables(dataset, files, settings, paths), in_order=True)
    if pattern is not None:
        return Listing(_files_matching(dataset, files, folder, pattern), in_order=False)
    if Path(path).is_dir():
        return Listing(_files_of_media(dataset, files, path), in_order=False)
    if not os.path.lexists(path):
        raise source_error(dataset, "no such file or folder")
    if suffix in TABLE_SUFFIXES:
        return Listing(read_tables(dataset, files, settings, [path]), in_order=True)
    return Listing(_files_matching(dataset, files, folder, (PurePosixPath(path).name,)), in_order=False)


def _split(path: str) -> tuple[str, tuple[str, ...] | None]:
    """A path's fixed folder, and the pattern's segments after it; None where it has none, or names a real file."""
    parts = PurePosixPath(path).parts
    magic = [index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)]
    if not magic or os.path.lexists(path):
        return str(PurePosixPath(path).parent), None
    segments = parts[magic[0] :]
    return str(PurePosixPath(*parts[: magic[0]])), (*segments, "*") if segments[-1] == "**" else segments


def _files_matching(dataset: Dataset, files: LocalFiles, folder: str, pattern: Sequence[str]) -> Iterator[Listed]:
    left_out: Counter[str] = Counter()
    found = 0
    for name in _matching(dataset, files, folder, pattern, left_out):
        found += 1
        yield _record_of_file(folder, name)
    if not found:
        yield LoadProblem(dataset.source, "source_empty", f"no file in {shown(folder, 200)} matches")
    yield from _left_out(dataset, left_out)


def _files_of_media(dataset: Dataset, files: LocalFiles, folder: str) -> Iterator[Listed]:
    """A folder's files at any depth whose extension is one of the media type's, or that have none."""
    left_out: Counter[str] = Counter()
    found = 0
    wanted = _EXTENSIONS.get(dataset.media_type, frozenset()) | {""}
    for name in _matching(dataset, files, folder, ("**", "*"), left_out):
        extension = PurePosixPath(name).suffix.lower()
        if extension in wanted:
            found += 1
            yield _record_of_file(folder, name)
        else:
            left_out[f"{shown(extension)} files"] += 1
    if not found:
        yield LoadProblem(dataset.source, "source_empty", f"no {dataset.media_type} file in {shown(folder, 200)}")
    yield from _left_out(dataset, left_out)


def _left_out(dataset: Dataset, counts: Counter[str]) -> Iterator[LoadProblem]:
    for what, count in sorted(counts.items()):
        yield LoadProblem(dataset.source, "left_out", f"{count} {what} left out")


def _record_of_file(folder: str, name: str) -> Listed:
    if re.search(r"[\n\r\ud800-\udfff]", name):
        message = "the file's name is not UTF-8, or holds a line break"
        return LoadProblem(shown(os.fsencode(name), 200), "malformed", message)
    return Record(name, name, Kind.PATH, f"{folder.rstrip('/')}/{name}")


def _matching(
    dataset: Dataset, files: LocalFiles, folder: str, pattern: Sequence[str], left_out: Counter[str]
) -> Iterator[str]:
    """Names relative to `folder`, unsorted, of all files below it that match. Hidden ones never do; linked folders
    are counted in `left_out` and not entered."""
    try:
        files.check_folder(folder)
    except RowUnavailable as err:
        raise source_error(dataset, err.message) from None
    depth = None if "**" in pattern else len(pattern)
    for parts in _walk(folder, depth, left_out):
        if _matches(parts, pattern):
            yield "/".join(parts)


def _walk(folder: str, depth: int | None, left_out: Counter[str]) -> Iterator[tuple[str, ...]]:
    """The parts of every file's path below `folder`, at most `depth` of them."""
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        above = waiting.pop()
        try:
            with os.scandir("/".join((folder, *above))) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if depth is None or len(above) + 1 < depth:
                            waiting.append((*above, entry.name))
                    elif entry.is_symlink() and entry.is_dir():
                        left_out["linked folders"] += 1
                    else:
                        yield (*above, entry.name)
        except OSError:
            left_out["folders that cannot be read"] += 1


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether path parts match a pattern's segments; `**` stands for any number of folders, none included."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
