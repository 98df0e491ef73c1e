"""One slice over PostgreSQL, and kill -9 at random moments; the model's own log is the judge.

A process that has imported everything forks a worker for each kill, so that a life costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_model import FakeModel, Reply
from tests.invoking import Bench
from tests.postgres import Cluster

KILLS = 30
IN_FLIGHT = 4
ROWS = KILLS + 20
"""So few that some workers die in the commit, or find nothing left to do."""
CHECKOUT = Path(__file__).parent.parent

_NURSERY = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import foundry_pipeline.calls.postgres.ledgers
from tests.invoking import Bench

def live(life):
    bench = Bench(Path(sys.argv[2]), sys.argv[3], ledger=sys.argv[4], loads=False)
    bench.model(max_concurrency=int(sys.argv[5]), requests_per_second=150.0, headers=(("x-who", life),))
    bench.one()

for line in sys.stdin:
    assert threading.active_count() == 1, "only a process of one thread may fork"
    pid = os.fork()
    if pid == 0:
        live(line.strip())
        os._exit(0)
    print(pid, flush=True)
    sys.stdin.readline()  # until then it is not reaped, so that its pid is nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    def __init__(self, bench: Bench) -> None:
        words = [str(CHECKOUT), str(bench.root), bench.url, bench.ledger_at, str(IN_FLIGHT)]
        command = [sys.executable, "-c", _NURSERY, *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def live(self, life: int) -> int:
        """Begin a worker; its pid."""
        return self._said(str(life))

    def ended(self) -> int:
        """Wait for the worker's end; its exit code."""
        return self._said("ended")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _said(self, line: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text}, delay_s=0.02)) as served:
        yield served


def test_after_kills_at_random_moments_every_row_is_in_the_tables_once(
    model: FakeModel, tmp_path: Path, postgres: Cluster
) -> None:
    bench = Bench(tmp_path, model.url, rows=ROWS, ledger=postgres.url(postgres.empty_database()))
    nursery, moments, killed = Nursery(bench), random.Random(20261125), 0
    try:
        for life in range(KILLS):
            killed += kill_at_random(nursery, life, model, moments)
    finally:
        nursery.close()
    bench.model(max_concurrency=IN_FLIGHT, requests_per_second=150.0, headers=(("x-who", str(KILLS)),))
    assert bench.one().failure is None
    answered = bench.responses()
    assert len(answered) == ROWS
    assert all(json.loads(row["reply"])["summary"] == f"text {key[1:]}" for key, row in answered.items())
    assert killed > KILLS / 3
    assert len({request.key for request in model.requests}) == ROWS
    assert max(repeats_by_life(model).values(), default=0) <= IN_FLIGHT, "more than were in flight at the last kill"
    assert bench.pending() == []


def kill_at_random(nursery: Nursery, life: int, model: FakeModel, moments: random.Random) -> bool:
    """Begin a worker and kill it after some requests of its own, or some time; False where it ended before."""
    pid = nursery.live(life)
    before, requests, deadline = (
        len(model.requests),
        moments.randrange(10),
        time.monotonic() + moments.uniform(0.02, 0.8),
    )
    stat = Path(f"/proc/{pid}/stat")
    while len(model.requests) < before + requests and time.monotonic() < deadline and ") Z " not in stat.read_text():
        time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    return nursery.ended() == -signal.SIGKILL


def repeats_by_life(model: FakeModel) -> Counter[str]:
    """Worker -> how many calls it sent that had been sent before."""
    seen: set[str] = set()
    repeats: Counter[str] = Counter()
    for request in model.requests:
        repeats[request.headers["x-who"]] += request.key in seen
        seen.add(request.key)
    return repeats
