"""Masks: nothing malformed gets through, and what gets through is what pycocotools would say.

pycocotools sees canonical masks only: it crashes, hangs or reads foreign memory on others.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from foundry_pipeline.rle import BadRle, Rle, check, decode_runs, encode_runs, from_dense, to_dense
from tests.strategies import dense_masks, malformed_masks, runs

EXAMPLES = settings(max_examples=150, deadline=None)


def coco_rle(mask: Rle) -> dict[str, Any]:
    return {"size": list(mask.size_hw), "counts": mask.counts.encode()}


def coco_pixels(mask: Rle) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy 2, about pycocotools' own arrays
        return np.array(coco.decode(coco_rle(mask)))


def slow_runs(counts: str) -> list[int] | None:
    """The run lengths of any string, character by character; None where it is no list of numbers."""
    found: list[int] = []
    at = 0
    while at < len(counts):
        number = shift = 0
        more = True
        while more:
            if at == len(counts) or not 48 <= ord(counts[at]) < 112 or shift == 30:
                return None
            bits = ord(counts[at]) - 48
            number |= (bits & 31) << shift
            more, at, shift = bool(bits & 32), at + 1, shift + 5
        if bits & 16:
            number -= 1 << shift
        found.append(number + found[-2] if len(found) > 2 else number)
    return found


def slow_pixels(run_lengths: list[int], height: int, width: int) -> np.ndarray:
    flat = [place % 2 == 1 for place, length in enumerate(run_lengths) for _ in range(length)]
    return np.array(flat, bool).reshape(width, height).T


def test_the_example_of_the_format_page() -> None:
    """`export-formats`, COCO RLE: ones in rows 1-3 and columns 2-5 of 6 rows and 8 columns."""
    dense = np.zeros((6, 8), bool)
    dense[1:4, 2:6] = True
    mask = from_dense(dense)
    assert mask == Rle((6, 8), "=3300000;", 12, (2.0, 1.0, 4.0, 3.0))
    assert decode_runs(mask.counts).tolist() == [13, 3, 3, 3, 3, 3, 3, 3, 14]
    dense[2, 3] = False
    assert from_dense(dense).counts == "=33NN02200;"
    assert from_dense(dense).area == 11


@EXAMPLES
@given(dense_masks())
def test_a_mask_is_encoded_and_measured_as_pycocotools_does(dense: np.ndarray) -> None:
    mask = from_dense(dense)
    theirs = coco.encode(np.asfortranarray(dense.astype(np.uint8)))
    assert mask.counts == theirs["counts"].decode()
    assert mask.area == coco.area(theirs)
    assert list(mask.box_ltwh) == list(coco.toBbox(theirs))


@EXAMPLES
@given(dense_masks())
def test_a_mask_survives_the_round_trip(dense: np.ndarray) -> None:
    mask = from_dense(dense)
    size = list(dense.shape)
    assert (to_dense(mask) == dense).all()
    assert check(size, mask.counts, dense.shape) == mask
    assert check(size, mask.counts.encode(), None) == mask
    assert check(size, str(mask.counts.encode()), None) == mask
    assert check(size, decode_runs(mask.counts).tolist(), None) == mask
    assert encode_runs(decode_runs(mask.counts)) == mask.counts


@EXAMPLES
@given(malformed_masks())
def test_any_string_is_refused_or_means_the_same_pixels(size_and_counts: tuple[tuple[int, int], str]) -> None:
    (height, width), counts = size_and_counts
    mask = check([height, width], counts, None)
    expected = slow_runs(counts)
    if not expected or min(expected) < 0 or sum(expected) != height * width or len(expected) > height * width + 1:
        assert isinstance(mask, BadRle)
        return
    assert isinstance(mask, Rle)
    assert (to_dense(mask) == slow_pixels(expected, height, width)).all()
    assert (coco_pixels(mask) == to_dense(mask)).all()


def test_runs_whose_sum_wraps_around_64_bits_to_the_right_one_are_refused() -> None:
    """300,000 runs chosen to add up to 2**64 + 1024 * 1024; none of them is negative."""
    count, target = 300_000, 2**64 + 1024 * 1024
    step, rest = divmod(target, count * (count + 1) // 2)
    steps = np.full(count, step)
    steps[0] += rest // count
    steps[-(rest % count)] += 1
    run_lengths = np.zeros(2 * count, np.int64)
    run_lengths[1::2] = steps.cumsum()
    assert sum(run_lengths.tolist()) == target
    mask = check([1024, 1024], encode_runs(run_lengths), None)
    assert isinstance(mask, BadRle)
    assert (mask.reason, mask.rule) == ("bad_rle", 4)


@EXAMPLES
@given(runs(), st.data())
def test_runs_of_no_pixels_are_joined_away(run_lengths: list[int], data: st.DataObject) -> None:
    pixels = sum(run_lengths)
    if pixels == 0 or len(run_lengths) > pixels + 1:
        assert isinstance(check([1, max(pixels, 1)], run_lengths, None), BadRle)
        return
    height = data.draw(st.sampled_from([side for side in range(1, pixels + 1) if pixels % side == 0]))
    width = pixels // height
    mask = check([height, width], run_lengths, None)
    assert mask == from_dense(slow_pixels(run_lengths, height, width))
    assert check([height, width], encode_runs(np.array(run_lengths)), None) == mask


def test_a_mask_with_interior_zeros_overlaps_itself() -> None:
    """As received, pycocotools says 0.0 and then hangs in `merge`."""
    mask = check([4, 4], [3, 0, 0, 5, 8], None)
    assert isinstance(mask, Rle)
    assert coco.iou([coco_rle(mask)], [coco_rle(mask)], [0]).tolist() == [[1.0]]


def test_a_number_spelled_too_long_is_stored_in_its_shortest_spelling() -> None:
    """Two strings of one mask must not be two values in the table."""
    assert slow_runs("S00") == [3, 0]
    mask = check([3, 1], "S0", None)
    assert isinstance(mask, Rle)
    assert mask.counts == "3"


def test_an_empty_mask_has_no_area_and_a_box_of_zeros() -> None:
    assert check([6, 8], [48], None) == Rle((6, 8), "`1", 0, (0.0, 0.0, 0.0, 0.0))


REFUSED = [
    ("cut inside a number", [5, 7], "35P", "bad_rle", 2),
    ("characters below '0'", [2, 2], "/4", "bad_rle", 2),
    ("characters above 'o'", [2, 2], "0p", "bad_rle", 2),
    ("empty string", [2, 2], "", "bad_rle", 2),
    ("NUL", [2, 2], "a\0b", "bad_rle", 2),
    ("not ASCII, must not become '?'", [3, 5], "é?", "bad_rle", 2),
    ("half a surrogate pair", [2, 2], "\ud800", "bad_rle", 2),
    ("too many characters", [1, 1], "0" * 13, "bad_rle", 2),
    ("four million characters", [2**14, 2**14], "0" * (2**22 + 1), "too_large", 2),
    ("counts of another type", [2, 2], 4, "bad_rle", 2),
    ("counts missing", [2, 2], None, "bad_rle", 2),
    ("a number of seven characters", [2, 2], "PPPPPP0", "bad_rle", 3),
    ("more runs than pixels", [2, 2], "000004", "bad_rle", 3),
    ("a million runs of nothing", [1000, 1000], [0] * 1_000_002, "bad_rle", 3),
    ("sum too small", [2, 2], "03", "bad_rle", 4),
    ("sum too large", [2, 2], "05", "bad_rle", 4),
    ("nothing but zeros", [2, 2], "0", "bad_rle", 4),
    ("a negative run", [2, 2], "0O5", "bad_rle", 4),
    ("runs that only wrap around to the sum", [2, 2], [2**63, 2**63, 4], "bad_rle", 4),
    ("a run of 2**29, as list", [2, 2], [2**29], "bad_rle", 4),
    ("a run beyond 64 bits", [2, 2], [10**30], "bad_rle", 4),
    ("a negative run, as list", [2, 2], [-1, 5], "bad_rle", 4),
    ("an empty list", [2, 2], [], "bad_rle", 3),
    ("floats in the list", [2, 2], [1.0, 3.0], "bad_rle", 3),
    ("booleans in the list", [2, 2], [True, 3], "bad_rle", 3),
    ("nested lists", [2, 2], [[4]], "bad_rle", 3),
    ("size 0", [0, 4], "4", "bad_rle", 1),
    ("negative size", [-2, -2], "04", "bad_rle", 1),
    ("a multiple of 2**32", [2**32, 1], "4", "too_large", 1),
    ("beyond 64 bits", [2**70, 1], "4", "too_large", 1),
    ("a number that cannot be printed", [10**5000, 1], "4", "too_large", 1),
    ("a mask bomb", [100_000, 100_000], "04", "too_large", 1),
    ("65535 x 65535, full", [65535, 65535], "0" + "PPPo", "too_large", 1),
    ("one side too long", [2**20 + 1, 1], "4", "too_large", 1),
    ("float size", [2.0, 2.0], "04", "bad_rle", 1),
    ("float size that would be cut", [4.7, 2], "08", "bad_rle", 1),
    ("boolean size", [True, 4], "04", "bad_rle", 1),
    ("size of three", [2, 2, 1], "04", "bad_rle", 1),
    ("size as string", "22", "04", "bad_rle", 1),
    ("size missing", None, "04", "bad_rle", 1),
]


@pytest.mark.parametrize(
    ("size", "counts", "reason", "rule"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_F070_what_would_crash_or_mislead_pycocotools_is_refused(
    size: Any, counts: Any, reason: str, rule: int
) -> None:
    mask = check(size, counts, None)
    assert isinstance(mask, BadRle)
    assert (mask.reason, mask.rule) == (reason, rule)
    assert len(mask.message) < 200


def test_F071_a_mask_of_another_size_than_the_picture_is_refused_with_both_sizes() -> None:
    mask = check([6, 9], "06", (6, 8))
    assert isinstance(mask, BadRle)
    assert mask.reason == "mask_size"
    assert "6 x 8" in mask.message
    assert "6 x 9" in mask.message


def test_F071_swapped_height_and_width_are_named() -> None:
    mask = check([8, 6], "`1", (6, 8))
    assert isinstance(mask, BadRle)
    assert mask.reason == "mask_size"
    assert "swapped" in mask.message


def test_large_numbers_of_six_characters_are_read() -> None:
    mask = check([2**14, 2**14], [2**27 + 1, 2**27 - 1], None)
    assert isinstance(mask, Rle)
    assert mask.area == 2**27 - 1
    assert decode_runs(mask.counts).tolist() == [2**27 + 1, 2**27 - 1]
    assert check([2**14, 2**14], mask.counts, None) == mask
