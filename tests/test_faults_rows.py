"""Faults of data rows (section D of docs/reliability.md), from source to responses: real files, real servers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from PIL import Image

from foundry_pipeline.config.settings import Settings
from foundry_pipeline.data_rows import rows_of
from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.rows.datasets import DatasetReport, load_dataset
from foundry_pipeline.rows.downloads import Downloads
from foundry_pipeline.tables import DATA_ROWS, SUPERSEDED
from tests.fake_model import FakeModel, Reply, Request
from tests.invoking import Bench
from tests.pictures import picture
from tests.row_server import Answer, RowServer

CAT = Reply({"label": "cat"})
LOCAL = Settings(allow_private_hosts=("127.0.0.1", "localhost"), row_host_patience_s=30.0)


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: CAT) as served:
        yield served


@pytest.fixture
def server() -> Iterator[RowServer]:
    with RowServer() as running:
        yield running


def bench_of(root: Path, url: str, rows: Sequence[str], media_type: str = "text") -> Bench:
    """A Bench over these `row_data`, with keys k0, k1, ..."""
    bench = Bench(root, url, settings=LOCAL, loads=False)
    bench.dataset = replace(bench.dataset, media_type=media_type)
    bench.run = replace(bench.run, dataset=bench.dataset)
    bench.load(rows)
    return bench


def reload(bench: Bench) -> DatasetReport:
    return load_dataset(bench.dataset, bench.root, bench.settings, bench.store, reread=True)


def outcomes(bench: Bench) -> dict[str, tuple[str, str | None]]:
    return {key: (row["outcome"], row["error"]) for key, row in bench.responses().items()}


def images_sent(model: FakeModel) -> list[bytes]:
    parts = [part for request in model.requests for turn in request.body["prompt"] for part in turn["parts"]]
    return [base64.b64decode(part["image"]) for part in parts if "image" in part]


def test_F083_a_url_that_answers_404_or_410_is_not_sent_and_the_rest_goes_on(
    model: FakeModel, server: RowServer, tmp_path: Path
) -> None:
    server.routes |= {"/a": Answer(b"hello"), "/gone": Answer(status=410)}
    urls = [server.url("/a"), server.url("/never?sig=S3CRET"), server.url("/gone")]
    bench = bench_of(tmp_path, model.url, urls)
    report = bench.one()
    assert (report.ok, report.not_sent, report.failure) == (1, 2, None)
    assert outcomes(bench) == {
        "k0": ("ok", None),
        "k1": ("not_sent", "row_missing"),
        "k2": ("not_sent", "row_missing"),
    }
    message = bench.responses()["k1"]["message"]
    assert "/never" in message
    assert "S3CRET" not in str(bench.responses()) + str(report)


def test_F084_a_refreshed_link_resumes_its_row_and_asks_for_no_other(
    model: FakeModel, server: RowServer, tmp_path: Path
) -> None:
    server.routes |= {"/a": Answer(b"hello"), "/b": [Answer(status=403)]}
    bench = bench_of(tmp_path, model.url, [server.url("/a"), server.url("/b?sig=old")])
    assert bench.one().not_sent == 1
    row = bench.responses()["k1"]
    assert row["error"] == "row_expired"
    assert "export the links again" in row["message"]
    server.routes["/b"] = Answer(b"good bye")
    bench.load([server.url("/a"), server.url("/b?sig=new")])
    report = bench.one()
    assert (report.ok, report.calls, report.reused) == (2, 1, 1)
    assert [request.text for request in model.requests] == ["hello", "good bye"]


def test_F085_first_bytes_decide_what_is_a_picture_and_html_is_asked_for_once_more(
    model: FakeModel, server: RowServer, tmp_path: Path
) -> None:
    login = Answer(b"<html>\x1b[31msign in</html>", headers={"Content-Type": "image/jpeg"})
    mislabelled = Answer(picture(), headers={"Content-Type": "text/html"})
    server.routes |= {"/a.jpg": login, "/b.html": mislabelled}
    bench = bench_of(tmp_path, model.url, [server.url("/a.jpg"), server.url("/b.html")], "image")
    assert server.asked.count("/a.jpg") == 2, "at the load, once more before it counts"
    assert bench.one().not_sent == 1
    assert outcomes(bench) == {"k0": ("not_sent", "row_not_media"), "k1": ("ok", None)}
    message = bench.responses()["k0"]["message"]
    assert "sign in" in message
    assert "\x1b" not in message


def test_F086_a_truncated_picture_is_not_sent_although_its_size_can_be_read(model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(picture(64, 64)[:-300])
    (tmp_path / "whole.jpg").write_bytes(picture(64, 64))
    with Image.open(tmp_path / "cut.jpg") as opened:
        assert opened.size == (64, 64)
    bench = bench_of(tmp_path, model.url, ["cut.jpg", "whole.jpg"], "image")
    bench.one()
    assert outcomes(bench) == {"k0": ("not_sent", "row_truncated"), "k1": ("ok", None)}
    assert len(model.requests) == 1


def test_F087_changed_content_under_one_url_is_another_call_and_the_old_answer_stays(
    model: FakeModel, server: RowServer, tmp_path: Path
) -> None:
    model.answer = lambda request: Reply({"summary": request.text})
    server.routes |= {"/a": Answer(b"first"), "/b": Answer(b"same")}
    bench = bench_of(tmp_path, model.url, [server.url("/a"), server.url("/b")])
    bench.one()
    first = bench.responses()["k0"]
    server.routes["/a"] = Answer(b"second")
    assert reload(bench).content_changed == 1
    assert bench.one().calls == 1
    second = bench.responses()["k0"]
    assert second["call_id"] != first["call_id"]
    assert json.loads(second["reply"]) == {"summary": "second"}
    old = bench.store.read(SUPERSEDED, "r", "00000")
    assert old is not None
    assert old.to_pylist() == [first]
    server.routes["/a"] = Answer(b"first")
    reload(bench)
    assert bench.one().calls == 0, "what was paid for is not asked again"
    assert bench.responses()["k0"] == first


def test_F087_content_that_changed_since_the_load_is_not_sent(model: FakeModel, tmp_path: Path) -> None:
    """Else an answer would stand under the identity of other content."""
    path = tmp_path / "a.txt"
    path.write_text("first")
    bench = bench_of(tmp_path, model.url, ["a.txt"])
    path.write_text("second")
    bench.one()
    assert outcomes(bench) == {"k0": ("not_sent", "row_changed")}
    reload(bench)
    bench.one()
    assert outcomes(bench) == {"k0": ("ok", None)}


def test_F088_a_turned_picture_is_sent_upright_and_the_turn_is_part_of_the_call(
    model: FakeModel, tmp_path: Path
) -> None:
    (tmp_path / "turned.jpg").write_bytes(picture(40, 20, orientation=6))
    bench = bench_of(tmp_path, model.url, ["turned.jpg"], "image")
    table = bench.store.read(DATA_ROWS, "ds", "00000")
    assert table is not None
    [row] = rows_of(table)
    assert (row.exif_orientation, row.width, row.height) == (6, 20, 40)
    bench.one()
    [sent] = images_sent(model)
    with Image.open(io.BytesIO(sent)) as opened:
        assert opened.size == (20, 40)
        assert 0x0112 not in opened.getexif()
    requests = FoundryRequests(bench.run)
    assert requests.call_id(row) == model.requests[0].key
    assert requests.call_id(replace(row, exif_orientation=1)) != requests.call_id(row)


def odd_pictures() -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    grey, red = Image.new("I;16", (9, 7), 40_000), Image.new("RGB", (9, 7), "red")
    saved: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "cmyk.jpg": (red.convert("CMYK"), "JPEG", {}),
        "sixteen_bit.png": (grey, "PNG", {}),
        "palette.png": (red.convert("P"), "PNG", {}),
        "animation.gif": (red, "GIF", {"save_all": True, "append_images": [Image.new("RGB", (9, 7), "blue")]}),
        "pages.tif": (red, "TIFF", {"save_all": True, "append_images": [Image.new("RGB", (5, 5), "blue")]}),
    }
    for name, (image, fmt, options) in saved.items():
        target = io.BytesIO()
        image.save(target, fmt, **options)
        made[name] = target.getvalue()
    made["photo.heic"] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    return made


def test_F089_odd_pictures_are_sent_as_they_are(model: FakeModel, tmp_path: Path) -> None:
    pictures = odd_pictures()
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
    bench = bench_of(tmp_path, model.url, list(pictures), "image")
    assert bench.one().ok == len(pictures)
    assert sorted(images_sent(model)) == sorted(pictures.values())


def test_F092_a_text_of_another_encoding_is_not_sent_unless_the_dataset_names_it(
    model: FakeModel, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "b.txt").write_bytes("naïve".encode())
    bench = bench_of(tmp_path, model.url, ["a.txt", "b.txt"])
    bench.one()
    assert outcomes(bench) == {"k0": ("not_sent", "row_encoding"), "k1": ("ok", None)}
    assert "byte 2" in bench.responses()["k0"]["message"]
    bench.dataset = replace(bench.dataset, encoding="latin-1")
    bench.run = replace(bench.run, dataset=bench.dataset)
    reload(bench)
    bench.one()
    assert model.requests[-1].text == "naïve"


def test_F095_rows_of_a_host_that_goes_down_wait_for_it_and_others_go_on(
    model: FakeModel, server: RowServer, tmp_path: Path
) -> None:
    """The host closes its port as soon as its first text has been sent to the model, and is back after a while."""
    (tmp_path / "near.txt").write_text("near")
    far = [f"/far {i}".replace(" ", "_") for i in range(3)]
    server.routes |= {path: Answer(path.encode(), headers={"Connection": "close"}) for path in far}
    bench = bench_of(tmp_path, model.url, [*(server.url(path) for path in far), "near.txt"])
    bench.model(max_concurrency=1)
    back = RowServerLater(server)

    def answer(request: Request) -> Reply:
        if request.text == far[0]:
            back.close()
        elif request.text == "near":
            back.open()
        return CAT

    model.answer = answer
    with back:
        report = bench.one()
    assert (report.ok, report.not_sent) == (4, 0)
    assert [request.text for request in model.requests][:2] == [far[0], "near"]


class RowServerLater:
    """Takes a row server from its port and puts another one there, with the same routes."""

    def __init__(self, server: RowServer) -> None:
        self._server = server
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def close(self) -> None:
        self._server.close()

    def open(self) -> None:
        again = RowServer(self._server.port)
        again.routes = self._server.routes
        self._stack.enter_context(again)


def test_F095_a_host_that_never_answered_keeps_nobody_waiting(model: FakeModel, tmp_path: Path) -> None:
    with RowServer() as gone:
        url = gone.url("/a")
    bench = bench_of(tmp_path, model.url, [url, "near by"])
    assert bench.one().not_sent == 1
    row = bench.responses()["k0"]
    assert row["error"] == "row_host_down"
    assert "127.0.0.1" in row["message"]


def test_F095_one_request_tries_a_host_that_is_down_ever_more_rarely_until_it_is_given_up() -> None:
    now, tries = [0.0], []

    async def refuse(request: httpx.Request) -> httpx.Response:
        tries.append(now[0])
        if now[0] == 0.0:
            return httpx.Response(200, content=b"hello")
        raise httpx.ConnectError("refused")

    async def ask_every_half_second() -> list[float | None]:
        transport = httpx.MockTransport(refuse)
        limits = {"max_bytes": 100, "timeout_s": 5.0, "retry_waits_s": (), "host_patience_s": 60.0}
        downloads = Downloads(transport, clock=lambda: now[0], **limits)
        await downloads.get("http://far.example/")
        waits = []
        for half_seconds in range(2, 200):
            now[0] = half_seconds / 2
            with pytest.raises(RowUnavailable, match="row_host_down") as caught:
                await downloads.get("http://far.example/")
            waits.append(caught.value.wait_s)
        return waits

    waits = asyncio.run(ask_every_half_second())
    assert tries == [0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 9.0, 17.0, 33.0, 63.0, 93.0]
    told_to_wait = [wait for wait in waits if wait is not None]
    assert waits[: len(told_to_wait)] == told_to_wait, "once given up, always given up"
    assert len(told_to_wait) == 2 * 60
    assert max(told_to_wait) <= 30.0
