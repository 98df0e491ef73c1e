"""Conversations that the model continues: one call a turn, each with the model's own answers before it as history.

The next call is known only when the last one has been answered, so a slice of such conversations is planned again and
again, each time one turn further, until no conversation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from foundry_pipeline.asks import Ask
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import spoken_text
from foundry_pipeline.home import Run

Said = Callable[[Ask], tuple[str, str | None] | None]
"""What became of a call: (outcome, reply); None where it is still to be made."""


def turns_asked(run: Run, message_ids: Sequence[str]) -> Sequence[str]:
    """The messages that are asked about in the end, of those that wait for an answer."""
    return message_ids[-1:] if run.generate == "last" else message_ids


def asks_of_turns(run: Run, row: DataRow, message_ids: Sequence[str], said: Said) -> Iterator[Ask]:
    """What is asked about a conversation as far as it is known by now; `message_ids` are those that wait for an answer.

    Behind a turn whose answer gave no text, every further turn is asked without a history: that cannot be sent, and
    making its request says so.
    """
    if run.generate == "last":
        yield Ask(row, message_id=message_ids[-1])
        return
    answers: list[str] | None = []
    for message_id in message_ids:
        ask = Ask(row, message_id=message_id, answers=None if answers is None else tuple(answers))
        yield ask
        if answers is None:
            continue
        if (found := said(ask)) is None:
            return
        outcome, reply = found
        text = spoken_text(run.model, reply) if outcome == "ok" and reply is not None else None
        answers = None if text is None else [*answers, text]
