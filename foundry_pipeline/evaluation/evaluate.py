"""A run against its dataset's ground truth: the way in. Writes the tables `metrics` and `matches` and one HTML report.

Only data rows count that a person has looked at and the model has answered. Features are compared under the run's
`ontology_mapping`; what it maps to null is not compared. AP and AR see every score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pyarrow as pa

from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.decode import tables_needed
from foundry_pipeline.errors import ConfigError, Problem
from foundry_pipeline.evaluation.annotation_truth import annotation_truth
from foundry_pipeline.evaluation.answers import FoundAnswer, evaluate_choices, evaluate_texts
from foundry_pipeline.evaluation.coco_truth import coco_truth
from foundry_pipeline.evaluation.detection import FoundObject, evaluate_objects
from foundry_pipeline.evaluation.measures import Findings, Measure, Verdict
from foundry_pipeline.evaluation.spans import FoundEntity, evaluate_entities
from foundry_pipeline.evaluation.truth import TrueAnswer, TrueEntity, TrueObject, Truth
from foundry_pipeline.exports.annotated import rle_of
from foundry_pipeline.exports.rows import upright
from foundry_pipeline.home import Dataset, Run
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.store import Store, Written
from foundry_pipeline.tables import (
    BOXES,
    CLASSIFICATIONS,
    DATA_ROWS,
    ENTITIES,
    MASKS,
    MATCHES,
    METRICS,
    RESPONSES,
    TEXTS,
    TableSpec,
    build,
)

WHOLE_RUN = "all"
"""The one slice of the tables that are about a whole run."""
_ENTITY_COLUMNS = ("prediction_id", "global_key", "start", "end", "message_id", "score")
_ANSWER_COLUMNS = ("prediction_id", "global_key", "answer", "score", "frame", "message_id")

TrueThing = TrueObject | TrueEntity | TrueAnswer
Thing = TypeVar("Thing", TrueObject, TrueEntity, TrueAnswer)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good a run is. Counts are data rows: compared; annotated by a person but without a good answer."""

    run: str
    compared: int
    unanswered: int
    findings: Findings
    truth: Truth
    written: Mapping[str, Written]


def evaluate_run(run: Run, store: Store, ground_truth: Callable[[Sequence[DataRow]], Truth]) -> Evaluation:
    """Compare all answered slices of the run, and commit `metrics` and `matches`.

    `ground_truth` gives the truth for the dataset's rows (`read_truth` with the file's content). Raises ConfigError
    where the file is wrong, or is about none of the dataset's data rows.
    """
    truth = ground_truth(list(_data_rows(store, run.dataset)))
    answered = _answered(store, run)
    if not truth.rows:
        raise ConfigError([_about_other_rows(run, truth)])
    rows = sorted(truth.rows & answered.keys())
    findings = _findings(run, store, truth, rows, answered) if rows else Findings(notes=("no data row has both",))
    written = store.commit(run.name, WHOLE_RUN, _tables(run, findings))
    return Evaluation(run.name, len(rows), len(truth.rows - answered.keys()), findings, truth, written)


