"""A cheap look at a dataset's source: has anything changed since the last look? Reads no file's content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from foundry_pipeline.home import Dataset

_MODULUS = 2**128


def source_fingerprint(dataset: Dataset) -> str:
    """32 hexadecimal digits over name, size and time of every file that may belong to the source, and its settings.

    Looks at the folder before a glob's first wildcard, with everything in it: other files there make a difference
    too, and cost a load that finds nothing new. Of tables with paths or URLs in them, only the tables are looked at.
    """
    settings = (dataset.source, dataset.media_type, dataset.rows_per_slice, dataset.encoding)
    total = _number(repr(settings))
    for line in _files(_fixed_part(Path(os.path.normpath(dataset.base.absolute() / dataset.source)))):
        total = (total + _number(line)) % _MODULUS  # a sum: the order in which a disk lists files is no change
    return f"{total:032x}"


def _fixed_part(path: Path) -> Path:
    if os.path.lexists(path):
        return path
    wild = [at for at, part in enumerate(path.parts) if re.search(r"[*?\[]", part)]
    return Path(*path.parts[: wild[0]]) if wild else path


def _files(path: Path) -> Iterator[str]:
    if not path.is_dir():
        yield _line(path)
    for folder, _, names in os.walk(path):
        yield from (_line(Path(folder, name)) for name in names)


def _line(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return repr((str(path), "gone"))
    return repr((str(path), found.st_size, found.st_mtime_ns))


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
