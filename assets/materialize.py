"""`python -m assets materialize`: a home's runs from data rows to annotation files, through Dagster, without its UI.

The same assets, partitions and events as from the UI, in the same instance. What goes wrong in one slice, run or file
is said, and stops nothing else.
"""

import math
import signal
import threading
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TextIO

import dagster as dg

from assets.audit import Answers, audit_answers, row_count, total_rows
from assets.crew import Crew, Interrupted
from assets.instance import fail_runs_of_the_dead, open_instance
from assets.keys import (
    data_rows_job_name,
    data_rows_key,
    decoded_keys,
    decoded_tables,
    exported_keys,
    responses_key,
)
from assets.partitions import ranges, registered_slices
from assets.progress import Gauge, display_for
from assets.work import ALL_SLICES, Result, Task
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.fields import near
from foundry_pipeline.home import Dataset, Home, Run, load_home
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS
from resources import ModelCalls, Places

FINE, FAILED, USAGE, STOPPED = 0, 1, 2, 130

TASKS_A_WORKER = 4
"""Slices differ: with a few tasks for each worker, none is left with much when the others are done."""
MOST_SLICES_A_TASK = 2000
"""A task holds what is to be recorded of its slices until they are done."""
FAILURES_SHOWN = 20


@dataclass(slots=True)
class Summary:
    """What became of one run: counts of this command's calls, and what failed."""

    run: Run
    calls: int = 0
    reused: int = 0
    repeated: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Slice key, or a word for what is not about one slice -> why."""

    def note(self, results: Sequence[Result], what: str) -> None:
        """Keep the failures of a phase."""
        for result in results:
            for slice_key, why in result.failures.items():
                self.failures.setdefault(what if slice_key == ALL_SLICES else f"slice {slice_key}", why)


@dataclass(frozen=True, slots=True)
class Materializer:
    """One execution of the command."""

    home: Home
    places: Places
    crew: Crew
    instance: dg.DagsterInstance
    store: Store
    out: TextIO
    err: TextIO

    def load(self, dataset: Dataset) -> str | None:
        """Load a dataset. Gives why it could not be, or has no rows."""
        task = Task(data_rows_job_name(dataset, self.home), _paths([data_rows_key(dataset.name)]))
        with self._gauge(dataset.name) as gauge:
            [result] = self.crew.run([task], gauge)
        if result.failures:
            why = next(iter(result.failures.values()))
            self._say(f"{dataset.name}: its data rows could not be loaded: {why}")
            return "its data rows could not be loaded"
        assert gauge.loaded is not None
        report = gauge.loaded
        self._say(f"{dataset.name}: {_count(report.rows, 'data row')} in {_count(len(report.slices), 'slice')}")
        for problem in report.problems[:FAILURES_SHOWN]:
            self._say(f"  {problem.place}: {problem.code}: {problem.message}")
        if (more := report.problem_count - FAILURES_SHOWN) > 0:
            self._say(f"  and {more:,} more problems")
        return None if report.rows else f"{dataset.name} has no data rows"

    def run(self, run: Run) -> Summary:
        """Responses of all slices, tables of those that have them, then the exports.

        Where nothing fails and one worker does it all, that is one Dagster run.
        """
        known = registered_slices(self.instance, run.dataset.name)
        responses, tables, annotations = responses_key(run.name), decoded_keys(run), exported_keys(run)
        summary = Summary(run)
        with self._gauge(run.name, self._rows(run, known)) as gauge:
            tasks = self._tasks(run, [responses, *tables], known, set(known))
            if len(tasks) == 1:
                tasks = [replace(tasks[0], keys=(*tasks[0].keys, *_paths(annotations)))]
            results = self.crew.run(tasks, gauge)
            summary.note(results, "responses or tables")
            if late := _done(results, responses) - _done(results, tables[0]):
                results += self.crew.run(self._tasks(run, tables, known, late), gauge)
                summary.note(results, "tables")
            if annotations and not _done(results, annotations[0]):
                summary.note(self.crew.run([Task(run.name, _paths(annotations))], gauge), "annotations")
        summary.calls, summary.reused, summary.repeated = gauge.calls, gauge.reused, gauge.repeated
        return summary

    def tell(self, summary: Summary) -> None:
        """Print a run's summary: rows, calls, predictions, what failed, where things are."""
        run, answers = summary.run, audit_answers(summary.run, self.store)
        predictions = {spec.name: total_rows(run, self.store, spec) for spec in decoded_tables(run)}
        self._say(f"\n{run.name}: {_rows_in_words(answers)}; {_calls_in_words(summary, answers)}")
        for spec in decoded_tables(run):
            self._say(f"  {predictions[spec.name]:>9,} {spec.name:<16} {self.store.uri(spec, run.name)}")
        for format_name in run.exports:
            self._say(
                f"  {format_name:>9} {'annotations':<16} {self.store.root}/annotations/run={run.name}/{format_name}"
            )
        for place, why in list(summary.failures.items())[:FAILURES_SHOWN]:
            self._say(f"  {place} failed: {why}")
        if (more := len(summary.failures) - FAILURES_SHOWN) > 0:
            self._say(f"  and {more:,} more failed")

    def _rows(self, run: Run, known: Sequence[str]) -> int:
        return sum(row_count(self.store, DATA_ROWS, run.dataset.name, key) for key in known)

    def _tasks(
        self, run: Run, keys: Sequence[dg.AssetKey], known: Sequence[str], wanted: Set[str | None]
    ) -> list[Task]:
        """The wanted slices, in one task for one worker, in a few for each of several."""
        parts = 1 if self.crew.workers == 1 else self.crew.workers * TASKS_A_WORKER
        most = min(MOST_SLICES_A_TASK, math.ceil(len(wanted) / parts))
        return [Task(run.name, _paths(keys), group) for group in ranges(known, wanted, max(most, 1))]

    @contextmanager
    def _gauge(self, name: str, total: int | None = None) -> Iterator[Gauge]:
        with closing(display_for(name, self.err)) as display:
            yield Gauge(display, total)

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def materialize(
    places: Places,
    names: Sequence[str],
    *,
    workers: int = 1,
    verbose: bool = False,
    environ: Mapping[str, str],
    out: TextIO,
    err: TextIO,
    model_calls: ModelCalls | None = None,
) -> int:
    """Materialize the named runs, all where none is named. Gives the exit code.

    0: every slice succeeded, and no file that was asked for has a problem. 1: not so. 2: there is no such run.
    130: stopped by a signal; the same command goes on where this one stopped.
    """
    try:
        home = load_home(places.home, environ)
    except ConfigError as error:
        print(error, file=err)
        return FAILED
    if unknown := [name for name in names if name not in home.runs and not _has_file(home, name)]:
        for name in unknown:
            print(f"there is no run {name!r} in {home.root}/runs{near(name, home.runs)}", file=err)
        return USAGE
    _tell_problems(home, err)
    runs = [home.runs[name] for name in dict.fromkeys(names or home.runs) if name in home.runs]
    unsound = [name for name in names if name not in home.runs]
    with open_instance(places) as instance, _terminated_like_interrupted():
        fail_runs_of_the_dead(instance, places)
        with Crew(home, places, workers, verbose=verbose, model_calls=model_calls) as crew:
            work = Materializer(home, places, crew, instance, Store(places.warehouse), out, err)
            try:
                good = _materialize_all(work, runs)
            except Interrupted:
                print(_stopped_in_words(places), file=err)
                return STOPPED
    bad_files = unsound or (home.problems if not names else ())
    if bad_files:
        _tell_problems(home, err)
    if not home.runs and not home.problems:
        print(f"there are no runs in {home.root}/runs", file=err)
    return FINE if good and runs and not bad_files else FAILED