def read_truth(content: bytes, file: str, rows: Sequence[DataRow]) -> Truth:
    """The ground truth in a file's content: COCO instances, annotation NDJSON, or an export v2. Raises ConfigError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ConfigError([Problem(file, f"not UTF-8: byte {err.start}")]) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None  # several lines, each a document of its own
    if isinstance(document, dict) and "annotations" in document and "images" in document:
        return coco_truth(document, file, [row.global_key for row in rows])
    return annotation_truth(text.split("\n"), file, rows)


def _findings(
    run: Run, store: Store, truth: Truth, rows: Sequence[str], frames: Mapping[str, Sequence[int]]
) -> Findings:
    """`frames` are those of each data row, a video, that the model has answered."""
    truth = truth.in_frames(frames)
    predictions = _Predictions(run, store, frozenset(rows))
    found = Findings(notes=tuple(predictions.notes(truth)))
    truth = predictions.comparable(truth)
    for spec, truths in ((BOXES, truth.boxes), (MASKS, truth.masks)):
        if truths and predictions.has(spec):
            objects = list(predictions.objects(spec))
            found += evaluate_objects(spec.name, truth, rows, objects, run.min_score.of, frames)
    if truth.entities and predictions.has(ENTITIES):
        found += evaluate_entities(truth.entities, list(predictions.entities()))
    if truth.choices and predictions.has(CLASSIFICATIONS):
        single = predictions.single_choices(truth)
        found += evaluate_choices(truth.choices, list(predictions.answers(CLASSIFICATIONS)), single)
    if truth.texts and predictions.has(TEXTS):
        found += evaluate_texts(truth.texts, list(predictions.answers(TEXTS)))
    return found


class _Predictions:
    """What the run said about the compared data rows, under your names, and what can be compared with it."""

    def __init__(self, run: Run, store: Store, compared: frozenset[str]) -> None:
        self._run = run
        self._store = store
        self._compared = compared
        self._tables = {spec.name for spec in tables_needed(run.model.ontology, run.model.allowed_feature_kinds)}
        ontology = run.model.ontology
        self._features = None if ontology is None else {run.feature_of(tool.name) for tool in ontology.features()}

    def has(self, spec: TableSpec) -> bool:
        """Whether the model can say such a thing at all."""
        return spec.name in self._tables

    def comparable(self, truth: Truth) -> Truth:
        """The truth about the compared data rows, and of features that the model can name."""
        category_ids = {name: number for name, number in truth.category_ids.items() if self._can_name(name)}
        return replace(
            truth,
            boxes=self._kept(truth.boxes),
            masks=self._kept(truth.masks),
            entities=self._kept(truth.entities),
            choices=self._kept(truth.choices),
            texts=self._kept(truth.texts),
            category_ids=category_ids,
        )

    def notes(self, truth: Truth) -> Iterator[str]:
        """What of the truth is not compared, and why."""
        yield from (f"ground truth: {count} x {reason}" for reason, count in sorted(truth.unused.items()))
        kinds: tuple[Iterable[TrueThing], ...] = (truth.boxes, truth.entities, truth.choices, truth.texts, truth.masks)
        named = {thing.feature for kind in kinds for thing in kind}
        if unknown := sorted(name for name in named if not self._can_name(name)):
            yield f"ground truth: the model cannot say {', '.join(unknown)}; they are not compared"

    def objects(self, spec: TableSpec) -> Iterator[FoundObject]:
        """Boxes or masks, in the order of the replies."""
        own = ["size_h", "size_w", "counts", "area"] if spec is MASKS else ["image_width", "image_height"]
        shape = ["left", "top", "width", "height", *own]
        rows = self._turned_rows()
        for values, feature in self._records(spec, ["frame", *shape]):
            row = rows.get(values["global_key"])
            record = values if row is None else upright(self._run, row, spec.name, values)
            box = (record["left"], record["top"], record["width"], record["height"])
            rle = rle_of(record) if spec is MASKS else None
            key, frame = record["global_key"], record["frame"]
            yield FoundObject(record["prediction_id"], key, feature, record["score"], box, rle, frame)

    def entities(self) -> Iterator[FoundEntity]:
        """Those that the run's `min_score` lets pass."""
        for record, feature in self._records(ENTITIES, ["start", "end", "message_id"]):
            if record["score"] is None or record["score"] >= self._run.min_score.of(feature):
                yield FoundEntity(feature=feature, **{name: record[name] for name in _ENTITY_COLUMNS})

    def answers(self, spec: TableSpec) -> Iterator[FoundAnswer]:
        """Answers about data rows, frames and messages; those about an object or answer are none of these."""
        columns = ["answer", "parent_id", "message_id", "frame"]
        for record, feature in self._records(spec, columns):
            if record["parent_id"] is None:
                said = {name: record[name] for name in _ANSWER_COLUMNS}
                yield FoundAnswer(feature=feature, **said)

    def single_choices(self, truth: Truth) -> frozenset[str]:
        """Questions with one answer: as the ontology says, else as no data row in the truth has two."""
        ontology = self._run.model.ontology
        if ontology is not None:
            radios = (c.name for c in ontology.classifications if c.kind is FeatureKind.RADIO)
            return frozenset(name for radio in radios if (name := self._run.feature_of(radio)) is not None)
        several = {choice.feature for choice in truth.choices if len(choice.answers) != 1}
        return frozenset(choice.feature for choice in truth.choices) - several

    def _turned_rows(self) -> dict[str, DataRow]:
        """The pictures that the model saw in another frame than people do."""
        if self._run.model.exif != "keep":
            return {}
        tables = self._store.read_all(DATA_ROWS, self._run.dataset.name)
        return {row.global_key: row for _, table in tables for row in rows_of(table) if row.exif_orientation}

    def _records(self, spec: TableSpec, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
        wanted = ["global_key", "prediction_id", "feature", "score", *columns]
        for _, table in self._store.read_all(spec, self._run.name, wanted):
            for record in table.to_pylist():
                feature = self._run.feature_of(record["feature"])
                if feature is not None and record["global_key"] in self._compared:
                    yield record, feature

    def _can_name(self, feature: str) -> bool:
        return self._features is None or feature in self._features

    def _kept(self, things: Sequence[Thing]) -> tuple[Thing, ...]:
        return tuple(t for t in things if t.global_key in self._compared and self._can_name(t.feature))


def _data_rows(store: Store, dataset: Dataset) -> Iterator[DataRow]:
    """The dataset's rows, as far as ground truth names them."""
    for _, table in store.read_all(DATA_ROWS, dataset.name, ["data_row_id", "global_key", "media_type"]):
        for record in table.to_pylist():
            yield DataRow(row_data="", **record)


def _answered(store: Store, run: Run) -> dict[str, list[int]]:
    """Global key of every data row that has a good answer -> the frames of a video that have one, rising."""
    columns = ["global_key", "outcome", *(["frames"] if run.dataset.media_type == "video" else [])]
    answered: dict[str, list[int]] = {}
    for _, table in store.read_all(RESPONSES, run.name, columns):
        for key, outcome, *frames in zip(*(table[name].to_pylist() for name in columns), strict=True):
            if outcome == "ok":
                of_row = answered.setdefault(key, [])
                of_row += (number for of_call in frames for number in of_call or ())
    return {key: sorted(frames) for key, frames in answered.items()}


def _about_other_rows(run: Run, truth: Truth) -> Problem:
    seen = "".join(f"; {count} x {reason}" for reason, count in sorted(truth.unused.items()))
    expected = "file names or global keys of the dataset's data rows"
    return Problem(
        run.dataset.file, f"{run.dataset.ground_truth}: expected {expected}; got none{seen}", "$.ground_truth"
    )


def _tables(run: Run, findings: Findings) -> dict[str, pa.Table]:
    same = {"run": run.name, "dataset": run.dataset.name}
    places = range(len(findings.verdicts))
    return {
        METRICS.name: _table(METRICS, findings.measures, {**same, "model": run.model.name}),
        MATCHES.name: _table(MATCHES, findings.verdicts, same, index=places),
    }


def _table(
    spec: TableSpec, items: Sequence[Measure | Verdict], same: Mapping[str, str], **given: Sequence[object]
) -> pa.Table:
    """One row an item; `same` stands in every row, `given` are whole columns."""
    columns = {name: [value] * len(items) for name, value in same.items()} | {n: list(c) for n, c in given.items()}
    said = {name: [getattr(item, name) for item in items] for name in spec.schema.names if name not in columns}
    return build(spec, columns | said)
