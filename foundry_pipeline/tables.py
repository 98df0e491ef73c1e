"""Every table of the warehouse: one Arrow schema each, its grain and its key. Nothing else spells a column list.

Text columns are `string`, never `large_string`: pyarrow's hive discovery refuses the latter beside partition columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from foundry_pipeline.ontology import FeatureKind

STRING, INT, FLOAT = pa.string(), pa.int32(), pa.float64()


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table's name, what one row is, the columns that identify it, and its Arrow schema."""

    name: str
    grain: str
    key: tuple[str, ...]
    schema: pa.Schema


def _column(name: str, kind: pa.DataType, meaning: str, *, unit: str | None = None, null: bool = False) -> pa.Field:
    metadata = {"meaning": meaning} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=null, metadata=metadata)


ATTACHMENT = pa.struct([pa.field("type", STRING), pa.field("value", STRING), pa.field("name", STRING)])
POINT_XY = pa.struct([pa.field("x", FLOAT, nullable=False), pa.field("y", FLOAT, nullable=False)])

DATA_ROWS = TableSpec(
    "data_rows",
    "one row per data row",
    ("global_key",),
    pa.schema(
        [
            _column("data_row_id", STRING, "the platform's id where the source has one, else a uuid5 of the key"),
            _column("global_key", STRING, "the data row's name, unique in the dataset"),
            _column("external_id", STRING, "the user's own name for it", null=True),
            _column("media_type", STRING, "image, text, conversational, html or video"),
            _column("row_data", STRING, "URL, absolute path, or the content itself: a text or data: URI"),
            _column("mime_type", STRING, "as the content's first bytes say", null=True),
            _column("width", INT, "of the picture as displayed, after EXIF orientation", unit="pixel", null=True),
            _column("height", INT, "of the picture as displayed, after EXIF orientation", unit="pixel", null=True),
            _column("exif_orientation", pa.int8(), "1 to 8 as the file says; 1 is upright", null=True),
            _column("attachments", pa.list_(ATTACHMENT), "further content, in the source's order"),
            _column("metadata", pa.map_(STRING, STRING), "the source's other columns"),
            _column("content_sha256", STRING, "of the content's bytes, hexadecimal", null=True),
            _column("frame_count", INT, "of a video", null=True),
            _column("frames_per_second", FLOAT, "of a video; an average where it varies", unit="1/s", null=True),
        ]
    ),
)

OUTCOMES = ("ok", "failed", "rejected_by_model", "not_sent")

RESPONSES = TableSpec(
    "responses",
    "one row per call of the slice: one per data row, but several where a video or conversation takes several",
    ("global_key", "call_id"),
    pa.schema(
        [
            _column("call_id", STRING, "sha256 of the request's identity, hexadecimal"),
            _column("data_row_id", STRING, "the data row"),
            _column("global_key", STRING, "the data row"),
            _column("outcome", STRING, "ok, failed, rejected_by_model or not_sent"),
            _column("http_status", INT, "of the last attempt that had one", null=True),
            _column("attempts", INT, "requests sent for this call"),
            _column("sent_at", pa.timestamp("us", tz="UTC"), "when the last attempt was sent", null=True),
            _column("latency_ms", FLOAT, "of the last attempt", unit="millisecond", null=True),
            _column("reply", STRING, "the body as it came", null=True),
            _column("error", STRING, "code, where the outcome is not ok", null=True),
            _column("message", STRING, "what went wrong, for people", null=True),
            _column(
                "frames",
                pa.list_(pa.field("element", INT)),
                "of a video: the frames that were sent, numbered from 0",
                null=True,
            ),
            _column("message_id", STRING, "of a conversation: the message that was to be answered", null=True),
        ]
    ),
)
"""A call is the unit that is paid for, retried and kept, so it is the row: a video's frames are in several calls where
the manifest asks for it, and each reply stays as it came. A reply of all calls together would have to be made up, and
one frame that failed would make the whole video failed. "Answered = asked" counts calls: every call that the run plans
for a data row has one row here."""

SUPERSEDED = TableSpec(
    "superseded",
    "one row per good answer that a slice had and no longer uses: to other parameters, another model or older content",
    ("call_id",),
    RESPONSES.schema,
)

_PREDICTION = [
    _column("run", STRING, "the model run"),
    _column("model", STRING, "the model's name"),
    _column("dataset", STRING, "the dataset"),
    _column("data_row_id", STRING, "the data row"),
    _column("global_key", STRING, "the data row"),
    _column("prediction_id", STRING, "uuid5, the same on every re-run"),
    _column("feature", STRING, "the model's class, as it came"),
    _column("index", INT, "place in the feature's list in the reply, from 0"),
    _column("score", FLOAT, "0 to 1; null where the model gave none", null=True),
    _column("frame", INT, "of a video, numbered as in the request", null=True),
    _column("message_id", STRING, "of a conversation", null=True),
    _column("call_id", STRING, "the answer it was decoded from"),
]


