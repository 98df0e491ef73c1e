"""Predictions drawn on their pictures, for people to look at: one picture, or a contact sheet of a slice.

Coordinates are pixels of the picture as displayed, after EXIF orientation, so pictures are turned upright first.
Only what a run lets out is drawn: its mapping and `min_score` hold for views as for exports.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, Record, rle_of
from foundry_pipeline.exports.rows import annotated_rows
from foundry_pipeline.exports.tally import Tally
from foundry_pipeline.home import Run
from foundry_pipeline.rle import to_dense
from foundry_pipeline.rows.media import inspect
from foundry_pipeline.store import Store

MAX_PIXELS = 64_000_000
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
TILE_SIDES_PX = (400, 320, 256, 192, 128, 64)
QUALITIES = (85, 70, 50)
MASK_OPACITY = 110  # of 255
LABEL_CHARS = 40
CAPTION_LINES = 4
GAP_PX = 4
PAPER, INK = (255, 255, 255), (20, 20, 20)

SHAPE_TABLES = ("masks", "boxes", "polygons", "lines", "points")
Shapes = Mapping[str, Sequence[Record]]
"""Table name -> its rows; `feature` is the name that is shown."""
Xy = tuple[float, float]
Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture, upright and scaled down, and the size of the original, in pixels: what coordinates refer to."""

    image: Image.Image
    full_size_wh: tuple[int, int]

    def fitted(self, side_px: int) -> _Picture:
        """The same picture, at most `side_px` wide and high."""
        smaller = self.image.copy()
        smaller.thumbnail((side_px, side_px))
        return _Picture(smaller, self.full_size_wh)

    def scaled(self, xy: Xy) -> Xy:
        """A place of the original on the scaled picture; what is far outside moves near, or it could not be drawn."""
        x, y = (at * now / full for at, now, full in zip(xy, self.image.size, self.full_size_wh, strict=True))
        width, height = self.image.size
        return min(max(x, -4.0 * width), 4.0 * width), min(max(y, -4.0 * height), 4.0 * height)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One tile of a contact sheet before it is drawn."""

    picture: _Picture
    shapes: Shapes
    captions: tuple[str, ...]


def colour_of(feature: str) -> Rgb:
    """The feature's colour: always the same, whatever else is drawn."""
    hue = int.from_bytes(hashlib.sha256(feature.encode()).digest()[:2]) / 65536
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_row(
    picture: bytes,
    *,
    boxes: Sequence[Record] = (),
    masks: Sequence[Record] = (),
    polygons: Sequence[Record] = (),
    lines: Sequence[Record] = (),
    points: Sequence[Record] = (),
    max_side_px: int = 800,
) -> Image.Image:
    """The picture, upright, at most `max_side_px` wide and high, with rows of the prediction tables drawn on it.

    Masks are translucent; every shape has its feature's name and score beside it. Raises RowUnavailable where the
    bytes are no picture that can be decoded.
    """
    shapes = {"masks": masks, "boxes": boxes, "polygons": polygons, "lines": lines, "points": points}
    return _drawn(_upright(picture, max_side_px), shapes)


def draw_annotated(annotated: AnnotatedRow, picture: bytes, max_side_px: int = 800) -> Image.Image:
    """`draw_row` for a data row with its predictions, under your names of their features."""
    return _drawn(_upright(picture, max_side_px), _shapes(annotated.predictions))


def draw_slice_sample(
    run: Run,
    store: Store,
    slice_key: str,
    read_picture: Callable[[DataRow], bytes],
    *,
    max_pictures: int = 4,
    max_bytes: int = 50_000,
) -> bytes | None:
    """A JPEG contact sheet of the slice's first pictures that have predictions, smaller than `max_bytes`.

    Answers to questions stand below their picture. Rows whose picture cannot be had (`read_picture` raises
    RowUnavailable) are passed over. None where there is nothing to draw.
    """
    rows = (row for row in annotated_rows(run, store, slice_key, Tally()) if _drawable(row))
    samples = list(islice(_samples(rows, read_picture), max_pictures))
    for side_px in TILE_SIDES_PX if samples else ():
        sheet = _sheet(samples, side_px)
        for quality in QUALITIES:
            if len(jpeg := _jpeg(sheet, quality)) < max_bytes:
                return jpeg
    return None


