"""The page `docs/predictions.md`: what replies may look like, and every table, column, unit and reject reason.

Tables and reasons come from the code, so the page cannot differ from it. To write it anew:
`python -m foundry_pipeline.table_docs docs/predictions.md`
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from foundry_pipeline.decoding.entities import NEAR_CHARS
from foundry_pipeline.decoding.features import GEOMETRY_KEYS, MAX_NAME_BYTES, RAW_ANSWER
from foundry_pipeline.decoding.findings import Limits
from foundry_pipeline.decoding.prediction_ids import NAMESPACE
from foundry_pipeline.decoding.rejects import REASONS
from foundry_pipeline.decoding.remarks import REMARKS
from foundry_pipeline.decoding.reply_json import MAX_DEPTH, MAX_HEAVY, MAX_VALUES
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.tables import (
    POINT_XY,
    TABLE_OF_KIND,
    TABLES,
    TableSpec,
)

_HEAD = """\
# Predictions

What a model's reply may look like, and the tables it becomes. Tables and reasons on this page are generated from the
code (`python -m foundry_pipeline.table_docs docs/predictions.md`), and a test holds that it is up to date.

## Replies

A reply is one JSON object keyed by feature name, as the document shows it, or a string. Coordinates are pixels of the
picture sent, origin at its top left corner, x to the right, y down: upright pictures and frames, unless the manifest
says `exif: keep`. Entities are Unicode code points of the text sent, from 0, half open. Scores are 0 to 1. Everything
below that the document does not have is an extension, and optional.

| kind | value under the feature's name | table |
|---|---|---|
"""

_SHAPES = {
    FeatureKind.RECTANGLE: '{"boxes": [[left, top, width, height]], "scores": [0.9]}',
    FeatureKind.MASK: '{"masks": [{"size": [height, width], "counts": "..."}], "scores": [0.9]}',
    FeatureKind.POLYGON: '{"polygons": [[[x, y], [x, y], [x, y]]], "scores": [0.9]}',
    FeatureKind.LINE: '{"lines": [[[x, y], [x, y]]], "scores": [0.9]}',
    FeatureKind.POINT: '{"points": [[x, y]], "scores": [0.9]}',
    FeatureKind.EDGE: (
        '{"edges": [{"source": {"feature": "person", "index": 0}, "target": {"feature": "company", "index": 0}, '
        '"type": "unidirectional"}], "scores": [0.9]}'
    ),
    FeatureKind.ENTITY: '[{"start": 0, "end": 3, "text": "Tom", "score": 0.9}]',
    FeatureKind.RADIO: '"positive", or {"answer": "positive", "score": 0.9}',
    FeatureKind.CHECKLIST: '["joy", {"answer": "fear", "score": 0.4}]',
    FeatureKind.TEXT: '"Tom works at IBM", or {"answer": "Tom works at IBM", "score": 0.9}',
}

_A_FRAME, _A_REPLY = Limits().objects_a_frame, Limits().objects_a_reply
_RULES = f"""
- **Nothing found** is a good answer: `{{}}`, `[]`, a feature left out, `null`, an empty list.
- **Scores** stand beside the items, parallel to them. Left out or `null`: no score is known.
- **Nested classifications**: `classifications` beside the items is a list parallel to them, each an object of names and
  answers, or `null`. Inside an entity or a wrapped answer it is one such object. Their rows have a `parent_id`.
- **Edges** name their ends by feature and by place in that feature's list in this reply, counted before anything is
  rejected. An end is a box, mask, polygon, line, point or entity. `type` is `unidirectional` (default) or
  `bidirectional`.
- **Masks** are COCO run lengths: compressed, as `pycocotools.mask.encode` makes them, or a list of runs. They are
  stored in one canonical form.
- **Polygons** are one outer ring, stored open. What has holes or several parts is a mask.
- **Videos**: `{{"frames": {{"12": {{...}}}}, ...}}`; each frame holds what a picture's reply would, and is one that was
  sent. A call about one frame may be answered like one about a picture. What stands beside `frames` is about the frame
  where it was one, about the whole video where it took one call (`frame` is null), else about the call's frames
  (`frame` is the first of them).
- **Conversations**: an entity says its `message_id`; offsets then refer to that message. With one message it may be
  left out. An answer about one message says it, too: `{{"answer": "positive", "message_id": "4"}}`; radio and text may
  have a list of such answers. In a call that continues a conversation every answer is about the message it answers.
- **HTML**: offsets refer to the source, or to its readable text where the manifest says `html: readable`;
  `foundry_pipeline.rows.html_text.readable_text` makes it again.
