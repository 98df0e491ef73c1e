"""A Hugging Face dataset: Parquet files with the features in their metadata, and a README.md that names them.

Nothing is lost. `objects` is a structure of lists, as the hub's detection datasets have it: `bbox` is left, top, width,
height, `category` a class label; `kind`, `points`, `size_hw` and `counts` (COCO run lengths) are ours, for there is no
custom. A picture is a reference: `datasets` opens its path or URL when the column is read.

Written with pyarrow, so that nobody needs `datasets` for it.
Source: datasets 5.2.0, the metadata key `huggingface`. Versions before 4 refuse its `List`: read with pyarrow there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, kind_of, with_nested
from foundry_pipeline.exports.documents import Document, read_documents
from foundry_pipeline.exports.format import ALL_MEDIA, Export, Exporter, Rendered, parts_of
from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.pictures import box_around, ltwh_of, ring_area, ring_of
from foundry_pipeline.exports.shards import MAX_FILE_BYTES, ROWS_PER_FILE
from foundry_pipeline.exports.tally import Loss, RowLoss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.rows.media import TEXT_LIKE
from foundry_pipeline.tables import BOXES, ENTITIES, LINES, MASKS, POINTS, POLYGONS

Json = dict[str, Any]

OBJECTS = (BOXES, MASKS, POLYGONS, LINES, POINTS)
PARTS_OF_MEDIA: Mapping[str, tuple[str, ...]] = {
    "image": ("objects", "answers", "relations"),
    "text": ("entities", "answers", "relations"),
    "conversational": ("entities", "answers", "relations"),
    "html": ("answers",),
    "video": ("objects", "answers", "relations"),
}
PART_OF_TABLE: Mapping[str, str] = {
    **{spec.name: "objects" for spec in OBJECTS},
    "entities": "entities",
    "classifications": "answers",
    "texts": "answers",
    "edges": "relations",
}
SPLITS: Mapping[str | None, str] = {None: "train", "train": "train", "val": "validation", "test": "test"}
"""As the hub calls them; without a split, all of it is train."""


@dataclass(frozen=True, slots=True)
class _Feature:
    """One feature in both languages: Arrow's type, and what `datasets` calls it."""

    arrow: pa.DataType
    json: object


def _value(dtype: str, arrow: pa.DataType) -> _Feature:
    return _Feature(arrow, {"dtype": dtype, "_type": "Value"})


def _list(of: _Feature, length: int | None = None) -> _Feature:
    size = {} if length is None else {"length": length}
    return _Feature(pa.list_(of.arrow, -1 if length is None else length), {"feature": of.json, **size, "_type": "List"})


def _struct(features: Mapping[str, _Feature]) -> _Feature:
    fields = [pa.field(name, feature.arrow) for name, feature in features.items()]
    return _Feature(pa.struct(fields), {name: feature.json for name, feature in features.items()})


def _class_label(names: Sequence[str]) -> _Feature:
    return _Feature(pa.int64(), {"names": list(names), "_type": "ClassLabel"})


STRING, INT, FLOAT = _value("string", pa.string()), _value("int32", pa.int32()), _value("float64", pa.float64())
IMAGE = _Feature(pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]), {"_type": "Image"})
CONTENT: Mapping[str, Mapping[str, _Feature]] = {
    "image": {"image": IMAGE, "width": INT, "height": INT},
    "text": {"text": STRING},
    "conversational": {"messages": _list(_struct({"message_id": STRING, "speaker": STRING, "text": STRING}))},
    "html": {"text": STRING},
    "video": {"video": STRING, "width": INT, "height": INT},
}
SAME = {"id": STRING, "score": FLOAT, "frame": INT, "message_id": STRING}
"""Fields that the items of every part have."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """The columns, and the number of each class; `fields` are those of every part's items."""

    columns: Mapping[str, _Feature]
    fields: Mapping[str, Mapping[str, _Feature]]
    category_ids: Mapping[str, int]
    label_ids: Mapping[str, int]


def render(export: Export, plan: _Plan, annotated: AnnotatedRow) -> Rendered | None:
    """One answered data row as JSON, which keeps every number."""
    row = None
    if not annotated.answered:
        export.tally.leave_row_out(annotated, RowLoss.NOT_ANSWERED)
    elif annotated.row.media_type != export.run.dataset.media_type:
        export.tally.leave_row_out(annotated, RowLoss.OTHER_MEDIA_TYPE, Loss.NOT_IMPORTABLE_FOR_MEDIA)
    else:
        row = _row(export, plan, annotated)
    return None if row is None else Rendered(annotated.split, (orjson.dumps(row),), {})


