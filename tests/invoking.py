"""A small home for tests of calls: text rows in slices, a model at some URL, one line to run it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foundry_pipeline.calls.ledger import Answer
from foundry_pipeline.calls.ledgers import Ledgers, ledgers_at
from foundry_pipeline.calls.pending import Pending
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.invoke import CallOptions, Invoker, Progress, SliceReport, TransportFactory
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Option
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, RESPONSES

ONTOLOGY = Ontology(
    None,
    (
        Classification("label", FeatureKind.RADIO, "label", (Option("cat", "cat", 0), Option("dog", "dog", 1))),
        Classification("summary", FeatureKind.TEXT, "summary"),
    ),
    (),
)


@dataclass
class Bench:
    """`rows` texts "text 0", "text 1", ... in slices, and a run over them against `url`."""

    root: Path
    url: str
    rows: int = 6
    rows_per_slice: int = 1000
    settings: Settings = field(default_factory=Settings)
    environ: Mapping[str, str] = field(default_factory=dict)
    ledger: str | Path | None = None
    loads: bool = True
    """False where another process has loaded the rows."""
    transport: TransportFactory | None = None
    """What carries requests; our own connections where none is given."""
    jitter: float = 0.0
    """Share of every back-off that is waited: a test does not wait, unless waiting is what it is about."""
    run_name: str = "r"

    def __post_init__(self) -> None:
        self.store = Store(self.root / "warehouse")
        self.dataset = Dataset("ds", "ds.yaml", self.root, "text", "rows.ndjson", self.rows_per_slice)
        model = Manifest("m", "m", "m.yaml", self.url, 500.0, ontology=ONTOLOGY, max_attempts=3)
        self.run = Run(self.run_name, "r.yaml", model, self.dataset)
        if self.loads:
            self.load([f"text {i}" for i in range(self.rows)])

    def load(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        lines = (json.dumps({"global_key": f"k{i}", "row_data": text}) for i, text in enumerate(texts))
        (self.root / "rows.ndjson").write_text("\n".join(lines))
        load_dataset(self.dataset, self.root, self.settings, self.store)

    def model(self, **changes: Any) -> None:
        self.run = replace(self.run, model=replace(self.run.model, **changes))

    def invoker(self) -> Invoker:
        return Invoker(
            self.run,
            self.store,
            self.settings,
            home_root=self.root,
            ledger=self.ledger_at,
            environ=self.environ,
            transport=self.transport,
            jitter=lambda: self.jitter,
        )

    @property
    def ledger_at(self) -> str:
        return str(self.ledger or self.root / "ledger")

    @contextlib.contextmanager
    def ledgers(self) -> Iterator[Ledgers]:
        ledgers = ledgers_at(self.ledger_at, {})
        try:
            ledgers.open()
            yield ledgers
        finally:
            ledgers.close()

    def pending(self) -> Sequence[Pending]:
        """What the ledgers hold, and who works on a slice."""
        with self.ledgers() as ledgers:
            return ledgers.pending()

    def kept_answers(self, slice_key: str = "00000") -> list[Answer]:
        """The answers in a slice's ledger."""
        with self.ledgers() as ledgers:
            lease = ledgers.lease("r", slice_key)
            ledger = ledgers.ledger("r", slice_key, lease)
            try:
                return list(ledger.answers(ledger.outcomes()).values())
            finally:
                ledger.close()
                lease.release()

    def go(self, options: CallOptions | None = None) -> list[SliceReport]:
        with self.invoker() as invoker:
            reports = invoker.invoke(self.store.slices(DATA_ROWS, "ds"), options or CallOptions())
            return sorted(reports, key=lambda report: report.slice_key)

    def one(self, options: CallOptions | None = None) -> SliceReport:
        (report,) = self.go(options)
        return report

    def attempts(self, slice_key: str = "00000") -> list[dict[str, Any]]:
        """The failed attempts in the ledger of a slice that is not committed, in the order of their writing."""
        with contextlib.closing(sqlite3.connect(self.root / f"ledger/r/{slice_key}.sqlite")) as ledger:
            ledger.row_factory = sqlite3.Row
            return [dict(record) for record in ledger.execute("SELECT * FROM attempts ORDER BY rowid")]

    def kept(self, slice_key: str = "00000") -> dict[str, str]:
        """Global key -> reply of every answer in the ledger of a slice that is not committed."""
        with contextlib.closing(sqlite3.connect(self.root / f"ledger/r/{slice_key}.sqlite")) as ledger:
            found = ledger.execute("SELECT global_key, reply FROM calls WHERE outcome = 'ok'")
            return {global_key: reply.decode() for global_key, reply in found}

    def watched(self) -> tuple[list[str], SliceReport]:
        """What a person sees while the run waits, and the report of its slice."""
        seen: list[Progress] = []
        with self.invoker() as invoker:
            (report,) = invoker.invoke(["00000"], on_progress=seen.append)
        return [progress.note for progress in seen if progress.note], report

    def stop_when(self, is_time: Callable[[], bool]) -> SliceReport:
        """Run, and stop it once `is_time`, as Ctrl-C would."""
        with self.invoker() as invoker:

            def watch() -> None:
                while not is_time():
                    time.sleep(0.005)
                invoker.stop()

            threading.Thread(target=watch, daemon=True).start()
            (report,) = invoker.invoke(["00000"])
            return report

    def responses(self, slice_key: str = "00000") -> dict[str, dict[str, Any]]:
        table = self.store.read(RESPONSES, "r", slice_key)
        return {} if table is None else {record["global_key"]: record for record in table.to_pylist()}