- **Strings**: a string, or a body that is no JSON, is looked at for a JSON object: the whole string, or what is inside
  its only Markdown fence. Otherwise it is free text: the answer of the ontology's one text feature, or of a feature
  called `{RAW_ANSWER}` where there is no ontology. A text that begins like JSON and is cut off stays a text, with a
  reject `truncated` beside it.
- **Without an ontology** the names in the reply are the features, and each kind follows from the shape, within
  `allowed_feature_kinds`. Of several geometry keys under one name, the first in the table above is its kind. A name may
  have {MAX_NAME_BYTES:,} bytes of UTF-8.
- **With an ontology** it is strict: a name it does not have is rejected, once, with the number of its items.
- **Radio and checklist** answers are compared with an option's value, then with its label; the value is stored.
- **Options, names, kinds** are compared exactly; nothing is converted by guess, no prediction is dropped for a low
  score, and boxes past the picture's edge stay as they are: an asset check counts them.
- **Confidence**: in a wrapped answer or an entity, `confidence` may stand for `score`.
- **What a model says about its answer**, beside the features or in a wrapped answer (`{"`, `".join(REMARKS)}`), is no
  prediction. A refusal is rejected as `refusal`, an end by the limit of tokens as `truncated`, one by a filter as
  `content_filter`; what was answered all the same stays in its table. A reply that is nothing but a refusal never gets
  here: it is `rejected_by_model` in `responses`.
- **Limits**: {MAX_DEPTH} levels; {MAX_VALUES:,} values, {MAX_HEAVY:,} of them lists, objects and strings; masks of
  2^28 pixels; {_A_FRAME:,} objects, entities and answers a frame, and as many in a reply outside frames; {_A_REPLY:,}
  in a reply of many frames. What is beyond is told in one reject, and stays in `responses`.

### Entities

The `anchor` column says which rule found the entity; the first that fits:

1. the text from `start` to `end` is the entity's: `exact`. Without a text, offsets inside the row's text are enough;
2. the same with offsets in UTF-16 units: `utf16`, converted;
3. the row's text goes on with the entity's at `start`: `moved`;
4. the entity's text is in the row's text within {NEAR_CHARS} code points of `start`, and nearer on one side: `moved`;
5. the entity's text is in the row's text exactly once: `moved`;
6. otherwise it is rejected, as `span_out_of_range` or `span_mismatch`. So is every entity of a row whose text cannot be
   had again: nobody can say whether its offsets are right.

### Ids

`prediction_id` is a version 5 UUID, the same on every re-run, whatever becomes of its neighbours. The namespace
`{NAMESPACE}` with the compact JSON `[run, dataset, global key]` gives the row's id; this with
`[table, frame or message id, parent id, feature, index]` the prediction's.

## Tables

Parquet, `warehouse/<table>/run=<run>/<slice>.parquet`. All tables of a slice are written together.
"""

_REASONS_HEAD = """
## Reasons

Nothing a model said is lost: what no table takes is in `rejects`, with its place and one of these reasons.

| reason | meaning |
|---|---|
"""


def predictions_page() -> str:
    """The page, as Markdown."""
    tables = "".join(map(_table, TABLES.values()))
    return _HEAD + _lines(_shapes()) + _RULES + tables + _REASONS_HEAD + _lines(_reasons())


def _shapes() -> Iterator[str]:
    for kind in (*GEOMETRY_KEYS, FeatureKind.ENTITY, FeatureKind.RADIO, FeatureKind.CHECKLIST, FeatureKind.TEXT):
        yield f"| `{kind}` | `{_SHAPES[kind]}` | `{TABLE_OF_KIND[kind].name}` |"


def _reasons() -> Iterator[str]:
    for reason, meaning in REASONS.items():
        yield f"| `{reason}` | {meaning} |"


def _table(spec: TableSpec) -> str:
    key = ", ".join(f"`{name}`" for name in spec.key)
    head = f"\n### {spec.name}\n\nThere is {spec.grain}; its key is {key}.\n\n"
    return (
        head + "| column | type | unit | null | meaning |\n|---|---|---|---|---|\n" + _lines(map(_column, spec.schema))
    )


def _column(field: pa.Field) -> str:
    about = {key.decode(): value.decode() for key, value in field.metadata.items()}
    null = "yes" if field.nullable else ""
    return f"| `{field.name}` | {_type(field.type)} | {about.get('unit', '')} | {null} | {about['meaning']} |"


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "(x, y) of double" if kind == POINT_XY else f"({', '.join(field.name for field in kind)})"
    if pa.types.is_map(kind):
        return f"{_type(kind.key_type)} to {_type(kind.item_type)}"
    return str(kind)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(predictions_page(), encoding="utf-8")
