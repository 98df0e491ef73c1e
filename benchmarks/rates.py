"""The rate of an endpoint that several processes share, as the endpoint sees it: use, worst window, shares.

Every cell is one number of processes at one rate. Its processes start together, and are stopped while each still has
rows; only what arrives between the last one's first request and the first one's last is judged, or everything where
that is next to nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import Ratio
from benchmarks.stub import CHECKOUT, Arrival, model
from benchmarks.workload import run_over_texts
from foundry_pipeline.calls.endpoint_state import StateFile
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.invoke import Invoker
from foundry_pipeline.tables import DATA_ROWS

PROCESSES = (1, 2, 4, 8)
RATES_PER_S = (0.5, 20.0, 500.0)
LATENCY_S = 0.05
SHARES_FROM_PER_S = 100.0
"""Slower rates give a process too few requests to compare."""
BOOKINGS = 20_000


@dataclass(frozen=True, slots=True)
class Cell:
    """What the server saw. `use` is requests a second of those allowed, `most` the requests of the worst window."""

    use: float
    most: int
    share: float


def run(quick: bool = False) -> list[Ratio]:
    """Twelve cells of 30 s (`quick`: 6 s, and no cell of 0.5 requests/s), then the price of a slot."""
    rates = RATES_PER_S[1:] if quick else RATES_PER_S
    rows: list[Ratio] = []
    for per_s in rates:
        for processes in PROCESSES:
            rows += _lines(per_s, processes, measure(per_s, processes, 6.0 if quick else 30.0))
    return [*rows, _price()]


def _lines(per_s: float, processes: int, cell: Cell) -> Iterator[Ratio]:
    name = f"{processes} at {per_s:g}/s"
    allowed = per_s * max(1.0, 1 / per_s)
    most_goal = max(1 + 1 / allowed, 1.02)
    yield Ratio.one(f"rate use, {name}", cell.use, ">= 0.98", "arrivals/s at the server", "requests_per_second")
    window = f"<= {most_goal:.3g} ({allowed * most_goal:.0f})"
    yield Ratio.one(f"rate window, {name}", cell.most / allowed, window, "most in max(1 s, 1/rate)", "the rate's")
    if processes > 1 and per_s >= SHARES_FROM_PER_S:
        yield Ratio.one(f"rate share, {name}", cell.share, ">= 0.9", "smallest share", "largest share")


def measure(per_s: float, processes: int, seconds: float) -> Cell:
    """Let so many processes share one endpoint's rate, and look at the server's log."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with model(folder / "model", LATENCY_S) as served:
            command = [sys.executable, "-m", "benchmarks.rates", folder, served.url, str(per_s), str(seconds)]
            workers = [subprocess.Popen([*command, f"p{i}"], cwd=CHECKOUT) for i in range(processes)]
            while len(list(folder.glob("ready-*"))) < processes:
                assert all(worker.poll() is None for worker in workers)
                time.sleep(0.05)
            (folder / "go").touch()
            assert all(worker.wait() == 0 for worker in workers)
        return _cell(served.arrivals, per_s, processes)


def _cell(arrivals: Sequence[Arrival], per_s: float, processes: int) -> Cell:
    first = {arrival.who: arrival.at for arrival in reversed(arrivals)}
    last = {arrival.who: arrival.at for arrival in arrivals}
    assert len(first) == processes
    together = [a for a in arrivals if max(first.values()) <= a.at <= min(last.values())]
    judged = together if len(together) > 2 * processes else arrivals
    use = (len(judged) - 1) / (judged[-1].at - judged[0].at) / per_s
    counts = Counter(arrival.who for arrival in judged)
    most = most_in_window([arrival.at for arrival in arrivals], max(1.0, 1 / per_s))
    return Cell(use, most, min(counts.values()) / max(counts.values()))


def most_in_window(times: Sequence[float], width_s: float) -> int:
    """The most of these sorted times in any half-open window of this width."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= width_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def worker(folder: Path, url: str, per_s: float, seconds: float, name: str) -> None:
    """One of the processes: calls its own rows until its time is over."""
    rows = int(per_s * seconds) + 100
    run, store = run_over_texts(folder / name, url, rows, requests_per_second=per_s, headers=(("X-Who", name),))
    with Invoker(run, store, Settings(), home_root=folder, ledger=str(folder / "ledger"), environ={}) as invoker:
        (folder / f"ready-{name}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        threading.Timer(seconds, invoker.stop).start()
        list(invoker.invoke(store.slices(DATA_ROWS, "ds")))


def _price() -> Ratio:
    """CPU microseconds of one slot, against the goal's 10."""

    async def acquire(rate: Rate) -> float:
        began = time.process_time()
        for _ in range(BOOKINGS):
            await rate.acquire()
        return (time.process_time() - began) / BOOKINGS

    with tempfile.TemporaryDirectory() as folder:
        rate = Rate(StateFile(Path(folder, "rate")), 1e9)
        prices = [asyncio.run(acquire(rate)) * 1e6 / 10 for _ in range(5)]
    return Ratio("acquire", statistics.median(prices), "<= 1", "CPU of one slot", "10 us", (min(prices), max(prices)))


if __name__ == "__main__":
    worker(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
