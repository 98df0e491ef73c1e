"""Shapes from the stored picture's frame to the displayed one's, judged by Pillow's own turning of pixels."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from foundry_pipeline.exports.annotated import rle_of
from foundry_pipeline.exports.rows import annotated_rows
from foundry_pipeline.exports.tally import Tally
from foundry_pipeline.orientation import displayed
from foundry_pipeline.rle import from_dense, to_dense
from foundry_pipeline.store import Store
from tests.warehouse import fill, make_run

WIDTH, HEIGHT = 13, 7
"""Of the stored picture."""


def as_displayed(pixels: np.ndarray, orientation: int) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = orientation
    target = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(target, "PNG", exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(target)))


def size_wh(orientation: int) -> tuple[int, int]:
    return (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)


def mask_row(mask: np.ndarray) -> dict[str, Any]:
    found = from_dense(mask)
    left, top, width, height = found.box_ltwh
    size = {"size_h": mask.shape[0], "size_w": mask.shape[1], "counts": found.counts, "area": found.area}
    return size | {"left": left, "top": top, "width": width, "height": height}


orientations = st.integers(1, 8)
boxes = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), st.integers(1, WIDTH), st.integers(1, HEIGHT))


@given(orientations, boxes)
def test_boxes_masks_and_points_turn_with_the_pixels(orientation: int, box: tuple[int, int, int, int]) -> None:
    left, top, width, height = box
    right, bottom = min(left + width, WIDTH), min(top + height, HEIGHT)
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[top:bottom, left:right] = True
    shown = as_displayed(pixels, orientation).astype(bool)
    ys, xs = np.nonzero(shown)
    size = {"image_width": WIDTH, "image_height": HEIGHT}
    stored = {"left": left, "top": top, "width": right - left, "height": bottom - top} | size
    turned = displayed("boxes", stored, orientation, size_wh(orientation))
    assert (turned["left"], turned["top"]) == (xs.min(), ys.min())
    assert (turned["width"], turned["height"]) == (np.ptp(xs) + 1, np.ptp(ys) + 1)
    assert (turned["image_width"], turned["image_height"]) == size_wh(orientation)
    mask = displayed("masks", mask_row(pixels), orientation, size_wh(orientation))
    assert (to_dense(rle_of(mask)) == shown).all()
    assert (mask["left"], mask["top"], mask["width"], mask["height"]) == (
        xs.min(),
        ys.min(),
        np.ptp(xs) + 1,
        np.ptp(ys) + 1,
    )
    centre = displayed("points", {"x": left + 0.5, "y": top + 0.5}, orientation, size_wh(orientation))
    assert shown[int(centre["y"]), int(centre["x"])]
    corners = [{"x": left, "y": top}, {"x": right, "y": bottom}]
    ring = displayed("polygons", {"points": corners}, orientation, size_wh(orientation))["points"]
    assert {p["x"] for p in ring} == {xs.min(), xs.max() + 1}
    assert {p["y"] for p in ring} == {ys.min(), ys.max() + 1}


@pytest.mark.parametrize("exif", ["keep", "upright"])
def test_what_is_let_out_is_in_the_displayed_frame_whatever_the_model_saw(exif: str, tmp_path: Path) -> None:
    """A picture stored 60 x 40 and shown 40 x 60; the model was given the one or the other."""
    run = make_run("r", features={"cat": "rectangle"})
    run = replace(run, model=replace(run.model, exif=exif))
    store = Store(tmp_path)
    row = {"global_key": "a.jpg", "width": 40, "height": 60, "exif_orientation": 6}
    size = {"image_width": 60, "image_height": 40} if exif == "keep" else {"image_width": 40, "image_height": 60}
    box = {"global_key": "a.jpg", "feature": "cat", "left": 1, "top": 2, "width": 3, "height": 4} | size
    fill(store, run, "00000", data_rows=[row], boxes=[box])
    (annotated,) = annotated_rows(run, store, "00000", Tally())
    (found,) = annotated.predictions
    expected = (34, 1, 4, 3, 40, 60) if exif == "keep" else (1, 2, 3, 4, 40, 60)
    names = ("left", "top", "width", "height", "image_width", "image_height")
    assert tuple(found.values[name] for name in names) == expected
