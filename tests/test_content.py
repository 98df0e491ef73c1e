from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.home import Settings
from foundry_pipeline.rows.content import Content, ContentReader, Kind, RowReader, locate
from foundry_pipeline.rows.local_files import LocalFiles
from tests.pictures import picture
from tests.row_server import Answer, RowServer

LOCAL = Settings(allow_private_hosts=("127.0.0.1",), row_timeout_s=5.0)
PICTURE = picture()


@pytest.fixture
def server() -> Iterator[RowServer]:
    with RowServer() as running:
        yield running


def row(row_data: str, media_type: str = "image", **fields: object) -> DataRow:
    return DataRow("id", "key", media_type, row_data, **fields)


def read(
    data_row: DataRow,
    home: Path,
    allowed: Settings = LOCAL,
    *,
    encoding: str = "utf-8",
    waits: tuple[float, ...] = (0.0, 0.0),
) -> Content:
    async def run() -> Content:
        async with ContentReader(home, allowed, encoding=encoding, retry_waits_s=waits) as reader:
            return await reader.read(data_row)

    return asyncio.run(run())


def refusal(data_row: DataRow, home: Path, allowed: Settings = LOCAL, **options: object) -> RowUnavailable:
    with pytest.raises(RowUnavailable) as caught:
        read(data_row, home, allowed, **options)
    return caught.value


def test_a_picture_behind_a_url_comes_byte_for_byte(server: RowServer, tmp_path: Path) -> None:
    data = picture(40, 20, orientation=6)
    server.routes["/a"] = Answer(data, headers={"Content-Type": "text/plain"})
    content = read(row(server.url("/a")), tmp_path)
    assert content == Content(data, "image/jpeg", hashlib.sha256(data).hexdigest(), 20, 40, 6)


