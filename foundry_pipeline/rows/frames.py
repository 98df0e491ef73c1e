"""Which frames of a video a run asks for, and what a video may cost. Decoding them is `video.py`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from foundry_pipeline.errors import ConfigError, Problem

DEFAULT_FRAMES_PER_SECOND = 1.0
"""Where neither run nor manifest says which frames: enough to see what happens, and no surprise on the bill."""

NO_DECODER = "videos are decoded by PyAV, which is not installed: pip install 'foundry-pipeline[video]'"


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a video may cost. Pixels are a frame's, seconds are for reaching one frame."""

    max_pixels: int
    max_frames: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which frames: some a second, or those with these numbers."""

    frames_per_second: float = DEFAULT_FRAMES_PER_SECOND
    frames: Sequence[int] = ()

    def of(self, frame_count: int, video_frames_per_second: float) -> Sequence[int]:
        """The frames of one video, rising. By rate, the first is frame 0, and the n-th the one shown n / rate seconds
        later, each once; a video of varying rate is sampled evenly by frame number. Listed numbers past its end are
        left out."""
        if self.frames:
            return sorted(number for number in self.frames if number < frame_count)
        step = video_frames_per_second / self.frames_per_second
        if step <= 1:
            return range(frame_count)
        # The small summand keeps 2.9999999999999996 from being frame 2.
        return [number for n in range(int(frame_count / step) + 1) if (number := int(n * step + 1e-6)) < frame_count]


def has_decoder() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def check_decoder(media_type: str, file: str) -> None:
    """Raises ConfigError, about a dataset's file, where its data rows are videos and nothing can decode them."""
    if media_type == "video" and not has_decoder():
        raise ConfigError([Problem(file, NO_DECODER, "$.media_type")])
