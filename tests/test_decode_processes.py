"""Slices decoded side by side: the same tables as one after the other, and no process outlives its parent."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from foundry_pipeline.config.secrets import Secret, SecretRef
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.decode_processes import DecodeJob, Worker, decode_slices, useful_processes
from foundry_pipeline.errors import StorageError
from foundry_pipeline.predictions import DecodeReport
from foundry_pipeline.store import Store
from tests.slices import commit_replies, commit_rows, make_run

CHECKOUT = Path(__file__).resolve().parents[1]
SLICES = [f"{place:06}" for place in range(5)]
TOM = {"person": [{"start": 0, "end": 3, "text": "Tom"}], "weather": "sun"}


@pytest.fixture
def job(tmp_path: Path) -> DecodeJob:
    """Five slices of a text run whose texts are files in the home folder, with a literal secret in its manifest."""
    store = Store(tmp_path / "warehouse")
    for slice_key in SLICES:
        text = tmp_path / f"{slice_key}.txt"
        text.write_text(f"Tom is in slice {slice_key}.")
        commit_rows(store, "text", [f"k{slice_key}"], slice_key, row_data=[str(text)])
        commit_replies(store, {f"k{slice_key}": TOM}, slice_key=slice_key)
    run = make_run("text")
    secret = SecretRef(None, Secret("hush-hush-hush"))
    run = replace(run, model=replace(run.model, secret=secret, headers=(("X-Key", "hush-hush-hush"),)))
    return DecodeJob(run, store.root, tmp_path, Settings())


def reports(results: Iterator[tuple[str, DecodeReport | StorageError]]) -> dict[str, DecodeReport]:
    found = dict(results)
    assert all(isinstance(result, DecodeReport) for result in found.values()), found
    return found  # type: ignore[return-value]


def test_slices_decoded_in_processes_are_those_decoded_here(job: DecodeJob) -> None:
    here = reports(decode_slices(job, SLICES))
    aside = reports(decode_slices(job, SLICES, processes=2, pays_from_s=0.0))
    assert list(aside) == list(here) == SLICES
    for slice_key in SLICES:
        assert replace(aside[slice_key], seconds=0.0) == replace(here[slice_key], seconds=0.0)
        assert here[slice_key].predictions["entities"] == 1
        assert here[slice_key].unread_texts == 0


def test_a_slice_that_cannot_be_decoded_fails_alone_in_a_process_too(job: DecodeJob) -> None:
    Path(job.warehouse, "responses/run=run", f"{SLICES[2]}.parquet").write_bytes(b"no parquet")
    found = dict(decode_slices(job, SLICES, processes=2, pays_from_s=0.0))
    assert [key for key, result in found.items() if isinstance(result, StorageError)] == [SLICES[2]]
    assert "not a readable Parquet file" in str(found[SLICES[2]])


def test_a_process_that_is_killed_costs_its_slice_alone(job: DecodeJob) -> None:
    with Worker(pickle.dumps(job.without_secrets())) as worker:
        assert isinstance(worker.decode(SLICES[0]), DecodeReport)
        for process in workers_of(os.getpid()):
            os.kill(process, signal.SIGKILL)
        assert "ended with status -9" in str(worker.decode(SLICES[1]))
        assert isinstance(worker.decode(SLICES[1]), DecodeReport)


def test_processes_end_when_nobody_wants_more_results(job: DecodeJob) -> None:
    results = decode_slices(job, SLICES, processes=2, pays_from_s=0.0)
    next(results)
    next(results)
    assert len(workers_of(os.getpid())) == 2
    results.close()
    assert workers_of(os.getpid()) == []


PARENT = """
import pickle, sys, os
from foundry_pipeline.decode_processes import decode_slices
job = pickle.load(open(sys.argv[1], "rb"))
results = decode_slices(job, sys.argv[2:], processes=2, pays_from_s=0.0)
next(results), next(results)
print("started", flush=True)
sys.stdin.read()
"""


def test_no_process_outlives_a_parent_that_is_killed(job: DecodeJob, tmp_path: Path) -> None:
    (tmp_path / "job").write_bytes(pickle.dumps(job.without_secrets()))
    command = [sys.executable, "-c", PARENT, str(tmp_path / "job"), *SLICES]
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        children = workers_of(parent.pid)
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, children))


def test_no_secret_goes_to_another_process(job: DecodeJob) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(job)
    assert b"hush" not in pickle.dumps(job.without_secrets())


def test_few_slices_start_no_process(job: DecodeJob) -> None:
    results = decode_slices(job, SLICES, processes=4)
    for _ in results:
        assert workers_of(os.getpid()) == []


def test_there_is_a_process_for_every_core_up_to_four() -> None:
    assert 1 <= useful_processes() <= 4


def workers_of(parent: int) -> list[int]:
    """Processes that decode for this one."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z" and b"decode_processes" in command:
            found.append(int(status.parent.name))
    return found


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
