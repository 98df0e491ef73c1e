"""The content of a data row: behind its URL, in its file, or the text in the row itself; guarded, and checked.

`locate` alone decides which of the three `row_data` is. Where files and addresses may lie is the business of
`local_files.py` and `addresses.py`; what bytes are, of `media.py`.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.home import Settings
from foundry_pipeline.rows.addresses import AddressRules, GuardedBackend, guarded_transport, shown_url
from foundry_pipeline.rows.downloads import Downloads
from foundry_pipeline.rows.local_files import LocalFiles
from foundry_pipeline.rows.media import TEXT_LIKE, Facts, decode_text, inspect, inspect_text

DOWNLOADS_IN_FLIGHT = 16
"""Each may hold `max_row_bytes`."""
FILES_IN_FLIGHT = 4
"""Each may hold `max_row_bytes` and a decoded picture of `max_row_pixels`."""

RELATIVE_MAX_CHARS = 1024
PATH_MAX_CHARS = 4096
"""A longer value of a text dataset is a text, not a path."""

_SPACE = re.compile(r"\s")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30})://", re.IGNORECASE)
_FILE_NAME = re.compile(r"\S+\.(txt|text|md|html?|json)", re.IGNORECASE)
_NOT_IN_A_PATH = frozenset("\n\r\0")
_READ_AGAIN = frozenset({"row_not_media", "row_truncated"})


class Kind(enum.StrEnum):
    """Where a data row's content is."""

    URL = "url"
    PATH = "path"
    INLINE = "inline"


@dataclass(frozen=True, slots=True)
class Content:
    """A data row's content. `sha256` is hexadecimal; `width` and `height` are pixels as displayed, after EXIF
    orientation, while `data` is the source's own bytes, not turned."""

    data: bytes
    mime_type: str
    sha256: str
    width: int | None = None
    height: int | None = None
    exif_orientation: int | None = None


def locate(row_data: str, media_type: str, files: LocalFiles, folder: str | None = None) -> tuple[Kind, str]:
    """Which kind `row_data` is, and how it stands in the data_rows table: URL as given, absolute path, or text.

    One rule for a source, where relative paths start at `folder`, and for the table, where there is no `folder` and
    every path is absolute. Pictures and videos are URLs or paths. A text, html page or conversation is a URL or path
    where it is a single word that looks like one (http..., or ending in .txt, .html, .json and the like), where it
    is an absolute path below the home or an allowed folder, or where a file of that name exists; else it is the
    text itself. Raises RowUnavailable (`row_forbidden`) for other schemes and `data:` URIs.
    """
    is_text = media_type in TEXT_LIKE
    if row_data[:8].lower().startswith(("http://", "https://")) and not (is_text and _SPACE.search(row_data)):
        return Kind.URL, row_data
    if row_data[:5].lower() == "data:" and not (is_text and ("," not in row_data or _SPACE.search(row_data))):
        raise RowUnavailable("row_forbidden", "data: URIs are not read; put the content into a file")
    if (scheme := _SCHEME.match(row_data)) and not (is_text and _SPACE.search(row_data)):
        raise RowUnavailable("row_forbidden", f"{scheme[1]}:// is not read; expected https, http or a local path")
    if not is_text:
        return Kind.PATH, _absolute(row_data, folder)
    path = _path_of_text(row_data, files, folder)
    return (Kind.INLINE, row_data) if path is None else (Kind.PATH, path)


def _absolute(path: str, folder: str | None) -> str:
    if folder is None and not path.startswith("/"):
        raise RowUnavailable("row_forbidden", f"{shown(path, 200)}: expected a URL or an absolute path")
    # normpath leaves two slashes at the start as they are.
    return os.path.normpath("/" + path.lstrip("/") if path.startswith("/") else f"{folder}/{path}")


def _path_of_text(value: str, files: LocalFiles, folder: str | None) -> str | None:
    is_absolute = value.startswith("/")
    if len(value) > (PATH_MAX_CHARS if is_absolute else RELATIVE_MAX_CHARS) or not (is_absolute or folder):
        return None
    if not _NOT_IN_A_PATH.isdisjoint(value):
        return None
    path = _absolute(value, folder)
    if is_absolute and files.root_of(path) not in (None, path):
        return path
    if _FILE_NAME.fullmatch(value):
        return path
    return path if os.path.lexists(path) and not Path(path).is_dir() else None


