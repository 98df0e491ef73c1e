"""Label Studio: tasks with predictions, and the labeling configuration of a project for them.

Coordinates are percent of the picture, offsets UTF-16 code units, masks brush run lengths. A prediction's `score`, by
which the data manager sorts, is the lowest of its regions'. Pictures are referred to: URLs as they are, local files by
`/data/local-files/?d=`, which Label Studio serves where `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT` is `/`. Texts stand in
the tasks. A data row in which nothing was found has a prediction without regions.

Written here: its own exporters write annotations, not predictions, and `mask2rle` makes masks of 0 and 1 invisible.
Source: Label Studio's documentation, guide/predictions and tags.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import quote

import orjson

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, rle_of
from foundry_pipeline.exports.brush import brush_rle
from foundry_pipeline.exports.documents import Document, Utf16, read_documents, span_of
from foundry_pipeline.exports.format import ALL_MEDIA, Export, Exporter, Rendered
from foundry_pipeline.exports.label_studio_config import LABEL_TAGS, OBJECTS, LabelingConfig, Path, control_name
from foundry_pipeline.exports.pictures import (
    Size,
    box_in_picture,
    mask_obstacle,
    picture_size,
    point_in_picture,
    ring_in_picture,
)
from foundry_pipeline.exports.shards import Shards
from foundry_pipeline.exports.tally import Change, Loss, RowLoss, Tally
from foundry_pipeline.exports.units import Unit, units_of, within_limit
from foundry_pipeline.exports.xml_text import count_unsafe, xml_safe
from foundry_pipeline.home import Run
from foundry_pipeline.rows.media import TEXT_LIKE
from foundry_pipeline.tables import EDGES, ENTITIES, MASKS, TEXTS

POINT_WIDTH_PERCENT = 0.5
DIRECTIONS = {"unidirectional": "right", "bidirectional": "bi"}
ANSWERS = frozenset({"classifications", "texts"})

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Region:
    """What a region and the answers about it share: which table's labels it has, and the place it is at."""

    id: str
    table: str
    place: Json
    frame: Json
    """The picture's size; empty on texts."""


def render(export: Export, _config: LabelingConfig, annotated: AnnotatedRow) -> Rendered | None:
    """The task of one answered data row, and the questions that its prediction answers."""
    if not annotated.answered:
        export.tally.leave_row_out(annotated, RowLoss.NOT_ANSWERED)
        return None
    documents = read_documents(export, annotated) if annotated.row.media_type in TEXT_LIKE else []
    if documents is None:
        return None
    task = _Task(annotated, documents, picture_size(annotated), export.tally)
    regions = list(task.regions())
    if not export.takes(annotated, written=bool(regions)):
        return None
    return Rendered(annotated.split, (orjson.dumps(task.json(export.run.model.name, regions)),), {"asked": task.asked})


def write(_run: Run, config: LabelingConfig, rows: Iterable[Rendered], folder: FilePath) -> None:
    """Write the files into `folder`. Memory holds the questions with their answers."""
    with Shards(folder, "tasks", ".json", head=b"[\n", between=b",\n", tail=b"\n]\n", always=True) as files:
        for rendered in rows:
            files.add(*rendered.contents)
            for question in rendered.about["asked"]:
                config.add(tuple(question.pop("path")), **question)
    (folder / "labeling_config.xml").write_bytes(config.xml())