def _prediction(name: str, grain: str, *columns: pa.Field) -> TableSpec:
    return TableSpec(name, grain, ("prediction_id",), pa.schema([*_PREDICTION, *columns]))


BOXES = _prediction(
    "boxes",
    "one row per predicted box",
    _column("left", FLOAT, "from the picture's left edge", unit="pixel"),
    _column("top", FLOAT, "from the picture's top edge", unit="pixel"),
    _column("width", FLOAT, "of the box", unit="pixel"),
    _column("height", FLOAT, "of the box", unit="pixel"),
    _column("image_width", INT, "of the picture the model saw", unit="pixel", null=True),
    _column("image_height", INT, "of the picture the model saw", unit="pixel", null=True),
)
MASKS = _prediction(
    "masks",
    "one row per predicted mask",
    _column("size_h", INT, "rows of the mask", unit="pixel"),
    _column("size_w", INT, "columns of the mask", unit="pixel"),
    _column("counts", STRING, "COCO compressed run lengths, canonical, down columns, zeros first"),
    _column("area", pa.int64(), "pixels set", unit="pixel"),
    _column("left", FLOAT, "of the mask's bounding box", unit="pixel"),
    _column("top", FLOAT, "of the mask's bounding box", unit="pixel"),
    _column("width", FLOAT, "of the mask's bounding box", unit="pixel"),
    _column("height", FLOAT, "of the mask's bounding box", unit="pixel"),
)
_POINTS_COLUMN = pa.list_(pa.field("item", POINT_XY, nullable=False))
POLYGONS = _prediction(
    "polygons",
    "one row per predicted polygon",
    _column("points", _POINTS_COLUMN, "the outer ring, open: the first point is not repeated", unit="pixel"),
)
LINES = _prediction(
    "lines", "one row per predicted line", _column("points", _POINTS_COLUMN, "at least two points", unit="pixel")
)
POINTS = _prediction(
    "points",
    "one row per predicted point",
    _column("x", FLOAT, "from the picture's left edge", unit="pixel"),
    _column("y", FLOAT, "from the picture's top edge", unit="pixel"),
)
EDGES = _prediction(
    "edges",
    "one row per predicted relation",
    _column("source_id", STRING, "prediction_id of the relation's start"),
    _column("target_id", STRING, "prediction_id of the relation's end"),
    _column("type", STRING, "unidirectional or bidirectional"),
)
ENTITIES = _prediction(
    "entities",
    "one row per predicted entity",
    _column("start", INT, "first character", unit="code point"),
    _column("end", INT, "one past the last character", unit="code point"),
    _column("text", STRING, "the row's text from start to end"),
    _column("anchor", STRING, "how the offsets were found: exact, utf16 or moved"),
)
CLASSIFICATIONS = _prediction(
    "classifications",
    "one row per chosen answer",
    _column("kind", STRING, "radio or checklist"),
    _column("answer", STRING, "the option's value"),
    _column("parent_id", STRING, "prediction_id of the object or answer it is nested under", null=True),
)
TEXTS = _prediction(
    "texts",
    "one row per free-text answer",
    _column("answer", STRING, "the text; may be empty"),
    _column("parent_id", STRING, "prediction_id of the object or answer it is nested under", null=True),
)
_REJECTED = {"feature", "index"}
REJECTS = TableSpec(
    "rejects",
    "one row per refused part of a reply",
    ("prediction_id",),
    pa.schema(
        [
            *(field.with_nullable(field.nullable or field.name in _REJECTED) for field in _PREDICTION),
            _column("path", STRING, "where in the reply, such as $.dog.boxes[1]"),
            _column("reason", STRING, "one of decode.REASONS"),
            _column("message", STRING, "what was expected and what was seen"),
            _column("value", STRING, "the JSON seen, cut at 1 KiB"),
        ]
    ),
)

