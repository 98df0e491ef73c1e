"""Masks as PNG: what Pillow reads is what was written, at every size and depth."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from foundry_pipeline.png import colour_png, mask_png, palette_png, rle_png
from foundry_pipeline.rle import from_dense

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20)))


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png), formats=["PNG"])
    picture.load()
    return picture


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_an_8_bit_mask_has_one_channel_and_samples_0_and_1(mask):
    picture = opened(mask_png(mask, 8))
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), mask.astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_a_1_bit_mask_reads_back_whatever_its_width(mask):
    picture = opened(mask_png(mask, 1))
    assert picture.mode == "1"
    assert np.array_equal(np.asarray(picture), mask)


@settings(max_examples=30, deadline=None)
@given(MASKS)
def test_a_colour_mask_has_its_colour_on_black(mask):
    picture = opened(colour_png(mask, (76, 104, 177)))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), mask[:, :, None] * np.array([76, 104, 177], np.uint8))


def test_a_palette_picture_has_places_and_their_colours():
    places = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    picture = opened(palette_png(places, bytes([0, 0, 0, 128, 0, 0, 0, 128, 0])))
    assert picture.mode == "P"
    assert np.array_equal(np.asarray(picture), places)
    assert picture.convert("RGB").getpixel((1, 0)) == (128, 0, 0)


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([1, 8]))
def test_a_mask_in_run_lengths_gives_the_same_file_as_its_pixels(mask, bit_depth):
    assert rle_png(from_dense(mask), bit_depth) == mask_png(mask, bit_depth)


def test_a_mask_stored_down_its_columns_is_not_turned():
    mask = np.asfortranarray(np.array([[1, 0, 0], [1, 1, 0]], bool))
    assert np.asarray(opened(mask_png(mask))).tolist() == [[1, 0, 0], [1, 1, 0]]


def test_a_large_mask_survives():
    mask = np.random.default_rng(1).random((1080, 1920)) < 0.5
    assert np.array_equal(np.asarray(opened(mask_png(mask))), mask)


def test_checksums_and_end_of_file_are_right():
    """Pillow's `verify` reads every chunk's checksum."""
    Image.open(io.BytesIO(mask_png(np.ones((3, 5), bool)))).verify()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_a_mask_without_pixels_is_refused(shape):
    with pytest.raises(ValueError, match=r"at least one pixel, got height \d, width \d"):
        mask_png(np.zeros(shape, bool))