@dataclass(frozen=True, slots=True)
class _Task:
    """One answered data row, with its texts where its media type has some."""

    annotated: AnnotatedRow
    documents: Sequence[Document]
    size: Size | None
    tally: Tally
    asked: list[Json] = field(default_factory=list)
    """What `LabelingConfig.add` takes, for each question that was answered."""

    def json(self, model: str, regions: Sequence[Json]) -> Json:
        """The task, with one prediction."""
        row = self.annotated.row
        scores = [region["score"] for region in regions if "score" in region]
        prediction = {"model_version": model, **({"score": min(scores)} if scores else {}), "result": regions}
        data = {self._to_name: self._content(), "global_key": row.global_key, "data_row_id": row.data_row_id}
        if self.annotated.split is not None:
            data["split"] = self.annotated.split
        return {"data": data, "predictions": [prediction]}

    def regions(self) -> Iterator[Json]:
        """The result of its prediction; what Label Studio cannot hold is counted."""
        kept: list[tuple[Unit, Json]] = []
        for unit in within_limit(units_of(self.annotated.predictions), self.tally):
            place = self._place(unit[0])
            if isinstance(place, Loss):
                self.tally.leave_out_all(unit, place)
            else:
                kept.append((unit, place))
        written = {unit[0].values["prediction_id"] for unit, _ in kept if unit[0].table in self._label_tags}
        for unit, place in kept:
            if unit[0].table in ANSWERS:
                yield from self._answer(unit, (), None)
            elif unit[0].table == EDGES.name:
                yield from self._relation(unit[0], written)
            else:
                yield from self._region(unit[0], place)

    @property
    def _to_name(self) -> str:
        return OBJECTS[self.annotated.row.media_type][0]

    @property
    def _label_tags(self) -> Mapping[str, str]:
        return LABEL_TAGS[self.annotated.row.media_type]

    def _content(self) -> object:
        row = self.annotated.row
        if row.media_type == "conversational":
            return [{"author": message.speaker, "text": message.text} for message in self.documents]
        if self.documents:
            return self.documents[0].text
        is_local = row.row_data.startswith("/")
        return f"/data/local-files/?d={quote(row.row_data.lstrip('/'))}" if is_local else row.row_data

    def _place(self, prediction: Prediction) -> Json | Loss:
        """Where a region lies, in Label Studio's units; nothing for answers and relations."""
        values = prediction.values
        if prediction.table in ANSWERS:
            about_a_part = values["frame"] is not None or values["message_id"] is not None
            return Loss.KIND_NOT_REPRESENTABLE if about_a_part else {}
        if prediction.table == EDGES.name:
            return {}
        if prediction.table not in self._label_tags:
            return Loss.KIND_NOT_REPRESENTABLE
        if prediction.table == ENTITIES.name:
            return self._span(prediction)
        if self.size is None:
            return Loss.PICTURE_SIZE_UNKNOWN
        return PLACES[prediction.table](prediction, self.size, self.tally)

    def _span(self, prediction: Prediction) -> Json | Loss:
        span = span_of(prediction, self.documents)
        if isinstance(span, Loss):
            return span
        document = self.documents[span.place]
        units, text = Utf16(document.text), document.text[span.start : span.end]
        start, end = units.offset(span.start), units.offset(span.end)
        if document.message_id is None:
            return {"start": start, "end": end, "text": text}
        place = str(span.place)
        return {"start": place, "end": place, "startOffset": start, "endOffset": end, "text": text}

    def _region(self, prediction: Prediction, place: Json) -> Iterator[Json]:
        kind = self._label_tags[prediction.table].lower()
        frame: Json = {}
        if self.size is not None and prediction.table != ENTITIES.name:
            frame = {"original_width": self.size[0], "original_height": self.size[1], "image_rotation": 0}
        shared = {} if prediction.table == MASKS.name else place  # run lengths need not be there once an answer
        region = _Region(prediction.values["prediction_id"], prediction.table, shared, frame)
        count_unsafe(prediction, [prediction.feature], self.tally)
        labeled = place | {kind: [xml_safe(prediction.feature)]}
        yield self._result(region.id, kind, prediction.table, frame, labeled) | _score([prediction], self.tally)
        for unit in units_of(prediction.nested):
            yield from self._answer(unit, (prediction.feature,), region)

    def _answer(self, unit: Unit, about: Path, region: _Region | None) -> Iterator[Json]:
        """The answer to one question, about a region or about the data row, and then those nested under it."""
        first, path = unit[0], (*about, unit[0].feature)
        is_text, answers = first.table == TEXTS.name, [p.values["answer"] for p in unit]
        is_multiple = first.values.get("kind") == "checklist"
        table = None if region is None else region.table
        about_it = {"table": table, "is_text": is_text, "is_multiple": is_multiple}
        self.asked.append({"path": path, **about_it, "answers": [] if is_text else answers})
        name = control_name(path, is_text=is_text)
        said = {"text": answers} if is_text else {"choices": [self._option(p) for p in unit]}
        place, frame = ({}, {}) if region is None else (region.place, region.frame)
        result_id = first.values["prediction_id"] if region is None else region.id
        kind = "textarea" if is_text else "choices"
        yield self._result(result_id, kind, name, frame, place | said) | _score(unit, self.tally)
        for prediction in unit:
            for nested in units_of(prediction.nested):
                yield from self._answer(nested, (*path, prediction.values["answer"]), region)

    def _option(self, prediction: Prediction) -> str:
        count_unsafe(prediction, [prediction.values["answer"]], self.tally)
        return xml_safe(prediction.values["answer"])

    def _result(self, result_id: str, kind: str, from_name: str, frame: Json, value: Json) -> Json:
        names = {"id": result_id, "type": kind, "from_name": from_name, "to_name": self._to_name}
        return names | frame | {"value": value}

    def _relation(self, edge: Prediction, written: Collection[str]) -> Iterator[Json]:
        values = edge.values
        if not {values["source_id"], values["target_id"]} <= set(written):
            self.tally.leave_out(edge, Loss.RELATIONSHIP_ENDPOINT_MISSING)
            return
        count_unsafe(edge, [edge.feature], self.tally)
        if values["score"] is not None:
            self.tally.change(edge, Change.SCORE_NOT_REPRESENTABLE)
        ends = {"from_id": values["source_id"], "to_id": values["target_id"]}
        yield {"type": "relation", **ends, "direction": DIRECTIONS[values["type"]], "labels": [xml_safe(edge.feature)]}


