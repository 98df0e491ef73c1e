"""Outlines of masks: drawn again by pycocotools, they are the mask, whatever its holes and parts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from foundry_pipeline.exports.outlines import outlines
from foundry_pipeline.exports.pictures import clip_ring, draw_ring, ring_area
from foundry_pipeline.rle import Rle, from_dense, to_dense

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def drawn(ring, height, width):
    """A polygon's pixels, by pycocotools."""
    (rle,) = coco_mask.frPyObjects([ring.ravel().tolist()], height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy 2, about pycocotools' own arrays
        return coco_mask.decode(rle).astype(bool)


def parts_of(mask):
    """Number of parts, pixels that touch at a corner being one."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    count = 0
    while left:
        count, reached = count + 1, [left.pop()]
        while reached:
            y, x = reached.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            reached += near
    return count


@settings(max_examples=300, deadline=None)
@given(MASKS)
def test_parts_less_holes_are_the_mask(mask):
    found = outlines(from_dense(mask))
    redrawn = np.zeros(mask.shape, bool)
    for outline in found:
        redrawn ^= drawn(outline.ring, *mask.shape)
    assert np.array_equal(redrawn, mask)
    area = sum(-ring_area(one.ring) if one.is_hole else ring_area(one.ring) for one in found)
    assert area == mask.sum()


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_there_is_one_ring_a_part(mask):
    assert sum(not outline.is_hole for outline in outlines(from_dense(mask))) == parts_of(mask)


def test_a_square_with_a_hole_and_a_part():
    mask = np.zeros((40, 60), bool)
    mask[5:25, 5:25] = True
    mask[10:15, 10:15] = False
    mask[2:17, 40:48] = True
    found = [(one.ring.tolist(), one.is_hole) for one in outlines(from_dense(mask))]
    assert found == [
        ([[40, 2], [48, 2], [48, 17], [40, 17]], False),
        ([[5, 5], [25, 5], [25, 25], [5, 25]], False),
        ([[10, 10], [15, 10], [15, 15], [10, 15]], True),
    ]


def test_an_empty_mask_has_no_outline():
    assert outlines(from_dense(np.zeros((3, 4), bool))) == []


RINGS = arrays(np.float64, st.tuples(st.integers(3, 7), st.just(2)), elements=st.integers(-20, 40))


def surrounds(ring, x, y):
    """Whether a ring surrounds each point, by the even-odd rule: how many edges lie right of it?"""
    edges = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, 1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            edges ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return edges


@settings(max_examples=200, deadline=None)
@given(RINGS)
def test_a_clipped_polygon_surrounds_the_same_points_of_the_picture(ring):
    width, height = 20, 16
    clipped = clip_ring(ring, (width, height))
    assert ((clipped >= 0) & (clipped <= np.array([width, height]))).all()
    y, x = (np.mgrid[:height, :width] + np.array([0.4142, 0.7321])[:, None, None]).astype(float)
    part = surrounds(clipped, x, y) if len(clipped) else np.zeros(x.shape, bool)
    assert np.array_equal(part, surrounds(ring, x, y))


@pytest.mark.parametrize("ring", [[[1, 1], [9, 1], [9, 9]], [[0, 0], [20, 0], [20, 16], [0, 16]]])
def test_a_polygon_inside_is_not_clipped(ring):
    assert np.array_equal(clip_ring(np.array(ring, float), (20, 16)), ring)


def test_a_polygon_beside_the_picture_leaves_nothing():
    beside = np.array([[30, 1], [40, 1], [40, 9]], float)
    assert len(clip_ring(beside, (20, 16))) == 0


def test_a_polygon_is_drawn_as_pycocotools_does():
    ring = np.array([[1.5, 1], [15, 2.25], [9, 14]])
    rle = draw_ring(ring, (20, 16))
    assert isinstance(rle, Rle)
    assert np.array_equal(to_dense(rle), drawn(ring, 16, 20))
