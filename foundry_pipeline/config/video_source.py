"""Which frames of a video are sent, as a manifest or a run says it: a rate, or the frames' numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foundry_pipeline.config.fields import Block, Reader, list_of, number, refuse, whole
from foundry_pipeline.config.yaml_source import Findings

FRAME_FIELDS: Mapping[str, Reader[Any]] = {
    "frames_per_second": number(above=0, most=1000),
    "frames": list_of(whole(0, 2**31 - 1)),
}


def check_frames(block: Block, found: Findings) -> None:
    """Refuse a file that says both: nobody could tell which counts."""
    frames = block.item("frames")
    if frames is not None and block.item("frames_per_second") is not None:
        refuse(frames, found, "stands beside frames_per_second: write one of the two")
