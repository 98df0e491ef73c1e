"""One Dagster run at a time, in this process: what a worker of the command line does.

A worker may be a thread or a process. It hears of a stop from its event: signals go to the command, and Dagster takes
them over while it works on the main thread.
"""

import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from assets.code_location import code_location
from assets.instance import PROCESS, open_instance, sign_of_life
from assets.keys import invoke_op_name
from assets.outcomes import ALL_SLICES, FAILURES, materialized_in
from assets.partitions import range_tags
from foundry_pipeline.home import Home
from foundry_pipeline.invoke import CallOptions, Progress, SliceReport
from foundry_pipeline.rows.datasets import DatasetReport, LoadProgress
from resources import Listener, Places

BLOCKED = "DagsterAssetCheckFailedError"
INTERRUPTS = {"KeyboardInterrupt", "DagsterExecutionInterruptedError"}


@dataclass(frozen=True, slots=True)
class Task:
    """One Dagster run: assets of a job, on neighbouring slices; no slices where the assets have none."""

    job: str
    keys: tuple[tuple[str, ...], ...]
    slices: tuple[str, ...] = ()
    options: CallOptions | None = None
    """What is asked again, where the task calls."""


@dataclass(frozen=True, slots=True)
class Result:
    """What Dagster recorded. `done` holds (asset key, slice key or None); `failures` is slice key, or ALL_SLICES,
    -> why; `checks` is check -> its words, of those that are over their limit."""

    task: Task
    done: frozenset[tuple[dg.AssetKey, str | None]] = frozenset()
    failures: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False
    told: int = 0
    """News that were sent while it was worked on."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A slice's tables are written."""

    slice_key: str


Event = LoadProgress | DatasetReport | Progress | SliceReport | Decoded


@dataclass(frozen=True, slots=True)
class News:
    """Something a worker tells the command while it works on `task`."""

    task: Task
    what: Event


class Stop(Protocol):
    """threading.Event, or the one of multiprocessing."""

    def is_set(self) -> bool:
        """True once everybody is to stop."""


class Messenger(Listener):
    """Hands the news on, and is where a step hears that it is to stop: it is asked a few times a second."""

    task: Task
    """What the worker works on now."""
    told: int

    def __init__(self, tell: Callable[[News], None], stop: Stop) -> None:
        self._tell = tell
        self._stop = stop

    def on_load(self, progress: LoadProgress) -> None:
        """Hand on."""
        self._hand_on(progress)

    def on_loaded(self, report: DatasetReport) -> None:
        """Hand on."""
        self._hand_on(report)

    def on_calls(self, progress: Progress) -> None:
        """Hand on."""
        self._hand_on(progress)

    def on_slice(self, run: str, report: SliceReport) -> None:  # noqa: ARG002, the report's task knows the run
        """Hand on."""
        self._hand_on(report)

    def on_decoded(self, run: str, slice_key: str) -> None:  # noqa: ARG002, the task knows the run
        """Hand on."""
        self._hand_on(Decoded(slice_key))

    def _hand_on(self, what: Event) -> None:
        self._tell(News(self.task, what))
        self.told += 1
        self._obey()

    def _obey(self) -> None:
        parent = multiprocessing.parent_process()
        if self._stop.is_set() or (parent is not None and not parent.is_alive()):
            raise KeyboardInterrupt


class Worker:
    """Executes tasks of one home, against the persistent instance."""

    def __init__(
        self, home: Home, places: Places, tell: Callable[[News], None], stop: Stop, *, verbose: bool = False
    ) -> None:
        self._home = home
        self._places = places
        self._messenger = Messenger(tell, stop)
        self._stop = stop
        self._verbose = verbose

    @cached_property
    def _definitions(self) -> dg.Definitions:
        logging.getLogger("assets.code_location").disabled = True  # the command has said what is wrong
        return code_location(self._home, self._places, {"listener": self._messenger})

    def execute(self, task: Task) -> Result:
        """Execute the task as the UI would. A failure is a result; a stop is one, too."""
        if self._stop.is_set():
            return Result(task, interrupted=True)
        job = self._definitions.resolve_job_def(task.job)
        self._messenger.task, self._messenger.told = task, 0
        with open_instance(self._places) as instance, sign_of_life(self._places) as name:
            result = job.execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey(list(key)) for key in task.keys],
                tags={PROCESS: name, **(range_tags(task.slices) if task.slices else {})},
                run_config={**({} if self._verbose else _SILENT), **_call_config(task)},
                raise_on_error=False,
            )
            return replace(_result(task, result, instance), told=self._messenger.told)


def _call_config(task: Task) -> dict[str, Any]:
    """The launchpad's words for the task's options."""
    if task.options is None:
        return {}
    asked = {"refresh": task.options.refresh, "retry": task.options.retry}
    return {"ops": {invoke_op_name(task.job): {"config": asked}}}


_SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _result(task: Task, result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> Result:
    evaluations = result.get_asset_check_evaluations()
    done = frozenset(materialized_in(instance, result.run_id))
    found = Result(task, done, checks=dict(line for evaluation in evaluations for line in over_in_words(evaluation)))
    for event in result.filter_events(lambda event: event.is_step_failure):
        data = event.step_failure_data
        metadata = data.user_failure_data.metadata if data.user_failure_data else {}
        if FAILURES in metadata:
            found = replace(found, failures={**found.failures, **_failures(metadata[FAILURES])})
        elif data.error is not None and _names(data.error) & INTERRUPTS:
            found = replace(found, interrupted=True)
        elif data.error is not None and BLOCKED in _names(data.error):
            held = ", ".join(_name(one) for one in evaluations if one.blocking and not one.passed)
            why = f"what is made of it is held back by a check that blocks: {held}"
            found = replace(found, failures={**found.failures, ALL_SLICES: why})
        else:
            found = replace(found, failures={**found.failures, ALL_SLICES: _in_words(data.error)})
    if not result.success and not found.failures and not found.interrupted:
        return replace(found, failures={ALL_SLICES: "the Dagster run failed; the UI shows its log"})
    return found


def over_in_words(evaluation: dg.AssetCheckEvaluation) -> Iterator[tuple[str, str]]:
    """(check, severity and words) of a check that is over its limit; nothing of one that only notes something."""
    number, limit = (evaluation.metadata.get(name) for name in ("number", "limit"))
    is_error = evaluation.severity == dg.AssetCheckSeverity.ERROR
    is_over = number is not None and limit is not None and float(str(number.value)) > float(str(limit.value))
    if not evaluation.passed and (is_error or is_over):
        yield _name(evaluation), f"{'error' if is_error else 'warning'}: {evaluation.description}"


def _name(evaluation: dg.AssetCheckEvaluation) -> str:
    return f"{evaluation.asset_key.path[-1]}/{evaluation.check_name}"


def _failures(metadata: dg.MetadataValue) -> Mapping[str, str]:
    assert isinstance(metadata, dg.JsonMetadataValue) and isinstance(metadata.value, Mapping)
    return {str(slice_key): str(why) for slice_key, why in metadata.value.items()}


def _chain(error: SerializableErrorInfo) -> Sequence[SerializableErrorInfo]:
    return [error, *(_chain(error.cause) if error.cause is not None else [])]


def _names(error: SerializableErrorInfo) -> set[str | None]:
    return {one.cls_name for one in _chain(error)}


def _in_words(error: SerializableErrorInfo | None) -> str:
    """What was raised at first: Dagster wraps it in errors of its own."""
    if error is None:
        return "the step failed"
    message = _chain(error)[-1].message.strip()
    return message.partition(": ")[2] if message.startswith("foundry_pipeline.") else message
