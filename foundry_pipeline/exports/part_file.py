"""The file of one part: what an export keeps of one slice, so that the next one need not read the slice's tables.

Key and digest, 32 bytes each, then records in one zstd stream: the length of a head, the head as JSON, contents. The
key says what the part was made from, the digest (blake2b over key and stream) that it is whole. A part is only ever a
copy of what tables say: one that is old or damaged counts as none.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa

from foundry_pipeline.store import Store, reading

KEY_BYTES = DIGEST_BYTES = 32
HEAD_BYTES = KEY_BYTES + DIGEST_BYTES
_LENGTH = struct.Struct("<I")

Record = tuple[Mapping[str, Any], tuple[bytes, ...]]
"""(what JSON can hold, contents)."""


class PartWriter:
    """Writes a part into a local file, record by record; `finish` makes it valid. Use as a context manager."""

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, key
        self._file = path.open("wb+")
        self._file.write(key + bytes(DIGEST_BYTES))
        self._stream = pa.CompressedOutputStream(pa.PythonFile(_Unclosed(self._file), "w"), "zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._stream.close()
        self._file.close()
        self._path.unlink(missing_ok=True)  # what was finished has been moved away

    def add(self, about: Mapping[str, Any], contents: Sequence[bytes] = ()) -> None:
        """One record."""
        head = orjson.dumps({"about": about, "sizes": [len(content) for content in contents]})
        self._stream.write(b"".join((_LENGTH.pack(len(head)), head, *contents)))

    def finish(self) -> Path:
        """The finished file."""
        self._stream.close()
        self._file.seek(HEAD_BYTES)
        digest = hashlib.blake2b(self._key, digest_size=DIGEST_BYTES)
        while piece := self._file.read(1 << 20):
            digest.update(piece)
        self._file.seek(KEY_BYTES)
        self._file.write(digest.digest())
        self._file.close()
        return self._path


class _Unclosed:
    """A file whose `close` is somebody else's business."""

    closed = False

    def __init__(self, file: Any) -> None:
        self.write, self.flush = file.write, file.flush

    def close(self) -> None:
        """Nothing."""


def read_part(store: Store, name: str, key: bytes) -> Iterator[Record] | None:
    """The records of a part that was made from the same and is whole, else None. It is looked through before the first.

    Raises StorageError where it is damaged while it is read.
    """
    with contextlib.ExitStack() as stack:
        file = store.open_file(name)
        if file is None:
            return None
        stack.enter_context(file)
        if not _is_whole(file, key):
            return None
        stack.pop_all()
        return _records(name, file)


def _is_whole(file: pa.NativeFile, key: bytes) -> bool:
    head = file.read(HEAD_BYTES)
    if head[:KEY_BYTES] != key:
        return False
    digest = hashlib.blake2b(key, digest_size=DIGEST_BYTES)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return bool(digest.digest() == head[KEY_BYTES:])


def _records(name: str, file: pa.NativeFile) -> Iterator[Record]:
    file.seek(HEAD_BYTES)
    with file, reading(name), pa.CompressedInputStream(file, "zstd") as stream:
        while length := stream.read(_LENGTH.size):
            head = orjson.loads(stream.read(*_LENGTH.unpack(length)))
            yield head["about"], tuple(stream.read(size) for size in head["sizes"])
