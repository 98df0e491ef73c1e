"""Drawings are judged by their pixels: a prediction of a known place has its colour there."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from foundry_pipeline.draw import colour_of, draw_row, draw_slice_sample
from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.home import MinScore
from foundry_pipeline.store import Store
from tests.warehouse import fill, make_run, mask

GREY = (128, 128, 128)


def picture(width=400, height=300, colour=GREY, kind="PNG", **options):
    target = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(target, kind, **options)
    return target.getvalue()


def noisy_picture(seed, width=800, height=600):
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise).save(target, "PNG", compress_level=1)
    return target.getvalue()


def box(left, top, width, height, feature="cat", score=0.5):
    return {"feature": feature, "score": score, "left": left, "top": top, "width": width, "height": height}


def near(pixel, colour, tolerance=40):
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


def share_of(image, colour):
    """The share of pixels that are about this colour: JPEG changes them a little."""
    return float((np.abs(np.asarray(image, int) - colour).max(axis=2) <= 40).mean())


def test_a_box_has_its_features_colour_on_its_edges_and_the_picture_inside():
    drawn = draw_row(picture(), boxes=[box(100, 80, 200, 150)])
    edges = {(100, 200), (299, 200), (200, 229)}
    assert {drawn.getpixel(at) for at in edges} == {colour_of("cat")}
    assert drawn.getpixel((200, 150)) == GREY


def test_coordinates_are_scaled_with_the_picture():
    drawn = draw_row(picture(1600, 1200), boxes=[box(400, 320, 800, 600)], max_side_px=400)
    assert drawn.size == (400, 300)
    assert drawn.getpixel((100, 200)) == colour_of("cat")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_turned_picture_is_drawn_upright(kind):
    """Stored 400 x 300 with orientation 6: displayed 300 x 400, where the coordinates belong."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(4000, 3000, kind=kind, exif=exif)
    drawn = draw_row(stored, boxes=[box(1000, 3000, 1500, 500)], max_side_px=400)
    assert drawn.size == (300, 400)
    assert near(drawn.getpixel((100, 325)), colour_of("cat"))
    assert near(drawn.getpixel((150, 325)), GREY)


def test_a_mask_is_translucent_where_it_is_set_and_nowhere_else():
    dense = np.zeros((300, 400), bool)
    dense[100:200, 100:300] = True
    dense[140:160, 180:220] = False
    drawn = draw_row(picture(), masks=[mask("g", "lake", dense, score=None)])
    inside, hole = drawn.getpixel((150, 180)), drawn.getpixel((200, 150))
    assert hole == drawn.getpixel((50, 250)) == GREY
    assert inside not in (GREY, colour_of("lake"))
    mixed = [(g + c) / 2 for g, c in zip(GREY, colour_of("lake"), strict=True)]
    assert near(inside, mixed)


def test_polygons_lines_and_points_are_drawn_in_their_colours():
    ring = [{"x": 50.0, "y": 100.0}, {"x": 150.0, "y": 100.0}, {"x": 150.0, "y": 200.0}, {"x": 50.0, "y": 200.0}]
    drawn = draw_row(
        picture(),
        polygons=[{"feature": "lake", "score": None, "points": ring}],
        lines=[{"feature": "lane", "score": 0.1, "points": [{"x": 200.0, "y": 250.0}, {"x": 390.0, "y": 250.0}]}],
        points=[{"feature": "nose", "score": 0.1, "x": 300.0, "y": 120.0}],
    )
    assert drawn.getpixel((50, 150)) == colour_of("lake"), "the ring is closed"
    assert drawn.getpixel((300, 250)) == colour_of("lane")
    assert drawn.getpixel((300, 120)) == colour_of("nose")


def test_name_and_score_are_written_beside_the_shape():
    """Another score gives other pixels in the label above the box, and only there."""
    some, other = (np.asarray(draw_row(picture(), boxes=[box(100, 80, 200, 150, score=s)])) for s in (0.11, 0.88))
    rows, columns = np.nonzero((some != other).any(axis=2))
    assert rows.size
    assert 60 <= rows.min() <= rows.max() <= 80
    assert 100 <= columns.min() <= columns.max() <= 180


@pytest.mark.parametrize("left, top", [(-50, -50), (390, 290), (1e300, -1e300), (0, 0)])
def test_shapes_past_the_edge_do_not_stop_the_drawing(left, top):
    assert draw_row(picture(), boxes=[box(left, top, 60, 60, feature="a" * 500)]).size == (400, 300)


