"""Faults around Dagster (section G of docs/reliability.md): cancelled runs, a restarted daemon, locked history."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from assets.code_location import code_location
from assets.instance import open_instance
from assets.keys import pool_of, responses_key
from foundry_pipeline.home import load_home
from resources import places_of
from tests.fake_model import FakeModel, Reply
from tests.home_folder import write_mood_home
from tests.kill_driver import wait_until

CHECKOUT = Path(__file__).resolve().parents[1]
SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel(lambda _: Reply({"mood": "good"})) as served:
        yield served


_CANCELLED_IN_THE_COMMIT = """
import json, os, shutil, signal, sys
from pathlib import Path
import dagster as dg
from assets.code_location import code_location
from assets.keys import decoded_keys, responses_key
from foundry_pipeline.home import load_home
from foundry_pipeline.store import Store
from foundry_pipeline.tables import CLASSIFICATIONS, REJECTS
from resources import places_of
from tests.test_faults_dagster import SILENT, execute, cancel_at

old, here = Path(sys.argv[1]), Path(sys.argv[2])

def moods(root):
    store = Store(root / "warehouse")
    store.recover()
    table = store.read(CLASSIFICATIONS, "notes_mood", "00000")
    records = [store.record("notes_mood", "00000", spec.name) for spec in (CLASSIFICATIONS, REJECTS)]
    assert records[0]["about"] == records[1]["about"], "records of two commits are mixed"
    for spec in (CLASSIFICATIONS, REJECTS):
        store.check_intact(spec, "notes_mood", "00000")
    assert not list((root / "warehouse/_commits").glob("*.intent"))
    return ",".join(table["answer"].to_pylist())

def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action() or 0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def decode(root, step):
    cancel_at(step, str(root / "warehouse"))
    return 0 if execute(root, decoded_keys) else 1

for step in map(int, sys.argv[3:]):
    root = here / str(step)
    shutil.copytree(old, root)
    first = child(lambda: decode(root, step))
    after = moods(root)
    assert child(lambda: decode(root, 0)) == 0, "the next run"
    assert moods(root) == "bad,bad", "and finishes it"
    print(first, after, flush=True)
"""


def execute(root: Path, keys_of: object = None, config: object = None) -> bool:
    """The run's job over its slice, as a worker of Dagster executes it, signals included."""
    home = load_home(root, {})
    definitions = code_location(home, places_of({}, root))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("notes_slices", ["00000"])
        result = definitions.resolve_job_def("notes_mood").execute_in_process(
            instance=instance,
            asset_selection=keys_of(home.runs["notes_mood"]) if callable(keys_of) else None,
            partition_key="00000",
            run_config={**SILENT, **(config or {})},
            raise_on_error=False,
        )
    return bool(result.success)


def cancel_at(step: int, below: str) -> None:
    """Send this process SIGTERM at the n-th file that it opens, renames or removes below a folder."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and below in str(arguments[0]):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(hook)


def test_F125_cancelled_in_a_commit_the_tables_are_old_or_new_and_the_next_run_finishes(
    model: FakeModel, tmp_path: Path
) -> None:
    """Before the commit point, at it and behind it; `test_store.py` has every step, without Dagster."""
    old = write_mood_home(tmp_path / "old", model.url, ["a", "b"], more="")
    home = load_home(old, {})
    definitions = code_location(home, places_of({}, old))
    with dg.DagsterInstance.ephemeral() as instance:
        assert definitions.resolve_job_def("notes_data_rows").execute_in_process(instance=instance, run_config=SILENT)
    assert execute(old)
    model.answer = lambda _: Reply({"mood": "bad"})
    refresh = {"ops": {"notes_mood__invoke_model": {"config": {"refresh": True}}}}
    assert execute(old, lambda run: [responses_key(run.name)], refresh)
    script = [sys.executable, "-c", _CANCELLED_IN_THE_COMMIT, str(old), str(tmp_path / "steps"), "4", "8", "14"]
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    before, *_, after = done.stdout.splitlines()
    assert (before, after) == ("1 good,good", "1 bad,bad")
    assert len(model.requests) == 4, "no step of decoding calls"


class FarLauncher(dg.DefaultRunLauncher):
    """Stands for one that starts runs elsewhere: it is not Dagster's own."""