class ContentReader:
    """Reads data rows' content in one event loop, for any number of tasks at once.

    At most 16 downloads and 4 files are in work at a time; further reads wait their turn, uncounted by timeouts.
    """

    def __init__(
        self,
        home_root: Path,
        settings: Settings,
        *,
        encoding: str = "utf-8",
        transport: httpx.AsyncBaseTransport | None = None,
        retry_waits_s: Sequence[float] = (0.5, 2.0),
    ) -> None:
        """`encoding` is the dataset's, for texts in files and behind URLs. A `transport` of one's own takes the
        place of the guarded one, and with it of all address rules."""
        self.files = LocalFiles(home_root, settings.allow_folders)
        self._settings = settings
        self._encoding = encoding
        self._transport = transport
        self._retry_waits_s = retry_waits_s
        self._downloads: Downloads | None = None
        self._download_slots = asyncio.Semaphore(DOWNLOADS_IN_FLIGHT)
        self._file_slots = asyncio.Semaphore(FILES_IN_FLIGHT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def read(self, row: DataRow) -> Content:
        """The row's bytes and what they are.

        Where the row has a `content_sha256`, the bytes have to be the same as then, and are not decoded again.
        Raises RowUnavailable: `row_missing`, `row_expired`, `row_not_media`, `row_truncated`, `row_unreadable`,
        `row_changed`, `row_encoding`, `row_too_large`, `row_forbidden`, `row_host_down`, `row_timeout`. No message
        holds user info or query values of a URL.
        """
        kind, place = locate(row.row_data, row.media_type, self.files)
        if kind is Kind.INLINE:
            return _inline(row, self._settings.max_row_bytes)
        try:
            return await self._read_once(row, kind, place)
        except RowUnavailable as err:
            if err.code not in _READ_AGAIN:
                raise
        # A file being written or a proxy's passing error page: once more, then it counts.
        return await self._read_once(row, kind, place)

    async def text(self, row: DataRow) -> str:
        """The characters of a text, html page or conversation; offsets count its code points.

        Nothing is altered; a byte-order mark at the start of a file or answer is not part of the text. Raises
        RowUnavailable as `read` does, and `row_not_media` for a picture or video.
        """
        if row.media_type not in TEXT_LIKE:
            raise RowUnavailable("row_not_media", f"a data row of media type {shown(row.media_type)} has no text")
        if locate(row.row_data, row.media_type, self.files)[0] is Kind.INLINE:
            _inline(row, self._settings.max_row_bytes)
            return row.row_data
        return decode_text((await self.read(row)).data, self._encoding)

    async def close(self) -> None:
        """Close connections. The reader can be used again: it opens new ones."""
        downloads, self._downloads = self._downloads, None
        if downloads is not None:
            await downloads.close()

    async def _read_once(self, row: DataRow, kind: Kind, place: str) -> Content:
        if kind is Kind.URL:
            async with self._download_slots:
                data = await self._open_downloads().get(place)
                return await asyncio.to_thread(self._described, row, data, shown_url(place))
        async with self._file_slots:
            return await asyncio.to_thread(self._read_file, row, place)

    def _read_file(self, row: DataRow, path: str) -> Content:
        return self._described(row, self.files.read(path, self._settings.max_row_bytes), shown(path, 200))

    def _described(self, row: DataRow, data: bytes, place: str) -> Content:
        if row.content_sha256 is not None and row.mime_type is not None:
            return _as_recorded(row, data, place)
        try:
            facts = inspect(data, row.media_type, encoding=self._encoding, max_pixels=self._settings.max_row_pixels)
        except RowUnavailable as err:
            raise RowUnavailable(err.code, f"{place}: {err.message}") from None
        return _content(data, facts)

    def _open_downloads(self) -> Downloads:
        if self._downloads is None:
            rules = AddressRules.of(self._settings.allow_private_hosts)
            transport = self._transport or guarded_transport(GuardedBackend(rules), DOWNLOADS_IN_FLIGHT)
            self._downloads = Downloads(
                transport,
                max_bytes=self._settings.max_row_bytes,
                timeout_s=self._settings.row_timeout_s,
                retry_waits_s=self._retry_waits_s,
                host_patience_s=self._settings.row_host_patience_s,
            )
        return self._downloads


class RowReader:
    """Content of data rows for code without an event loop, such as decoding. Use as a context manager."""

    def __init__(
        self,
        home_root: Path,
        settings: Settings,
        *,
        encoding: str = "utf-8",
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """The same arguments as `ContentReader`. Not usable where an event loop already runs in this thread."""
        self._reader = ContentReader(home_root, settings, encoding=encoding, transport=transport)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._reader.close())
        self._runner.close()

    def text(self, row: DataRow) -> str:
        """As `ContentReader.text`."""
        return self._runner.run(self._reader.text(row))

    def picture(self, row: DataRow) -> bytes:
        """The bytes of a picture as they are in its source. Raises RowUnavailable."""
        return self._runner.run(self._reader.read(row)).data


def inline_content(text: str, media_type: str, max_bytes: int) -> Content:
    """The content of a text that stands in the row itself: its UTF-8 bytes. Raises RowUnavailable as `read` does."""
    data = _utf8(text, max_bytes)
    return _content(data, inspect_text(text, media_type))


def _inline(row: DataRow, max_bytes: int) -> Content:
    if row.content_sha256 and row.mime_type:
        return _as_recorded(row, _utf8(row.row_data, max_bytes), "the row's text")
    return inline_content(row.row_data, row.media_type, max_bytes)


def _utf8(text: str, max_bytes: int) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise RowUnavailable("row_encoding", f"a lone surrogate at character {err.start}") from None
    if len(data) > max_bytes:
        raise RowUnavailable("row_too_large", f"the text is over max_row_bytes = {max_bytes:,} bytes")
    return data


def _content(data: bytes, facts: Facts) -> Content:
    digest = hashlib.sha256(data).hexdigest()
    return Content(data, facts.mime_type, digest, facts.width, facts.height, facts.exif_orientation)


def _as_recorded(row: DataRow, data: bytes, place: str) -> Content:
    digest = hashlib.sha256(data).hexdigest()
    if digest != row.content_sha256:
        raise RowUnavailable(
            "row_changed", f"{place}: the content is not what it was when it was loaded; materialize data_rows again"
        )
    assert row.mime_type is not None
    return Content(data, row.mime_type, digest, row.width, row.height, row.exif_orientation)
