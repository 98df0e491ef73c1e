"""`python -m assets materialize`: a home's runs from data rows to annotation files, through Dagster, without its UI.

The same assets, partitions and events as from the UI, in the same instance. What goes wrong in one slice, run or file
is said, and stops nothing else.
"""

import math
import signal
import threading
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TextIO

import dagster as dg

from assets.crew import Crew, Interrupted
from assets.instance import fail_runs_of_the_dead, open_instance
from assets.keys import (
    data_rows_job_name,
    data_rows_key,
    decoded_keys,
    preview_job_name,
    preview_key,
    responses_key,
    whole_run_keys,
)
from assets.partitions import ranges, registered_slices
from assets.progress import Gauge, display_for
from assets.summary import Summary, load_lines
from assets.work import Result, Task
from foundry_pipeline.asks import calls_of_slice
from foundry_pipeline.config.fields import near
from foundry_pipeline.config.ledger_source import shown_ledger
from foundry_pipeline.home import Dataset, Home, Run, load_home
from foundry_pipeline.invoke import CallOptions
from foundry_pipeline.preview.gallery import page_name
from foundry_pipeline.store import Store
from resources import Places

FINE, FAILED, USAGE, STOPPED = 0, 1, 2, 130

TASKS_A_WORKER = 4
"""Slices differ: with a few tasks for each worker, none is left with much when the others are done."""
MOST_SLICES_A_TASK = 2000
"""A task holds what is to be recorded of its slices until they are done."""


