"""Faults of process, machine and clock (section E of docs/reliability.md): real processes, killed and frozen."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from foundry_pipeline.calls.lease import FileLease
from foundry_pipeline.calls.ledger import Answer, Ledger
from foundry_pipeline.errors import SliceBusy
from foundry_pipeline.predictions import decode_slice
from foundry_pipeline.tables import RESPONSES, SUPERSEDED
from tests.fake_model import FakeModel, Reply, windows
from tests.invoking import Bench
from tests.kill_driver import Driver, wait_until
from tests.test_rle import REFUSED

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda request: Reply({"summary": request.text})) as served:
        yield served


def decode(bench: Bench) -> dict[str, int]:
    return dict(decode_slice(bench.run, "00000", bench.store, lambda row: row.row_data).predictions)


def test_F097_killed_after_the_commit_the_answers_are_decoded_without_a_call(model: FakeModel, tmp_path: Path) -> None:
    """The first slice is committed, the second under way: no table was decoded yet when the process dies."""
    model.answer = lambda request: Reply({"summary": request.text}, delay_s=60 if request.text == "text 9" else 0)
    bench = Bench(tmp_path, model.url, rows=10, rows_per_slice=5)
    with Driver(tmp_path, model.url) as driver:
        pid = driver.start()
        wait_until(lambda: bench.store.slices(RESPONSES, "r") == ["00000"] and len(model.requests) == 10)
        driver.kill(pid)
    assert decode(bench) == {"classifications": 0, "texts": 5}
    assert len(model.requests) == 10


def test_F098_killed_at_any_step_of_a_resumed_slice_its_tables_are_old_or_new_and_little_is_repeated(
    model: FakeModel, tmp_path: Path
) -> None:
    """Steps of taking the lease, of opening and writing the ledger, of the commit, of removing the ledger."""
    half_done(tmp_path / "0", model)
    with Driver(tmp_path, model.url, max_concurrency=1) as driver:
        shutil.copytree(tmp_path / "0", tmp_path / "whole")
        driver.start(root=tmp_path / "whole")
        steps = driver.completed()["steps"]
        states = []
        for step in range(1, steps + 1):
            root = tmp_path / str(step)
            shutil.copytree(tmp_path / "0", root)
            before = len(model.requests)
            driver.start(step, root)
            died = driver.ended().status == -signal.SIGKILL
            states.append(recovered_state(root, model.url))
            if step % 3 == 0 or step == steps:
                assert_completes(root, model, most_calls=2 + died, before=before)
            shutil.rmtree(root)
    assert states.count("old") > 20
    assert states.count("new") > 5
    assert (states[0], states[-1]) == ("old", "new")


def half_done(root: Path, model: FakeModel) -> None:
    """A committed slice whose run has got other parameters since, with half of its new answers in the ledger."""
    root.mkdir()
    bench = Bench(root, model.url, rows=4)
    bench.run = replace(bench.run, inference_params={"confidence": 0.9})
    assert bench.one().failure is None
    bench = Bench(root, model.url, loads=False)
    with bench.invoker() as invoker:
        assert len(invoker.ask("00000", ["k0", "k1"])) == 2


def recovered_state(root: Path, url: str) -> str:
    bench = Bench(root, url, loads=False)
    bench.store.recover()
    assert not list(Path(bench.store.root, "_commits").glob("*.intent"))
    assert len(bench.responses()) == 4
    assert bench.store.check_intact(RESPONSES, "r", "00000")
    superseded = bench.store.read(SUPERSEDED, "r", "00000")
    if superseded is None:
        return "old"
    assert not set(superseded["call_id"].to_pylist()) & {row["call_id"] for row in bench.responses().values()}
    return "new"


def assert_completes(root: Path, model: FakeModel, *, most_calls: int, before: int) -> None:
    bench = Bench(root, model.url, loads=False)
    report = bench.one()
    assert (report.ok, report.failure) == (4, None)
    assert len(model.requests) - before <= most_calls
    assert {key: json.loads(row["reply"])["summary"] for key, row in bench.responses().items()} == {
        f"k{at}": f"text {at}" for at in range(4)
    }
    superseded = bench.store.read(SUPERSEDED, "r", "00000")
    assert superseded is not None
    assert superseded.num_rows == 4
    assert list((root / "ledger/r").iterdir()) == []
    assert list((root / "warehouse/_staging").iterdir()) == []


_EXPORT_KILLED_AT_EVERY_STEP = """
import hashlib, os, sys
from pathlib import Path
from foundry_pipeline.exports import export_run
from foundry_pipeline.exports.parts import _code_digest
from foundry_pipeline.exports.publish import LISTING
from foundry_pipeline.home import MinScore
from foundry_pipeline.store import Store
from tests.kill_driver import count_steps
from tests.warehouse import fill, make_run

