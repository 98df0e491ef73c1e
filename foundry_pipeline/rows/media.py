"""What a data row's bytes are: their type by the first bytes, never by a name; a picture's size; whether it decodes.

Pictures are decoded by Pillow with six formats allowed, after their size in pixels was checked from the header.
"""

from __future__ import annotations

import codecs
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson
from PIL import Image, ImageOps, UnidentifiedImageError

from foundry_pipeline.errors import RowUnavailable, shown

UPRIGHT_TRANSFORM = "exif-upright-v1"
"""Names what `upright_jpeg_or_png` does; part of a request's identity, so that a change of it is a new call."""

FRAME_TRANSFORM = "frame-jpeg-v1"
"""Names how a video's frame becomes a picture (`video.py`); part of a request's identity, too."""

TEXT_LIKE = frozenset({"text", "html", "conversational"})
"""Media types whose content is characters."""

_NO_CHARSETS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})
"""Python's codecs for texts that are no encodings of files; some take time with the square of a text's length."""
_ORIENTATION_TAG = 0x0112
_PILLOW_FORMAT = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/tiff": "TIFF",
    "image/bmp": "BMP",
}
_UNDECODED_PICTURES = frozenset({"image/heic", "image/avif"})

_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"\x1aE\xdf\xa3", "video/x-matroska"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
)
_BRANDS = {
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"heim": "image/heic",
    b"heis": "image/heic",
    b"hevc": "image/heic",
    b"mif1": "image/heic",
    b"msf1": "image/heic",
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"qt  ": "video/quicktime",
}