def write(run: Run, plan: _Plan, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`. Memory holds the data rows of one file, of each part of the run's split."""
    (folder / "data").mkdir()
    with ExitStack() as stack:
        files = {part: stack.enter_context(_Files(folder / "data", SPLITS[part], plan)) for part in parts_of(run)}
        for rendered in rows:
            (row,) = rendered.contents
            files[rendered.split].add(orjson.loads(row), len(row))
    (folder / "README.md").write_bytes(_readme(run))


def _plan(run: Run, overview: Overview) -> _Plan:
    categories, labels = overview.feature_names(OBJECTS), overview.feature_names([ENTITIES])
    fields_of: Mapping[str, Mapping[str, _Feature]] = {
        "objects": {
            "category": _class_label(categories),
            "kind": STRING,
            "bbox": _list(FLOAT, 4),
            "area": FLOAT,
            "points": _list(_list(FLOAT, 2)),
            "size_hw": _list(INT),
            "counts": STRING,
        },
        "entities": {"label": _class_label(labels), "start": INT, "end": INT, "text": STRING},
        "answers": {"question": STRING, "answer": STRING, "kind": STRING, "parent_id": STRING},
        "relations": {"name": STRING, "source_id": STRING, "target_id": STRING, "type": STRING},
    }
    fields = {part: {**SAME, **fields_of[part]} for part in PARTS_OF_MEDIA[run.dataset.media_type]}
    parts = {part: _struct({name: _list(f) for name, f in of_part.items()}) for part, of_part in fields.items()}
    head = {"global_key": STRING, "data_row_id": STRING}
    return _Plan(
        columns={**head, **CONTENT[run.dataset.media_type], **parts},
        fields=fields,
        category_ids={name: i for i, name in enumerate(categories)},
        label_ids={name: i for i, name in enumerate(labels)},
    )


def _row(export: Export, plan: _Plan, annotated: AnnotatedRow) -> Json | None:
    """One data row, or None where its text cannot be had, or it is not to be kept."""
    documents = read_documents(export, annotated) if annotated.row.media_type in TEXT_LIKE else []
    if documents is None:
        return None
    parts: dict[str, dict[str, list[object]]] = {
        part: {field: [] for field in fields} for part, fields in plan.fields.items()
    }
    kept = [p for p in annotated.predictions if _has_a_place(plan, p, export.tally)]
    for prediction in with_nested(kept):
        for field, value in _item(plan, prediction).items():
            parts[PART_OF_TABLE[prediction.table]][field].append(value)
    if not export.takes(annotated, written=bool(kept)):
        return None
    keys = {"global_key": annotated.row.global_key, "data_row_id": annotated.row.data_row_id}
    return keys | _content(annotated, documents) | parts


def _has_a_place(plan: _Plan, prediction: Prediction, tally: Tally) -> bool:
    """Whether its media type has this part; what is nested are answers, which all have."""
    if PART_OF_TABLE[prediction.table] in plan.fields:
        return True
    tally.leave_out(prediction, Loss.NOT_IMPORTABLE_FOR_MEDIA)
    return False


def _content(annotated: AnnotatedRow, documents: Sequence[Document]) -> Json:
    row = annotated.row
    if row.media_type == "conversational":
        messages = [{"message_id": d.message_id, "speaker": d.speaker, "text": d.text} for d in documents]
        return {"messages": messages}
    if row.media_type in TEXT_LIKE:
        return {"text": documents[0].text}
    size = {"width": row.width, "height": row.height}
    if row.media_type == "image":
        return {"image": {"bytes": None, "path": row.row_data}} | size
    return {"video": row.row_data} | size


def _item(plan: _Plan, prediction: Prediction) -> Json:
    values = prediction.values
    same = {name: values[name] for name in ("score", "frame", "message_id")}
    return {"id": values["prediction_id"]} | same | ITEMS[PART_OF_TABLE[prediction.table]](plan, prediction)


def _object(plan: _Plan, prediction: Prediction) -> Json:
    shape = dict.fromkeys(("points", "size_hw", "counts"))
    about = {"category": plan.category_ids[prediction.feature], "kind": kind_of(prediction)}
    return shape | about | SHAPES[prediction.table](prediction)


def _box(prediction: Prediction) -> Json:
    ltwh = ltwh_of(prediction.values)
    return {"bbox": ltwh, "area": ltwh[2] * ltwh[3]}


def _mask(prediction: Prediction) -> Json:
    values = prediction.values
    runs = {"size_hw": [values["size_h"], values["size_w"]], "counts": values["counts"]}
    return {"bbox": ltwh_of(values), "area": values["area"], **runs}


def _polygon(prediction: Prediction) -> Json:
    ring = ring_of(prediction.values)
    box = box_around(ring) if len(ring) else (0.0, 0.0, 0.0, 0.0)
    return {"bbox": box, "area": ring_area(ring), "points": ring.tolist()}


def _line(prediction: Prediction) -> Json:
    return _polygon(prediction) | {"area": 0.0}


def _point(prediction: Prediction) -> Json:
    x, y = prediction.values["x"], prediction.values["y"]
    return {"bbox": (x, y, 0.0, 0.0), "area": 0.0, "points": [[x, y]]}


SHAPES: Mapping[str, Callable[[Prediction], Json]] = {
    "boxes": _box,
    "masks": _mask,
    "polygons": _polygon,
    "lines": _line,
    "points": _point,
}


def _entity(plan: _Plan, prediction: Prediction) -> Json:
    place = {name: prediction.values[name] for name in ("start", "end", "text")}
    return {"label": plan.label_ids[prediction.feature]} | place


def _answer(_: _Plan, prediction: Prediction) -> Json:
    values = prediction.values
    said = {"question": prediction.feature, "answer": values["answer"], "kind": kind_of(prediction)}
    return said | {"parent_id": values["parent_id"]}


def _relation(_: _Plan, prediction: Prediction) -> Json:
    ends = {name: prediction.values[name] for name in ("source_id", "target_id", "type")}
    return {"name": prediction.feature} | ends


ITEMS: Mapping[str, Callable[[_Plan, Prediction], Json]] = {
    "objects": _object,
    "entities": _entity,
    "answers": _answer,
    "relations": _relation,
}


class _Files:
    """Numbered Parquet files of at most 1,000 data rows and about 100 MB; one at least, or nothing could be loaded."""

    def __init__(self, folder: Path, split: str, plan: _Plan) -> None:
        self._folder, self._split = folder, split
        features = {name: feature.json for name, feature in plan.columns.items()}
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = pa.schema([pa.field(name, f.arrow) for name, f in plan.columns.items()], metadata=about)
        self._rows: list[Json] = []
        self._bytes = 0
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and (self._rows or not self._number):
            self._flush()

    def add(self, row: Json, size_bytes: int) -> None:
        """One data row, about as large as this."""
        if self._rows and (len(self._rows) == ROWS_PER_FILE or self._bytes + size_bytes > MAX_FILE_BYTES):
            self._flush()
        self._rows.append(row)
        self._bytes += size_bytes

    def _flush(self) -> None:
        self._number += 1
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        pq.write_table(table, self._folder / f"{self._split}-{self._number:05}.parquet", compression="zstd")
        self._rows, self._bytes = [], 0


def _readme(run: Run) -> bytes:
    files = [{"split": SPLITS[part], "path": f"data/{SPLITS[part]}-*.parquet"} for part in parts_of(run)]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    about = (
        f"Predictions of run {run.name}: model {run.model.name} on dataset {run.dataset.name}, written by "
        "foundry-pipeline. `manifest.json` counts what is in the files and what is not."
    )
    return f"---\n{head}---\n\n{about}\n".encode()


EXPORTER = Exporter(
    name="huggingface",
    version=1,
    media_types=ALL_MEDIA,
    conventions={
        "bbox": "left, top, width, height in pixels of the picture as displayed, not clipped",
        "counts": "COCO compressed run lengths, with size_hw: height, width",
        "points": "x, y in pixels, not clipped; polygons open",
        "offset_unit": "codepoint",
        "entity_end": "exclusive",
        "score": "null where the model gave none",
        "image": "a reference: path or URL, no bytes",
        "without_split": "all of it is train",
    },
    split="splits of the dataset: train, validation, test",
    plan=_plan,
    render=render,
    write=write,
    renders_classes=True,
)
