"""Calls: the whole path against a bare client and against what the endpoint's latency allows.

The model answers after 50 ms; 64 requests may be in flight. Yardstick and path take turns, so that both see the same
minute of the machine.
"""

from __future__ import annotations

import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import Ratio
from benchmarks.stub import model
from benchmarks.workload import run_over_texts
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.home import Run
from foundry_pipeline.invoke import Invoker
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS

IN_FLIGHT = 64
LATENCY_S = 0.05
IDEAL_PER_S = IN_FLIGHT / LATENCY_S


@dataclass(frozen=True, slots=True)
class Pace:
    """Rows a second, and CPU microseconds a row of this process."""

    per_s: float
    cpu_us: float


def run(quick: bool = False) -> list[Ratio]:
    """5,000 rows a round, 5 rounds (`quick`: 1,000 rows, 2 rounds): throughput, overhead, CPU, reuse."""
    rows, rounds = (1000, 2) if quick else (5000, 5)
    with tempfile.TemporaryDirectory() as name, model(Path(name, "model"), LATENCY_S) as served:
        _bare(served.url, 200)
        turns = [_turn(Path(name, f"turn{turn}"), served.url, rows) for turn in range(rounds)]
    bare, plain, again, fast = zip(*turns, strict=True)
    ideal = f"{IN_FLIGHT} / {LATENCY_S:g} s"
    return [
        Ratio.of("throughput", [p.per_s / IDEAL_PER_S for p in plain], ">= 0.78", "rows/s to Parquet", ideal),
        Ratio.of("throughput, uvloop", [f.per_s / IDEAL_PER_S for f in fast], ">= 0.90", "rows/s to Parquet", ideal),
        Ratio.of("throughput, bare httpx", [b.per_s / IDEAL_PER_S for b in bare], "-", "rows/s, kept nowhere", ideal),
        _against("overhead", plain, bare, lambda p: p.per_s, ">= 0.95", "rows/s to Parquet", "bare httpx"),
        _against("CPU a row", plain, bare, lambda p: p.cpu_us, "-", "CPU of a row to Parquet", "bare httpx"),
        _against("CPU a row, uvloop", fast, bare, lambda p: p.cpu_us, "-", "CPU of a row to Parquet", "bare httpx"),
        _against("nothing new", again, plain, lambda p: p.per_s, "-", "rows/s, all answered", "rows/s, called"),
    ]


def _against(
    name: str,
    ours: tuple[Pace, ...],
    theirs: tuple[Pace, ...],
    figure: Callable[[Pace], float],
    goal: str,
    numerator: str,
    denominator: str,
) -> Ratio:
    ratios = [figure(one) / figure(other) for one, other in zip(ours, theirs, strict=True)]
    return Ratio.of(name, ratios, goal, numerator, denominator)


def _turn(folder: Path, url: str, rows: int) -> tuple[Pace, Pace, Pace, Pace]:
    """A bare client; the path from data rows to committed responses; the same once more; a fresh one on uvloop."""
    plain = run_over_texts(folder / "plain", url, rows, max_concurrency=IN_FLIGHT)
    fast = run_over_texts(folder / "fast", url, rows, max_concurrency=IN_FLIGHT)
    return (
        _measured(rows, lambda: _bare(url, rows)),
        _measured(rows, lambda: _path(*plain, folder, rows, "asyncio")),
        _measured(rows, lambda: _path(*plain, folder, rows, "asyncio")),
        _measured(rows, lambda: _path(*fast, folder, rows, "uvloop")),
    )


def _measured(rows: int, action: Callable[[], None]) -> Pace:
    began, cpu_s = time.perf_counter(), _cpu_s()
    action()
    return Pace(rows / (time.perf_counter() - began), (_cpu_s() - cpu_s) / rows * 1e6)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _path(run: Run, store: Store, folder: Path, rows: int, event_loop: str) -> None:
    settings = Settings(event_loop=event_loop)
    with Invoker(run, store, settings, home_root=folder, ledger=str(folder / "ledger"), environ={}) as invoker:
        reports = list(invoker.invoke(store.slices(DATA_ROWS, "ds")))
    assert sum(report.ok for report in reports) == rows


def _bare(url: str, rows: int) -> None:
    """The plainest fast client: httpx with one connection per slot, nothing kept."""

    async def slot(todo: Iterator[int]) -> None:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        async with httpx.AsyncClient(limits=limits, verify=False, trust_env=False, timeout=60) as client:
            for i in todo:
                body = json.dumps({"prompt": [{"role": "user", "parts": [{"text": f"text {i}"}]}]}).encode()
                response = await client.post(url, content=body, headers={"Content-Type": "application/json"})
                assert response.status_code == 200

    async def go() -> None:
        todo = iter(range(rows))
        await asyncio.gather(*(slot(todo) for _ in range(IN_FLIGHT)))

    asyncio.run(go())
