"""An export to the platform: what is new or failed is sent, file by file, and what became of every line is kept.

What was sent is told from what was not by the table `send_status` and, where a process was killed before it could
write there, by the import's name, which stands for what is in it: nothing is sent twice.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from foundry_pipeline.config.fields import near
from foundry_pipeline.errors import ConfigError, Problem, shown
from foundry_pipeline.exports.shards import ROWS_PER_FILE
from foundry_pipeline.home import Run
from foundry_pipeline.send.lines import Line, exported_files, splits, with_ends
from foundry_pipeline.send.platform import ImportEnd, Platform
from foundry_pipeline.store import Store
from foundry_pipeline.tables import SEND_STATUS, build

DONE = "done"
"""The step at the end of a project's workflow, which is no queue: labels there are ground truth."""
CONFLICTS = {
    "keep": "KEEP_EXISTING",
    "predictions": "OVERRIDE_WITH_PREDICTIONS",
    "annotations": "OVERRIDE_WITH_ANNOTATIONS",
}
"""What wins where a classification has an answer in the project already."""
SPLITS = {"train": "TRAINING", "val": "VALIDATION", "test": "TEST"}
NOT_SAID = "the platform said nothing about this line"
_PLACE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Annotate:
    """Where data rows of a model run go on to: a project, a step of its workflow (None: where labeling begins).

    `priority` is 1, the highest, to 5.
    """

    project: str
    step: str | None = None
    priority: int = 5
    conflict: str = "keep"
    exclude_in_project: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What a person asks for. `target` is pre_labels or ground_truth, `place` then a project's id, or model_run."""

    target: str
    place: str
    batch_priority: int | None = None
    """The data rows are put into the project first, in batches of this priority; None: they are there already."""
    annotate: Annotate | None = None


@dataclass(slots=True)
class SendReport:
    """Counts of lines: `sent` in this run, of which `failed`; `already` there; `unsendable` to this target."""

    files: int = 0
    already: int = 0
    sent: int = 0
    failed: int = 0
    unsendable: int = 0
    annotated: int = 0
    """Data rows that went on to a project."""
    messages: Counter[str] = field(default_factory=Counter)
    """What the platform said of lines that failed -> how often."""


def send_run(run: Run, store: Store, order: Order, platform: Platform | None) -> Iterator[str | SendReport]:
    """Send the run's export as `order` says: lines for people while it goes on, then the report.

    Without a platform, only what would be sent is said: nobody is contacted and nothing is written. Raises ConfigError
    where there is no export or the order cannot be; EndpointStopped where going on is pointless: what is done is kept.
    """
    _check(run, order)
    sender = _Sender(run, store, order, platform)
    step = None if order.annotate is None else sender.step(order.annotate)
    yield from sender.send_files()
    if order.annotate is not None and step is not None:
        yield from sender.send_on(order.annotate, step)
    yield sender.report


def _check(run: Run, order: Order) -> None:
    faults = [f"{shown(place)} is no id" for place in _places(order) if not _PLACE.fullmatch(place)]
    if order.annotate is not None and order.target != "model_run":
        faults.append("only the data rows of a model run are sent on to a project")
    if order.annotate is not None and not (run.project and run.project.schema_ids()):
        faults.append("sending on to a project needs `ontology` in the run: its schema ids say what goes where")
    if order.batch_priority is not None and order.target == "model_run":
        faults.append("batches are for projects")
    if faults:
        raise ConfigError(Problem(run.file, fault) for fault in faults)


def _places(order: Order) -> list[str]:
    return [order.place] + ([order.annotate.project] if order.annotate else [])


