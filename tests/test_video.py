"""Videos: what a file is, its frames by number, and everything that is no sound video."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.rows.frames import Sampling, VideoLimits
from foundry_pipeline.rows.media import Facts
from foundry_pipeline.rows.video import Video, video_facts
from tests.videos import FORMATS, number_in, turned_video, video

LIMITS = VideoLimits(max_pixels=64_000_000, max_frames=1000, timeout_s=60.0)
CLIP = video()


def refusal(data: bytes, mime_type: str = "video/mp4", limits: VideoLimits = LIMITS) -> RowUnavailable:
    with pytest.raises(RowUnavailable) as caught:
        video_facts(data, mime_type, limits)
    return caught.value


@pytest.mark.parametrize(("fmt", "codec", "mime_type"), FORMATS)
def test_a_videos_facts(fmt: str, codec: str, mime_type: str) -> None:
    facts = video_facts(video(12, fmt, codec), mime_type, LIMITS)
    assert facts == Facts(mime_type, 128, 48, None, frame_count=12, frames_per_second=4.0)


@pytest.mark.parametrize(("fmt", "codec", "mime_type"), FORMATS)
def test_every_frame_is_found_by_its_number_in_any_order(fmt: str, codec: str, mime_type: str) -> None:
    """B-frames are decoded in another order than they are shown, and only a key frame can be begun at."""
    opened = Video(video(12, fmt, codec), mime_type, LIMITS)
    forward = [number_in(opened.picture(number)) for number in range(12)]
    jumping = [7, 2, 3, 11, 0, 4, 10, 1, 9, 5, 6, 8]
    assert forward == list(range(12))
    assert [number_in(opened.picture(number)) for number in jumping] == jumping
    opened.close()


def test_frames_are_numbered_by_the_time_they_are_shown_where_the_rate_varies() -> None:
    data = video(5, times=[0, 1, 7, 8, 30])
    opened = Video(data, "video/mp4", LIMITS)
    assert opened.facts.frame_count == 5
    assert [number_in(opened.picture(number)) for number in (4, 2, 0)] == [4, 2, 0]
    opened.close()


@pytest.mark.parametrize(
    ("degrees", "orientation", "size_wh"),
    [(0, None, (128, 48)), (90, 6, (48, 128)), (180, 3, (128, 48)), (270, 8, (48, 128))],
)
def test_a_video_is_turned_as_it_asks_to_be_shown(degrees: int, orientation: int, size_wh: tuple[int, int]) -> None:
    opened = Video(turned_video(CLIP, degrees), "video/mp4", LIMITS)
    facts = opened.facts
    assert (facts.width, facts.height, facts.exif_orientation) == (*size_wh, orientation)
    upright, stored = opened.picture(3), opened.picture(3, upright=False)
    assert (upright.size, stored.size) == (size_wh, (128, 48))
    # Red is on the stored picture's left: turned clockwise by 90 it is at the top, by 180 on the right.
    side = {0: (5, 24), 90: (24, 5), 180: (122, 24), 270: (24, 122)}[degrees]
    red, _, blue = upright.getpixel(side)
    assert red - blue > 100
    opened.close()


@pytest.mark.parametrize(("fmt", "codec", "mime_type"), FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_video_that_is_cut_off_is_found(fmt: str, codec: str, mime_type: str, share: float) -> None:
    data = video(12, fmt, codec)
    assert refusal(data[: int(len(data) * share)], mime_type).code == "row_truncated"


def test_a_video_without_a_frame_is_none() -> None:
    assert refusal(video(0)).code in ("row_not_media", "row_truncated")


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\x20ftypisom", b"\0\0\0\x20ftypisom" + bytes(400), b"\x1aE\xdf\xa3" * 99]
)
@pytest.mark.parametrize("mime_type", ["video/mp4", "video/x-matroska", "video/x-msvideo"])
def test_what_only_begins_like_a_video_is_refused(data: bytes, mime_type: str) -> None:
    assert refusal(data, mime_type).code in ("row_truncated", "row_not_media")


def test_a_container_that_is_not_known_and_a_codec_that_is_not_allowed_are_refused() -> None:
    assert "mp4, mov" in refusal(CLIP, "video/mpeg").message
    assert "vp8" in refusal(video(3, "webm", "libvpx"), "video/x-matroska").message


def test_a_playlist_is_never_followed_whatever_it_is_called() -> None:
    """FFmpeg by itself would take it for HLS, and open the files it names."""
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    assert refusal(playlist).code == "row_truncated"


def test_limits_hold_before_anything_is_decoded() -> None:
    error = refusal(CLIP, limits=VideoLimits(128 * 48 - 1, 1000, 60.0))
    assert (error.code, "128 x 48" in error.message) == ("row_too_large", True)
    error = refusal(CLIP, limits=VideoLimits(64_000_000, 11, 60.0))
    assert (error.code, "max_video_frames = 11" in error.message) == ("row_too_large", True)


def test_frames_that_take_too_long_end_at_the_deadline() -> None:
    """A video may have one key frame and a hundred thousand others."""
    ticks = itertools.count()
    opened = Video(video(12, key_every=100), "video/mp4", VideoLimits(64_000_000, 1000, 5.0), lambda: next(ticks))
    with pytest.raises(RowUnavailable, match="row_timeout"):
        opened.picture(11)
    assert number_in(opened.picture(2)) == 2, "the next frame is found all the same"
    opened.close()


def test_a_damaged_frame_costs_itself_and_those_that_need_it() -> None:
    """Motion JPEG: every frame is a picture of its own."""
    data = bytearray(video(12, "mov", "mjpeg"))
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    data[starts[5] : starts[6]] = bytes(starts[6] - starts[5])
    opened = Video(bytes(data), "video/quicktime", LIMITS)
    with pytest.raises(RowUnavailable, match="row_truncated"):
        opened.picture(5)
    assert number_in(opened.picture(6)) == 6
    opened.close()


def test_a_closed_video_gives_no_frames() -> None:
    opened = Video(CLIP, "video/mp4", LIMITS)
    opened.close()
    with pytest.raises(RowUnavailable):
        opened.picture(0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(video(12, fmt, codec), mime_type) for fmt, codec, mime_type in FORMATS]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_anywhere_is_a_refusal_or_a_picture(sample: tuple[bytes, str], edits: list[tuple[float, int]]) -> None:
    data, mime_type = bytearray(sample[0]), sample[1]
    for place, value in edits:
        data[int(place * len(data))] = value
    try:
        opened = Video(bytes(data), mime_type, VideoLimits(1_000_000, 1000, 20.0))
    except RowUnavailable:
        return
    for number in (11, 0):
        try:
            assert opened.picture(number).width > 0
        except RowUnavailable as error:
            assert error.code in ("row_truncated", "row_too_large", "row_timeout")
    opened.close()


def test_a_rate_takes_the_frame_shown_at_each_moment() -> None:
    assert list(Sampling(1.0).of(12, 4.0)) == [0, 4, 8]
    assert list(Sampling(2.0).of(12, 4.0)) == [0, 2, 4, 6, 8, 10]
    assert list(Sampling(3.0).of(12, 30.0)) == [0, 10]
    assert list(Sampling(4.0).of(3, 4.0)) == [0, 1, 2]
    assert list(Sampling(100.0).of(3, 4.0)) == [0, 1, 2]
    assert list(Sampling(0.001).of(12, 4.0)) == [0]
    assert list(Sampling(1.0).of(61, 29.97)) == [0, 29, 59]


def test_listed_frames_are_taken_in_order_as_far_as_there_are_any() -> None:
    assert list(Sampling(frames=(9, 0, 40)).of(12, 4.0)) == [0, 9]
    assert list(Sampling(frames=(40,)).of(12, 4.0)) == []


@given(st.integers(1, 5000), st.floats(0.1, 240), st.floats(0.01, 300))
def test_sampling_gives_rising_frames_that_exist_and_always_the_first(
    count: int, video_rate: float, wanted: float
) -> None:
    numbers = list(Sampling(wanted).of(count, video_rate))
    assert numbers[0] == 0
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < count
    assert abs(len(numbers) - min(count, count * wanted / video_rate)) <= 1


def test_without_pyav_the_message_names_the_extra() -> None:
    """In a process where PyAV cannot be imported."""
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from foundry_pipeline.errors import ConfigError\n"
        "from foundry_pipeline.rows.frames import check_decoder\n"
        "check_decoder('image', 'datasets/a.yaml')\n"
        "try: check_decoder('video', 'datasets/a.yaml')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("datasets/a.yaml: $.media_type: ")
    assert "foundry-pipeline[video]" in done.stdout
