"""A small home for tests of calls about any medium: records in one table, a model at some URL, tables at the end."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from foundry_pipeline.config.settings import Settings
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.invoke import CallOptions, Invoker, SliceReport
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import Ontology
from foundry_pipeline.predictions import DecodeReport, decode_slice
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.rows.datasets import DatasetReport, load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, RESPONSES, TABLES
from tests.decoding import EVERYTHING
from tests.fake_model import FakeModel, Request

SLICE = "00000"
CHECKOUT = Path(__file__).parent.parent


def kill_at(model: FakeModel, child: str, arrivals: Sequence[int]) -> None:
    """Run `child`, a Python script that calls `model`, and kill -9 it once so many requests came; then the next one."""
    for least in arrivals:
        process = subprocess.Popen([sys.executable, "-c", child], cwd=CHECKOUT)
        while len(model.requests) < least and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.1)


@dataclass
class MediaBench:
    """Records of `media_type` in one slice of dataset `ds`, and run `r` of a model over them."""

    root: Path
    url: str
    media_type: str
    records: Sequence[Mapping[str, Any]]
    ontology: Ontology | None = EVERYTHING
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.store = Store(self.root / "warehouse")
        dataset = Dataset("ds", "ds.yaml", self.root, self.media_type, "rows.ndjson")
        model = Manifest("m", "m", "m.yaml", self.url, 500.0, ontology=self.ontology, max_attempts=3)
        self.run = Run("r", "r.yaml", model, dataset, max_failed_share=1.0)

    def model(self, **changes: Any) -> None:
        self.run = replace(self.run, model=replace(self.run.model, **changes))

    def data(self, **changes: Any) -> None:
        self.run = replace(self.run, dataset=replace(self.run.dataset, **changes))

    def runs(self, **changes: Any) -> None:
        self.run = replace(self.run, **changes)

    def load(self) -> DatasetReport:
        (self.root / "rows.ndjson").write_text("\n".join(map(json.dumps, self.records)))
        return load_dataset(self.run.dataset, self.root, self.settings, self.store)

    def invoker(self) -> Invoker:
        ledger = str(self.root / "ledger")
        return Invoker(self.run, self.store, self.settings, home_root=self.root, ledger=ledger, environ={})

    def call(self, options: CallOptions | None = None) -> SliceReport:
        self.load()
        with self.invoker() as invoker:
            (report,) = invoker.invoke([SLICE], options or CallOptions())
        return report

    def decode(self) -> DecodeReport:
        with RowReader(self.root, self.settings, encoding=self.run.dataset.encoding) as reader:
            return decode_slice(self.run, SLICE, self.store, reader.text)

    def go(self, options: CallOptions | None = None) -> SliceReport:
        report = self.call(options)
        assert report.failure is None, report.failure
        self.decode()
        return report

    def table(self, name: str) -> list[dict[str, Any]]:
        spec = TABLES[name]
        table = self.store.read(spec, "ds" if spec is DATA_ROWS else "r", SLICE)
        return [] if table is None else table.to_pylist()

    def responses(self) -> list[dict[str, Any]]:
        return self.table(RESPONSES.name)


def pictures_in(request: Request) -> list[Image.Image]:
    """The pictures of a request, as a model sees them: pixels as they are stored, EXIF or not."""
    parts = [part for turn in request.body["prompt"] for part in turn["parts"]]
    return [Image.open(io.BytesIO(base64.b64decode(part["image"]))) for part in parts if "image" in part]


def turns_in(request: Request) -> list[tuple[str, str]]:
    """(role, text) of a request's turns."""
    return [(turn["role"], part["text"]) for turn in request.body["prompt"] for part in turn["parts"] if "text" in part]
