"""Texts and HTML pages from data row to table: what the model reads, and what offsets refer to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_pipeline.rows.html_text import readable_text
from tests.fake_model import FakeModel, Reply, Request
from tests.media_bench import MediaBench

PAGE = (
    "<html><head><title>x</title></head><body><p>Tom &amp; Bob<br>met <b>Ann</b> in Köln \U0001f600.</p></body></html>"
)


def people(request: Request) -> Reply:
    """Finds the names in whatever text it is given, by its code points; without quoting them."""
    found = [(request.text.find(name), name) for name in ("Tom", "Bob", "Ann")]
    return Reply({"person": [{"start": at, "end": at + len(name)} for at, name in found if at >= 0]})


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(people) as served:
        yield served


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "shift_jis", "utf-32-be"])
def test_a_text_in_a_file_of_any_declared_encoding_is_read_exactly(
    encoding: str, model: FakeModel, tmp_path: Path
) -> None:
    text = "Kaputt: Tom\r\n\tund Bob" if encoding == "shift_jis" else "Größe: Tom\r\n\tund Bob"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    bench = MediaBench(tmp_path, model.url, "text", [{"row_data": "a.txt"}])
    bench.data(encoding=encoding)
    bench.go()
    assert model.requests[0].text == text
    assert [(e["text"], text[e["start"] : e["end"]]) for e in bench.table("entities")] == [
        ("Tom", "Tom"),
        ("Bob", "Bob"),
    ]


def test_a_text_that_is_not_of_the_encoding_is_not_sent(model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Größe".encode("latin-1"))
    bench = MediaBench(tmp_path, model.url, "text", [{"row_data": "a.txt"}, {"row_data": "Tom"}])
    report = bench.call()
    assert (report.ok, report.not_sent, report.errors) == (1, 1, {"row_encoding": 1})


@pytest.mark.parametrize("inline", [True, False])
def test_html_is_its_source_unless_the_manifest_says_otherwise(inline: bool, model: FakeModel, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    bench = MediaBench(tmp_path, model.url, "html", [{"row_data": PAGE if inline else "a.html"}])
    bench.go()
    assert model.requests[0].text == PAGE
    assert [PAGE[e["start"] : e["end"]] for e in bench.table("entities")] == ["Tom", "Bob", "Ann"]


@pytest.mark.parametrize("inline", [True, False])
def test_offsets_in_readable_html_are_those_of_the_text_that_the_model_saw(
    inline: bool, model: FakeModel, tmp_path: Path
) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    bench = MediaBench(tmp_path, model.url, "html", [{"row_data": PAGE if inline else "a.html"}])
    bench.model(html="readable")
    bench.go()
    seen = model.requests[0].text
    assert seen == "Tom & Bob\nmet Ann in Köln \U0001f600."
    found = bench.table("entities")
    assert [(e["start"], e["text"], e["anchor"]) for e in found] == [
        (0, "Tom", "exact"),
        (6, "Bob", "exact"),
        (14, "Ann", "exact"),
    ]
    assert all(readable_text(PAGE)[e["start"] : e["end"]] == e["text"] for e in found), "anybody can make it again"


def test_source_and_readable_text_are_different_calls(model: FakeModel, tmp_path: Path) -> None:
    bench = MediaBench(tmp_path, model.url, "html", [{"row_data": PAGE}])
    bench.call()
    bench.model(html="readable")
    assert bench.call().calls == 1
    bench.model(html="source")
    assert bench.call().calls == 0, "the answer about the source is kept, though no row used it"


def test_hostile_html_is_one_row_like_any_other(model: FakeModel, tmp_path: Path) -> None:
    """60 KB of `<a ` take the standard library two minutes."""
    pages = ["<a " * 20_000, "<div>" * 50_000 + "Tom", "<!--" * 20_000, "<p>Tom"]
    bench = MediaBench(tmp_path, model.url, "html", [{"row_data": page} for page in pages])
    bench.model(html="readable")
    assert bench.go().ok == 4
    assert [e["text"] for e in bench.table("entities")] == ["Tom", "Tom"]
