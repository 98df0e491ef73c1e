"""Calls: the whole path against a bare client, the use of the rate, and the cost of a slice.

The model is a process of its own that answers after 50 ms and logs its arrivals; windows come from that log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from benchmarks import Ratio
from foundry_pipeline.calls.endpoint_state import Spacing, StateFile
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.invoke import CallOptions, Invoker
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Option
from foundry_pipeline.rows.datasets import load_dataset
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS

ROWS = 3000
IN_FLIGHT = 64
LATENCY_S = 0.05
ROUNDS = 3
CHECKOUT = Path(__file__).parent.parent
CAT = Ontology(None, (Classification("label", FeatureKind.RADIO, "label", (Option("cat", "cat", 0),)),), ())


def run() -> list[Ratio]:
    """Throughput, overhead, reuse, rate use, worst window, and the price of booking."""
    with tempfile.TemporaryDirectory() as folder, _model(Path(folder), LATENCY_S) as url:
        ideal = IN_FLIGHT / LATENCY_S
        pairs = [(_bare(url), *_pipeline(Path(folder), url, turn)) for turn in range(ROUNDS)]
    return [
        _ratio("throughput", [ours / ideal for _, ours, _ in pairs], ">= 0.78", "rows/s to Parquet", "64 / 0.05 s"),
        _ratio("overhead", [ours / bare for bare, ours, _ in pairs], ">= 0.95", "rows/s to Parquet", "bare httpx"),
        _ratio(
            "nothing new", [again / ours for _, ours, again in pairs], "-", "rows/s, all answered", "rows/s, called"
        ),
        *_rates(),
        _booking(),
    ]


def _ratio(name: str, values: list[float], goal: str, numerator: str, denominator: str) -> Ratio:
    return Ratio(name, statistics.median(values), goal, numerator, denominator, (min(values), max(values)))


@contextlib.contextmanager
def _model(folder: Path, latency_s: float) -> Iterator[str]:
    port_file, log = folder / "url", folder / "arrivals"
    command = [sys.executable, "-m", "tests.fake_model", "--port-file", port_file, "--log", log]
    process = subprocess.Popen([*command, "--latency", str(latency_s)], cwd=CHECKOUT)
    try:
        while not (port_file.exists() and port_file.read_text()):
            time.sleep(0.02)
        yield port_file.read_text()
    finally:
        process.terminate()
        process.wait()
        port_file.unlink()


def _bare(url: str) -> float:
    """Rows a second of the plainest fast client: one connection per slot, nothing kept."""

    async def slot(todo: Iterator[int]) -> None:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        async with httpx.AsyncClient(limits=limits, verify=False, trust_env=False, timeout=60) as client:
            for i in todo:
                body = json.dumps({"prompt": [{"role": "user", "parts": [{"text": f"text {i}"}]}]}).encode()
                response = await client.post(url, content=body, headers={"Content-Type": "application/json"})
                assert response.status_code == 200

    async def go() -> None:
        todo = iter(range(ROWS))
        await asyncio.gather(*(slot(todo) for _ in range(IN_FLIGHT)))

    began = time.perf_counter()
    asyncio.run(go())
    return ROWS / (time.perf_counter() - began)


def _pipeline(folder: Path, url: str, turn: int) -> tuple[float, float]:
    """(rows a second from data rows to committed responses, the same when every answer is there)."""
    bench, store = _bench(folder / f"turn{turn}", url, ROWS, 5000.0)

    def once() -> float:
        began = time.perf_counter()
        with Invoker(
            bench, store, Settings(), home_root=folder, ledger=str(folder / f"ledger{turn}"), environ={}
        ) as calls:
            reports = list(calls.invoke(store.slices(DATA_ROWS, "ds"), CallOptions()))
        assert sum(report.ok for report in reports) == ROWS
        return ROWS / (time.perf_counter() - began)

    return once(), once()


def _bench(root: Path, url: str, rows: int, per_s: float, name: str = "run") -> tuple[Run, Store]:
    root.mkdir(parents=True)
    lines = (json.dumps({"global_key": f"k{i}", "row_data": f"text {i} of {name}"}) for i in range(rows))
    (root / "rows.ndjson").write_text("\n".join(lines))
    dataset = Dataset("ds", "ds.yaml", root, "text", "rows.ndjson", 1000)
    store = Store(root / "warehouse")
    load_dataset(dataset, root, Settings(), store)
    model = Manifest("m", "m", "m.yaml", url, per_s, ontology=CAT, max_concurrency=IN_FLIGHT)
    return Run(name, "run.yaml", model, dataset), store


_WORKER = """
import sys
from pathlib import Path
from benchmarks.calls import rate_worker
rate_worker(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
"""


def rate_worker(folder: Path, url: str, per_s: float, rows: int, name: str) -> None:
    """One of several processes that share an endpoint: calls its own rows. Run as a process of its own."""
    bench, store = _bench(folder / name, url, rows, per_s, name)
    ledger = str(folder / "ledger")
    with Invoker(bench, store, Settings(), home_root=folder / name, ledger=ledger, environ={}) as calls:
        assert all(report.failure is None for report in calls.invoke(store.slices(DATA_ROWS, "ds"), CallOptions()))


def _rates() -> Iterator[Ratio]:
    for per_s, processes, seconds in ((50.0, 4, 10), (500.0, 2, 8)):
        arrivals = measure_rate(per_s, processes, seconds)
        middle = [at for at in arrivals if arrivals[0] + 1 < at < arrivals[-1] - 1]
        use = (len(middle) - 1) / (middle[-1] - middle[0]) / per_s
        name = f"{processes} processes at {per_s:g}/s"
        yield _ratio(f"rate use, {name}", [use], ">= 0.98", "arrivals/s at the server", "requests_per_second")
        worst = _worst_window(arrivals)
        yield _ratio(
            f"rate window, {name}", [worst / per_s], "<= limit + 1 or 2 %", "most in any 1 s", "requests_per_second"
        )


def measure_rate(per_s: float, processes: int, seconds: float) -> list[float]:
    """Arrival times at the server, sorted, while so many processes share one endpoint's rate."""
    rows = int(per_s * seconds / processes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _model(folder, LATENCY_S) as url:
            workers = [
                subprocess.Popen(
                    [sys.executable, "-c", _WORKER, folder, url, str(per_s), str(rows), f"p{i}"], cwd=CHECKOUT
                )
                for i in range(processes)
            ]
            assert all(worker.wait() == 0 for worker in workers)
        return sorted(float(line.split()[0]) for line in (folder / "arrivals").read_text().splitlines())


def _worst_window(arrivals: list[float]) -> int:
    most = first = 0
    for last, at in enumerate(arrivals):
        while at - arrivals[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def _booking() -> Ratio:
    """CPU of one booking in the shared file, against one fsync-free write of the same size."""
    with tempfile.TemporaryDirectory() as name:
        state = StateFile(Path(name, "rate"))
        with Path(name, "plain").open("wb", buffering=0) as plain:
            values = [_cpu_of_booking(state) / _cpu_of(lambda: plain.write(b"x" * 100)) for _ in range(ROUNDS)]
    return _ratio("booking", values, "-", "CPU per booking under the lock", "one 100-byte write")


def _cpu_of_booking(state: StateFile, times: int = 5000) -> float:
    async def book() -> None:
        for _ in range(times):
            await state.book(Spacing(1e-9, 0.0), 1)

    return _cpu_of(lambda: asyncio.run(book()), 1) / times


def _cpu_of(action: Callable[[], object], times: int = 5000) -> float:
    began = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - began) / times
