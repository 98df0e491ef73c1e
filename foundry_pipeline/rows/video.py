"""Videos, decoded by PyAV (the extra `video`): what a file is, and its frames by number as upright pictures.

Frames are numbered from 0 in the order they are shown. Every container is opened as what its first bytes say, with a
few codecs and no other protocol allowed: FFmpeg on its own would guess, and some of its formats open further files.
What is cut off is found by the container's own lengths, since FFmpeg takes the end of a file for the end of a video.
"""

from __future__ import annotations

import bisect
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import av
from PIL import Image

from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.rows.frames import VideoLimits
from foundry_pipeline.rows.media import Facts

CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg"})
"""VP8 is not among them: its files hold packets that show no frame, so nothing tells the frames' numbers."""

JPEG_QUALITY = 95

_FORMATS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
}
_OPTIONS = {"fflags": "+genpts", "protocol_whitelist": "none"}
_ORIENTATION_OF_ROTATION = {-90: 6, 270: 6, 90: 8, -270: 8, 180: 3, -180: 3}
"""Degrees against the clock that a file asks for -> the EXIF orientation that means the same."""
_TURNS = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_270,
    8: Image.Transpose.ROTATE_90,
}
# PyAV raises FFmpeg's errors, and Python's own on names that are not UTF-8 and on missing streams.
_FAILURES = (av.error.FFmpegError, OSError, ValueError, LookupError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class _Index:
    """When frames are shown, in units of the stream: all of them in order, and the key frames among them.

    `by_time` is False where these times cannot be trusted: then frames are counted from the start.
    """

    times: Sequence[int]
    key_times: Sequence[int]
    by_time: bool


def video_facts(data: bytes, mime_type: str, limits: VideoLimits) -> Facts:
    """What a video is: displayed size in pixels, frames, and frames per second (an average where it varies).

    Its first frame is decoded. Raises RowUnavailable: `row_truncated`, `row_not_media`, `row_too_large`,
    `row_timeout`.
    """
    video = Video(data, mime_type, limits)
    try:
        return video.facts
    finally:
        video.close()


class Video:
    """One video, opened. Safe to use from several threads, which wait for each other; close it after use."""

    def __init__(
        self, data: bytes, mime_type: str, limits: VideoLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises RowUnavailable as `video_facts` does."""
        self._data = data
        self._mime_type = mime_type
        self._limits = limits
        self._clock = clock
        if (missing := _missing_bytes(data, _format(mime_type))) > 0:
            raise RowUnavailable("row_truncated", f"begins as {mime_type}; its last {missing:,} bytes are not there")
        with _translated(mime_type):
            self._index, rate = _index(data, mime_type, limits)
            self._container, self._stream = _opened(data, mime_type, limits)
        self._lock = threading.Lock()
        self._frames: Iterator[Any] = iter(())
        self._at: int | None = None
        try:
            self.facts = self._facts(rate)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give memory free, once no other thread decodes: FFmpeg would not survive it."""
        with self._lock:
            self._container.close()
            self._index = replace(self._index, times=())

    def picture(self, number: int, *, upright: bool = True) -> Image.Image:
        """One frame, RGB; turned as the file asks for, unless `upright` is False. Frames in rising order are cheapest.

        Raises RowUnavailable: `row_truncated` where the frame does not decode, `row_timeout` where reaching it takes
        longer than the limit.
        """
        with self._lock, _translated(self._mime_type):
            picture: Image.Image = self._frame(number).to_image()
        turn = _TURNS.get(self.facts.exif_orientation or 1) if upright else None
        return picture if turn is None else picture.transpose(turn)

    def _facts(self, rate: float) -> Facts:
        first = self._frame(0)
        orientation = _ORIENTATION_OF_ROTATION.get(round(first.rotation))
        size = (first.height, first.width) if orientation in (6, 8) else (first.width, first.height)
        return Facts(self._mime_type, *size, orientation, len(self._index.times), rate)

    def _frame(self, number: int) -> Any:
        if not 0 <= number < len(self._index.times):
            raise RowUnavailable("row_truncated", f"there is no frame {number} in {len(self._index.times):,} frames")
        target = self._index.times[number] if self._index.by_time else number
        deadline = self._clock() + self._limits.timeout_s
        try:
            found = self._walk(target, self._key_before(target), deadline)
            if found is None and self._index.by_time:
                # A container's own index may lead past the frame; from the start it is met, if it is there.
                found = self._walk(target, self._index.times[0], deadline, anew=True)
        except BaseException:
            self._at = None
            raise
        if found is None or found.is_corrupt:
            raise RowUnavailable("row_truncated", f"frame {number} does not decode")
        return found

    def _key_before(self, target: int) -> int:
        keys = self._index.key_times
        return keys[max(bisect.bisect_right(keys, target) - 1, 0)] if keys and self._index.by_time else 0

    def _walk(self, target: int, start: int, deadline: float, *, anew: bool = False) -> Any:
        """Decode up to `target`, from where we are if no key frame at `start` is nearer; None where it is not met."""
        with _translated(self._mime_type):
            if anew or self._at is None or self._at >= target or (self._index.by_time and self._at < start):
                self._seek(start)
            for frame in self._frames:
                self._check(frame, deadline)
                self._at = frame.pts if self._index.by_time else (-1 if self._at is None else self._at) + 1
                if self._at is not None and self._at >= target:
                    return frame if self._at == target else None
        self._at = None
        return None

    def _seek(self, start: int) -> None:
        if self._index.by_time:
            self._container.seek(start, stream=self._stream, backward=True)
        else:
            self._container.close()
            self._container, self._stream = _opened(self._data, self._mime_type, self._limits)
        self._at = None
        self._frames = self._container.decode(self._stream)

    def _check(self, frame: Any, deadline: float) -> None:
        _check_size(frame.width, frame.height, self._limits)
        if self._clock() > deadline:
            raise RowUnavailable("row_timeout", f"not decoded within row_timeout_s = {self._limits.timeout_s:g} s")


def frame_jpeg(picture: Image.Image) -> bytes:
    """A frame as it is sent."""
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=JPEG_QUALITY)
    return target.getvalue()


def _format(mime_type: str) -> str:
    if mime_type not in _FORMATS:
        raise RowUnavailable("row_not_media", f"{mime_type} is not decoded here; expected mp4, mov, mkv, webm or avi")
    return _FORMATS[mime_type]


def _opened(data: bytes, mime_type: str, limits: VideoLimits) -> tuple[Any, Any]:
    """(container, its video stream), with the codec and the size of its frames judged."""
    container = av.open(io.BytesIO(data), format=_format(mime_type), options=dict(_OPTIONS), metadata_errors="replace")
    try:
        stream: Any = container.streams.best("video")
        if stream is None:
            raise RowUnavailable("row_not_media", f"{mime_type} without a video in it")
        _check_codec(stream)
        _check_size(stream.codec_context.width, stream.codec_context.height, limits)
        # Threads of its own would multiply memory; calls run side by side anyway.
        stream.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    except BaseException:
        container.close()
        raise
    return container, stream


def _check_codec(stream: Any) -> None:
    context = stream.codec_context  # None for a codec that FFmpeg itself does not know
    codec = context.codec.canonical_name if context is not None else "unknown"
    if codec not in CODECS:
        expected = ", ".join(sorted(CODECS))
        raise RowUnavailable("row_not_media", f"the codec {shown(codec)} is not decoded here; expected {expected}")


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.max_pixels:
        message = f"{width} x {height} pixels a frame are over max_row_pixels = {limits.max_pixels:,}"
        raise RowUnavailable("row_too_large", message)


def _index(data: bytes, mime_type: str, limits: VideoLimits) -> tuple[_Index, float]:
    """The frames' times by the container's packets, without decoding; and frames per second."""
    container, stream = _opened(data, mime_type, limits)
    with container:
        shown_at: list[int | None] = []
        keys: list[int | None] = []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise RowUnavailable("row_truncated", f"{mime_type} with a damaged packet")
            if not packet.size or packet.is_discard:
                continue
            shown_at.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if len(shown_at) > limits.max_frames:
                raise RowUnavailable("row_too_large", f"over max_video_frames = {limits.max_frames:,} frames")
        if not shown_at:
            raise RowUnavailable("row_not_media", f"{mime_type} without a frame in it")
        known = sorted(at for at in shown_at if at is not None)
        by_time = _format(mime_type) != "avi" and len(set(known)) == len(shown_at)
        times = known if by_time else list(range(len(shown_at)))
        key_times = sorted(at for at in keys if at is not None)
        return _Index(times, key_times, by_time), _rate(stream, times if by_time else ())


def _rate(stream: Any, times: Sequence[int]) -> float:
    """Frames per second: what the file says, else what its times say; 1.0 where it has a single frame."""
    said = stream.average_rate or stream.guessed_rate
    if said:
        return float(said)
    span = (times[-1] - times[0]) * stream.time_base if len(times) > 1 else 0
    return float((len(times) - 1) / span) if span else 1.0


@contextmanager
def _translated(mime_type: str) -> Iterator[None]:
    """What PyAV raises on damage becomes RowUnavailable."""
    try:
        yield
    except _FAILURES as err:
        reason = getattr(err, "strerror", None) or str(err)
        message = f"begins as {mime_type} but does not decode: {shown(reason, 120)}"
        raise RowUnavailable("row_truncated", message) from None


def _missing_bytes(data: bytes, container_format: str) -> int:
    """How many bytes the container says there should be after the last one."""
    if container_format == "avi":
        return int.from_bytes(data[4:8], "little") + 8 - len(data)
    if container_format == "matroska":
        return _missing_in_matroska(data)
    return _missing_in_boxes(data)


def _missing_in_boxes(data: bytes) -> int:
    """MP4 and MOV: boxes one after the other, each with its length in 32 bits, or in 64 where that is 1; 0 is "the
    rest". Source: ISO/IEC 14496-12, Object structure."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        if size < 8:
            return 0
        at += size
    return at - len(data)


def _missing_in_matroska(data: bytes) -> int:
    """A header and a segment, each with an id, and its length as a number of variable size; all ones is "unknown".
    Source: RFC 8794, Element Data Size."""
    header, length = _vint(data, 4)
    if header is None:
        return 0
    at = length + header
    segment, length = _vint(data, at + 4)
    return 0 if segment is None else length + segment - len(data)


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
    """(the number at a place, the place behind it); None where it is unknown or not there."""
    first = data[at : at + 1]
    width = 9 - first[0].bit_length() if first else 9
    if width > 8 or at + width > len(data):
        return None, at
    ones = (1 << 7 * width) - 1
    value = int.from_bytes(data[at : at + width]) & ones
    return (None if value == ones else value), at + width
