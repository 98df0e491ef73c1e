"""A response as it comes in: inflated where the server compressed it unasked, and never past the size limit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import httpx

from foundry_pipeline.errors import shown


class RefusedBodyError(Exception):
    """A body that is not read to its end."""


class TooLargeError(RefusedBodyError):
    """The body passed the size limit."""


class BadEncodingError(RefusedBodyError):
    """The body is encoded in a way that is not understood."""


class Incoming:
    """One response. What has come of its body stays there when the rest does not come: evidence, never an answer."""

    def __init__(self, max_bytes: int) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        """Names are lower case."""
        self._room = max_bytes
        self._parts: list[bytes] = []
        self._inflater: _Inflater | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers are there. Raises BadEncodingError."""
        self.status = status
        self.headers = headers
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            self._inflater = _Inflater(encoding)

    def add(self, raw: bytes) -> None:
        """More of the body. Raises RefusedBodyError."""
        part = raw if self._inflater is None else self._inflater.plain(raw, self._room + 1)
        self._room -= len(part)
        if self._room < 0:
            raise TooLargeError
        self._parts.append(part)

    def end(self) -> None:
        """The body is there. Raises httpx.RemoteProtocolError where it was cut short inside its compression."""
        if self._inflater is not None:
            self._inflater.check_whole()

    @property
    def body(self) -> bytes:
        """The body, as far as it has come."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class _Inflater:
    """Undoes one content-encoding, giving at most the bytes there is room for."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise BadEncodingError(shown(encoding))
        self._encoding = encoding
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | (32 if "gzip" in encoding else 0))

    def plain(self, raw: bytes, room: int) -> bytes:
        try:
            part = self._inflate.decompress(raw, room)
        except zlib.error as err:
            raise BadEncodingError(f"{self._encoding}, damaged,") from err
        if self._inflate.unused_data:
            raise BadEncodingError(f"{self._encoding} with more behind its end")
        return part

    def check_whole(self) -> None:
        if not self._inflate.eof:
            raise httpx.RemoteProtocolError("the compressed body was cut short")