def _score(unit: Sequence[Prediction], tally: Tally) -> Json:
    """One score for all chosen answers of a checklist: the lowest. Others are counted."""
    lowest = min((p.values["score"] for p in unit if p.values["score"] is not None), default=None)
    for prediction in unit:
        if prediction.values["score"] not in (None, lowest):
            tally.change(prediction, Change.SCORE_NOT_REPRESENTABLE)
    return {} if lowest is None else {"score": lowest}


def _box(prediction: Prediction, size: Size, tally: Tally) -> Json | Loss:
    ltwh = box_in_picture(prediction, size, tally)
    if isinstance(ltwh, Loss):
        return ltwh
    left, top, width, height = ltwh
    corner = {"x": 100 * left / size[0], "y": 100 * top / size[1]}
    return corner | {"width": 100 * width / size[0], "height": 100 * height / size[1], "rotation": 0}


def _polygon(prediction: Prediction, size: Size, tally: Tally) -> Json | Loss:
    ring = ring_in_picture(prediction, size, tally)
    return ring if isinstance(ring, Loss) else {"points": (100 * ring / size).tolist(), "closed": True}


def _point(prediction: Prediction, size: Size, _: Tally) -> Json | Loss:
    point = point_in_picture(prediction.values, size)
    if isinstance(point, Loss):
        return point
    return {"x": 100 * point[0] / size[0], "y": 100 * point[1] / size[1], "width": POINT_WIDTH_PERCENT}


def _mask(prediction: Prediction, size: Size, _: Tally) -> Json | Loss:
    return mask_obstacle(prediction, size) or {"format": "rle", "rle": brush_rle(rle_of(prediction.values))}


PLACES: Mapping[str, Callable[[Prediction, Size, Tally], Json | Loss]] = {
    "boxes": _box,
    "masks": _mask,
    "polygons": _polygon,
    "points": _point,
}

EXPORTER = Exporter(
    name="label_studio",
    version=1,
    media_types=ALL_MEDIA,
    conventions={
        "coordinates": "percent of the width and height of the picture as displayed, clipped to it",
        "offset_unit": "utf16",
        "entity_start": "inclusive, from 0; in a conversation within its message",
        "entity_end": "exclusive",
        "mask": "brush run lengths of RGBA bytes, set pixels 255",
        "score": "of each region; of the prediction the lowest; left out where the model gave none",
        "pictures": "URLs as they are; local files as /data/local-files/?d=<absolute path without its first slash>",
        "id": "prediction_id; importing twice makes second tasks",
        "limits": "5,000 annotations of one feature on one data row: those of the highest scores",
    },
    split="the field split of a task's data, which the data manager shows and filters by",
    plan=LabelingConfig,
    render=render,
    write=write,
)
