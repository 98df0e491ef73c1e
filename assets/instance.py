"""Dagster's own files: a DAGSTER_HOME that works from the first command, and runs whose process is gone."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg

from resources import CHECKOUT, Places

PROCESS = "foundry_pipeline/process"
"""Run tag: the name of the lock file that the run's process holds for as long as it lives."""

TEMPLATE = CHECKOUT / "deploy" / "dagster.yaml"


def prepare_dagster_home(folder: Path) -> None:
    """Make the folder, with our dagster.yaml where it has none."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        unfinished = folder / f"dagster.yaml.{uuid.uuid4().hex}"
        shutil.copyfile(TEMPLATE, unfinished)
        unfinished.replace(folder / "dagster.yaml")


@contextmanager
def open_instance(places: Places) -> Iterator[dg.DagsterInstance]:
    """The persistent instance that the UI shows, too."""
    prepare_dagster_home(places.dagster_home)
    with _opened_alone(places) as instance:
        yield instance


def _opened_alone(places: Places) -> dg.DagsterInstance:
    """Open the databases one process at a time: Dagster's fails where two of them create its tables."""
    descriptor = os.open(places.dagster_home / "opening.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        instance = dg.DagsterInstance.from_config(str(places.dagster_home))
        _ = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
        return instance
    finally:
        os.close(descriptor)


@contextmanager
def sign_of_life(places: Places) -> Iterator[str]:
    """A name to tag runs with: whether their process lives is whether somebody holds the lock of that name."""
    folder = _locks(places)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / uuid.uuid4().hex
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path.name
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def fail_runs_of_the_dead(instance: dg.DagsterInstance, places: Places) -> int:
    """Mark as failed the runs that a killed command left as started: without a daemon, Dagster never notices.

    Gives their number.
    """
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    dead = [run for run in instance.get_runs(started) if PROCESS in run.tags and not _lives(places, run.tags[PROCESS])]
    for run in dead:
        instance.report_run_failed(run, "The process that worked on this run is gone. Every answer it had is kept.")
        with suppress(OSError):
            (_locks(places) / run.tags[PROCESS]).unlink()
    return len(dead)


def _lives(places: Places, name: str) -> bool:
    try:
        descriptor = os.open(_locks(places) / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _locks(places: Places) -> Path:
    return places.dagster_home / "processes"
