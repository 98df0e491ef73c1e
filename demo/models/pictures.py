"""Encoded pictures -> RGB pixels, upright, and of a size that fits in memory."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS, MAX_SIDE = 64_000_000, 10_000
"""A long thin picture is small itself, and huge as the square that a face is looked for in."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
UNDECODABLE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises on bytes that are cut, damaged, of no format it knows, or enormous."""

Pixels = NDArray[np.float32]


class PictureError(Exception):
    """The bytes are no picture that can be decoded; the message says why."""


def read_picture(content: bytes) -> Image.Image:
    """The picture as people see it (EXIF orientation applied), RGB. Raises PictureError."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture)
            return ImageOps.exif_transpose(picture).convert("RGB")
    except UNDECODABLE as err:
        raise PictureError("not a picture that can be decoded") from err


def _check_size(picture: Image.Image) -> None:
    if max(picture.size) > MAX_SIDE or picture.width * picture.height > MAX_PIXELS:
        raise PictureError(
            f"{picture.width} x {picture.height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all"
        )


def resized(picture: Image.Image, width: int, height: int) -> Pixels:
    """The whole picture stretched to (height, width, 3), 0 to 255, bilinear."""
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)


def letterboxed(picture: Image.Image, side: int) -> tuple[Pixels, int, tuple[int, int]]:
    """The picture fitted into a black square of `side`, kept in proportion and centred: (side, side, 3), 0 to 255.

    Also what leads back: the square's side in picture pixels, and its corner (left, top) in the picture, which is
    negative where a bar was added.
    """
    extent = max(picture.size)
    bars = ((extent - picture.width) // 2, (extent - picture.height) // 2)
    square = Image.new("RGB", (extent, extent))
    square.paste(picture, bars)
    return resized(square, side, side), extent, (-bars[0], -bars[1])