def test_a_private_address_is_refused_unless_it_is_listed(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(PICTURE)
    error = refusal(row(server.url("/a")), tmp_path, Settings())
    assert error.code == "row_forbidden"
    assert "allow_private_hosts" in error.message
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "row_missing"),
        (410, "row_missing"),
        (401, "row_expired"),
        (403, "row_expired"),
        (418, "row_unreadable"),
        (204, "row_unreadable"),
        (206, "row_unreadable"),
        (505, "row_host_down"),
    ],
)
def test_a_status_that_will_not_change_is_final(status: int, code: str, server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(b"" if status == 204 else b"x", status)
    error = refusal(row(server.url("/a")), tmp_path)
    assert (error.code, str(status) in error.message) == (code, True)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(status: int, server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = [Answer(status=status), Answer(status=status), Answer(PICTURE)]
    assert read(row(server.url("/a")), tmp_path).data == PICTURE
    server.routes["/b"] = Answer(status=status)
    assert refusal(row(server.url("/b")), tmp_path).code == "row_host_down"
    assert server.asked.count("/b") == 3


def test_html_instead_of_a_picture_is_asked_for_once_more(server: RowServer, tmp_path: Path) -> None:
    page = Answer(b"<html>sign in</html>", headers={"Content-Type": "image/jpeg"})
    server.routes["/passing"] = [page, Answer(PICTURE)]
    assert read(row(server.url("/passing")), tmp_path).data == PICTURE
    server.routes["/lasting.jpg"] = page
    error = refusal(row(server.url("/lasting.jpg")), tmp_path)
    assert (error.code, "sign in" in error.message) == ("row_not_media", True)
    assert server.asked.count("/lasting.jpg") == 2


def test_a_truncated_jpeg_is_found(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(picture(64, 64)[:-300])
    assert refusal(row(server.url("/a")), tmp_path).code == "row_truncated"


def test_a_body_cut_off_on_the_way_is_tried_again(server: RowServer, tmp_path: Path) -> None:
    cut = Answer(PICTURE[:100], headers={"Content-Length": str(len(PICTURE)), "Connection": "close"})
    server.routes["/a"] = [cut, Answer(PICTURE)]
    assert read(row(server.url("/a")), tmp_path).data == PICTURE


def test_the_size_limit_holds_with_and_without_a_length(server: RowServer, tmp_path: Path) -> None:
    small = Settings(allow_private_hosts=("127.0.0.1",), max_row_bytes=1000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"x" * 10_000)

    server.routes |= {"/named": Answer(b"x" * 1001), "/endless": endless, "/zipped": _gzipped(b"x" * 1_000_000)}
    for path in ("/named", "/endless", "/zipped"):
        assert refusal(row(server.url(path), "text"), tmp_path, small).code == "row_too_large"


def _gzipped(body: bytes) -> Answer:
    return Answer(gzip.compress(body), headers={"Content-Encoding": "gzip"})


def test_gzip_is_not_asked_for_and_read_all_the_same(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = _gzipped(b"hello")
    assert read(row(server.url("/a"), "text"), tmp_path).data == b"hello"
    assert server.headers[0]["accept-encoding"] == "identity"
    server.routes["/cut"] = Answer(gzip.compress(b"hello" * 99)[:-9], headers={"Content-Encoding": "gzip"})
    assert refusal(row(server.url("/cut"), "text"), tmp_path).code == "row_truncated"
    server.routes["/brotli"] = Answer(b"x", headers={"Content-Encoding": "br"})
    assert refusal(row(server.url("/brotli"), "text"), tmp_path).code == "row_unreadable"


def test_a_host_that_drips_ends_at_the_deadline(server: RowServer, tmp_path: Path) -> None:
    """httpx's own timeout counts each wait and would never end here."""
    stop = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b"x")

    server.routes["/a"] = drip
    brief = Settings(allow_private_hosts=("127.0.0.1",), row_timeout_s=0.3)
    try:
        assert refusal(row(server.url("/a")), tmp_path, brief).code == "row_timeout"
    finally:
        stop.set()


def test_F095_a_host_that_is_down_is_left_alone_and_others_go_on(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(PICTURE)
    tries = []

    async def connect(request: httpx.Request) -> httpx.Response:
        tries.append(request.url.host)
        if request.url.host == "down.example":
            raise httpx.ConnectError("refused")
        return httpx.Response(200, content=PICTURE)

    async def run() -> list[str]:
        transport = httpx.MockTransport(connect)
        async with ContentReader(tmp_path, LOCAL, transport=transport, retry_waits_s=(0.0, 0.0)) as reader:
            codes = []
            for number in range(20):
                with pytest.raises(RowUnavailable) as caught:
                    await reader.read(row(f"http://down.example/{number}"))
                codes.append(caught.value.code)
            assert (await reader.read(row("http://up.example/a"))).data == PICTURE
            return codes

    assert asyncio.run(run()) == ["row_host_down"] * 20
    assert tries == ["down.example"] * 3 + ["up.example"]


def test_a_connection_refused_is_a_host_that_is_down(tmp_path: Path) -> None:
    with RowServer() as gone:
        url = gone.url("/a")
    assert refusal(row(url), tmp_path).code == "row_host_down"


def test_redirects_are_followed_three_times(server: RowServer, tmp_path: Path) -> None:
    for hop in range(4):
        server.routes[f"/{hop}"] = Answer(status=302, headers={"Location": f"/{hop + 1}"})
    server.routes["/4"] = Answer(PICTURE)
    assert read(row(server.url("/1")), tmp_path).data == PICTURE
    error = refusal(row(server.url("/0")), tmp_path)
    assert (error.code, "3 redirects" in error.message) == ("row_unreadable", True)


def test_a_redirect_to_a_private_address_is_judged_again(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(status=302, headers={"Location": "http://169.254.169.254/latest/meta-data"})
    error = refusal(row(server.url("/a")), tmp_path)
    assert (error.code, "169.254.169.254" in error.message) == ("row_forbidden", True)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://h/a", "gopher://h", "//:0", "http://h:0/"])
def test_a_redirect_to_another_scheme_is_refused(location: str, server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(status=302, headers={"Location": location})
    assert refusal(row(server.url("/a")), tmp_path).code == "row_forbidden"


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": "http://h.example/a"})

    async def run() -> None:
        async with ContentReader(tmp_path, LOCAL, transport=httpx.MockTransport(answer)) as reader:
            await reader.read(row("https://h.example/a"))

    with pytest.raises(RowUnavailable, match=r"row_forbidden.*from https to http"):
        asyncio.run(run())


def test_user_info_goes_to_its_host_only_and_into_no_message(server: RowServer, tmp_path: Path) -> None:
    with RowServer() as other:
        other.routes["/b"] = Answer(status=404)
        server.routes["/a"] = Answer(
            status=302, headers={"Location": other.url("/b").replace("//", "//x:y@"), "Set-Cookie": "id=1"}
        )
        url = server.url("/a?sig=S3CRET").replace("//", "//user:S3CRET@")
        error = refusal(row(url), tmp_path)
        assert "S3CRET" not in str(error)
        assert server.headers[0]["authorization"] == "Basic dXNlcjpTM0NSRVQ="
        assert not {"authorization", "cookie"} & set(other.headers[0])
        assert other.headers[0]["host"] == f"127.0.0.1:{other.port}"


def test_nothing_is_taken_from_the_environment(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(PICTURE)
    before = dict(os.environ)
    os.environ.update(HTTP_PROXY="http://127.0.0.1:1", http_proxy="http://127.0.0.1:1", ALL_PROXY="http://127.0.0.1:1")
    try:
        assert read(row(server.url("/a")), tmp_path).data == PICTURE
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_many_downloads_run_at_once_but_not_all(server: RowServer, tmp_path: Path) -> None:
    gate = threading.Barrier(16)

    def wait(handler: BaseHTTPRequestHandler) -> None:
        gate.wait(5)  # passes only where sixteen ask together
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(PICTURE)))
        handler.end_headers()
        handler.wfile.write(PICTURE)

    server.routes["/a"] = wait

    async def run() -> None:
        async with ContentReader(tmp_path, LOCAL) as reader:
            await asyncio.gather(*(reader.read(row(server.url("/a"))) for _ in range(48)))

    asyncio.run(run())
    assert server.most_at_once == 16


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=30), st.sampled_from(["http://", "https://", "HTTP://[", "http://127.0.0.1:", "//", "s3://", ""])
)
def test_no_row_data_makes_reading_raise_anything_else(tail: str, head: str) -> None:
    async def run() -> None:
        def refuse(request: httpx.Request) -> httpx.Response:
            return httpx.Response(404)

        home = Path("/nonexistent/home")
        async with ContentReader(home, LOCAL, transport=httpx.MockTransport(refuse), retry_waits_s=()) as reader:
            for media_type in ("image", "text"):
                try:
                    await reader.read(row(head + tail, media_type))
                except RowUnavailable as err:
                    assert err.code.startswith("row_")

    asyncio.run(run())


def test_content_that_changed_since_it_was_loaded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(PICTURE)
    content = read(row(str(path)), tmp_path)
    loaded = row(
        str(path), mime_type="image/jpeg", width=40, height=20, exif_orientation=None, content_sha256=content.sha256
    )
    assert read(loaded, tmp_path) == content
    path.write_bytes(picture(seed=1))
    error = refusal(loaded, tmp_path)
    assert (error.code, "materialize data_rows again" in error.message) == ("row_changed", True)


def test_a_text_in_the_row_is_its_own_content(tmp_path: Path) -> None:
    content = read(row("Tom\r\nand Bob", "text"), tmp_path)
    assert content == Content(b"Tom\r\nand Bob", "text/plain", hashlib.sha256(b"Tom\r\nand Bob").hexdigest())
    assert refusal(row("a lone \ud800", "text"), tmp_path).code == "row_encoding"


def test_texts_are_exact_wherever_they_are(server: RowServer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfe\xcc\x81 \r\n\xf0\x9f\x98\x80")
    server.routes["/a"] = Answer("naïve".encode())
    with RowReader(tmp_path, LOCAL) as texts:
        assert texts.text(row(str(tmp_path / "a.txt"), "text")) == "e\u0301 \r\n\U0001f600"
        assert texts.text(row(server.url("/a"), "text")) == "naïve"
        assert texts.text(row("\ufeffas it stands", "text")) == "\ufeffas it stands"
        assert texts.text(row('{"messages":[]}', "conversational")) == '{"messages":[]}'
        with pytest.raises(RowUnavailable, match="row_not_media"):
            texts.text(row(str(tmp_path / "a.jpg")))
    (tmp_path / "b.txt").write_bytes("naïve".encode("latin-1"))
    with RowReader(tmp_path, LOCAL, encoding="latin-1") as texts:
        assert texts.text(row(str(tmp_path / "b.txt"), "text")) == "naïve"


def test_a_reader_can_be_used_again_after_closing(server: RowServer, tmp_path: Path) -> None:
    server.routes["/a"] = Answer(PICTURE)

    async def run() -> None:
        reader = ContentReader(tmp_path, LOCAL)
        for _ in range(2):
            assert (await reader.read(row(server.url("/a")))).data == PICTURE
            await reader.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("row_data", "media_type", "expected"),
    [
        ("http://h/a b.jpg", "image", (Kind.URL, "http://h/a b.jpg")),
        ("HTTPS://h/a", "text", (Kind.URL, "HTTPS://h/a")),
        ("http://h/a is a nice page", "text", (Kind.INLINE, "http://h/a is a nice page")),
        ("a.jpg", "image", (Kind.PATH, "{home}/t/a.jpg")),
        ("../a.jpg", "image", (Kind.PATH, "{home}/a.jpg")),
        ("//{home}/a.jpg", "image", (Kind.PATH, "{home}/a.jpg")),
        ("note", "text", (Kind.PATH, "{home}/t/note")),
        ("note\n", "text", (Kind.INLINE, "note\n")),
        ("missing.txt", "text", (Kind.PATH, "{home}/t/missing.txt")),
        ("see missing.txt", "text", (Kind.INLINE, "see missing.txt")),
        ("sub", "text", (Kind.INLINE, "sub")),
        (".", "text", (Kind.INLINE, ".")),
        ("{home}/gone", "text", (Kind.PATH, "{home}/gone")),
        ("/", "text", (Kind.INLINE, "/")),
        ("data:", "text", (Kind.INLINE, "data:")),
        ("Note: s3://bucket is full", "text", (Kind.INLINE, "Note: s3://bucket is full")),
        ("a\0b", "text", (Kind.INLINE, "a\0b")),
        ("x" * 5000, "text", (Kind.INLINE, "x" * 5000)),
    ],
)
def test_what_row_data_is(row_data: str, media_type: str, expected: tuple[Kind, str], tmp_path: Path) -> None:
    (tmp_path / "t" / "sub").mkdir(parents=True)
    (tmp_path / "t" / "note").write_text("a note")
    home = str(tmp_path)
    found = locate(row_data.replace("{home}", home), media_type, LocalFiles(tmp_path), f"{home}/t")
    assert found == (expected[0], expected[1].replace("{home}", home))
    assert locate(found[1], media_type, LocalFiles(tmp_path)) == found, "the table's row_data reads the same"


@pytest.mark.parametrize(
    "row_data", ["s3://bucket/key", "file:///etc/passwd", "data:text/plain;base64,eA==", "GS://b/k"]
)
@pytest.mark.parametrize("media_type", ["image", "text"])
def test_other_schemes_are_refused(row_data: str, media_type: str, tmp_path: Path) -> None:
    with pytest.raises(RowUnavailable, match="row_forbidden"):
        locate(row_data, media_type, LocalFiles(tmp_path), str(tmp_path))
