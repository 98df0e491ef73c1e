"""Small videos made on the spot: frame n is a grey picture whose left part, n + 1 columns of 8 pixels, is red."""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

MP4 = ("mp4", "libx264", "video/mp4")
FORMATS = (
    MP4,
    ("mov", "mjpeg", "video/quicktime"),
    ("matroska", "libx264", "video/x-matroska"),
    ("webm", "libvpx-vp9", "video/x-matroska"),
    ("avi", "mpeg4", "video/x-msvideo"),
)


def video(
    frames: int = 12,
    fmt: str = "mp4",
    codec: str = "libx264",
    *,
    rate: int = 4,
    size: tuple[int, int] = (128, 48),
    key_every: int = 5,
    times: list[int] | None = None,
) -> bytes:
    """`times` are when frames are shown, in units of 1 / rate seconds; one after the other by default."""
    target = io.BytesIO()
    with av.open(target, "w", format=fmt) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = key_every
        if codec in ("libx264", "mpeg4"):
            stream.max_b_frames = 2
        container.start_encoding()  # also where no frame follows
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(frame_pixels(number, size), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def frame_pixels(number: int, size: tuple[int, int] = (128, 48)) -> np.ndarray:
    pixels = np.full((size[1], size[0], 3), 128, np.uint8)
    pixels[:, : 8 * (number + 1)] = (220, 0, 0)
    return pixels


def number_in(picture: bytes | Image.Image) -> int:
    """Which frame a picture shows, by its red columns."""
    opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
    pixels = np.asarray(opened.convert("RGB")).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 100).mean(axis=0) > 0.5
    return round(int(red.sum()) / 8) - 1


def turned_video(data: bytes, degrees: int, size: tuple[int, int] = (128, 48)) -> bytes:
    """An MP4 that asks to be shown turned clockwise by 0, 90, 180 or 270 degrees, as phones make them."""
    width, height = size
    a, b, c, d, x, y = {
        0: (1, 0, 0, 1, 0, 0),
        90: (0, 1, -1, 0, height, 0),
        180: (-1, 0, 0, -1, width, height),
        270: (0, -1, 1, 0, 0, width),
    }[degrees]
    at = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, x << 16, y << 16, 1 << 30)
    return data[:at] + matrix + data[at + 36 :]