def test_transparent_pictures_lie_on_white_and_16_bit_ones_keep_their_greys():
    clear, deep = io.BytesIO(), io.BytesIO()
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(clear, "PNG")
    Image.fromarray(np.full((30, 40), 0x8000, np.uint16)).save(deep, "PNG")
    assert draw_row(clear.getvalue()).getpixel((5, 5)) == (255, 255, 255)
    assert near(draw_row(deep.getvalue()).getpixel((5, 5)), GREY, 2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I"])
def test_pictures_of_every_colour_mode_can_be_drawn(mode):
    target = io.BytesIO()
    Image.new(mode, (40, 30)).save(target, "TIFF")
    assert draw_row(target.getvalue(), boxes=[box(5, 5, 20, 20)]).mode == "RGB"


def test_names_of_any_script_can_be_drawn():
    assert draw_row(picture(), boxes=[box(1, 1, 9, 9, feature="ねこ\n🐈")]).size == (400, 300)


def test_a_features_colour_depends_on_its_name_alone():
    assert colour_of("cat") == colour_of("cat")
    assert len({colour_of(f"feature {i}") for i in range(50)}) > 40


@pytest.mark.parametrize("bad", [b"", b"no picture", picture()[:-40], b"\xff\xd8\xff"])
def test_bytes_that_are_no_whole_picture_raise_row_unavailable(bad):
    with pytest.raises(RowUnavailable):
        draw_row(bad)


def rows(count, **more):
    return [{"global_key": f"{i}.png", "width": 400, "height": 300} | more for i in range(count)]


def sheet(jpeg):
    return Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB")


def test_a_sheet_shows_the_first_rows_that_have_predictions(tmp_path):
    run, asked = make_run(), []
    boxes = [{"global_key": f"{i}.png"} | box(100, 80, 200, 150) for i in (2, 3, 4)]
    fill(Store(tmp_path), run, "0", data_rows=rows(6), boxes=boxes)

    def read_picture(row):
        asked.append(row.global_key)
        return picture()

    jpeg = draw_slice_sample(run, Store(tmp_path), "0", read_picture, max_pictures=2)
    assert asked == ["2.png", "3.png"]
    drawn = sheet(jpeg)
    assert drawn.width > 2 * 300
    assert near(drawn.getpixel((100, 200)), colour_of("cat"), 60)
    assert near(drawn.getpixel((404 + 100, 200)), colour_of("cat"), 60)


def test_a_sheet_stays_under_its_bytes(tmp_path):
    run = make_run()
    fill(
        Store(tmp_path),
        run,
        "0",
        data_rows=rows(4),
        boxes=[{"global_key": f"{i}.png"} | box(9, 9, 90, 90) for i in range(4)],
    )
    sizes = []
    for max_bytes in (50_000, 12_000):
        jpeg = draw_slice_sample(
            run, Store(tmp_path), "0", lambda row: noisy_picture(ord(row.global_key[0])), max_bytes=max_bytes
        )
        assert len(jpeg) < max_bytes
        sizes.append(sheet(jpeg).width)
    assert sizes[0] > sizes[1]
    assert draw_slice_sample(run, Store(tmp_path), "0", lambda _: noisy_picture(0), max_bytes=100) is None


def test_thresholds_and_mapping_hold_for_views(tmp_path):
    run = make_run(mapping={"bird": None, "cat": "pet"}, min_score=MinScore(0.6))
    boxes = [box(50, 80, 100, 150, "cat", 0.9), box(200, 80, 100, 150, "dog", 0.59), box(9, 9, 9, 9, "bird", 0.9)]
    fill(Store(tmp_path), run, "0", data_rows=rows(1), boxes=[{"global_key": "0.png"} | b for b in boxes])
    drawn = sheet(draw_slice_sample(run, Store(tmp_path), "0", lambda _: picture()))
    assert share_of(drawn, colour_of("pet")) > 0.005
    assert near(drawn.getpixel((50, 200)), colour_of("pet"), 60)
    assert near(drawn.getpixel((200, 200)), GREY)


def test_answers_stand_below_their_picture(tmp_path):
    run = make_run()
    answer = {"global_key": "0.png", "feature": "label", "answer": "goldfish", "score": 0.93}
    fill(Store(tmp_path), run, "0", data_rows=rows(1), classifications=[answer])
    drawn = sheet(draw_slice_sample(run, Store(tmp_path), "0", lambda _: picture()))
    assert drawn.height > 300 + 20
    below = np.asarray(drawn)[302:]
    assert (below < 100).any()


def test_pictures_that_cannot_be_had_are_passed_over(tmp_path):
    run = make_run()
    boxes = [{"global_key": f"{i}.png"} | box(100, 80, 200, 150) for i in range(3)]
    fill(Store(tmp_path), run, "0", data_rows=rows(3), boxes=boxes)

    def read_picture(row):
        if row.global_key == "0.png":
            raise RowUnavailable("row_not_found", "no such file")
        return b"broken" if row.global_key == "1.png" else picture()

    assert sheet(draw_slice_sample(run, Store(tmp_path), "0", read_picture)).width == 400


@pytest.mark.parametrize("media_type", ["image", "text", "video"])
def test_where_there_is_nothing_to_draw_there_is_no_sheet(tmp_path, media_type):
    run = make_run(media_type=media_type)
    shown = [] if media_type == "image" else [{"global_key": "0.png"} | box(1, 1, 9, 9)]
    fill(Store(tmp_path), run, "0", data_rows=rows(1), boxes=shown)
    assert draw_slice_sample(run, Store(tmp_path), "0", lambda _: picture()) is None


def test_a_sheet_is_the_same_bytes_when_drawn_twice(tmp_path):
    run = make_run()
    fill(Store(tmp_path), run, "0", data_rows=rows(1), boxes=[{"global_key": "0.png"} | box(100, 80, 200, 150)])
    assert len({draw_slice_sample(run, Store(tmp_path), "0", lambda _: picture()) for _ in range(2)}) == 1
