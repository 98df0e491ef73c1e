"""Small pictures made on the spot."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def picture(
    width: int = 40,
    height: int = 20,
    fmt: str = "JPEG",
    *,
    orientation: int | None = None,
    seed: int = 0,
    mode: str = "RGB",
) -> bytes:
    """A picture of noise; `orientation` is its EXIF mark, `width` and `height` are as stored."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    target = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(target, fmt, **({"exif": exif} if orientation is not None else {}))
    return target.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))