METRICS = TableSpec(
    "metrics",
    "one row per measure of a run against ground truth",
    ("table", "feature", "answer", "metric"),
    pa.schema(
        [
            _column("run", STRING, "the model run"),
            _column("model", STRING, "the model's name"),
            _column("dataset", STRING, "the dataset"),
            _column("table", STRING, "the prediction table that was compared"),
            _column("feature", STRING, "your feature; empty: over all"),
            _column("answer", STRING, "the option, where the measure is of one option; else empty"),
            _column("metric", STRING, "such as AP, AP50, f1, accuracy, best_f1_min_score"),
            _column("value", FLOAT, "null where nothing can be said, such as an AP without truths", null=True),
            _column("truths", pa.int64(), "things in the ground truth that the measure is over"),
            _column("predictions", pa.int64(), "predictions that it is over"),
        ]
    ),
)
VERDICTS = ("match", "partial", "wrong", "missed", "extra")
MATCHES = TableSpec(
    "matches",
    "one row per prediction or truth that was compared",
    ("index",),
    pa.schema(
        [
            _column("run", STRING, "the model run"),
            _column("dataset", STRING, "the dataset"),
            _column("table", STRING, "the prediction table that was compared"),
            _column("global_key", STRING, "the data row"),
            _column("index", INT, "place in this table, from 0"),
            _column("verdict", STRING, "match, partial, wrong, missed or extra"),
            _column("feature", STRING, "predicted, under your name; null where missed", null=True),
            _column("answer", STRING, "predicted, of a question", null=True),
            _column("true_feature", STRING, "of the ground truth; null where extra", null=True),
            _column("true_answer", STRING, "of the ground truth", null=True),
            _column("score", FLOAT, "of the prediction", null=True),
            _column("overlap", FLOAT, "IoU of objects, shared part of spans, likeness of texts", null=True),
            _column("prediction_id", STRING, "null where missed", null=True),
            _column("truth_id", STRING, "as the ground truth's file says; null where extra", null=True),
            _column("frame", INT, "of a video", null=True),
            _column("message_id", STRING, "of a conversation", null=True),
        ]
    ),
)
SEND_TARGETS = ("pre_labels", "ground_truth", "model_run", "annotate")
SEND_STATUSES = ("success", "failed", "begun")
SEND_STATUS = TableSpec(
    "send_status",
    "one row per line of an export and import that it was sent with; for annotate, per data row",
    ("target", "place", "uuid", "import_name"),
    pa.schema(
        [
            _column("run", STRING, "the model run"),
            _column("target", STRING, "pre_labels, ground_truth, model_run or annotate"),
            _column("place", STRING, "id of the project or model run it was sent to"),
            _column("uuid", STRING, "the line's identity, mostly a prediction_id; for annotate the global key"),
            _column("global_key", STRING, "the data row"),
            _column("feature", STRING, "the line's name; null for annotate", null=True),
            _column("line_sha256", STRING, "of the line as it was sent, hexadecimal; empty for annotate"),
            _column("import_name", STRING, "of the import or batch that it went with"),
            _column("status", STRING, "success, failed, or begun: nobody knows yet"),
            _column("attempts", INT, "how often it was sent"),
            _column("message", STRING, "what the platform said of a line that failed", null=True),
            _column("sent_at", pa.timestamp("us", tz="UTC"), "when its last import was over"),
        ]
    ),
)

PREDICTION_TABLES = (BOXES, MASKS, POLYGONS, LINES, POINTS, EDGES, ENTITIES, CLASSIFICATIONS, TEXTS)
_ALL = (DATA_ROWS, RESPONSES, SUPERSEDED, *PREDICTION_TABLES, REJECTS, METRICS, MATCHES, SEND_STATUS)
TABLES = {spec.name: spec for spec in _ALL}

TABLE_OF_KIND: Mapping[FeatureKind, TableSpec] = {
    FeatureKind.RECTANGLE: BOXES,
    FeatureKind.MASK: MASKS,
    FeatureKind.POLYGON: POLYGONS,
    FeatureKind.LINE: LINES,
    FeatureKind.POINT: POINTS,
    FeatureKind.EDGE: EDGES,
    FeatureKind.ENTITY: ENTITIES,
    FeatureKind.RADIO: CLASSIFICATIONS,
    FeatureKind.CHECKLIST: CLASSIFICATIONS,
    FeatureKind.TEXT: TEXTS,
}


def build(spec: TableSpec, columns: Mapping[str, Sequence[object] | pa.Array]) -> pa.Table:
    """An Arrow table from one list per column, all of the spec's columns and no others.

    Raises ValueError naming table and column where a column is missing, unknown or null without being nullable:
    pyarrow alone lets all three pass.
    """
    if unlike := set(columns) ^ set(spec.schema.names):
        raise ValueError(f"{spec.name}: columns differ from its schema: {sorted(unlike)}")
    arrays = []
    for field in spec.schema:
        values = columns[field.name]
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, type=field.type)
        if array.null_count and not field.nullable:
            raise ValueError(f"{spec.name}.{field.name}: {array.null_count} nulls in a required column")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=spec.schema)


def empty(spec: TableSpec) -> pa.Table:
    """The table without rows."""
    return spec.schema.empty_table()