root = Path(sys.argv[1])
folder = root / "annotations/run=run/labelbox"

def export(score, die_at):
    run, store = make_run("run", features={"cat": "rectangle"}, min_score=MinScore(score)), Store(root)
    count_steps(die_at)
    export_run(run, store, "labelbox")

def state():
    store = Store(root)
    store.recover()
    names = sorted(path.name for path in folder.iterdir() if path.name != LISTING)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

boxes = [{"global_key": f"{i}.jpg", "feature": "cat", "left": 1, "top": 2, "width": 3, "height": 4, "score": i / 4}
         for i in range(4)]
rows = [{"global_key": f"{i}.jpg", "width": 60, "height": 40} for i in range(4)]
fill(Store(root), make_run("run", features={"cat": "rectangle"}), "00000", data_rows=rows, boxes=boxes)
_code_digest()  # what every export reads first, of hundreds of modules, is no step of interest
assert child(lambda: export(0.6, 0)) == 0
new = state()
assert child(lambda: export(0.0, 0)) == 0
old = state()
assert old != new and list(old) == list(new)
for step in range(1, 200):
    assert child(lambda: export(0.0, 0)) == 0
    assert state() == old
    died = child(lambda: export(0.6, step))
    found = state()
    assert list(found) == list(old), found
    for name, digest in found.items():
        assert digest in (old[name], new[name]), f"half a file: {name}"
    if found["manifest.json"] == new["manifest.json"]:
        assert found == new, "the manifest comes last"
    assert child(lambda: export(0.6, 0)) == 0
    assert state() == new, "an export that is made again has the same bytes"
    assert not list((root / "_staging").iterdir())
    assert not (folder / LISTING).exists()
    print("new" if found == new else "old" if found == old else "between", flush=True)
    if died == 0:
        break
"""


def test_F098_F129_killed_at_any_step_of_an_export_every_file_is_whole_and_the_manifest_comes_last(
    tmp_path: Path,
) -> None:
    script = [sys.executable, "-c", _EXPORT_KILLED_AT_EVERY_STEP, str(tmp_path)]
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(done.stdout.split()) >= {"old", "new"}
    assert len(done.stdout.split()) > 10


def test_F100_a_frozen_process_resumes_without_a_burst_and_nobody_takes_its_slice(
    model: FakeModel, tmp_path: Path
) -> None:
    model.answer = lambda request: Reply({"summary": request.text}, delay_s=0.2)
    bench = Bench(tmp_path, model.url, rows=120)
    with Driver(tmp_path, model.url, requests_per_second=40.0, timeout_s=1.0, max_concurrency=12) as driver:
        pid = driver.start()
        wait_until(lambda: len(model.requests) >= 30)
        os.kill(pid, signal.SIGSTOP)
        seen = len(model.requests)
        with pytest.raises(SliceBusy, match=rf"run r \(pid {pid}, .*works on slice 00000"):
            FileLease(tmp_path / "ledger/r/00000.lock", "r")
        time.sleep(2.5)
        assert len(model.requests) <= seen + 12, "what was on the way may still arrive"
        os.kill(pid, signal.SIGCONT)
        report = driver.completed()
    assert (report["ok"], report["failure"]) == (120, None)
    arrivals = [request.at for request in model.requests[seen + 12 :]]
    assert windows(arrivals) <= 60, "a hundred slots were slept through; a busy machine bunches some arrivals"
    assert len(model.requests) <= 120 + 12, "only calls in flight met their deadline while nobody was there to hear"
    assert len(bench.responses()) == 120


def peak_kib(root: Path, reply_bytes: int) -> int:
    """The most memory of a worker that gets eight replies of this size at once, and commits them."""
    with FakeModel() as model, Driver(root, model.url, max_concurrency=8) as driver:
        model.answer = lambda _: Reply({"summary": "x" * reply_bytes}, delay_s=0.2)
        root.mkdir()
        Bench(root, model.url, rows=8)
        return int(driver.complete()["max_rss_kib"])


def test_F101_memory_stays_in_proportion_to_what_is_in_flight(tmp_path: Path) -> None:
    """Eight replies of 4 MB, held as they came, without the secret, as text, for the database and for the table."""
    grown_kib = peak_kib(tmp_path / "large", 4_000_000) - peak_kib(tmp_path / "small", 100)
    assert grown_kib * 1024 < 10 * 8 * 4_000_000


def test_F102_a_torn_tail_of_the_write_ahead_log_loses_only_what_it_held(tmp_path: Path) -> None:
    """As a power cut leaves it: the log ends anywhere, or goes on with zeros. The commits before are all there."""
    ledger = Ledger(tmp_path / "s.sqlite")

    async def go() -> None:
        for at in range(12):
            await ledger.write(Answer(f"{at:02}", "ok", reply=b"x" * 900))

    asyncio.run(go())
    database, log = ((tmp_path / f"s.sqlite{suffix}").read_bytes() for suffix in ("", "-wal"))
    ledger.close()
    found = []
    for number, length in enumerate(range(len(log), len(log) // 3, -977)):
        for tail in ("cut", "zeros"):
            folder = tmp_path / f"{number} {tail}"
            folder.mkdir()
            (folder / "s.sqlite").write_bytes(database)
            (folder / "s.sqlite-wal").write_bytes(log[:length] + (bytes(len(log) - length) if tail == "zeros" else b""))
            torn = Ledger(folder / "s.sqlite")
            known = sorted(torn.outcomes())
            assert known == [f"{at:02}" for at in range(len(known))], "a later commit without an earlier one"
            assert all(answer.reply == b"x" * 900 for answer in torn.answers(known).values())
            torn.close()
            found.append(len(known))
    assert found[0] == 12
    assert found == sorted(found, reverse=True)
    assert found[-1] < 6


_JUMPING_CLOCK = """
import sys, time
real, calls = time.time, iter(range(10**9))
def jumping():
    return real() + 86_400 * (next(calls) % 3 - 1)
