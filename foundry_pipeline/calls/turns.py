"""A conversation that the model continues: one call a turn, each with the model's own answers before it as history.

The next call is known only when the last one has been answered, so a slice with conversations is planned in rounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from foundry_pipeline.asks import Ask
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import spoken_text
from foundry_pipeline.home import Run


class Turns:
    """The turns of one conversation, and how far the model has come."""

    NO_HISTORY = "an earlier turn of the conversation has no answer that could be its history"

    def __init__(self, run: Run, row: DataRow, message_ids: Sequence[str]) -> None:
        """`message_ids` are the messages that wait for an answer, at least one, in order."""
        self._run = run
        self._row = row
        self._message_ids = message_ids if run.generate == "every" else message_ids[-1:]
        self._answers: list[str] = []
        self._asked = 0
        self._is_broken = False

    @property
    def goes_on(self) -> bool:
        """Whether a turn is left that could be asked."""
        return not self._is_broken and self._asked < len(self._message_ids)

    def first_ask(self) -> Ask:
        """The first call, which depends on none."""
        return self._ask()

    def next_ask(self, reply: str | None) -> Ask | None:
        """The next call, after the reply to the last one; None where there is no reply, or no text to go on with."""
        text = None if reply is None else spoken_text(self._run.model, reply)
        if text is None:
            self._is_broken = True
            return None
        self._answers.append(text)
        return self._ask()

    def never_asked(self) -> Iterator[Ask]:
        """The turns behind one without an answer."""
        for message_id in self._message_ids[self._asked :]:
            yield Ask(self._row, message_id=message_id, answers=())

    def _ask(self) -> Ask:
        message_id = self._message_ids[self._asked]
        self._asked += 1
        answers = tuple(self._answers) if self._run.generate == "every" else None
        return Ask(self._row, message_id=message_id, answers=answers)
