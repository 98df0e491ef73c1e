"""spaCy and Prodigy: a JSON line a text with its spans, in code points, half open, as the tables have them.

A conversation is a line a message. Spans may overlap: for spaCy that is `spancat`; `ner` refuses them. Scores stand in
their spans, an extra key that both pass over.

Written here, and not as a `DocBin`: a span that does not end with a token has no place there.
Source: Prodigy's documentation, API, interfaces, ner and spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from foundry_pipeline.exports.annotated import AnnotatedRow
from foundry_pipeline.exports.documents import Document, Span, answered_text, entities_of
from foundry_pipeline.exports.format import TEXTS, Export, Exporter, Rendered, no_plan
from foundry_pipeline.exports.shards import PartedShards
from foundry_pipeline.home import Run


def render(export: Export, _plan: None, annotated: AnnotatedRow) -> Rendered | None:
    """The lines of one answered text or conversation."""
    documents = answered_text(export, annotated)
    if documents is None:
        return None
    spans = entities_of(annotated, documents, export.tally)
    if not export.takes(annotated, written=bool(spans)):
        return None
    lines = (
        _line(annotated, document, [span for span in spans if span.place == place])
        for place, document in enumerate(documents)
    )
    return Rendered(annotated.split, (b"".join(lines),), {})


def write(run: Run, _plan: None, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`."""
    with PartedShards(run, folder, "documents", ".jsonl", always=True) as files:
        for rendered in rows:
            files.add(rendered.contents[0], rendered.split)


def _line(annotated: AnnotatedRow, document: Document, spans: list[Span]) -> bytes:
    meta = {"global_key": annotated.row.global_key, "data_row_id": annotated.row.data_row_id}
    if document.message_id is not None:
        meta["message_id"] = document.message_id
    in_order = [_span(span) for span in sorted(spans, key=lambda span: (span.start, span.end))]
    return orjson.dumps({"text": document.text, "spans": in_order, "meta": meta}, option=orjson.OPT_APPEND_NEWLINE)


def _span(span: Span) -> dict[str, object]:
    values = span.prediction.values
    score = {} if values["score"] is None else {"score": values["score"]}
    place = {"start": span.start, "end": span.end, "label": span.prediction.feature}
    return place | score | {"id": values["prediction_id"]}


EXPORTER = Exporter(
    name="spacy",
    version=1,
    media_types=TEXTS,
    conventions={
        "offset_unit": "codepoint",
        "entity_start": "inclusive, from 0; in a conversation within its message",
        "entity_end": "exclusive",
        "score": "of each span, where the model gave one",
        "tokens": "none: Prodigy's add_tokens adds those of your pipeline",
    },
    split="files of their own: documents-train-*.jsonl, and so on",
    plan=no_plan,
    render=render,
    write=write,
)