time.time, time.time_ns = jumping, lambda: int(jumping() * 1e9)
from pathlib import Path
from tests.invoking import Bench
bench = Bench(Path(sys.argv[1]), sys.argv[2], rows=60)
bench.model(requests_per_second=40.0)
print(bench.one())
"""


def test_F103_a_wall_clock_that_jumps_a_day_neither_stalls_nor_floods(model: FakeModel, tmp_path: Path) -> None:
    """It says another day whenever it is asked."""
    script = [sys.executable, "-c", _JUMPING_CLOCK, str(tmp_path), model.url]
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert "ok=60" in done.stdout, done.stderr
    assert len(model.requests) == 60
    assert windows([request.at for request in model.requests]) <= 50
    sent_at = [row["sent_at"] for row in Bench(tmp_path, model.url, loads=False).responses().values()]
    assert max(sent_at) - min(sent_at) > timedelta(hours=20), "only time stamps look odd"


_FORKED = """
import os, sys
from pathlib import Path
from tests.invoking import Bench
root, url = Path(sys.argv[1]), sys.argv[2]
benches = []
for name in ("parent", "child"):
    (root / name).mkdir()
    benches.append(Bench(root / name, url, rows=40, ledger=root / "ledger"))
    benches[-1].run = __import__("dataclasses").replace(benches[-1].run, name=name)
parent, child = benches
with parent.invoker() as invoker:
    reports = invoker.invoke(["00000"])
    pid = 0
    def fork(progress):
        global pid
        if not pid and progress.calls > 5:
            pid = os.fork()
            if pid == 0:
                os._exit(0 if child.one().ok == 40 else 1)
    parent.model(max_concurrency=4)
    [report] = invoker.invoke(["00000"], on_progress=fork)
assert pid and os.waitpid(pid, 0)[1] == 0
print(report.ok)
"""


def test_F105_a_process_forked_while_calls_are_made_has_connections_of_its_own(
    model: FakeModel, tmp_path: Path
) -> None:
    model.answer = lambda request: Reply({"summary": request.text}, delay_s=0.2)
    script = [sys.executable, "-c", _FORKED, str(tmp_path), model.url]
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "40", done.stderr
    assert len(model.requests) == 80
    asked = Counter(request.key for request in model.requests)
    assert set(asked.values()) == {2}, "each process asked for each of its rows once"


_DECODED_IN_ANOTHER_PROCESS = """
import json, sys
from tests.decoding import EVERYTHING, decode_tables
import foundry_pipeline.invoke, foundry_pipeline.predictions
for line in sys.stdin:
    tables = decode_tables(line, EVERYTHING, size_wh=(2, 2))
    assert (tables["masks"].num_rows, tables["rejects"].num_rows) == (1, 1), line[:200]
print("decoded; native mask code loaded:", "pycocotools" in sys.modules)
"""


def test_F106_no_mask_reaches_native_code_so_no_row_can_kill_the_decoder() -> None:
    """What crashes pycocotools, hangs it or makes it read foreign memory: one reply each, in another process."""
    fine = {"size": [2, 2], "counts": "04"}
    cases = {name: {"size": size, "counts": counts} for name, size, counts, _, _ in REFUSED}
    del cases["a number that cannot be printed"], cases["a million runs of nothing"]  # refused as a whole reply
    replies = [json.dumps({"tree": {"masks": [mask, fine]}}) for mask in cases.values()]
    done = subprocess.run(
        [sys.executable, "-c", _DECODED_IN_ANOTHER_PROCESS],
        cwd=CHECKOUT,
        input="\n".join(replies),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "decoded; native mask code loaded: False\n", done.stderr
