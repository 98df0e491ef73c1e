"""Kill -9 upon kill -9 over one slice, at random moments, and then completion: the server's own log is the judge."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

from foundry_pipeline.calls.ledger import Ledger
from tests.fake_model import FakeModel, Reply, Request
from tests.invoking import Bench
from tests.kill_driver import WORKER, Driver, kill_at_random

KILLS = 200
ROWS = 2000
IN_FLIGHT = 8
RATE = 40.0
"""A second: so that rows are left after the last kill."""


def test_F096_kills_at_random_lose_no_answer_and_repeat_only_calls_in_flight(tmp_path: Path) -> None:
    """A kill comes between any two steps of sending, receiving and storing, often with all calls under way."""
    served: dict[str, list[str]] = defaultdict(list)
    """Idempotency key -> what the server answered, one text a request."""

    def answer(request: Request) -> Reply:
        said = f"{request.text}, request {len(model.requests)}"
        served[request.key].append(said)
        return Reply({"summary": said}, delay_s=0.12)

    with FakeModel(answer) as model:
        bench = Bench(tmp_path, model.url, rows=ROWS, rows_per_slice=ROWS)
        with Driver(tmp_path, model.url, requests_per_second=RATE, max_concurrency=IN_FLIGHT) as driver:
            killed = kill_at_random(driver, model, KILLS)
        unknown = unknown_calls(tmp_path)
        with Driver(tmp_path, model.url, max_concurrency=IN_FLIGHT) as driver:
            report = driver.complete()
    assert report["failure"] is None
    assert report["ok"] == ROWS
    assert_answered_once(bench, served)
    assert_only_calls_in_flight_repeated(model.requests, killed)
    assert report["repeated"] == len(unknown), "what the last worker calls repeated is what the killed one left open"


def assert_answered_once(bench: Bench, served: dict[str, list[str]]) -> None:
    """Every row stands once in the table, under one key, with an answer that the server gave for this row."""
    rows = bench.responses()
    assert sorted(rows) == sorted(f"k{i}" for i in range(ROWS))
    assert len(served) == ROWS
    for key, row in rows.items():
        said = json.loads(row["reply"])["summary"]
        assert said.startswith(f"text {key[1:]},")
        assert said in served[row["call_id"]]


def assert_only_calls_in_flight_repeated(requests: list[Request], killed: list[int]) -> None:
    """No worker that was killed left more calls to be repeated than it may have in flight, nor did the last one."""
    first_sent_by: dict[str, str] = {}
    repeated: Counter[str] = Counter()
    for request in requests:
        if request.key in first_sent_by:
            repeated[first_sent_by[request.key]] += 1
        first_sent_by[request.key] = request.headers[WORKER]
    assert sum(repeated.values()) == len(requests) - ROWS
    assert set(repeated) <= set(map(str, killed)), "a worker that lives repeats nothing of its own"
    assert max(repeated.values(), default=0) <= IN_FLIGHT


def unknown_calls(root: Path) -> frozenset[str]:
    ledger = Ledger(root / "ledger" / "r" / "00000.sqlite")
    try:
        return ledger.unknown
    finally:
        ledger.close()
