from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.rows.media import (
    UPRIGHT_TRANSFORM,
    Facts,
    decode_text,
    inspect,
    sniff,
    upright_jpeg_or_png,
    upright_mime_type,
)
from tests.pictures import picture, pixels

FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
}
LIMIT = 64_000_000


def refusal(
    data: bytes, media_type: str = "image", *, encoding: str = "utf-8", max_pixels: int = LIMIT
) -> RowUnavailable:
    with pytest.raises(RowUnavailable) as caught:
        inspect(data, media_type, encoding=encoding, max_pixels=max_pixels)
    return caught.value


@pytest.mark.parametrize(("fmt", "mime_type"), FORMATS.items())
def test_first_bytes_say_what_a_picture_is(fmt: str, mime_type: str) -> None:
    data = picture(40, 20, fmt)
    assert sniff(data) == mime_type
    assert inspect(data, "image", max_pixels=LIMIT) == Facts(mime_type, 40, 20, None)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_size_is_as_displayed(fmt: str, orientation: int) -> None:
    facts = inspect(picture(40, 20, fmt, orientation=orientation), "image", max_pixels=LIMIT)
    displayed = (20, 40) if orientation >= 5 else (40, 20)
    assert facts == Facts(FORMATS[fmt], *displayed, orientation)


def test_an_orientation_that_does_not_exist_is_none() -> None:
    assert inspect(picture(orientation=9), "image", max_pixels=LIMIT) == Facts("image/jpeg", 40, 20, None)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_truncated_picture_is_found_although_its_size_can_be_read(fmt: str) -> None:
    """F086: `Image.open().size` works on it."""
    data = picture(64, 64, fmt)
    cut = data[: int(len(data) * 0.7)]
    assert refusal(cut).code == "row_truncated"


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_other_colour_modes_pass_as_they_are(mode: str) -> None:
    assert inspect(picture(mode=mode), "image", max_pixels=LIMIT).width == 40


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    error = refusal(picture(40, 20), max_pixels=799)
    assert (error.code, "40 x 20" in error.message, "799" in error.message) == ("row_too_large", True, True)


def test_a_picture_bomb_is_refused() -> None:
    """A31: 20,000 x 20,000 pixels in a few hundred kilobytes."""
    target = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(target, "PNG")
    assert refusal(target.getvalue()).code == "row_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"<!doctype html><title>Sign in</title>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"BM is no bitmap, though it begins like one",
        b"SIMPLE  =                    T",
        b"\x00" * 100,
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_name(data: bytes) -> None:
    assert refusal(data).code == "row_not_media"


def test_a_video_is_no_picture_and_a_picture_no_video() -> None:
    video = b"\x00\x00\x00\x20ftypisom" + bytes(40)
    assert inspect(video, "video", max_pixels=LIMIT) == Facts("video/mp4")
    assert refusal(video).code == "row_not_media"
    assert refusal(picture(), "video").code == "row_not_media"


def test_heic_passes_without_a_size() -> None:
    """F089: sent as it is; nothing here decodes it."""
    data = b"\x00\x00\x00\x20ftypheic" + bytes(40)
    assert inspect(data, "image", max_pixels=LIMIT) == Facts("image/heic")


SEEDS = [picture(33, 21, fmt, orientation=6 if fmt in ("JPEG", "PNG", "WEBP", "TIFF") else None) for fmt in FORMATS]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(1, 4000),
)
def test_damaged_pictures_raise_nothing_else(data: bytes, edits: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(data[:length])
    for place, value in edits:
        if place < len(damaged):
            damaged[place] = value
    try:
        facts = inspect(bytes(damaged), "image", max_pixels=LIMIT)
    except RowUnavailable as err:
        assert err.code in {"row_not_media", "row_truncated", "row_too_large"}
    else:
        assert facts.mime_type.startswith("image/")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_an_upright_copy_shows_the_same_picture_without_the_mark(fmt: str, orientation: int) -> None:
    data = picture(48, 32, fmt, orientation=orientation)
    mime_type = FORMATS[fmt]
    copy = upright_jpeg_or_png(data, mime_type)
    facts = inspect(copy, "image", max_pixels=LIMIT)
    assert facts.mime_type == upright_mime_type(mime_type)
    assert facts.exif_orientation is None
    with Image.open(io.BytesIO(data)) as source:
        expected = np.asarray(ImageOps.exif_transpose(source).convert("RGB"), dtype=int)
    assert (facts.width, facts.height) == (expected.shape[1], expected.shape[0])
    difference = np.abs(pixels(copy).astype(int) - expected)
    assert difference.mean() < (25 if fmt == "JPEG" else 0.001)  # noise survives JPEG's colour subsampling badly
    assert UPRIGHT_TRANSFORM == "exif-upright-v1"


def test_a_cmyk_tiff_becomes_an_upright_png() -> None:
    data = picture(40, 20, "TIFF", orientation=6, mode="CMYK")
    assert sniff(upright_jpeg_or_png(data, "image/tiff")) == "image/png"


def test_F092_text_that_is_not_of_the_encoding_is_refused_with_the_byte() -> None:
    error = refusal("naïve".encode("latin-1"), "text")
    assert (error.code, error.message) == ("row_encoding", "not utf-8 at byte 2: ef 76 65")
    assert inspect("naïve".encode("latin-1"), "text", encoding="latin-1", max_pixels=1) == Facts("text/plain")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_text_is_never_altered(encoding: str) -> None:
    text = "a\r\nb\rc\n\u0000é e\u0301" if encoding != "latin-1" else "a\r\nb\rc\né"
    assert decode_text(text.encode(encoding), encoding) == text


def test_a_byte_order_mark_is_not_part_of_the_text() -> None:
    assert decode_text(b"\xef\xbb\xbfTom", "utf-8") == "Tom"
    assert decode_text(b"\xef\xbb\xbf\xef\xbb\xbfTom", "utf-8") == "\ufeffTom"


def test_a_picture_is_no_text_even_where_every_byte_decodes() -> None:
    assert refusal(picture(), "text", encoding="latin-1").code == "row_not_media"


@pytest.mark.parametrize(
    ("data", "media_type", "mime_type"),
    [
        (b"plain", "text", "text/plain"),
        (b"GIF89a is a format of pictures.", "text", "text/plain"),
        (b" <!DOCTYPE html><p>", "text", "text/html"),
        (b"<p>a fragment", "html", "text/html"),
        (json.dumps({"version": 1, "messages": []}).encode(), "conversational", "application/json"),
        (b"[]", "conversational", "application/json"),
    ],
)
def test_texts_by_what_they_hold(data: bytes, media_type: str, mime_type: str) -> None:
    assert inspect(data, media_type, max_pixels=1) == Facts(mime_type)


@pytest.mark.parametrize("data", [b"hello", b"3", b'{"a":'])
def test_a_conversation_is_json(data: bytes) -> None:
    assert refusal(data, "conversational").code == "row_not_media"
