"""Memory: the peak of a run through Dagster above a process that has only loaded the code location.

Every figure is the peak resident size (`VmHWM`) of a process of its own. The slice is one, the hardest case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import Ratio
from benchmarks.stub import CHECKOUT, model

ROWS = (1_000, 10_000, 100_000)
GOAL_MB = 200.0
LARGE_REPLY_BYTES = 2 * 1024 * 1024
LARGE_ROWS = 300
MODEL = """
name: m
inference_endpoint: {url}
requests_per_second: 10000
max_concurrency: {in_flight}
allowed_asset_types: [text]
allowed_feature_kinds: [text]
ontology:
  classifications:
    - {{name: label, type: text, instructions: label}}
"""


def run(quick: bool = False) -> list[Ratio]:
    """1,000, 10,000 and 100,000 rows in one slice, then replies of 2 MiB (`quick`: up to 10,000 rows alone)."""
    with tempfile.TemporaryDirectory() as name:
        idle = _peak_mb(Path(name, "idle"), ["--idle"])
        peaks = [_run_mb(Path(name, f"rows{rows}"), rows) - idle for rows in (ROWS[:2] if quick else ROWS)]
        lines = [_line(f"memory, {rows:,} rows", peak) for rows, peak in zip(ROWS, peaks, strict=False)]
        if not quick:
            growth = peaks[2] / peaks[1]
            lines.append(Ratio.one("memory, growth", growth, "<= 1.25", "peak at 100,000 rows", "peak at 10,000 rows"))
            reply = json.dumps({"label": "x" * LARGE_REPLY_BYTES})
            large = _run_mb(Path(name, "large"), LARGE_ROWS, reply, in_flight=4) - idle
            lines.append(_line(f"memory, {LARGE_ROWS} replies of 2 MiB", large))
    return lines


def _line(name: str, peak_mb: float) -> Ratio:
    return Ratio.one(name, peak_mb / GOAL_MB, "<= 1", "peak - idle Dagster", f"{GOAL_MB:g} MB")


def _run_mb(home: Path, rows: int, reply: str = '{"label": "cat"}', in_flight: int = 64) -> float:
    """Megabytes at the peak of materializing a run over so many texts."""
    with model(home / "model", 0.0, reply) as served:
        for name, content in _home(served.url, rows, in_flight).items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(content)
        return _peak_mb(home, [])


def _home(url: str, rows: int, in_flight: int) -> Mapping[str, str]:
    lines = (json.dumps({"global_key": f"k{i}", "row_data": f"text {i}"}) for i in range(rows))
    return {
        "models/m.yaml": MODEL.format(url=url, in_flight=in_flight),
        "datasets/ds.yaml": f"media_type: text\nsource: rows.ndjson\nrows_per_slice: {rows}\n",
        "datasets/rows.ndjson": "\n".join(lines),
        "runs/r.yaml": "model: m\ndataset: ds\n",
    }


def _peak_mb(home: Path, options: Sequence[str]) -> float:
    home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.memory", *options]
    places = {"FOUNDRY_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    done = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Load the code location, materialize everything unless `--idle`, print the peak."""
    import assets.definitions  # noqa: F401
    from assets.__main__ import main as command

    if "--idle" not in sys.argv:
        assert command(["materialize"]) == 0
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(int(peak) / 1024)


if __name__ == "__main__":
    main()