def _drawable(annotated: AnnotatedRow) -> bool:
    return annotated.row.media_type == "image" and bool(annotated.predictions)


def _samples(rows: Iterable[AnnotatedRow], read_picture: Callable[[DataRow], bytes]) -> Iterator[_Sample]:
    """Each picture is scaled down before the next one is read."""
    for annotated in rows:
        try:
            picture = _upright(read_picture(annotated.row), TILE_SIDES_PX[0])
        except RowUnavailable:
            continue
        yield _Sample(picture, _shapes(annotated.predictions), _captions(annotated))


def _shapes(predictions: Iterable[Prediction]) -> Shapes:
    shapes: dict[str, list[Record]] = {name: [] for name in SHAPE_TABLES}
    for prediction in predictions:
        if prediction.table in shapes:
            shapes[prediction.table].append({**prediction.values, "feature": prediction.feature})
    return shapes


def _captions(annotated: AnnotatedRow) -> tuple[str, ...]:
    answers = [
        f"{p.feature}: {_label(p.values['answer'], p.values['score'])}"
        for p in annotated.predictions
        if p.table in ("classifications", "texts")
    ]
    return (annotated.row.global_key, *answers[: CAPTION_LINES - 1])


def _upright(picture: bytes, side_px: int) -> _Picture:
    """Decode, turn as EXIF says, scale down. A JPEG is decoded at a fraction of its size where that suffices."""
    facts = inspect(picture, "image", max_pixels=MAX_PIXELS)
    if facts.width is None or facts.height is None:
        raise RowUnavailable("row_not_media", f"{facts.mime_type} is not decoded here")
    with Image.open(io.BytesIO(picture), formats=PICTURE_FORMATS) as image:
        image.draft("RGB", (side_px, side_px))
        upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGBA")
    upright.thumbnail((side_px, side_px))
    paper = Image.new("RGBA", upright.size, PAPER)
    return _Picture(Image.alpha_composite(paper, upright).convert("RGB"), (facts.width, facts.height))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow turns 16-bit grey into 8 bits by cutting off what is brighter than 255."""
    return image.point(lambda value: value / 256, "L") if image.mode.startswith("I;16") else image


def _drawn(picture: _Picture, shapes: Shapes) -> Image.Image:
    """Masks below, outlines above them, text on top."""
    drawn = _Picture(picture.image.copy(), picture.full_size_wh)
    for mask in shapes["masks"]:
        _paint_mask(drawn.image, mask)
    pen = ImageDraw.Draw(drawn.image)
    labels = []
    for table in SHAPE_TABLES:
        for record in shapes[table]:
            corners = [drawn.scaled(xy) for xy in CORNERS[table](record)]
            OUTLINES[table](pen, corners, colour_of(record["feature"]), _stroke_px(drawn.image))
            labels.append((corners, record))
    for corners, record in labels:
        _write_label(pen, drawn.image, corners, record)
    return drawn.image


def _paint_mask(image: Image.Image, record: Record) -> None:
    """One mask at a time is dense, and only until it is scaled down."""
    opacity = Image.fromarray(to_dense(rle_of(record)) * np.uint8(MASK_OPACITY))
    image.paste(colour_of(record["feature"]), mask=opacity.resize(image.size, Image.Resampling.BOX))


def _stroke_px(image: Image.Image) -> int:
    return max(1, round(max(image.size) / 200))


def _box_corners(record: Record) -> list[Xy]:
    left, top = record["left"], record["top"]
    return [(left, top), (left + record["width"], top + record["height"])]


def _ring(record: Record) -> list[Xy]:
    return [(point["x"], point["y"]) for point in record["points"]]


CORNERS: Mapping[str, Callable[[Record], list[Xy]]] = {
    "masks": _box_corners,
    "boxes": _box_corners,
    "polygons": _ring,
    "lines": _ring,
    "points": lambda record: [(record["x"], record["y"])],
}

Outline = Callable[[ImageDraw.ImageDraw, list[Xy], Rgb, int], None]


def _no_outline(_pen: ImageDraw.ImageDraw, _corners: list[Xy], _colour: Rgb, _stroke_px: int) -> None:
    """A mask shows by its pixels."""


def _outline_box(pen: ImageDraw.ImageDraw, corners: list[Xy], colour: Rgb, stroke_px: int) -> None:
    pen.rectangle(corners, outline=colour, width=stroke_px)


def _outline_polygon(pen: ImageDraw.ImageDraw, corners: list[Xy], colour: Rgb, stroke_px: int) -> None:
    pen.line([*corners, corners[0]], fill=colour, width=stroke_px)


def _outline_line(pen: ImageDraw.ImageDraw, corners: list[Xy], colour: Rgb, stroke_px: int) -> None:
    pen.line(corners, fill=colour, width=stroke_px)


def _outline_point(pen: ImageDraw.ImageDraw, corners: list[Xy], colour: Rgb, stroke_px: int) -> None:
    pen.circle(corners[0], 2 * stroke_px + 1, fill=colour, outline=PAPER)


OUTLINES: Mapping[str, Outline] = {
    "masks": _no_outline,
    "boxes": _outline_box,
    "polygons": _outline_polygon,
    "lines": _outline_line,
    "points": _outline_point,
}


def _write_label(pen: ImageDraw.ImageDraw, image: Image.Image, corners: list[Xy], record: Record) -> None:
    """Above the shape where there is room, else inside it; never past the picture's edge."""
    text, font = _label(record["feature"], record["score"]), _font(_text_px(image))
    _, _, width, height = pen.textbbox((0, 0), text, font=font)
    left = min(x for x, _ in corners)
    top = min(y for _, y in corners) - height - 2
    x = max(0.0, min(left, image.width - width - 2))
    y = max(0.0, min(top, image.height - height - 2))
    colour = colour_of(record["feature"])
    pen.rectangle((x, y, x + width + 2, y + height + 1), fill=colour)
    pen.text((x + 1, y), text, fill=_readable_on(colour), font=font)


