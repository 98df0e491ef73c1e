"""Content in object stores: s3://, gs:// and az:// through pyarrow, as the warehouse does; memory:// through fsspec.

Where a store is, and what opens it, is the deployment's: its environment names endpoint and credentials. A row names
bucket and key and nothing else, since a URL's query could otherwise send the credentials to any host.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.fs as pafs

from foundry_pipeline.errors import RowUnavailable, shown

STORE_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "abfs",
    "abfs": "abfs",
    "abfss": "abfs",
    "memory": "memory",
}
"""A URL's scheme in small letters -> what pyarrow calls it."""

_URL = re.compile(r"([a-z][a-z0-9]*)://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_AZURE_ACCOUNT = re.compile(r"[a-z0-9-]+@[a-z0-9]+\.(dfs|blob)\.core\.windows\.net")
_KEPT_OPEN = 16
_REFUSED = ("ACCESS_DENIED", "FORBIDDEN", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")


def store_url(url: str) -> str | None:
    """The URL with its scheme as pyarrow calls it; None where it is of no object store."""
    scheme, colon, rest = url.partition("://")
    known = STORE_SCHEMES.get(scheme.lower())
    return f"{known}://{rest}" if colon and known else None


class ObjectStores:
    """Reads whole objects. Safe to call from several threads."""

    def __init__(self, prefixes: Sequence[str], *, max_bytes: int, timeout_s: float) -> None:
        """`prefixes` are the only URLs below which anything is read; all are where there are none."""
        self._prefixes = tuple((store_url(prefix) or prefix).rstrip("/") for prefix in prefixes)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._opened: OrderedDict[tuple[str, str], pafs.FileSystem] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, url: str) -> bytes:
        """An object's bytes. Blocks.

        Raises RowUnavailable: `row_forbidden`, `row_missing`, `row_too_large`, `row_unreadable` (no permission, empty,
        no such store here), `row_host_down`.
        """
        scheme, authority, key = self._judged(url)
        try:
            with self._file_system(scheme, authority).open_input_file(f"{_root(scheme, authority)}{key}") as file:
                if file.size() > self._max_bytes:
                    raise RowUnavailable("row_too_large", f"over max_row_bytes = {self._max_bytes:,} bytes")
                data: bytes = file.read(self._max_bytes)
        except FileNotFoundError:
            raise RowUnavailable("row_missing", "there is no such object") from None
        except (OSError, pa.ArrowException, ValueError) as err:
            raise _unavailable(err) from None
        if not data:
            raise RowUnavailable("row_unreadable", "the object is empty")
        return data

    def _judged(self, url: str) -> tuple[str, str, str]:
        """(scheme as pyarrow calls it, bucket, key with its leading slash)."""
        plain = store_url(url)
        parts = None if plain is None else _URL.fullmatch(plain)
        if plain is None or parts is None:
            raise RowUnavailable("row_forbidden", "not a URL of an object store")
        scheme, authority, key = parts[1], parts[2], parts[3] or ""
        if not _names_a_bucket(scheme, authority) or not (key.strip("/") or scheme == "memory"):
            raise RowUnavailable("row_forbidden", "expected a bucket and a key, without user, port or options")
        if {".", ".."} & set(key.split("/")) or "\0" in key:
            raise RowUnavailable("row_forbidden", "a key may not hold the parts . and ..")
        if self._prefixes and not any(plain.startswith(f"{prefix}/") for prefix in self._prefixes):
            raise RowUnavailable("row_forbidden", "row_stores in foundry.yaml does not list it")
        return scheme, authority, key

    def _file_system(self, scheme: str, authority: str) -> pafs.FileSystem:
        """One file system a bucket: to open one may ask the network for the bucket's region."""
        with self._lock:
            if (found := self._opened.get((scheme, authority))) is not None:
                self._opened.move_to_end((scheme, authority))
                return found
        opened = self._open(scheme, authority)
        with self._lock:
            self._opened[scheme, authority] = opened
            if len(self._opened) > _KEPT_OPEN:
                self._opened.popitem(last=False)
        return opened

    def _open(self, scheme: str, authority: str) -> pafs.FileSystem:
        if scheme == "memory":
            return _memory()
        # Google's client tries for 15 minutes by itself; the others give up within seconds.
        limit = f"?retry_limit_seconds={self._timeout_s:g}" if scheme == "gs" else ""
        opened, _ = pafs.FileSystem.from_uri(f"{scheme}://{authority}{limit}")
        return opened


def _names_a_bucket(scheme: str, authority: str) -> bool:
    of_azure = scheme == "abfs" and _AZURE_ACCOUNT.fullmatch(authority)
    return bool(of_azure or _BUCKET.fullmatch(authority) or (scheme == "memory" and not authority))


def _root(scheme: str, authority: str) -> str:
    """What a key stands behind: the bucket, or nothing where all is one space of names."""
    return f"/{authority}" if scheme == "memory" else authority.partition("@")[0]


def _memory() -> pafs.FileSystem:
    try:
        import fsspec
    except ModuleNotFoundError:
        raise RowUnavailable("row_unreadable", "memory:// needs fsspec: install foundry-pipeline[fsspec]") from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))


def _unavailable(err: Exception) -> RowUnavailable:
    text = str(err)
    if isinstance(err, PermissionError) or any(word in text for word in _REFUSED):
        return RowUnavailable("row_unreadable", f"no permission: {shown(text, 160)}")
    return RowUnavailable("row_host_down", shown(text, 160))