class _Sender:
    """One sending of one run."""

    def __init__(self, run: Run, store: Store, order: Order, platform: Platform | None) -> None:
        self._run, self._store, self._order, self._platform = run, store, order, platform
        self._statuses = _Statuses(run, store)
        self._splits = splits(run, store) if order.target == "model_run" else {}
        self.report = SendReport()

    def send_files(self) -> Iterator[str]:
        """Every file of the export."""
        for number, lines in enumerate(exported_files(self._run, self._store), 1):
            yield from self._send_file(number, lines)

    def _send_file(self, number: int, lines: list[Line]) -> Iterator[str]:
        order, report = self._order, self.report
        report.files += 1
        sendable = [line for line in lines if not line.ends or order.target == "pre_labels"]
        report.unsendable += len(lines) - len(sendable)
        known = self._statuses.of(order.target, order.place, [line.uuid for line in sendable])
        pending = [line for line in sendable if not _is_in(known.get(line.uuid), line)]
        report.already += len(sendable) - len(pending)
        if not pending:
            return
        report.sent += len(pending)
        pending = with_ends(pending, sendable)
        name = self._name(pending, known)
        rows = list(dict.fromkeys(line.global_key for line in pending))
        yield f"file {number}: {len(pending)} lines of {len(rows)} data rows as {name}"
        if self._platform is not None:
            self._prepare(self._platform, name, rows, [line for line in pending if line.uuid not in known])
            content = b"".join(line.content + b"\n" for line in pending)
            end = self._platform.run_import(order.target, order.place, name, content)
            self._keep(self._platform, name, pending, end, known)

    def _prepare(self, platform: Platform, name: str, rows: Sequence[str], new: Sequence[Line]) -> None:
        """The data rows are where their lines can find them."""
        order = self._order
        if order.target == "model_run":
            platform.register_rows(order.place, rows)
            for part, split in SPLITS.items():
                if of_part := [key for key in rows if self._splits.get(key) == part]:
                    platform.assign_split(order.place, split, of_part)
        elif order.batch_priority is not None and new:
            keys = list(dict.fromkeys(line.global_key for line in new))
            platform.create_batch(order.place, name, keys, order.batch_priority)

    def _name(self, pending: Iterable[Line], known: Mapping[str, Mapping[str, Any]]) -> str:
        """Of the import: the same for the same lines and attempts, whoever asks; another for every other."""
        digest = hashlib.sha256(f"{self._order.target} {self._order.place}".encode())
        for line in pending:
            attempts = known.get(line.uuid, {}).get("attempts", 0)
            digest.update(f"\n{line.uuid} {line.sha256} {attempts}".encode())
        return f"{self._run.name}-{digest.hexdigest()[:16]}"

    def _keep(
        self,
        platform: Platform,
        name: str,
        pending: Sequence[Line],
        end: ImportEnd,
        known: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """What became of the lines, into the table."""
        records = []
        for line in pending:
            message = end.said.get(line.uuid, f"{NOT_SAID}; its import is {end.state}")
            if message is not None:
                self.report.failed += 1
                self.report.messages[message] += 1
            head = _head(self._run, self._order.target, self._order.place)
            about = {"uuid": line.uuid, "global_key": line.global_key, "feature": line.feature}
            sent = {"line_sha256": line.sha256, "import_name": name, "message": message}
            attempts = known.get(line.uuid, {}).get("attempts", 0) + 1
            status = "success" if message is None else "failed"
            records.append(head | about | sent | _when(platform, status, attempts))
        self._statuses.write(records)

    def send_on(self, annotate: Annotate, step: Mapping[str, str]) -> Iterator[str]:
        """The data rows that have a line in the model run go on to the project, 1,000 at a time."""
        rows = self._statuses.rows_in(self._order.target, self._order.place)
        if self._platform is None:  # nothing is there yet: those that would be
            rows = list(
                dict.fromkeys(line.global_key for file in exported_files(self._run, self._store) for line in file)
            )
        known = self._statuses.of("annotate", annotate.project, rows)
        pending = [key for key in rows if known.get(key, {}).get("status") != "success"]
        for first in range(0, len(pending), ROWS_PER_FILE):
            some = pending[first : first + ROWS_PER_FILE]
            self.report.annotated += len(some)
            to = annotate.step or "where labeling begins"
            yield f"{len(some)} data rows on to project {annotate.project}, {to}, priority {annotate.priority}"
            if self._platform is not None:
                self._send_rows(self._platform, annotate, step, some, known)

    def _send_rows(
        self,
        platform: Platform,
        annotate: Annotate,
        step: Mapping[str, str],
        keys: Sequence[str],
        known: Mapping[str, Mapping[str, Any]],
    ) -> None:
        name = f"{self._run.name}-{hashlib.sha256(chr(10).join(keys).encode()).hexdigest()[:16]}"
        begun_before = any(key in known for key in keys)  # a killed process may have sent them: not into it again
        self._keep_rows(platform, annotate, name, keys, "begun", known)
        assert self._run.project is not None
        platform.send_to_annotate(
            {
                "destinationProjectId": annotate.project,
                "batchInput": {"batchName": name, "batchPriority": annotate.priority},
                "destinationTaskQueue": dict(step),
                "excludeDataRowsInProject": annotate.exclude_in_project or begun_before,
                "annotationsInput": None,
                "predictionsInput": {
                    "featureSchemaIdsMapping": {one: one for one in self._run.project.schema_ids()},
                    "modelRunId": self._order.place,
                    "minConfidence": 0,
                    "maxConfidence": 1,
                },
                "conflictLabelsResolutionStrategy": CONFLICTS[annotate.conflict],
                "searchQuery": [{"type": "global_key", "operator": "is", "ids": list(keys)}],
                "sourceModelRunId": self._order.place,
            }
        )
        self._keep_rows(platform, annotate, name, keys, "success", known)

    def _keep_rows(
        self,
        platform: Platform,
        annotate: Annotate,
        name: str,
        keys: Sequence[str],
        status: str,
        known: Mapping[str, Mapping[str, Any]],
    ) -> None:
        head = _head(self._run, "annotate", annotate.project)
        sent = {"feature": None, "line_sha256": "", "import_name": name, "message": None}
        self._statuses.write(
            [
                head
                | {"uuid": key, "global_key": key}
                | sent
                | _when(platform, status, known.get(key, {}).get("attempts", 0) + 1)
                for key in keys
            ]
        )

    def step(self, annotate: Annotate) -> Mapping[str, str]:
        """The destination in the platform's own words. Raises ConfigError where the project has no such step."""
        if self._platform is None or (annotate.step or "").lower() == DONE:
            return {"type": "done"}
        queues = self._platform.task_queues(annotate.project)
        for queue in queues:
            is_first = annotate.step is None and queue["queueType"] == "INITIAL_LABELING_QUEUE"
            if is_first or (annotate.step or "").lower() == str(queue["name"]).lower():
                return {"type": "id", "value": queue["id"]}
        names = [str(queue["name"]) for queue in queues]
        hint = near(annotate.step or "", names) or f"; there is {', '.join([*names, DONE])}"
        message = f"the project {annotate.project} has no step {shown(annotate.step or 'for initial labeling')}{hint}"
        raise ConfigError([Problem(self._run.file, message)])


def _head(run: Run, target: str, place: str) -> dict[str, Any]:
    return {"run": run.name, "target": target, "place": place}


def _when(platform: Platform, status: str, attempts: int) -> dict[str, Any]:
    return {"status": status, "attempts": attempts, "sent_at": datetime.fromtimestamp(platform.clock(), UTC)}


def _is_in(known: Mapping[str, Any] | None, line: Line) -> bool:
    """Whether the line, as it is now, is on the platform."""
    return known is not None and known["status"] == "success" and known["line_sha256"] == line.sha256


class _Statuses:
    """The table `send_status` of one run. A slice is an import; of a line that went with several, the last counts."""

    def __init__(self, run: Run, store: Store) -> None:
        self._run, self._store = run, store
        self._before: dict[tuple[str, str], pl.DataFrame] = {}

    def of(self, target: str, place: str, uuids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """uuid -> what was known of it before this sending, for those of which something was."""
        if (target, place) not in self._before:
            self._before[target, place] = self._read(target, place)
        before = self._before[target, place]
        found = before.filter(pl.col("uuid").is_in(pl.Series(uuids, dtype=pl.String).implode()))
        return {row["uuid"]: row for row in found.to_dicts()}

    def rows_in(self, target: str, place: str) -> list[str]:
        """The data rows with a line that is in, in the order of their keys."""
        found = self._read(target, place).filter(pl.col("status") == "success")
        keys: list[str] = found["global_key"].unique().sort().to_list()
        return keys

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """What became of one import: all of its lines."""
        columns = {name: [record[name] for record in records] for name in SEND_STATUS.schema.names}
        first = records[0]
        slice_key = f"{first['target']}-{first['place']}-{first['import_name']}"
        self._store.commit(self._run.name, slice_key, {SEND_STATUS.name: build(SEND_STATUS, columns)})

    def _read(self, target: str, place: str) -> pl.DataFrame:
        """The latest word on every line, by the time it was over."""
        begin = f"{target}-{place}-"
        keys = [key for key in self._store.slices(SEND_STATUS, self._run.name) if key.startswith(begin)]
        tables = [self._store.read(SEND_STATUS, self._run.name, key) for key in keys]
        whole = pa.concat_tables([SEND_STATUS.schema.empty_table(), *(t for t in tables if t is not None)])
        frame = pl.from_arrow(whole)
        assert isinstance(frame, pl.DataFrame)
        mine = frame.filter((pl.col("target") == target) & (pl.col("place") == place))
        return mine.sort("sent_at", "attempts").unique("uuid", keep="last", maintain_order=True)
