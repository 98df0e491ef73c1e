"""CoNLL 2003 with IOB2 tags: a token a line, `token -X- _ B-person`; the first token of an entity is `B-`, always.

The lines of a text are sentences, parted by an empty line; an entity is never parted. Before each text, and each
message of a conversation, stands a line `-DOCSTART-`; `documents.jsonl` says, in the same order, which data row it is.
There is no place for overlapping entities: the longer stays, then the one of the higher score.

Written here: spaCy's `offsets_to_biluo_tags` gives `-` for an entity that ends inside a token, and refuses overlaps.
Source: Tjong Kim Sang and De Meulder, Introduction to the CoNLL-2003 shared task; IOB2 as in the 2000 one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import orjson

from foundry_pipeline.exports.annotated import AnnotatedRow
from foundry_pipeline.exports.documents import Document, Span, answered_text, entities_of
from foundry_pipeline.exports.format import TEXTS, Export, Exporter, Rendered, no_plan
from foundry_pipeline.exports.shards import PartedShards
from foundry_pipeline.exports.tally import Change, Loss, Tally
from foundry_pipeline.exports.tokens import TOKENIZER, tokens_of
from foundry_pipeline.exports.xml_text import xml_safe
from foundry_pipeline.home import Run

BEGIN = "-DOCSTART- -X- _ O\n\n"

Tokens = list[tuple[int, int]]


def render(export: Export, _plan: None, annotated: AnnotatedRow) -> Rendered | None:
    """The tagged lines of one answered text or conversation, and whose messages they are."""
    documents = answered_text(export, annotated)
    if documents is None:
        return None
    spans = entities_of(annotated, documents, export.tally)
    tagged = [
        _Tagged(document, [span for span in spans if span.place == place], export.tally)
        for place, document in enumerate(documents)
    ]
    if not export.takes(annotated, written=any(one.found for one in tagged)):
        return None
    row, messages = annotated.row, [document.message_id for document in documents]
    about = {"global_key": row.global_key, "data_row_id": row.data_row_id, "messages": messages}
    return Rendered(annotated.split, ("".join(one.text() for one in tagged).encode(),), about)


def write(run: Run, _plan: None, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`."""
    files = PartedShards(run, folder, "documents", ".conll", always=True)
    with files, (folder / "documents.jsonl").open("wb") as about:
        for rendered in rows:
            _write_about(about, rendered, files.add(rendered.contents[0], rendered.split))


def _write_about(about: BinaryIO, rendered: Rendered, file_name: str) -> None:
    keys = {name: rendered.about[name] for name in ("global_key", "data_row_id")}
    for message_id in rendered.about["messages"]:
        line = {"file": file_name, **keys, "message_id": message_id}
        about.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


class _Tagged:
    """One text, its tokens and their tags."""

    def __init__(self, document: Document, spans: Sequence[Span], tally: Tally) -> None:
        self._document = document
        self._tokens = tokens_of(document.text)
        self._tags = ["O"] * len(self._tokens)
        self.found = 0
        """Entities that are in the tags."""
        for span in sorted(spans, key=_rank):
            self._tag(span, tally)

    def text(self) -> str:
        """The lines of the text, and an empty one after each sentence."""
        lines, before = [BEGIN], 0
        for (start, end), tag in zip(self._tokens, self._tags, strict=True):
            if lines[1:] and "\n" in self._document.text[before:start] and not tag.startswith("I-"):
                lines.append("\n")
            lines.append(f"{_word(self._document.text[start:end])} -X- _ {tag}\n")
            before = end
        return "".join([*lines, "\n"] if self._tokens else lines)

    def _tag(self, span: Span, tally: Tally) -> None:
        first = bisect_right(self._tokens, span.start, key=lambda token: token[1])
        stop = bisect_left(self._tokens, span.end, key=lambda token: token[0])
        if first >= stop:
            tally.leave_out(span.prediction, Loss.ONLY_WHITE_SPACE)
        elif any(tag != "O" for tag in self._tags[first:stop]):
            tally.leave_out(span.prediction, Loss.OVERLAPS_A_LONGER_ONE)
        else:
            self._write(span, first, stop, tally)

    def _write(self, span: Span, first: int, stop: int, tally: Tally) -> None:
        feature = span.prediction.feature
        words = [self._document.text[start:end] for start, end in self._tokens[first:stop]]
        if (self._tokens[first][0], self._tokens[stop - 1][1]) != (span.start, span.end):
            tally.change(span.prediction, Change.MOVED_TO_TOKENS)
        if any(_word(text) != text for text in (feature, *words)):
            tally.change(span.prediction, Change.CHARACTERS_REPLACED)
        if span.prediction.values["score"] is not None:
            tally.change(span.prediction, Change.SCORE_NOT_REPRESENTABLE)
        self._tags[first:stop] = [f"B-{_word(feature)}", *[f"I-{_word(feature)}"] * (stop - first - 1)]
        self.found += 1


def _rank(span: Span) -> tuple[int, float, int]:
    """Longer ones first, then those of higher scores, then those that begin earlier; no score is taken for 1."""
    score = span.prediction.values["score"]
    return span.start - span.end, -1.0 if score is None else -score, span.start


def _word(text: str) -> str:
    """What can stand in a column: white space and control characters would part it."""
    return "".join("_" if character.isspace() else character for character in xml_safe(text)) or "_"


EXPORTER = Exporter(
    name="conll",
    version=1,
    media_types=TEXTS,
    conventions={
        "columns": "token, -X-, _, tag; parted by one space",
        "tags": "IOB2: the first token of every entity is B-",
        "tokenizer": TOKENIZER,
        "sentences": "lines of the text; a line end inside an entity parts nothing",
        "overlaps": "the longer stays, then the higher score",
        "labels": "white space in a feature's name becomes _",
        "documents": "a -DOCSTART- line a text or message, in the order of documents.jsonl",
    },
    split="files of their own: documents-train-*.conll, and so on",
    plan=no_plan,
    render=render,
    write=write,
)
