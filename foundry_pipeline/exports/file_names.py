"""The one owner of file names: how exports call pictures, and files of their own that belong to one or to a class.

A picture is called what its own file is called, so that the names fit the folder a person has. Where that cannot be
(two pictures share a name, the name is no safe file name) it is the global key, where that is a safe relative path;
else what is safe of the key, and 16 digits of its sha256. Names are unique without regard to capitals and Unicode
form. They depend neither on slices nor on the order of rows.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.rows.data_uris import is_data_uri

NAME_MAX_BYTES = 200
"""File systems allow 255; an ending of ours may follow."""
PATH_MAX_BYTES = 1000
KEPT_CHARS = 40
"""Of a global key that is no safe name: enough to recognise it."""

_FORBIDDEN = re.compile(r'[\\/:*?"<>|]')
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices, whatever follows the first dot."""
_OURS = re.compile(r".*-[0-9a-f]{16}")
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,5}")
_EXTENSIONS = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tif",
}


@dataclass(frozen=True, slots=True)
class NameDigests:
    """The names that some pictures may be called by, as digests of 8 bytes: one for each picture that has the name."""

    keys: NDArray[np.uint64]
    names: NDArray[np.uint64]
    """Of the basename, and of the global key where it is another."""
    stems: NDArray[np.uint64]
    """The same without their extensions."""

    @classmethod
    def of(cls, pictures: Sequence[tuple[str, str]]) -> NameDigests:
        """`pictures` holds (global key, row_data) of each."""
        both = [(key, _basename(row_data)) for key, row_data in pictures]
        stems = [(stem_of(key), stem_of(name)) for key, name in both]
        return cls(_digests([(key,) for key, _ in both]), _digests(both), _digests(stems))


def _digests(names_of_pictures: Iterable[tuple[str, ...]]) -> NDArray[np.uint64]:
    return np.array([digest for names in names_of_pictures for digest in {_digest(name) for name in names}], np.uint64)


class PictureNames:
    """The names of one dataset's pictures: which would stand for two is known after a look at all of them."""

    def __init__(self, slices: Iterable[NameDigests]) -> None:
        """`slices` is read once and held until the end of it, about 50 bytes a picture."""
        held = list(slices)
        self._shared_keys = _shared(digests.keys for digests in held)
        self._shared_names = _shared(digests.names for digests in held)
        self._shared_stems = _shared(digests.stems for digests in held)

    def shared_by(self, digests: NameDigests) -> list[int]:
        """Which of these names stand for two pictures of the dataset: with them, the names of a slice are settled."""
        mine = (
            (digests.keys, self._shared_keys),
            (digests.names, self._shared_names),
            (digests.stems, self._shared_stems),
        )
        return [digest for some, shared in mine for digest in sorted(shared.intersection(some.tolist()))]

    def path_of(self, row: DataRow) -> str:
        """The picture's name for a file that refers to it; may lie in folders: `street/0001.jpg`."""
        basename = _basename(row.row_data)
        if _is_safe(basename) and _digest(basename) not in self._shared_names:
            return basename
        if _is_safe_path(row.global_key) and _digest(row.global_key) not in self._shared_keys:
            return row.global_key
        return _hashed(row)

    def file_of(self, row: DataRow, *, one_word: bool = False) -> str:
        """The picture's name where files are made for it: as `path_of`, but never in folders, unique without its
        extension too, and, for lists that separate by spaces, without white space."""
        path = self.path_of(row)
        spaced = one_word and any(map(str.isspace, path))
        return _hashed(row) if "/" in path or spaced or _digest(stem_of(path)) in self._shared_stems else path


def _shared(pieces: Iterable[NDArray[np.uint64]]) -> frozenset[int]:
    """The digests that are there twice or more."""
    digests, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *pieces]), return_counts=True)
    return frozenset(digests[counts > 1].tolist())


def stem_of(name: str) -> str:
    """A picture's name without its extension, as Ultralytics cuts it: at the last dot."""
    return name.rpartition(".")[0] or name


def class_words(features: Sequence[str]) -> dict[str, str]:
    """Feature -> a word for a file name: the feature's own where it is one and no other differs in capitals only."""
    folded = Counter(map(_digest, features))
    return {f: f if _is_word(f) and folded[_digest(f)] == 1 else f"{_kept(f)}-{_hash(f)}" for f in features}


def _is_word(text: str) -> bool:
    return _is_safe(text) and not any(map(str.isspace, text))


def _digest(name: str) -> int:
    """The same for names that some file system would not tell apart."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest())


def _basename(row_data: str) -> str:
    """The file's own name: of a URL the last part of its path, of a path the same; empty where it has none."""
    if is_data_uri(row_data):
        return ""
    if not re.match(r"[a-z][a-z0-9+.-]*://", row_data, re.IGNORECASE):
        return posixpath.basename(row_data)
    try:
        return posixpath.basename(unquote(urlsplit(row_data).path))
    except ValueError:  # a URL that nobody can open: http://[::1/a.jpg
        return ""


def _is_safe(name: str) -> bool:
    """Whether a name is a file name on every system, harmless in a shell, and none that `_hashed` might make."""
    return (
        0 < len(name.encode()) <= NAME_MAX_BYTES
        and name.isprintable()
        and name == name.strip()
        and name[0] not in ".-"
        and name[-1] != "."
        and not _FORBIDDEN.search(name)
        and not _RESERVED.fullmatch(name)
        and not _OURS.fullmatch(stem_of(name))
    )


def _is_safe_path(path: str) -> bool:
    return len(path.encode()) <= PATH_MAX_BYTES and all(map(_is_safe, path.split("/")))


def _hashed(row: DataRow) -> str:
    """What is safe of the global key, and a part of its sha256, which tells it from all others."""
    return f"{_kept(stem_of(posixpath.basename(row.global_key)))}-{_hash(row.global_key)}{_extension(row)}"


def _kept(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text)[:KEPT_CHARS].strip("_") or "row"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _extension(row: DataRow) -> str:
    return next(_extensions_of(row), "")


def _extensions_of(row: DataRow) -> Iterator[str]:
    for name in (_basename(row.row_data), row.global_key):
        extension = "." + name.rpartition(".")[2]
        if "." in name and _EXTENSION.fullmatch(extension):
            yield extension.lower()
    if row.mime_type in _EXTENSIONS:
        yield _EXTENSIONS[row.mime_type]
