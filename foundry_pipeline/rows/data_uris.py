"""`data:` URIs: content that stands in the URI itself, as base64 or percent-encoded.

Source: RFC 2397. No message here shows any of the content.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from foundry_pipeline.errors import RowUnavailable

_WORD = r"[\w!#$&^.+-]{1,80}"
_HEAD = re.compile(rf"data:({_WORD}/{_WORD})?((?:;{_WORD}=[^;,\s]{{0,80}})*)(;base64)?,", re.IGNORECASE)
_CHARSET = re.compile(r";charset=\"?([\w.:-]{1,40})", re.IGNORECASE)
_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class DataUri:
    """What a URI holds: its bytes, and the encoding that it names for a text."""

    data: bytes = field(repr=False)
    charset: str | None = None


def is_data_uri(text: str) -> bool:
    """Whether a text begins as one does: `data:`, a type if any, parameters if any, a comma."""
    return _HEAD.match(text) is not None


def data_uri_reference(uri: str) -> str:
    """What stands for a URI where its content does not belong: a few words and the sha256 of the URI."""
    return f"data: URI, sha256:{hashlib.sha256(uri.encode('utf-8', 'surrogatepass')).hexdigest()}"


def read_data_uri(uri: str, max_bytes: int) -> DataUri:
    """The content of a URI. White space inside base64 is skipped, its padding may be missing.

    Raises RowUnavailable: `row_not_media` where it is malformed, `row_too_large` before anything is decoded,
    `row_unreadable` where it is empty.
    """
    head = _HEAD.match(uri)
    if head is None:
        raise RowUnavailable("row_not_media", "a malformed data: URI: expected data:<type>;base64,<content>")
    # 2: base64 may be broken into lines; 3: every byte may be percent-encoded.
    if len(uri) - head.end() > (4 / 3 * 2 if head[3] else 3) * max_bytes + 100:
        raise _too_large(max_bytes)
    body = uri[head.end() :]
    data = _from_base64(body, max_bytes) if head[3] else _from_percents(body)
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    if not data:
        raise RowUnavailable("row_unreadable", "the data: URI holds nothing")
    charset = _CHARSET.search(head[2] or "")
    return DataUri(data, charset[1] if charset else None)


def _from_base64(body: str, max_bytes: int) -> bytes:
    try:
        letters = _BLANKS.sub("", body).encode("ascii")
        if b"%" in letters:
            letters = unquote_to_bytes(letters)
        if len(letters) // 4 * 3 > max_bytes + 3:
            raise _too_large(max_bytes)
        return binascii.a2b_base64(letters + b"=" * (-len(letters) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise RowUnavailable("row_not_media", f"a data: URI whose {len(body):,} characters are not base64") from None


def _from_percents(body: str) -> bytes:
    try:
        return unquote_to_bytes(body)
    except UnicodeEncodeError:
        raise RowUnavailable("row_not_media", "a data: URI that holds a lone surrogate") from None


def _too_large(max_bytes: int) -> RowUnavailable:
    return RowUnavailable("row_too_large", f"a data: URI over max_row_bytes = {max_bytes:,} bytes")
