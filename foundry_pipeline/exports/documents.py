"""Predictions on texts: what the text of a data row is, and where in it an entity stands.

Code points, from 0, half open: the convention of the tables.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction
from foundry_pipeline.exports.format import TEXTS, Export
from foundry_pipeline.exports.tally import Loss, RowLoss, Tally
from foundry_pipeline.rows.conversations import parse_conversation
from foundry_pipeline.tables import ENTITIES


@dataclass(frozen=True, slots=True)
class Document:
    """One text: of a data row, or of one message of a conversation."""

    text: str
    message_id: str | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """An entity in its text: code points `start` to `end`, half open, at least one. `place` counts the documents."""

    prediction: Prediction
    place: int
    start: int
    end: int


def answered_text(export: Export, annotated: AnnotatedRow) -> list[Document] | None:
    """What an answered text or conversation says; None for all others, which are counted, with their predictions."""
    if not annotated.answered:
        export.tally.leave_row_out(annotated, RowLoss.NOT_ANSWERED)
    elif annotated.row.media_type not in TEXTS:
        export.tally.leave_row_out(annotated, RowLoss.OTHER_MEDIA_TYPE, Loss.NOT_IMPORTABLE_FOR_MEDIA)
    else:
        return read_documents(export, annotated)
    return None


def read_documents(export: Export, annotated: AnnotatedRow) -> list[Document] | None:
    """The data row's texts, or None where they cannot be had: it is then counted as left out."""
    try:
        text = export.read_text(annotated.row)
        if annotated.row.media_type != "conversational":
            return [Document(text)]
        return [Document(m.content, m.message_id, m.user_name or m.user_id) for m in parse_conversation(text)]
    except RowUnavailable:
        export.tally.leave_row_out(annotated, RowLoss.TEXT_UNAVAILABLE, Loss.TEXT_UNAVAILABLE)
        return None


def span_of(prediction: Prediction, documents: Sequence[Document]) -> Span | Loss:
    """Where a row of `entities` stands."""
    values = prediction.values
    places = [i for i, document in enumerate(documents) if document.message_id == values["message_id"]]
    if not places:
        return Loss.MESSAGE_MISSING
    start, end = values["start"], values["end"]
    if end <= start:
        return Loss.EMPTY_SPAN
    if not (start >= 0 and end <= len(documents[places[0]].text)):
        return Loss.SPAN_OUTSIDE_TEXT
    return Span(prediction, places[0], start, end)


def entities_of(annotated: AnnotatedRow, documents: Sequence[Document], tally: Tally) -> list[Span]:
    """The entities of a data row for a format that has nothing else; all the rest is counted as lost."""
    found = []
    for prediction in annotated.predictions:
        is_entity = prediction.table == ENTITIES.name
        span = span_of(prediction, documents) if is_entity else Loss.KIND_NOT_REPRESENTABLE
        if isinstance(span, Loss):
            tally.leave_out(prediction, span)
        else:
            tally.leave_out_all(prediction.nested, Loss.KIND_NOT_REPRESENTABLE)
            found.append(span)
    return found


class Utf16:
    """Places in one text as browsers count them: in UTF-16 code units."""

    def __init__(self, text: str) -> None:
        self._of_two_units = [i for i, character in enumerate(text) if character > "\uffff"] if text else []

    def offset(self, code_point: int) -> int:
        """The same place, in code units."""
        return code_point + bisect_left(self._of_two_units, code_point)