def messages(instance: dg.DagsterInstance) -> list[str]:
    return [entry.user_message for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]


@pytest.mark.parametrize("is_far", [True, False])
def test_F120_a_local_ledger_with_workers_elsewhere_is_said(model: FakeModel, tmp_path: Path, is_far: bool) -> None:
    write_mood_home(tmp_path, model.url, ["a"], more="")
    definitions = code_location(load_home(tmp_path, {}), places_of({}, tmp_path))
    launcher = {"run_launcher": {"module": "tests.test_faults_dagster", "class": "FarLauncher"}}
    (tmp_path / "instance").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance"), overrides=launcher if is_far else None) as instance:
        for job, key in (("notes_data_rows", None), ("notes_mood", "00000")):
            done = definitions.resolve_job_def(job).execute_in_process(
                instance=instance, partition_key=key, run_config=SILENT
            )
            assert done.success
        assert any("the rate is per machine" in message for message in messages(instance)) == is_far


def environ_of(root: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FOUNDRY_", "DAGSTER_"))}
    return kept | {"FOUNDRY_HOME": str(root), "DAGSTER_HOME": str(places_of({}, root).dagster_home)}


def command(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "assets", "materialize", "--home", str(root)],
        cwd=CHECKOUT,
        env=environ_of(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def slow_home(root: Path, model: FakeModel, rows: int) -> None:
    """Five calls a second."""
    write_mood_home(root, model.url, [f"text {at}" for at in range(rows)], more="")
    manifest = root / "models/mood.yaml"
    text = manifest.read_text().replace("requests_per_second: 1000", "requests_per_second: 5")
    manifest.write_text(text.replace("burst: 100", "burst: 1"))


def test_F123_calls_go_on_while_dagsters_history_is_locked_and_none_is_repeated(
    model: FakeModel, tmp_path: Path
) -> None:
    """Somebody holds all of its databases for longer than SQLite waits, until every row has been called."""
    slow_home(tmp_path, model, rows=12)
    process = command(tmp_path)
    wait_until(lambda: len(model.requests) >= 2 or process.poll() is not None)
    with contextlib.ExitStack() as locks:
        for database in (tmp_path / ".dagster/history").rglob("*.db"):
            connection = locks.enter_context(contextlib.closing(sqlite3.connect(database, isolation_level=None)))
            connection.execute("BEGIN EXCLUSIVE")
        wait_until(lambda: len(model.requests) == 12 or process.poll() is not None)
        time.sleep(6)
    said, _ = process.communicate(timeout=120)
    assert len(model.requests) == 12, said
    again = command(tmp_path)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "0 calls: every row had its answer" in said
    assert len(model.requests) == 12


def test_F124_a_slot_that_a_dead_run_keeps_in_the_endpoints_pool_stops_nobody(model: FakeModel, tmp_path: Path) -> None:
    """Our dagster.yaml counts runs and not steps, and who works on a slice is said by its lease."""
    write_mood_home(tmp_path, model.url, ["a"], more="")
    places = places_of({}, tmp_path)
    pool = pool_of(load_home(tmp_path, {}).runs["notes_mood"])
    with open_instance(places) as instance:
        instance.event_log_storage.set_concurrency_slots(pool, 1)
        instance.event_log_storage.claim_concurrency_slot(pool, "a run that is gone", "notes_mood__invoke_model")
        assert instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    process = command(tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(model.requests) == 1


_LAUNCHED = """
import sys
from pathlib import Path
import dagster as dg
from assets.code_location import code_location
from assets.instance import open_instance
from foundry_pipeline.home import load_home
from resources import places_of
from tests.test_faults_dagster import SILENT
root = Path(sys.argv[1])
definitions = code_location(load_home(root, {}), places_of({}, root))
with open_instance(places_of({}, root)) as instance:
    definitions.resolve_job_def("notes_data_rows").execute_in_process(instance=instance, run_config=SILENT)
    result = definitions.resolve_job_def("notes_mood").execute_in_process(
        instance=instance, partition_key="00000", run_config=SILENT, raise_on_error=False)
    print(result.success)
"""


def test_F099_a_cancelled_run_brings_its_calls_home_and_says_what_is_left(model: FakeModel, tmp_path: Path) -> None:
    """SIGTERM is what Dagster's launchers send to the process of a run that is cancelled."""
    slow_home(tmp_path, model, rows=12)
    dataset = tmp_path / "datasets/notes.yaml"
    dataset.write_text(dataset.read_text().replace("rows_per_slice: 2", "rows_per_slice: 12"))
    script = [sys.executable, "-c", _LAUNCHED, str(tmp_path)]
    process = subprocess.Popen(script, cwd=CHECKOUT, env=environ_of(tmp_path), stdout=subprocess.PIPE, text=True)
    wait_until(lambda: len(model.requests) >= 5 or process.poll() is not None)
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert said.strip() != "True"
    asked = len(model.requests)
    assert asked < 12
    with open_instance(places_of({}, tmp_path)) as instance:
        told = [message for message in messages(instance) if message.startswith("stopped: ")]
    assert len(told) == 1
    assert "of 12 rows have their answer" in told[0]
    again = command(tmp_path)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert len(model.requests) == 12, "what came home is not asked again"


class Daemon:
    """Dagster's own daemon on a home. Use as a context manager: whatever it has started ends with it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._groups: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._process.wait(60)

    def start(self) -> None:
        with (self._root / "daemon.log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dagster._daemon", "run", "-w", str(CHECKOUT / "workspace.yaml")],
                env=environ_of(self._root),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._groups.append(self._process.pid)

    def kill(self) -> None:
        """The daemon alone: what it has started goes on."""
        self._process.kill()
        self._process.wait()


def add_backfill(instance: dg.DagsterInstance, definitions: dg.Definitions, key: dg.AssetKey) -> None:
    """What the UI does for all slices of an asset."""
    slices = instance.get_dynamic_partitions("notes_slices")
    chosen = AssetGraphSubset.from_asset_partition_set(
        {AssetKeyPartitionKey(key, slice_key) for slice_key in slices}, definitions.resolve_asset_graph()
    )
    instance.add_backfill(
        PartitionBackfill.from_asset_graph_subset(
            backfill_id="all",
            asset_graph_subset=chosen,
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            title=None,
            description=None,
            run_config=None,
        )
    )


def test_F121_a_daemon_that_is_killed_in_a_backfill_and_restarted_repeats_no_call(
    model: FakeModel, tmp_path: Path
) -> None:
    """The run goes on without it, and the new daemon finds it finished."""
    slow_home(tmp_path, model, rows=30)
    places = places_of({}, tmp_path)
    definitions = code_location(load_home(tmp_path, {}), places)
    with open_instance(places) as instance, Daemon(tmp_path) as daemon:
        loaded = definitions.resolve_job_def("notes_data_rows").execute_in_process(instance=instance, run_config=SILENT)
        assert loaded.success
        add_backfill(instance, definitions, responses_key("notes_mood"))
        daemon.start()
        wait_until(lambda: len(model.requests) >= 3, 180)
        daemon.kill()
        seen = len(model.requests)
        assert seen < 30
        wait_until(lambda: len(model.requests) > seen + 3, 60)
        daemon.start()
        wait_until(lambda: instance.get_backfill("all").status == BulkActionStatus.COMPLETED_SUCCESS, 240)
        assert instance.get_materialized_partitions(responses_key("notes_mood")) == set(
            instance.get_dynamic_partitions("notes_slices")
        )
    asked = Counter(request.key for request in model.requests)
    assert len(asked) == 30
    assert set(asked.values()) == {1}