def _materialize_all(work: Materializer, runs: Sequence[Run]) -> bool:
    """True where everything succeeded."""
    datasets = {run.dataset.name: run.dataset for run in runs}
    without_rows = {name: why for name, dataset in datasets.items() if (why := work.load(dataset)) is not None}
    summaries = []
    for run in runs:
        if run.dataset.name in without_rows:
            summaries.append(Summary(run, failures={"nothing was called:": without_rows[run.dataset.name]}))
        else:
            summaries.append(work.run(run))
        work.tell(summaries[-1])
    return not any(summary.failures for summary in summaries)


def _paths(keys: Sequence[dg.AssetKey]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(key.path) for key in keys)


def _done(results: Sequence[Result], key: dg.AssetKey) -> set[str | None]:
    """Slices of this asset that were materialized; {None} where it has none and was."""
    return {slice_key for result in results for done, slice_key in result.done if done == key}


def _has_file(home: Home, name: str) -> bool:
    return name.isidentifier() and (home.root / "runs" / f"{name}.yaml").exists()


def _tell_problems(home: Home, err: TextIO) -> None:
    for problem in home.problems:
        print(f"problem: {problem}", file=err)
    for warning in home.warnings:
        print(f"warning: {warning}", file=err)


def _rows_in_words(answers: Answers) -> str:
    parts = [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in sorted(answers.outcomes.items())]
    return f"{_count(answers.rows, 'data row')} ({', '.join(parts) or 'none answered'})"


def _calls_in_words(summary: Summary, answers: Answers) -> str:
    if not summary.calls and not summary.failures and summary.reused == answers.rows:
        return "0 calls: every row had its answer"
    again = f", {_count(summary.repeated, 'call')} repeated" if summary.repeated else ""
    return f"{_count(summary.calls, 'call')}, {_count(summary.reused, 'answer')} reused{again}"


def _stopped_in_words(places: Places) -> str:
    return (
        f"stopped. Slices that were done are in {places.warehouse}, every other answer that came is in "
        f"{places.ledger}: the same command goes on where this one stopped"
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


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
