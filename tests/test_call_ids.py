"""A call's identity lasts: answers that were paid for by an earlier version of this package are not paid for again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from foundry_pipeline.asks import Ask
from foundry_pipeline.data_rows import Attachment, DataRow
from foundry_pipeline.home import load_home
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.tables import RESPONSES
from tests.fake_model import FakeModel, Reply
from tests.media_bench import SLICE, MediaBench

MODEL = """\
name: m
inference_endpoint: http://127.0.0.1:8000/predict
version: "7"
requests_per_second: 5
max_tokens: 64
ontology:
  tools: [{name: cat, tool: rectangle}]
  classifications: [{name: mood, type: radio, options: [{value: glad}, {value: sad}]}]
inference_params_json_schema:
  properties:
    prompt: {type: string, default: Say what it is.}
    confidence: {type: number, default: 0.25}
"""
RECORDED = [
    ("image", {"content_sha256": "ab" * 32}, "96314c7240e423661e28ea009d447f2cd962d747d5f1d7bbc679ae5e99d4f910"),
    (
        "image",
        {"content_sha256": "ab" * 32, "exif_orientation": 6},
        "e8c8aa80c9b3e7d10044b281d4d3686fe5f79317e73a2cf1b79917faed81c766",
    ),
    ("image", {"row_data": "https://x.org/a.jpg"}, "205a5623959664c74f8edab3ef1cf4b697f7935404dfef59245da4273eeeb022"),
    ("text", {"content_sha256": "cd" * 32}, "b53426f7f80a690365989ad4952897dbc361823b38e8ab8db700c0334a09f4c0"),
    ("html", {"content_sha256": "ef" * 32}, "0a1c48787e30e68e559fd989b22358cf4355081d2aa80f38e4131c2f555ad5d1"),
    (
        "conversational",
        {"content_sha256": "01" * 32},
        "e9467300ed77cc669b509de6338747f1a0059aadaf6bccaa106ae469518e87f0",
    ),
]
"""Media type, what differs in the data row, and the identity that its call had before a row could take several."""


@pytest.mark.parametrize(("media_type", "facts", "call_id"), RECORDED)
@pytest.mark.parametrize("attachments", [(), (Attachment("IMAGE", "/b.jpg"),)])
def test_calls_keep_the_identity_that_ledgers_and_warehouses_know_them_by(
    media_type: str, facts: dict[str, object], call_id: str, attachments: tuple[Attachment, ...], tmp_path: Path
) -> None:
    """Attachments that are not sent are no part of it."""
    home = {
        "models/m.yaml": MODEL,
        "datasets/d.yaml": f"media_type: {media_type}\nsource: rows.ndjson\n",
        "runs/r.yaml": "model: m\ndataset: d\n",
        "datasets/rows.ndjson": "",
    }
    for name, content in home.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    run = load_home(tmp_path, {}).runs["r"]
    row = DataRow("i", "k", media_type, **({"row_data": "/a"} | facts), attachments=attachments)  # type: ignore[arg-type]
    assert FoundryRequests(run).call_id(Ask(row)) == call_id


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text})) as served:
        yield served


def test_answers_from_before_rows_could_take_several_calls_are_decoded_and_not_asked_again(
    model: FakeModel, tmp_path: Path
) -> None:
    bench = MediaBench(tmp_path, model.url, "text", [{"row_data": "one"}, {"row_data": "two"}])
    bench.call()
    path = bench.store.path(RESPONSES, "r", SLICE)
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["frames", "message_id"]), path)
    (tmp_path / "warehouse/_commits/responses/run=r" / f"{SLICE}.json").unlink()
    assert bench.decode().rows == 2
    report = bench.call()
    assert (report.failure, report.calls, report.reused) == (None, 0, 2)
    assert len(model.requests) == 2
    assert [row["frames"] for row in bench.responses()] == [None, None], "the file has the columns now"
