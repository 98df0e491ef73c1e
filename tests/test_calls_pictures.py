"""Pictures from data row to table: what the model sees, whatever EXIF says and wherever they come from."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from foundry_pipeline.home import Settings
from tests.fake_model import FakeModel, Reply, Request
from tests.media_bench import MediaBench, pictures_in
from tests.pictures import picture
from tests.row_server import Answer, RowServer

WIDTH, HEIGHT = 48, 32
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> how the stored pixels become the displayed ones."""
UNDO = {**TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(boxes_of_red) as served:
        yield served


def scene() -> Image.Image:
    """What a person sees: a red block near the top left of a white picture, 48 wide and 32 high."""
    seen = Image.new("RGB", (WIDTH, HEIGHT), "white")
    seen.paste((220, 0, 0), (8, 4, 24, 12))
    return seen


def stored(orientation: int, fmt: str = "PNG") -> bytes:
    """The scene as a camera stores it, with the mark that says how to turn it."""
    turn = UNDO[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    target = io.BytesIO()
    (scene() if turn is None else scene().transpose(turn)).save(target, fmt, exif=exif, quality=95)
    return target.getvalue()


def boxes_of_red(request: Request) -> Reply:
    """A model that sees pixels and knows no EXIF: where the red block is."""
    boxes = []
    for seen in pictures_in(request):
        pixels = np.asarray(seen.convert("RGB")).astype(int)
        red = (pixels[..., 0] - pixels[..., 1]) > 100
        ys, xs = np.nonzero(red)
        boxes.append([int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1])
    return Reply({"car": {"boxes": boxes}})


def box(bench: MediaBench) -> tuple[float, ...]:
    (found,) = bench.table("boxes")
    return tuple(found[name] for name in ("left", "top", "width", "height", "image_width", "image_height"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_model_sees_every_picture_upright_and_its_boxes_are_in_that_frame(
    fmt: str, orientation: int, model: FakeModel, tmp_path: Path
) -> None:
    (tmp_path / "a.img").write_bytes(stored(orientation, fmt))
    bench = MediaBench(tmp_path, model.url, "image", [{"row_data": "a.img"}])
    bench.go()
    found = box(bench)
    assert np.allclose(found[:4], (8, 4, 16, 8), atol=1 if fmt in ("JPEG", "WEBP") else 0)
    assert found[4:] == (WIDTH, HEIGHT)
    (row,) = bench.table("data_rows")
    assert (row["width"], row["height"], row["exif_orientation"]) == (WIDTH, HEIGHT, orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_with_exif_keep_the_model_gets_the_file_and_boxes_are_in_its_frame(
    orientation: int, model: FakeModel, tmp_path: Path
) -> None:
    data = stored(orientation)
    (tmp_path / "a.png").write_bytes(data)
    bench = MediaBench(tmp_path, model.url, "image", [{"row_data": "a.png"}])
    bench.model(exif="keep")
    bench.go()
    (request,) = model.requests
    assert base64.b64decode(request.body["prompt"][0]["parts"][0]["image"]) == data
    turned = orientation >= 5
    assert box(bench)[4:] == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    assert box(bench)[2:4] == ((8, 16) if turned else (16, 8))
    (row,) = bench.table("data_rows")
    assert (row["width"], row["height"], row["exif_orientation"]) == (WIDTH, HEIGHT, orientation)
    # Only a picture that is turned otherwise is another call.
    bench.model(exif="upright")
    assert bench.call().calls == (0 if orientation == 1 else 1)


def test_bitmaps_are_sent_as_they_are(model: FakeModel, tmp_path: Path) -> None:
    scene().save(tmp_path / "a.bmp")
    bench = MediaBench(tmp_path, model.url, "image", [{"row_data": "a.bmp"}])
    bench.go()
    assert box(bench) == (8, 4, 16, 8, WIDTH, HEIGHT)
    assert pictures_in(model.requests[0])[0].format == "BMP"


def test_a_picture_is_one_call_wherever_it_comes_from(model: FakeModel, tmp_path: Path) -> None:
    data = stored(6)
    (tmp_path / "a.png").write_bytes(data)
    files = fsspec.filesystem("memory")
    files.pipe("/foundry-calls/a.png", data)
    with RowServer() as host:
        host.routes["/a.png"] = Answer(data)
        rows = [
            "a.png",
            f"file://{tmp_path}/a.png",
            host.url("/a.png"),
            f"data:image/png;base64,{base64.b64encode(data).decode()}",
            "memory://foundry-calls/a.png",
        ]
        records = [{"row_data": row, "global_key": str(at)} for at, row in enumerate(rows)]
        bench = MediaBench(tmp_path, model.url, "image", records, settings=Settings(("127.0.0.1",)))
        report = bench.go()
    files.rm("/foundry-calls", recursive=True)
    assert (report.calls, report.ok, report.not_sent) == (1, 5, 0)
    assert {tuple(b.values())[12:16] for b in bench.table("boxes")} == {(8.0, 4.0, 16.0, 8.0)}


def test_no_base64_of_a_data_uri_is_in_anything_but_its_row_and_its_request(model: FakeModel, tmp_path: Path) -> None:
    encoded = base64.b64encode(b"this is no picture, and nobody shall read it" * 9).decode()
    records = [{"row_data": f"data:image/png;base64,{encoded}", "global_key": "a"}]
    bench = MediaBench(tmp_path, model.url, "image", records)
    report = bench.call()
    assert (report.not_sent, list(report.examples)) == (1, ["row_not_media"])
    said = repr(report) + repr(bench.load()) + repr(bench.responses())
    assert encoded[:12] not in said


def attached(tmp_path: Path, model: FakeModel, **changes: object) -> MediaBench:
    for name, colour in (("a.png", "red"), ("b.png", "green"), ("c.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    attachments = [
        {"type": "IMAGE", "value": "b.png"},
        {"type": "RAW_TEXT", "value": "a note"},
        {"type": "IMAGE_OVERLAY", "value": "c.png", "name": "overlay"},
    ]
    bench = MediaBench(tmp_path, model.url, "image", [{"row_data": "a.png", "attachments": attachments}])
    bench.runs(**changes)
    return bench


def colours(request: Request) -> list[object]:
    return [seen.convert("RGB").getpixel((4, 4)) for seen in pictures_in(request)]


def test_attachments_are_sent_only_where_the_run_asks_for_them(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply({})
    attached(tmp_path, model).call()
    bench = attached(tmp_path, model, inference_params={"use_image_attachments": True})
    assert bench.call().ok == 1
    red, green, blue = (255, 0, 0), (0, 128, 0), (0, 0, 255)
    assert [colours(request) for request in model.requests] == [[red], [red, green, blue]]


def test_attachments_are_turned_upright_like_any_picture(model: FakeModel, tmp_path: Path) -> None:
    bench = attached(tmp_path, model, inference_params={"use_image_attachments": True})
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(stored(6))
    bench.go()
    assert {tuple(b.values())[12:16] for b in bench.table("boxes")} == {(8.0, 4.0, 16.0, 8.0)}
    assert len(bench.table("boxes")) == 3


def test_an_attachment_that_cannot_be_had_is_named(model: FakeModel, tmp_path: Path) -> None:
    bench = attached(tmp_path, model, inference_params={"use_image_attachments": True})
    (tmp_path / "c.png").write_bytes(b"no picture")
    report = bench.call()
    (response,) = bench.responses()
    assert (report.not_sent, response["error"]) == (1, "row_not_media")
    assert response["message"].startswith("picture attachment 1: ")


def test_the_pictures_of_a_request_share_the_size_limit(model: FakeModel, tmp_path: Path) -> None:
    bench = attached(tmp_path, model, inference_params={"use_image_attachments": True})
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        (tmp_path / name).write_bytes(picture(64, 64, seed=seed))
    bench.settings = Settings(max_row_bytes=2 * (tmp_path / "a.png").stat().st_size)
    assert bench.call().not_sent == 1
    assert bench.responses()[0]["error"] == "row_too_large"


def test_a_text_may_have_picture_attachments_too(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply({})
    (tmp_path / "a.jpg").write_bytes(picture())
    record = {"row_data": "What is this?", "attachments": [{"type": "IMAGE", "value": "a.jpg"}]}
    bench = MediaBench(tmp_path, model.url, "text", [record])
    bench.runs(inference_params={"use_image_attachments": True, "prompt": "Be brief."})
    assert bench.call().ok == 1
    system, user = model.requests[0].body["prompt"]
    assert system == {"role": "system", "parts": [{"text": "Be brief."}]}
    assert [sorted(part) for part in user["parts"]] == [["text"], ["image"]]


def tiff_bombs() -> Iterator[bytes]:
    """One that claims 60,000 x 60,000 pixels in 8 KB, one whose directories go round in a circle."""
    target = io.BytesIO()
    Image.new("1", (8, 8)).save(target, "TIFF")
    huge = bytearray(target.getvalue())
    at = int.from_bytes(huge[4:8], "little")
    for entry in range(int.from_bytes(huge[at : at + 2], "little")):
        place = at + 2 + 12 * entry
        if int.from_bytes(huge[place : place + 2], "little") in (256, 257):
            huge[place + 2 : place + 12] = b"\x04\x00\x01\x00\x00\x00" + (60_000).to_bytes(4, "little")
    yield bytes(huge)
    circle = bytearray(target.getvalue())
    end = at + 2 + 12 * int.from_bytes(circle[at : at + 2], "little")
    circle[end : end + 4] = at.to_bytes(4, "little")
    yield bytes(circle)


def test_a_tiff_bomb_costs_its_own_row(model: FakeModel, tmp_path: Path) -> None:
    records = []
    for at, data in enumerate([*tiff_bombs(), stored(1)]):
        (tmp_path / f"{at}.tif").write_bytes(data)
        records.append({"row_data": f"{at}.tif"})
    bench = MediaBench(tmp_path, model.url, "image", records)
    model.answer = lambda _: Reply({})
    bench.call()
    outcomes = [(r["outcome"], r["error"]) for r in bench.responses()]
    assert outcomes[0] == ("not_sent", "row_too_large")
    assert outcomes[1] in [("ok", None), ("not_sent", "row_truncated")], "its first page is a picture"
    assert outcomes[2] == ("ok", None)
