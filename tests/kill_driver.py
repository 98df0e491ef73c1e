"""Real processes that call a slice of a Bench and may be killed at any moment, ready within milliseconds.

`Driver` keeps one process with everything imported, Dagster not among it, and has it fork a worker on request:
each worker is a process of its own, with its own threads, connections and ledger, that works on slice 00000 and says
its report. Whatever `--ledger` names, a folder or a database URL, goes to the Invoker as FOUNDRY_LEDGER does.

A worker may also be told to die at its n-th step: every file that it opens, renames or removes, every folder that it
makes, every SQL statement and commit is one. Audit hooks and SQLAlchemy's events count them; the product knows nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from tests.fake_model import FakeModel, Request
from tests.invoking import Bench

CHECKOUT = Path(__file__).resolve().parents[1]
WORKER = "x-worker"
"""A header of every request: the process id of the worker that sent it."""


@dataclass(frozen=True)
class Ended:
    """How a worker ended: minus the signal's number, or its exit code; its report where it came so far."""

    status: int
    report: Mapping[str, Any] | None


class Driver:
    """Use as a context manager. The Bench at `root` has to be there already, with its rows loaded."""

    def __init__(self, root: Path, url: str, *, ledger: str | None = None, **model: float) -> None:
        self._command = [sys.executable, "-m", "tests.kill_driver", str(root), url]
        self._command += ["--ledger", ledger or "", "--model", json.dumps(model)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._hear() == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def start(self, die_at: int = 0, root: Path | None = None) -> int:
        """Begin a worker, which kills itself at its step `die_at`. Gives its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"die_at": die_at, "root": root and str(root)}) + "\n")
        return int(self._hear()["pid"])

    def ended(self) -> Ended:
        """Wait for the worker that was started last."""
        report = None
        while "status" not in (said := self._hear()):
            report = said["report"]
        return Ended(said["status"], report)

    def complete(self) -> Mapping[str, Any]:
        """Begin a worker and let it finish. Gives its report."""
        self.start()
        return self.completed()

    def completed(self) -> Mapping[str, Any]:
        """Let the worker that was started last finish. Gives its report."""
        ended = self.ended()
        assert ended.status == 0 and ended.report is not None, ended
        return ended.report

    def kill(self, pid: int, number: int = signal.SIGKILL) -> Ended:
        os.kill(pid, number)
        return self.ended()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the driver has gone"
        return json.loads(line)


def sent_by(model: FakeModel, pid: int) -> list[Request]:
    """The requests of one worker that the server has seen."""
    return [request for request in model.requests if request.headers.get(WORKER) == str(pid)]


def kill_at_random(driver: Driver, model: FakeModel, kills: int, seed: int = 1) -> list[int]:
    """Start so many workers one after the other, each killed 50 to 300 ms after its first call. Gives their ids."""
    chance, pids = random.Random(seed), []
    for _ in range(kills):
        seen = len(model.requests)
        pids.append(driver.start())
        wait_until(lambda seen=seen: len(model.requests) > seen)
        time.sleep(chance.uniform(0.05, 0.3))
        assert driver.kill(pids[-1]).status == -signal.SIGKILL
    return pids


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.002)


def bench_of(root: Path, url: str, ledger: str, model: Mapping[str, Any]) -> Bench:
    bench = Bench(root, url, ledger=ledger, loads=False)
    bench.model(**model, headers=((WORKER, str(os.getpid())),))
    return bench


STEPS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"})


def count_steps(die_at: int = 0) -> Callable[[], int]:
    """Count this process's steps from now on, and kill it at the step `die_at`. Gives a look at the count."""
    seen = 0
    lock = threading.Lock()

    def step(*_: object) -> None:
        nonlocal seen
        with lock:
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, _: step() if event in STEPS else None)
    for event in ("before_cursor_execute", "commit"):
        sa.event.listen(sa.Engine, event, step)
    return lambda: seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("url")
    parser.add_argument("--ledger", default="", help="as FOUNDRY_LEDGER; a folder at the root by default")
    parser.add_argument("--model", type=json.loads, default={})
    given = parser.parse_args()
    _say({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _work(given, Path(asked["root"] or given.root), asked["die_at"])
        _say({"pid": pid})
        _say({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


def _work(given: argparse.Namespace, root: Path, die_at: int) -> None:
    try:
        bench = bench_of(root, given.url, given.ledger or str(root / "ledger"), given.model)
        steps = count_steps(die_at)
        report = bench.go()[-1]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _say({"report": {**asdict(report), "steps": steps(), "max_rss_kib": usage.ru_maxrss}})
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def _say(what: Mapping[str, object]) -> None:
    os.write(1, json.dumps(what, default=dict).encode() + b"\n")


if __name__ == "__main__":
    main()
