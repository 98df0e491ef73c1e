"""What the calls of a run are about: one a data row, but several for a video or a conversation to be continued.

An ask knows no content: it is made from the `data_rows` table alone, so that a run that has all its answers reads
nothing. What is sent for it is `rendering.py`, which of a conversation's turns come next is `calls/turns.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS


@dataclass(frozen=True, slots=True)
class Ask:
    """What one call is about: a data row, or a part of it.

    `frames` are those of a video that are sent, rising. `message_id` is the message of a conversation that the model
    is to answer; `answers` are its own answers to the messages before, None where it has none of its own: then the
    recorded ones are its history, or it cannot be asked.
    """

    row: DataRow
    frames: tuple[int, ...] = ()
    message_id: str | None = None
    answers: tuple[str, ...] | None = field(default=None, repr=False)


def asks_of(run: Run, row: DataRow) -> tuple[Ask, ...]:
    """What a run asks about a data row whose calls do not depend on each other.

    A video that could not be read, or has none of the frames that the run names, is one ask without frames: making
    its request says why it cannot be sent.
    """
    if row.media_type != "video" or not row.frame_count or not row.frames_per_second:
        return (Ask(row),)
    numbers = run.sampling.of(row.frame_count, row.frames_per_second)
    size = run.model.frames_per_call
    parts = [tuple(numbers[at : at + size]) for at in range(0, len(numbers), size)]
    return tuple(Ask(row, part) for part in parts) or (Ask(row),)


def calls_of_slice(run: Run, store: Store, slice_key: str) -> int:
    """How many calls a slice takes: one a data row, for videos as many as their frames need.

    Of conversations that are continued it is the least number: how many turns they have, only reading them tells.
    """
    if run.dataset.media_type != "video":
        return store.row_count(DATA_ROWS, run.dataset.name, slice_key)
    columns = ["frame_count", "frames_per_second"]
    table = store.read(DATA_ROWS, run.dataset.name, slice_key, columns)
    facts = [] if table is None else table.to_pylist()
    return sum(len(asks_of(run, DataRow("", "", "video", "", **of_row))) for of_row in facts)
