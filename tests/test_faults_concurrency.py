"""Faults of concurrency, rate and size (section G of docs/reliability.md), without Dagster: real processes and rows."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from foundry_pipeline.calls.endpoint_state import StateFile
from foundry_pipeline.calls.ledger import Ledger
from foundry_pipeline.calls.rate import Rate
from foundry_pipeline.calls.slice_work import CallOptions, commit_slice, plan_slice
from foundry_pipeline.decode import VERSION
from foundry_pipeline.decoding.findings import Findings, Limits
from foundry_pipeline.decoding.places import Place
from foundry_pipeline.decoding.rejects import Fault
from foundry_pipeline.errors import AccountingError
from foundry_pipeline.predictions import decode_slice
from foundry_pipeline.protocols.foundry import FoundryRequests
from foundry_pipeline.rle import from_dense
from foundry_pipeline.tables import CLASSIFICATIONS, DATA_ROWS, POINTS, REJECTS, RESPONSES, SUPERSEDED, TEXTS, empty
from tests.decoding import data_row, decode, rejected
from tests.fake_model import FakeModel, Reply, windows
from tests.invoking import Bench
from tests.kill_driver import WORKER, Driver, wait_until

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text}, delay_s=0.05)) as served:
        yield served


def decode_bench(bench: Bench) -> dict[str, int]:
    return dict(decode_slice(bench.run, "00000", bench.store, lambda row: row.row_data).predictions)


def test_F116_a_second_run_of_a_slice_waits_says_for_whom_and_pays_nothing(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=60)
    notes = []
    with Driver(tmp_path, model.url, max_concurrency=4) as driver:
        first = driver.start()
        wait_until(lambda: len(model.requests) > 3)
        with bench.invoker() as invoker:
            [report] = invoker.invoke(["00000"], on_progress=lambda progress: notes.append(progress.note))
        assert driver.completed()["calls"] == 60
    assert (report.ok, report.calls, report.reused) == (60, 0, 60)
    assert len(model.requests) == 60
    assert any("00000" in note and str(first) in note for note in notes), notes


def test_F117_the_slice_of_a_killed_process_is_taken_over_by_who_waits_for_it(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=60)
    with Driver(tmp_path, model.url, max_concurrency=4) as one, Driver(tmp_path, model.url, max_concurrency=4) as two:
        killed = one.start()
        wait_until(lambda: len(model.requests) > 10)
        waiting = two.start()
        time.sleep(0.5)
        assert {request.headers[WORKER] for request in model.requests} == {str(killed)}, "the second one waits"
        one.kill(killed)
        report = two.completed()
    assert (report["ok"], report["failure"]) == (60, None)
    assert report["reused"] > 0
    assert report["repeated"] <= 4
    assert len(model.requests) <= 60 + 4
    assert {request.headers[WORKER] for request in model.requests} == {str(killed), str(waiting)}
    assert len(bench.responses()) == 60


_SENDS = """
import asyncio, sys, time
from pathlib import Path
from foundry_pipeline.calls.endpoint_state import StateFile
from foundry_pipeline.calls.rate import Rate
async def go():
    rate = Rate(StateFile(Path(sys.argv[1])), 100.0)
    print("ready", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + 4.0
    while time.monotonic() < until:
        await rate.acquire()
        print(time.monotonic(), flush=True)
asyncio.run(go())
"""


def test_F118_four_processes_keep_the_rate_together_also_when_one_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SENDS, str(tmp_path / "rate")]
    processes = [
        subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    time.sleep(1.5)
    processes[0].kill()
    killed_at = time.monotonic()
    times = [[float(line) for line in process.communicate(timeout=60)[0].split()] for process in processes]
    assert windows([at for each in times for at in each]) <= 102, "four rates would be 400"
    assert all(each[-1] > killed_at + 1 for each in times[1:]), "the dead one holds no lock and keeps nobody waiting"
    after = [at for each in times[1:] for at in each if at > killed_at]
    assert len(after) <= 102 * (max(after) - killed_at) + 2


def test_F119_a_damaged_rate_file_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rate"
    state = StateFile(path, lambda: 50.0, "boot")
    rate = Rate(state, 10.0)
    rate.hold(20)
    content = bytearray(path.read_bytes())
    content[40] ^= 4
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert rate.view().held_s == 0
        assert rate.view().held_s == 0
        asyncio.run(rate.book())
    assert [record.getMessage() for record in caplog.records] == [f"{path}: damaged; the rate's state starts anew"]
    state.close()


def test_F119_a_new_rate_file_and_one_from_before_a_reboot_are_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for boot in ("before", "after"):
        state = StateFile(tmp_path / "rate", lambda: 50.0, boot)
        with caplog.at_level(logging.WARNING):
            asyncio.run(Rate(state, 10.0).book())
        state.close()
    assert caplog.records == []


def test_F120_with_ledgers_in_local_folders_the_rate_is_per_machine(model: FakeModel, tmp_path: Path) -> None:
    """Two folders stand for the disks of two machines: what one of them is told, the other does not know."""
    for machine in ("one", "other"):
        (tmp_path / machine).mkdir()
        bench = Bench(tmp_path / machine, model.url, rows=2)
        bench.model(requests_per_second=0.01)
        with bench.invoker() as invoker:
            assert len(invoker.ask("00000", ["k0"])) == 1
    assert len(model.requests) == 2
    assert model.requests[1].at - model.requests[0].at < 90, "one machine alone would have waited for a hundred seconds"


def test_F122_a_slice_decoded_by_another_version_is_decoded_again_without_a_call(
    model: FakeModel, tmp_path: Path
) -> None:
    """All tables of a slice are written together, so no slice holds tables of two decoders."""
    bench = Bench(tmp_path, model.url)
    bench.one()
    older = {spec.name: empty(spec) for spec in (TEXTS, CLASSIFICATIONS, REJECTS)}
    bench.store.commit("r", "00000", older, {"decoder": "0"})
    decode_bench(bench)
    for spec in (TEXTS, CLASSIFICATIONS, REJECTS):
        record = bench.store.record("r", "00000", spec.name)
        assert record is not None
        assert record["about"]["decoder"] == VERSION
    table = bench.store.read(TEXTS, "r", "00000")
    assert table is not None
    assert table.num_rows == 6
    assert len(model.requests) == 6


def test_F126_other_parameters_are_other_calls_and_the_old_answers_are_kept_and_used_again(
    model: FakeModel, tmp_path: Path
) -> None:
    model.answer = lambda request: Reply({"summary": json.dumps(request.body["inference_params"])})
    bench = Bench(tmp_path, model.url, rows=4)
    plain = bench.run
    strict = replace(plain, inference_params={"confidence": 0.9})
    newer = replace(plain, model=replace(plain.model, version="2"))
    seen = []
    for run, calls in ((plain, 4), (strict, 4), (newer, 4), (plain, 0), (strict, 0), (newer, 0)):
        bench.run = run
        assert bench.one().calls == calls
        seen.append([row["call_id"] for row in bench.responses().values()])
    assert seen[:3] == seen[3:]
    assert len({call_id for call_ids in seen for call_id in call_ids}) == 12
    kept = bench.store.read(SUPERSEDED, "r", "00000")
    assert kept is not None
    assert sorted(kept["call_id"].to_pylist()) == sorted(seen[0] + seen[1])
    assert len(model.requests) == 12


def test_F126_answers_of_rows_that_are_listed_no_more_are_kept(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=4)
    bench.one()
    bench.load([f"text {at}" for at in range(2)])
    assert (bench.one().rows, bench.one().calls) == (2, 0)
    bench.load([f"text {at}" for at in range(4)])
    assert (bench.one().rows, bench.one().calls) == (4, 0)
    assert len(model.requests) == 4


def test_F127_a_slice_of_no_rows_has_empty_tables_with_their_schemas(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=2)
    bench.store.commit("ds", "00000", {DATA_ROWS.name: empty(DATA_ROWS)})
    assert bench.one().failure is None
    decode_bench(bench)
    for spec in (RESPONSES, TEXTS, CLASSIFICATIONS, REJECTS):
        table = bench.store.read(spec, "r", "00000")
        assert table is not None
        assert table.num_rows == 0
        assert table.schema.equals(spec.schema, check_metadata=True)
    assert model.requests == []


def test_F127_a_row_of_a_long_slice_costs_little_memory(tmp_path: Path) -> None:
    """All rows say the same, so one call answers them: what is measured is what a row costs beside its call."""
    peaks = {}
    for rows in (2_000, 22_000):
        root = tmp_path / str(rows)
        root.mkdir()
        with FakeModel() as model, Driver(root, model.url) as driver:
            Bench(root, model.url, rows_per_slice=rows, rows=0).load(["the same text"] * rows)
            report = driver.complete()
        assert (report["ok"], report["calls"]) == (rows, 1)
        peaks[rows] = report["max_rss_kib"]
    assert (peaks[22_000] - peaks[2_000]) / 20_000 < 6.0, "KiB a row"


def test_F128_five_thousand_masks_in_one_row_are_decoded_and_the_limit_is_named() -> None:
    mask = from_dense(np.eye(64, dtype=bool))
    said = {"size": list(mask.size_hw), "counts": mask.counts}
    tables = decode({"tree": {"masks": [said] * 5_000}}, size_wh=(64, 64))
    assert len(tables["masks"]) == 5_000
    assert tables["rejects"] == []
    tables = decode({"tree": {"masks": [said] * 10_002}}, size_wh=(64, 64))
    assert len(tables["masks"]) == 10_000
    assert rejected(tables) == [("$.tree.masks[10000]", "too_large")]
    assert "the limits of 10000 a frame" in tables["rejects"][0]["message"]


def test_F130_rows_that_would_be_missing_stop_the_commit_and_nothing_is_lost(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=4)
    bench.one()
    before = Path(bench.store.path(RESPONSES, "r", "00000")).read_bytes()
    bench.run = replace(bench.run, inference_params={"confidence": 0.9})
    with bench.invoker() as invoker:
        invoker.ask("00000", [f"k{at}" for at in range(4)])
    open_ledger = partial(Ledger, tmp_path / "ledger/r/00000.sqlite")
    work = plan_slice(bench.run, "00000", bench.store, open_ledger, FoundryRequests(bench.run), CallOptions())
    work.rows_in += 1  # as if a bug of ours had lost a row on the way
    with pytest.raises(AccountingError, match="accounting: 5 data rows are not 4 ok"):
        commit_slice(work, {}, lambda: None)
    work.ledger.close()
    assert Path(bench.store.path(RESPONSES, "r", "00000")).read_bytes() == before
    assert bench.one().calls == 0
    assert len(model.requests) == 8


def test_F130_predictions_that_would_be_missing_stop_the_decoding() -> None:
    findings = Findings("run", "model", "dataset", (POINTS, REJECTS), Limits(10))
    findings.add_row(data_row("k"), "call", 10)
    findings.open_row(0)
    place = Place(("nose", "points"), "nose")
    rows = findings.rows(POINTS, place)
    for index, item in enumerate(findings.admit(place, [[1, 2], [3, 4], "x"])):
        if index == 0:
            rows.add(index, None, tuple(item))
        elif index == 2:
            findings.reject(place.at(index), Fault("wrong_type", "no point"), item, index)
    findings.flush()
    findings.take()
    with pytest.raises(AccountingError, match=r"3 predictions said are not 1 in tables \+ 1 refused"):
        findings.check_sums()


def test_F130_the_sums_stand_in_the_commit_record(model: FakeModel, tmp_path: Path) -> None:
    bench = Bench(tmp_path, model.url, rows=6)
    odd = {"text 1": {"label": "cow"}, "text 2": {"label": "cat", "summary": 7}, "text 3": {"unknown": ["a", "b"]}}
    model.answer = lambda request: Reply(odd.get(request.text, {"label": "cat", "summary": "fine"}))
    report = bench.one()
    assert report.rows == report.ok + report.failed + report.rejected_by_model + report.not_sent == 6
    predictions = decode_bench(bench)
    record = bench.store.record("r", "00000", REJECTS.name)
    assert record is not None
    about = record["about"]
    assert about["rows"] == 6
    assert about["said"] == 3 * 2 + 1 + 2, "a feature that nobody knows is one reject with its items, and no prediction"
    assert about["said"] == sum(predictions.values()) + about["refused"]
    assert record["rows"] == about["refused"] + 1
