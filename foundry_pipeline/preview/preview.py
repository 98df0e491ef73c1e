"""A preview: asks for a few rows of a run, and decodes their answers as the whole run will.

The answers are the run's own, in its ledger: the whole run does not pay for them again. The tables go into a scratch
folder and away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from foundry_pipeline.calls.slice_work import Asked, response_of
from foundry_pipeline.config.params import complete_params
from foundry_pipeline.data_rows import DataRow, rows_of
from foundry_pipeline.draw import draw_annotated
from foundry_pipeline.errors import ConfigError, Problem, RowUnavailable
from foundry_pipeline.exports.annotated import AnnotatedRow
from foundry_pipeline.exports.rows import annotated_rows
from foundry_pipeline.exports.tally import Tally
from foundry_pipeline.home import MinScore, Run
from foundry_pipeline.predictions import decode_slice
from foundry_pipeline.preview.forecast import Seen
from foundry_pipeline.preview.gallery import Shown
from foundry_pipeline.preview.sample import Sampled
from foundry_pipeline.rendering import seen_text
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.rows.conversations import parse_conversation
from foundry_pipeline.store import Store
from foundry_pipeline.tables import DATA_ROWS, REJECTS, RESPONSES, build

ONE_SLICE = "preview"
AskRows = Callable[[str, Collection[str]], Mapping[str, Asked]]
"""(slice key, global keys) -> global key -> what was asked and answered; see `Invoker.ask`."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The sampled rows in the sample's order, and what they say about the whole."""

    rows: tuple[Shown, ...]
    seen: Seen


def with_params(run: Run, params: Mapping[str, object]) -> Run:
    """The run with some of its parameters replaced. Raises ConfigError where the manifest's schema refuses them."""
    return replace(run, inference_params=complete_params(run.model, {**run.inference_params, **params}))


def dataset_rows(run: Run, store: Store) -> Iterator[tuple[str, DataRow]]:
    """(slice key, data row) of the run's dataset, slice by slice."""
    for slice_key, table in store.read_all(DATA_ROWS, run.dataset.name):
        for row in rows_of(table):
            yield slice_key, row


def named_rows(rows: Iterator[tuple[str, DataRow]], global_keys: Sequence[str]) -> list[Sampled]:
    """The data rows of these names, in that order. Raises ConfigError naming those that are not there."""
    wanted = set(global_keys)
    found = {row.global_key: Sampled(slice_key, row, "named") for slice_key, row in rows if row.global_key in wanted}
    if missing := [key for key in global_keys if key not in found]:
        raise ConfigError([Problem("preview", f"the dataset has no data row {key!r}", "$.rows") for key in missing])
    return [found[key] for key in dict.fromkeys(global_keys)]


def preview_run(run: Run, store: Store, sample: Sequence[Sampled], ask: AskRows, reader: RowReader) -> Preview:
    """Ask for the sample's rows and decode the answers. Raises what `ask` raises."""
    answers: dict[str, Asked] = {}
    for slice_key in sorted({sampled.slice_key for sampled in sample}):
        answers |= ask(slice_key, [sampled.row.global_key for sampled in sample if sampled.slice_key == slice_key])
    with tempfile.TemporaryDirectory(prefix="foundry-preview-") as folder:
        rows = tuple(_shown(run, store, sample, answers, Store(folder), reader))
    return Preview(rows, _seen(answers))


def _shown(
    run: Run, store: Store, sample: Sequence[Sampled], answers: Mapping[str, Asked], scratch: Store, reader: RowReader
) -> Iterator[Shown]:
    scratch.commit(run.dataset.name, ONE_SLICE, {DATA_ROWS.name: _rows_table(run, store, sample)})
    scratch.commit(run.name, ONE_SLICE, {RESPONSES.name: _responses_table(sample, answers)})
    decode_slice(run, ONE_SLICE, scratch, reader.text)
    rejects = _rejects(run, scratch)
    # Thresholds are for exports: here a person wants to see what there is before choosing them.
    everything = replace(run, min_score=MinScore())
    annotated = {row.row.global_key: row for row in annotated_rows(everything, scratch, ONE_SLICE, Tally())}
    for sampled in sample:
        asked = answers.get(sampled.row.global_key)
        error = f"{asked.answer.error}: {asked.answer.message}" if asked is not None and asked.answer.error else None
        frames = asked.ask.frames if asked is not None else ()
        found = annotated[sampled.row.global_key]
        shown = Shown(found, sampled.stratum, error, rejects.get(sampled.row.global_key, ()))
        yield _with_content(run, shown, frames, reader)


def _rows_table(run: Run, store: Store, sample: Sequence[Sampled]) -> pa.Table:
    keys = pa.array([sampled.row.global_key for sampled in sample], pa.string())
    parts = [
        table.filter(pc.is_in(table["global_key"], value_set=keys))
        for slice_key in sorted({sampled.slice_key for sampled in sample})
        if (table := store.read(DATA_ROWS, run.dataset.name, slice_key)) is not None
    ]
    return pa.concat_tables(parts) if parts else DATA_ROWS.schema.empty_table()


def _responses_table(sample: Sequence[Sampled], answers: Mapping[str, Asked]) -> pa.Table:
    keys = [sampled.row.global_key for sampled in sample]
    records = [response_of(answers[key]) for key in keys if key in answers]
    return build(RESPONSES, {name: [record[name] for record in records] for name in RESPONSES.schema.names})


def _rejects(run: Run, scratch: Store) -> dict[str, tuple[tuple[str, str, str], ...]]:
    """Global key -> (path, reason, message) of what was refused."""
    table = scratch.read(REJECTS, run.name, ONE_SLICE, ["global_key", "path", "reason", "message"])
    found: dict[str, tuple[tuple[str, str, str], ...]] = {}
    for key, *what in zip(*(column.to_pylist() for column in table.columns), strict=True) if table is not None else ():
        found[key] = (*found.get(key, ()), (what[0], what[1], what[2]))
    return found


def _with_content(run: Run, shown: Shown, frames: Sequence[int], reader: RowReader) -> Shown:
    """With the row's picture or text, of a video the first frame that was sent; without, where it cannot be had."""
    row = shown.annotated.row
    try:
        if row.media_type == "video":
            return replace(shown, drawn=_frame(shown.annotated, frames[0], reader)) if frames else shown
        if row.media_type == "image":
            return replace(shown, drawn=draw_annotated(shown.annotated, reader.picture(row)))
        if row.media_type == "conversational":
            return replace(shown, messages=parse_conversation(reader.text(row)))
        return replace(shown, text=seen_text(run, row, reader.text(row)))
    except RowUnavailable as err:
        return replace(shown, error=shown.error or str(err))


def _frame(annotated: AnnotatedRow, number: int, reader: RowReader) -> Image.Image:
    """One frame of a video, with what is said of it, or of all that was sent."""
    here = tuple(p for p in annotated.predictions if p.values["frame"] in (None, number))
    return draw_annotated(replace(annotated, predictions=here), reader.frame(annotated.row, number))


def _seen(asked: Mapping[str, Asked]) -> Seen:
    answers = [each.answer for each in asked.values()]
    latencies = [answer.latency_ms for answer in answers if answer.outcome == "ok" and answer.latency_ms]
    outcomes = [answer.outcome for answer in answers]
    return Seen(
        asked=len(answers),
        failed=outcomes.count("failed") + outcomes.count("not_sent"),
        refused=outcomes.count("rejected_by_model"),
        attempts=sum(answer.attempts for answer in answers),
        mean_latency_s=sum(latencies) / len(latencies) / 1000 if latencies else None,
    )
