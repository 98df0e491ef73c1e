"""`foundry-pipeline doctor`: sends one data row and says what in the answer breaks the contract.

The answer is kept in the ledger like any other: the full run does not pay for it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from foundry_pipeline.asks import asks_of
from foundry_pipeline.calls.ledger import Answer
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import SliceDecoder
from foundry_pipeline.errors import shown
from foundry_pipeline.home import Run
from foundry_pipeline.invoke import CallOptions, Invoker
from foundry_pipeline.predictions import sent_of
from foundry_pipeline.rendering import seen_row, seen_text
from foundry_pipeline.rows.conversations import parse_conversation
from foundry_pipeline.rows.media import TEXT_LIKE

REPLY_CHARS = 600


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One data row, its answer, predictions by table, and every reject as (path, reason, message)."""

    row: DataRow
    answer: Answer
    predictions: Mapping[str, int]
    rejects: tuple[tuple[str, str, str], ...]

    @property
    def sound(self) -> bool:
        """True where the answer is one and nothing in it was refused."""
        return self.answer.outcome == "ok" and not self.rejects

    def lines(self) -> Iterator[str]:
        """The diagnosis for a terminal."""
        answer = self.answer
        status = f"HTTP {answer.http_status}" if answer.http_status else "no response"
        latency = f", {answer.latency_ms:.0f} ms" if answer.latency_ms else ""
        yield f"data row {self.row.global_key}: {answer.outcome} ({status}{latency}, {answer.attempts} attempts)"
        if answer.error:
            yield f"  {answer.error}: {answer.message}"
        if answer.reply is not None:
            yield f"  reply: {shown(answer.reply.decode(), REPLY_CHARS)}"
        for table, rows in self.predictions.items():
            yield f"  {table}: {rows}"
        for path, reason, message in self.rejects:
            yield f"  refused {path}: {reason}: {message}"
        yield f"  {self._in_words()}"

    def _in_words(self) -> str:
        if self.sound:
            return "the answer keeps the contract"
        if self.answer.outcome == "ok":
            return "the answer breaks the contract"
        if self.answer.outcome == "rejected_by_model":
            return "the model refused this row; --row takes another"
        return "there is no answer to judge"


def diagnose(
    run: Run, slice_key: str, row: DataRow, invoker: Invoker, read_text: Callable[[DataRow], str]
) -> Diagnosis:
    """Ask for one row anew, of a video its first frames, and decode the answer.

    Raises what `Invoker.ask` raises, and RowUnavailable.
    """
    ask, answer = invoker.ask(slice_key, [row.global_key], CallOptions(refresh=True))[row.global_key]
    if answer.outcome != "ok" or answer.reply is None:
        return Diagnosis(row, answer, {}, ())
    model = run.model
    decoder = SliceDecoder(
        run.name, model.name, run.dataset.name, model.ontology, model.allowed_feature_kinds, row.media_type
    )
    text = seen_text(run, row, read_text(row)) if row.media_type in TEXT_LIKE else None
    messages = None
    if text is not None and row.media_type == "conversational":
        messages = {message.message_id: message.content for message in parse_conversation(text)}
    sent = sent_of(ask.frames, ask.message_id, is_only_call=len(asks_of(run, row)) == 1)
    decoder.add(seen_row(run, row), answer.call_id, answer.reply.decode(), None if messages else text, messages, sent)
    tables = decoder.finish()
    rejects = tables.pop("rejects").select(["path", "reason", "message"]).to_pylist()
    return Diagnosis(
        row,
        answer,
        {name: table.num_rows for name, table in tables.items()},
        tuple((r["path"], r["reason"], r["message"]) for r in rejects),
    )
