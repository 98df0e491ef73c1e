"""Masks as polygons: the exact outline of the pixels, along their edges.

Pixels that touch at a corner are one part, as in cv2.findContours; unlike there, corners are those of the pixels and
not their centres, so that a polygon encloses as much as its mask has pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundry_pipeline.exports.pictures import Ring
from foundry_pipeline.rle import Rle, to_dense


@dataclass(frozen=True, slots=True)
class Outline:
    """One ring of a mask's outline, corners in pixels: around a part, or around a hole in one."""

    ring: Ring
    is_hole: bool


def outlines(rle: Rle) -> list[Outline]:
    """The rings of a mask, from top to bottom; none where it is empty."""
    left, top, width, height = map(int, rle.box_ltwh)
    inside = np.zeros((height + 2, width + 2), bool)  # a border of nothing: every edge has two sides
    inside[1:-1, 1:-1] = to_dense(rle)[top : top + height, left : left + width]
    corners_yx, goes_down = _corners(inside)
    corners_xy = corners_yx[:, ::-1] + np.array([left, top], float)
    # A ring's first corner is its top left one: below the edge that leads from there lies what the ring is around.
    is_set_below = inside[corners_yx[:, 0] + 1, corners_yx[:, 1] + 1].tolist()
    rings = _rings(_across(corners_yx, goes_down))
    return [Outline(corners_xy[ring], not is_set_below[ring[0]]) for ring in rings]


def _corners(inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(y and x of every corner, row by row; whether its edge down or up leads on, where that must be said).

    Where two pixels touch at a corner, two rings or two places of one meet: it is there twice, first with the edge to
    the left, then with the one to the right.
    """
    above_left, above_right, below_left, below_right = (
        inside[:-1, :-1],
        inside[:-1, 1:],
        inside[1:, :-1],
        inside[1:, 1:],
    )
    touching = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    is_corner = (above_left ^ above_right ^ below_left ^ below_right) | touching
    yx = np.argwhere(is_corner)
    twice = touching[is_corner]
    corners = np.repeat(yx, 1 + twice, axis=0)
    goes_down = np.zeros(len(corners), bool)
    seconds = np.cumsum(1 + twice)[twice] - 1
    falling = above_left[is_corner][
        twice
    ]  # the set pixels lie above left and below right: joined, they part the others
    goes_down[seconds] = ~falling
    goes_down[seconds - 1] = falling
    return corners, goes_down


def _across(corners_yx: NDArray[np.int64], goes_down: NDArray[np.bool_]) -> list[int]:
    """For every corner the one at the other end of its vertical edge: in a column, corners pair up in their order."""
    by_column = np.lexsort((goes_down, corners_yx[:, 0], corners_yx[:, 1]))
    across = np.empty(len(corners_yx), np.int64)
    across[by_column[::2]], across[by_column[1::2]] = by_column[1::2], by_column[::2]
    other_end: list[int] = across.tolist()
    return other_end


def _rings(across: list[int]) -> Iterator[list[int]]:
    """Corners in turn, from a ring's first: along its row to the neighbour, then along that one's column, and so on.

    In a row, too, corners pair up in their order: 0 with 1, 2 with 3.
    """
    seen = bytearray(len(across))
    for first in range(0, len(across), 2):
        ring, at = [], first
        while not seen[at]:
            beside = at ^ 1
            seen[at] = seen[beside] = 1
            ring += [at, beside]
            at = across[beside]
        if ring:
            yield ring