# Pillow's decoders raise all of these on damaged files; a warning is one where a process makes warnings errors.
_PILLOW_FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    EOFError,
    struct.error,
    zlib.error,
    Warning,
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What content is. `width` and `height` are pixels as displayed, after EXIF orientation (1 to 8); a video's
    rotation is told as the orientation that means the same."""

    mime_type: str
    width: int | None = None
    height: int | None = None
    exif_orientation: int | None = None
    frame_count: int | None = None
    frames_per_second: float | None = None


def sniff(data: bytes) -> str | None:
    """The mime type that the first bytes say; None where they say nothing (text, for one)."""
    for magic, mime_type in _MAGIC:
        if data.startswith(magic):
            return mime_type
    if data[:4] == b"RIFF" and data[8:12] in (b"WEBP", b"AVI "):
        return "image/webp" if data[8:12] == b"WEBP" else "video/x-msvideo"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "video/mp4")
    # Two letters are little evidence: a bitmap's header also holds its length and four zero bytes.
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0" and len(data) > 26:
        return "image/bmp"
    return None


def inspect(data: bytes, media_type: str, *, encoding: str = "utf-8", max_pixels: int) -> Facts:
    """Check that `data` is content of `media_type` and say what it is.

    A picture of the six formats is decoded whole; HEIC and AVIF pass without size and check, since nothing here
    decodes them. Pillow itself refuses more than 178 million pixels, whatever `max_pixels` is. Raises
    RowUnavailable: `row_not_media`, `row_truncated`, `row_too_large`, `row_encoding`.
    """
    if media_type in TEXT_LIKE:
        return inspect_text(decode_text(data, encoding), media_type)
    mime_type = sniff(data)
    if mime_type is None or not mime_type.startswith(f"{media_type}/"):
        seen = mime_type or f"content that begins {shown(data[:40])}"
        raise RowUnavailable("row_not_media", f"expected {_article(media_type)}, got {seen}")
    if mime_type in _PILLOW_FORMAT:
        return _inspect_picture(data, mime_type, max_pixels)
    return Facts(mime_type)


def inspect_text(text: str, media_type: str) -> Facts:
    """What a text is: a conversation has to be JSON (`row_not_media` otherwise), html is html, text may be either."""
    if media_type == "conversational":
        _check_conversation(text)
        return Facts("application/json")
    is_html = media_type == "html" or re.match(r"\s*<(!doctype html|html)\b", text[:200], re.IGNORECASE)
    return Facts("text/html" if is_html else "text/plain")


def decode_text(data: bytes, encoding: str) -> str:
    """The characters of a text file, exactly: no newline is translated, nothing is normalised.

    A byte-order mark belongs to the encoding, not to the text: one at the start is left out, so offsets count code
    points from the first character after it. Raises RowUnavailable: `row_encoding` with the byte's place,
    `row_not_media` for a known binary format.
    """
    mime_type = sniff(data)
    # A text may begin with the letters GIF89a; the formats themselves are full of zero bytes.
    if mime_type is not None and b"\0" in data[:4096]:
        raise RowUnavailable("row_not_media", f"expected a text, got {mime_type}")
    try:
        if codecs.lookup(encoding).name in _NO_CHARSETS:
            raise LookupError
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise RowUnavailable("row_encoding", f"there is no text encoding {shown(encoding)}") from None
    except UnicodeDecodeError as err:
        seen = data[err.start : err.start + 4].hex(" ")
        raise RowUnavailable("row_encoding", f"not {encoding} at byte {err.start}: {seen}") from None
    except UnicodeError as err:
        raise RowUnavailable("row_encoding", f"not {encoding}: {shown(str(err))}") from None


def _check_conversation(text: str) -> None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as err:
        raise RowUnavailable("row_not_media", f"expected a conversation in JSON: {shown(str(err))}") from None
    if not isinstance(value, dict | list):
        raise RowUnavailable("row_not_media", f"expected a conversation, a JSON object or list; got {shown(text)}")


def _inspect_picture(data: bytes, mime_type: str, max_pixels: int) -> Facts:
    with _opened(data, mime_type) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise RowUnavailable("row_too_large", f"{width} x {height} pixels are over max_row_pixels = {max_pixels:,}")
        # Before load(): loading a TIFF turns it and forgets the tag.
        orientation = _orientation(picture)
        picture.load()
    # Pillow gives a TIFF's size already as displayed.
    if orientation in (5, 6, 7, 8) and mime_type != "image/tiff":
        width, height = height, width
    return Facts(mime_type, width, height, orientation)


def _orientation(picture: Image.Image) -> int | None:
    value = picture.getexif().get(_ORIENTATION_TAG)
    return value if isinstance(value, int) and 1 <= value <= 8 else None


@contextmanager
def _opened(data: bytes, mime_type: str) -> Iterator[Image.Image]:
    """A picture of the type its first bytes say; what Pillow raises on damage becomes RowUnavailable."""
    formats = [_PILLOW_FORMAT[mime_type]]
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise RowUnavailable("row_too_large", f"{mime_type}: {shown(str(err), 200)}") from None
    except _PILLOW_FAILURES as err:
        reason = "its header is damaged" if isinstance(err, UnidentifiedImageError) else shown(str(err), 120)
        raise RowUnavailable("row_truncated", f"begins as {mime_type} but does not decode: {reason}") from None


def needs_turning(exif_orientation: int | None) -> bool:
    """True where the file's pixels are not as displayed: then a turned copy is sent."""
    return exif_orientation not in (None, 1)


def upright_jpeg_or_png(data: bytes, mime_type: str) -> bytes:
    """A copy of a picture, turned as its EXIF orientation says and without that mark.

    JPEG (quality 95) for a JPEG, else PNG: see `upright_mime_type`. Meant for orientations 2 to 8; any other picture
    is sent byte for byte. Raises RowUnavailable (`row_truncated`) where it does not decode.
    """
    with _opened(data, mime_type) as picture:
        turned = ImageOps.exif_transpose(picture)
        colours = {"icc_profile": picture.info.get("icc_profile")}
        target = io.BytesIO()
        if mime_type == "image/jpeg":
            turned.save(target, "JPEG", quality=95, **colours)
        else:
            _for_png(turned).save(target, "PNG", **colours)
    return target.getvalue()


def upright_mime_type(mime_type: str) -> str:
    """The type of what `upright_jpeg_or_png` makes of a picture."""
    return mime_type if mime_type == "image/jpeg" else "image/png"


def _for_png(picture: Image.Image) -> Image.Image:
    return picture if picture.mode in {"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"} else picture.convert("RGB")


def _article(media_type: str) -> str:
    return f"an {media_type}" if media_type[:1] in "aeiou" else f"a {media_type}"
