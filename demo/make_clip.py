"""`python -m demo.make_clip`: the demo's video, made from two of its pictures: a slow pan over each.

It is committed, so that a demo needs no encoder; this says where it comes from and makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from PIL import Image

HOME = Path(__file__).parent / "home"
CLIP = HOME / "clips" / "cat_and_coffee.mp4"
SIZE_WH = (320, 240)
FRAMES_PER_SECOND = 4
FRAMES_A_PICTURE = 8
SHIFT = 0.12
"""How far a pan goes, as a share of the picture's width."""


def main() -> None:
    """Write the clip."""
    CLIP.parent.mkdir(exist_ok=True)
    with av.open(CLIP, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height = SIZE_WH
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23"}
        for number, picture in enumerate(frames()):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames() -> Iterator[Image.Image]:
    """The clip's pictures, in order."""
    for name in ("chelsea", "coffee"):
        with Image.open(HOME / "pictures" / f"{name}.jpg") as picture:
            whole = picture.convert("RGB")
        width = int(whole.width * (1 - SHIFT))
        for step in range(FRAMES_A_PICTURE):
            left = int(whole.width * SHIFT * step / (FRAMES_A_PICTURE - 1))
            yield whole.resize(SIZE_WH, box=(left, 0, left + width, whole.height))


if __name__ == "__main__":
    main()