def _label(name: str, score: float | None) -> str:
    """On one line, with the score where there is one."""
    line = " ".join(name.split())
    short = line if len(line) <= LABEL_CHARS else f"{line[: LABEL_CHARS - 1]}…"
    return short if score is None else f"{short} {score:.2f}"


def _readable_on(background: Rgb) -> Rgb:
    """Black or white, by perceived lightness (ITU-R BT.601)."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else PAPER


def _text_px(image: Image.Image) -> int:
    return max(12, round(max(image.size) / 32))


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _sheet(samples: Sequence[_Sample], side_px: int) -> Image.Image:
    """Tiles in rows, about as many rows as columns."""
    tiles = [_tile(sample, side_px) for sample in samples]
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = [tiles[at : at + columns] for at in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) + GAP_PX for row in rows]
    sheet = Image.new("RGB", (columns * (side_px + GAP_PX) - GAP_PX, sum(heights) - GAP_PX), PAPER)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * (side_px + GAP_PX), sum(heights[:number])))
    return sheet


def _tile(sample: _Sample, side_px: int) -> Image.Image:
    """The picture at the top left, its captions below."""
    drawn = _drawn(sample.picture.fitted(side_px), sample.shapes)
    font, line_px = _font(_text_px(drawn)), _text_px(drawn) + 4
    tile = Image.new("RGB", (side_px, drawn.height + line_px * len(sample.captions)), PAPER)
    tile.paste(drawn)
    pen = ImageDraw.Draw(tile)
    for place, caption in enumerate(sample.captions):
        pen.text((2, drawn.height + place * line_px), _label(caption, None), fill=INK, font=font)
    return tile


def _jpeg(image: Image.Image, quality: int) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality, optimize=True)
    return target.getvalue()
