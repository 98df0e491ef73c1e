"""Objects: read through pyarrow from where the deployment says, under the same limits as everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest

from foundry_pipeline.config.settings import read_settings
from foundry_pipeline.config.yaml_source import Findings
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.home import Settings
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.rows.object_stores import ObjectStores
from tests.pictures import picture
from tests.row_server import RowServer

PICTURE = picture()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """fsspec's memory is one for the whole process."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/foundry-tests", recursive=True)


def refusal(url: str, *prefixes: str, max_bytes: int = 1000) -> RowUnavailable:
    with pytest.raises(RowUnavailable) as caught:
        ObjectStores(prefixes, max_bytes=max_bytes, timeout_s=5.0).read(url)
    return caught.value


def test_an_object_is_read_whole(memory: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    memory.pipe("/foundry-tests/a b?.jpg", PICTURE)
    with RowReader(tmp_path, Settings()) as reader:
        assert reader.picture(DataRow("i", "k", "image", "memory://foundry-tests/a b?.jpg")) == PICTURE


def test_limits_and_reasons_are_those_of_every_row(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/foundry-tests/large", b"x" * 1001)
    memory.pipe("/foundry-tests/empty", b"")
    assert refusal("memory://foundry-tests/large").code == "row_too_large"
    assert refusal("memory://foundry-tests/empty").code == "row_unreadable"
    assert refusal("memory://foundry-tests/none").code == "row_missing"


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///key",
        "s3://key:secret@bucket/a",
        "s3://169.254.169.254:80/latest",
        "s3://bucket?endpoint_override=169.254.169.254/key",
        "s3://bucket/../other/key",
        "s3://bucket/a/./b",
        "s3://bucket/a\0b",
        "gs://user@bucket/key",
        "az://container@evil.example/key",
        "abfs://container@account.dfs.core.windows.net.evil.example/key",
    ],
)
def test_a_row_names_bucket_and_key_and_nothing_else(url: str) -> None:
    """pyarrow takes endpoint, scheme and keys from a URL's query: a row could send the credentials anywhere."""
    assert refusal(url).code == "row_forbidden"


def test_a_deployment_may_list_what_is_read(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/foundry-tests/in/a", b"yes")
    memory.pipe("/foundry-tests/inside", b"no")
    listed = ("memory://foundry-tests/in",)
    assert ObjectStores(listed, max_bytes=10, timeout_s=5.0).read("memory://foundry-tests/in/a") == b"yes"
    for url in ("memory://foundry-tests/inside", "memory://foundry-tests/in/../inside", "s3://bucket/key"):
        assert refusal(url, *listed).code == "row_forbidden"
    assert "row_stores" in refusal("s3://bucket/key", *listed).message
    assert refusal("S3A://bucket/key", "s3://other/").code == "row_forbidden"


def test_row_stores_are_beginnings_of_objects_urls(tmp_path: Path) -> None:
    path = tmp_path / "foundry.yaml"
    path.write_text("row_stores: [s3://street/pictures, gs://b]\n")
    found = Findings("foundry.yaml")
    settings = read_settings(path, found)
    assert settings is not None
    assert settings.row_stores == ("s3://street/pictures", "gs://b")
    for wrong in ("/data", "https://host/", "s3://", "ftp://host/a"):
        path.write_text(f"row_stores: [{wrong}]\n")
        assert read_settings(path, found) is None


def test_file_urls_keep_to_the_folders_that_may_be_read(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (home / "a.jpg").write_bytes(PICTURE)
    (outside / "b.jpg").write_bytes(PICTURE)
    (home / "link.jpg").symlink_to(outside / "b.jpg")
    with RowReader(home, Settings()) as reader:
        assert reader.picture(DataRow("i", "k", "image", f"file://{home}/a.jpg")) == PICTURE
        for url in (f"file://{outside}/b.jpg", f"local://{home}/../outside/b.jpg", f"file://{home}/link.jpg"):
            with pytest.raises(RowUnavailable, match="row_forbidden"):
                reader.picture(DataRow("i", "k", "image", url))


def _s3(objects: dict[str, bytes]) -> object:
    """A route that answers like S3 does; one object a path."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        data = objects.get(handler.path.split("?")[0])
        status = 403 if data == b"forbidden" else 404 if data is None else 200
        body = b"<Error><Code>NoSuchKey</Code></Error>" if status == 404 else data or b""
        ranged = handler.headers.get("Range")
        if status == 200 and ranged:
            first, last = ranged.removeprefix("bytes=").split("-")
            status, body = 206, body[int(first) : int(last) + 1]
            handler.send_response(status)
            handler.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(data or b'')}")
        else:
            handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    return answer


def test_s3_is_read_at_the_endpoint_that_the_environment_names(tmp_path: Path) -> None:
    """In a process of its own: the SDK reads its environment once."""
    code = (
        "import json, sys\n"
        "from foundry_pipeline.errors import RowUnavailable\n"
        "from foundry_pipeline.rows.object_stores import ObjectStores\n"
        "stores = ObjectStores((), max_bytes=100_000, timeout_s=5.0)\n"
        "def tried(url):\n"
        "    try: return stores.read(url).hex()\n"
        "    except RowUnavailable as error: return error.code\n"
        "print(json.dumps([tried(url) for url in sys.argv[1:]]))\n"
    )
    objects = {"/street/a.jpg": PICTURE, "/street/odd%3Fkey": b"odd", "/street/secret": b"forbidden"}
    objects["/street/large"] = b"x" * 100_001
    with RowServer() as server:
        for path in (*objects, "/street/none"):
            server.routes[path] = _s3(objects)
        environ = {
            **os.environ,
            "AWS_ENDPOINT_URL": server.url(""),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        urls = [
            "s3://street/a.jpg",
            "s3a://street/odd?key",
            "s3://street/none",
            "s3://street/secret",
            "s3://street/large",
        ]
        command = [sys.executable, "-c", code, *urls]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=120)
    expected = [PICTURE.hex(), b"odd".hex(), "row_missing", "row_unreadable", "row_too_large"]
    assert json.loads(done.stdout) == expected