@dataclass(frozen=True, slots=True)
class Materializer:
    """One execution of the command."""

    home: Home
    crew: Crew
    instance: dg.DagsterInstance
    store: Store
    options: CallOptions
    out: TextIO
    err: TextIO

    def all(self, runs: Sequence[Run]) -> bool:
        """Load what the runs need, then make them one after the other. True where everything succeeded."""
        datasets = {run.dataset.name: run.dataset for run in runs}
        without_rows = {name: why for name, dataset in datasets.items() if (why := self.load(dataset)) is not None}
        fine = True
        for run in runs:
            why = without_rows.get(run.dataset.name)
            summary = self.run(run) if why is None else Summary(run, failures={"everything": why})
            self._print(("", *summary.lines(self.store)))
            fine = fine and not summary.failures
        return fine

    def previews(self, runs: Sequence[Run]) -> bool:
        """Preview the runs, after loading what has not been loaded. True where everything succeeded."""
        fine = True
        for run in runs:
            known = registered_slices(self.instance, run.dataset.name)
            why = None if known else self.load(run.dataset)
            if why is None:
                with self._gauge(run.name) as gauge:
                    task = Task(preview_job_name(run, self.home), _paths([preview_key(run.name)]))
                    [result] = self.crew.run([task], gauge)
                why = next(iter(result.failures.values()), None)
            page = f"{self.store.root}/{page_name(run.name)}"
            self._print((f"{run.name}: preview failed: {why}" if why else f"{run.name}: preview {page}",))
            fine = fine and why is None
        return fine

    def load(self, dataset: Dataset) -> str | None:
        """Load a dataset. Gives why its runs cannot go on: it could not be loaded, or has no rows."""
        task = Task(data_rows_job_name(dataset, self.home), _paths([data_rows_key(dataset.name)]))
        with self._gauge(dataset.name) as gauge:
            [result] = self.crew.run([task], gauge)
        if result.failures or gauge.loaded is None:
            return f"the data rows of {dataset.name} could not be loaded: {next(iter(result.failures.values()), '')}"
        self._print(load_lines(gauge.loaded))
        return None if gauge.loaded.rows else f"{dataset.name} has no data rows"

    def run(self, run: Run) -> Summary:
        """Responses of all slices, tables of those that have them, then exports and evaluation.

        Where nothing fails and one worker does it all, that is one Dagster run.
        """
        known = registered_slices(self.instance, run.dataset.name)
        responses, tables, of_all = responses_key(run.name), decoded_keys(run), whole_run_keys(run)
        summary = Summary(run)
        with self._gauge(run.name, self._calls(run, known)) as gauge:
            tasks = self._tasks(run, [responses, *tables], known, set(known))
            if len(tasks) == 1:
                tasks = [replace(tasks[0], keys=(*tasks[0].keys, *_paths(of_all)))]
            results = self.crew.run(tasks, gauge)
            summary.note(results, "calls or tables")
            if late := _done(results, responses) - _done(results, tables[0]):
                summary.note(self.crew.run(self._tasks(run, tables, known, late), gauge), "tables")
            if left := [key for key in of_all if not _done(results, key)]:
                summary.note(self.crew.run([Task(run.name, _paths(left))], gauge), "exports or evaluation")
        summary.calls, summary.reused, summary.repeated = gauge.calls, gauge.reused, gauge.repeated
        summary.totals, summary.cost = gauge.totals, gauge.cost
        return summary

    def _calls(self, run: Run, known: Sequence[str]) -> int:
        return sum(calls_of_slice(run, self.store, key) for key in known)

    def _tasks(
        self, run: Run, keys: Sequence[dg.AssetKey], known: Sequence[str], wanted: Set[str | None]
    ) -> list[Task]:
        """The wanted slices, in one task for one worker, in a few for each of several."""
        parts = 1 if self.crew.workers == 1 else self.crew.workers * TASKS_A_WORKER
        most = min(MOST_SLICES_A_TASK, math.ceil(len(wanted) / parts))
        options = self.options if responses_key(run.name) in keys else None
        return [Task(run.name, _paths(keys), group, options) for group in ranges(known, wanted, max(most, 1))]

    @contextmanager
    def _gauge(self, name: str, total: int | None = None) -> Iterator[Gauge]:
        with display_for(name, self.err) as display:
            yield Gauge(display, total)

    def _print(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(line, file=self.out, flush=True)


def materialize(
    places: Places,
    names: Sequence[str],
    *,
    workers: int = 1,
    verbose: bool = False,
    options: CallOptions = CallOptions(),  # noqa: B008  # frozen
    only_previews: bool = False,
    environ: Mapping[str, str],
    out: TextIO,
    err: TextIO,
) -> int:
    """Materialize the named runs, all where none is named; `only_previews`: a few rows of each. Gives the exit code.

    0: every slice succeeded, and no file that was asked for has a problem. 1: not so. 2: there is no such run.
    130: stopped by a signal; the same command goes on where this one stopped. Raises FoundryError where the home or
    the warehouse cannot be read, OSError where Dagster's own files cannot be written.
    """
    home = load_home(places.home, environ)
    if unknown := [name for name in names if name not in home.runs and not _has_file(home, name)]:
        for name in unknown:
            print(f"there is no run {name!r} in {home.root}/runs{near(name, home.runs)}", file=err)
        return USAGE
    _tell_problems(home, err)
    runs = [home.runs[name] for name in dict.fromkeys(names or home.runs) if name in home.runs]
    try:
        with (
            _terminated_like_interrupted(),
            open_instance(places) as instance,
            Crew(home, places, workers, verbose=verbose) as crew,
        ):
            fail_runs_of_the_dead(instance, places)
            maker = Materializer(home, crew, instance, Store(places.warehouse), options, out, err)
            fine = maker.previews(runs) if only_previews else maker.all(runs)
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(_stopped_in_words(places, str(stopped)), file=err)
        return STOPPED
    return FINE if fine and _were_sound(home, names, err) else FAILED


def _were_sound(home: Home, names: Sequence[str], err: TextIO) -> bool:
    """True where every file that was asked for is; else that is said once more, after all that was printed since."""
    if not home.runs and not home.problems:
        print(f"there are no runs in {home.root}/runs", file=err)
        return False
    sound = all(name in home.runs for name in names) if names else not home.problems
    if not sound:
        _tell_problems(home, err)
    return sound


def _paths(keys: Sequence[dg.AssetKey]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(key.path) for key in keys)


def _done(results: Sequence[Result], key: dg.AssetKey) -> set[str | None]:
    """Slices of this asset that were materialized; {None} where it has none and was."""
    return {slice_key for result in results for done, slice_key in result.done if done == key}


def _has_file(home: Home, name: str) -> bool:
    return name in {path.stem for path in (home.root / "runs").glob("*.yaml")}


def _tell_problems(home: Home, err: TextIO) -> None:
    for problem in home.problems:
        print(f"problem: {problem}", file=err)
    for warning in home.warnings:
        print(f"warning: {warning}", file=err)


def _stopped_in_words(places: Places, so_far: str) -> str:
    counts = f": {so_far}" if so_far else ""
    return (
        f"stopped{counts}. Slices that were done are in {places.warehouse}, every other answer that came is in "
        f"{shown_ledger(places.ledger)}: the same command goes on where this one stopped"
    )


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_signal: int, _frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt
