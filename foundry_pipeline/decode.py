"""Replies of a model -> predictions and rejects. Total: no reply makes it raise, no bad item costs its neighbours.

Owns the shapes of a whole reply: JSON, strings, fences. What an object says is read in `reply_reader.py`; what the
tables hold is in `tables.py`, why something is refused in `rejects.py`.
Sources: Labelbox "Custom model integration", Response; our extension of it in docs/predictions.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import pyarrow as pa

from foundry_pipeline import rle
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decoding import reply_json
from foundry_pipeline.decoding.answers import read_answers
from foundry_pipeline.decoding.entities import Texts
from foundry_pipeline.decoding.features import Feature, features_of
from foundry_pipeline.decoding.findings import FLUSH_ITEMS, Findings, Limits
from foundry_pipeline.decoding.masks import MASKS, Checked, check_masks
from foundry_pipeline.decoding.places import Path, Place, frame_number
from foundry_pipeline.decoding.quick_boxes import QuickBoxes
from foundry_pipeline.decoding.rejects import REASONS, Fault, wrong_type
from foundry_pipeline.decoding.reply_reader import ReplyReader
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Tool
from foundry_pipeline.tables import PREDICTION_TABLES, REJECTS, TABLE_OF_KIND, TableSpec

__all__ = ["REASONS", "VERSION", "Limits", "SliceDecoder", "tables_needed"]

VERSION = "1"
"""Changes with what a reply becomes. Tables name the version they were decoded by, and older ones show as stale."""

_MAX_QUICK_CHARS = 500_000
"""A longer reply may have more values than the limit allows."""
_TOGETHER_CHARS = 4 * rle.BATCH_CHARS
"""Replies with masks are read when there are so many characters of them."""
_FENCE = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)
_OPEN_FENCE = re.compile(r"```(?:json)?([^`]*)", re.DOTALL)


def tables_needed(ontology: Ontology | None, kinds: tuple[FeatureKind, ...]) -> tuple[TableSpec, ...]:
    """The prediction tables that a model's kinds need, in their order, and rejects.

    The kinds are those of the ontology, nested classifications included; without one, the manifest's allowed kinds,
    or all of them where it names none.
    """
    found = set(_kinds_of(ontology)) if ontology is not None else set(kinds) or set(FeatureKind)
    needed = {TABLE_OF_KIND[kind].name for kind in found}
    return (*(spec for spec in PREDICTION_TABLES if spec.name in needed), REJECTS)


def _kinds_of(ontology: Ontology) -> Iterator[FeatureKind]:
    for feature in ontology.features():
        yield from _kinds_under(feature)


def _kinds_under(feature: Tool | Classification) -> Iterator[FeatureKind]:
    yield feature.kind
    nested: Iterable[Classification] = (
        feature.classifications
        if isinstance(feature, Tool)
        else (question for option in feature.options for question in option.classifications)
    )
    for question in nested:
        yield from _kinds_under(question)


class _Waiting(NamedTuple):
    """A reply that is read together with others. `number` is its data row's, in the block."""

    number: int
    reply: str
    texts: Texts


class SliceDecoder:
    """Decodes the replies of one slice. Add replies one by one, take tables now and then, and the rest at the end.

    `media_type` is the dataset's; frames exist in videos only. Without `shortcut`, replies of boxes alone are read like
    all others, and masks reply by reply, with the same result.
    """

    def __init__(
        self,
        run: str,
        model: str,
        dataset: str,
        ontology: Ontology | None,
        kinds: tuple[FeatureKind, ...],
        media_type: str,
        limits: Limits | None = None,
        shortcut: bool = True,
    ) -> None:
        limits = limits or Limits()
        self._features = features_of(ontology, kinds)
        self._has_frames = media_type == "video"
        self._findings = Findings(run, model, dataset, tables_needed(ontology, kinds), limits)
        boxes = self._features.rectangles()
        quick = shortcut and boxes != frozenset()
        self._quick = QuickBoxes(boxes, limits, self._has_frames) if quick else None
        self._waits = shortcut and self._features.has(FeatureKind.MASK)
        self._waiting: list[_Waiting] = []
        self._waiting_chars = 0

    def add(
        self, row: DataRow, call_id: str, reply: str, text: str | None, messages: Mapping[str, str] | None = None
    ) -> None:
        """Decode one reply, the body as it came.

        `text` is what the entities of a text row stand in, None where there is none or nobody can read it; `messages`
        is message id -> content of a conversation.
        """
        if self._findings.is_full or (self._quick is not None and self._quick.count >= FLUSH_ITEMS):
            self._flush()
        number = self._findings.add_row(row, call_id, len(reply))
        if self._waits and MASKS in reply:
            self._wait(_Waiting(number, reply, Texts(text, messages)))
        elif self._quick is None or not self._take_quickly(self._quick, number, reply):
            self._read(_Waiting(number, reply, Texts(text, messages)), reply_json.parse(reply), {})

    @property
    def done_bytes(self) -> int:
        """Size of what `take` would give."""
        return self._findings.done_bytes

    def take(self) -> dict[str, pa.Table]:
        """As `finish`, of the first rows; for a slice whose tables are too large to be held."""
        return self._findings.take()

    def finish(self) -> dict[str, pa.Table]:
        """Every table that the model needs, by name, empty ones included; rows in the order added, then by place.

        What `take` has given is not in them. Raises AccountingError where a prediction is in no table and was not
        refused.
        """
        self._flush()
        last = self._findings.take()
        self._findings.check_sums()
        return last

    @property
    def sums(self) -> dict[str, int]:
        """Predictions `said` in all replies, and how many of them were `refused`; the others are in the tables."""
        return {"said": self._findings.said, "refused": self._findings.refused}

    def _take_quickly(self, quick: QuickBoxes, number: int, reply: str) -> bool:
        if len(reply) > _MAX_QUICK_CHARS or not reply.startswith("{"):
            return False
        document = reply_json.load_unchecked(reply)
        return type(document) is dict and quick.take(number, reply, document)

    def _wait(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._waiting_chars += len(waiting.reply)
        if self._waiting_chars >= _TOGETHER_CHARS:
            self._read_waiting()

    def _read_waiting(self) -> None:
        waiting, self._waiting, self._waiting_chars = self._waiting, [], 0
        parsed = [reply_json.parse(one.reply) for one in waiting]
        masks = check_masks(
            (tree.value, self._findings.rows_of_block.image_hw(one.number))
            for one, tree in zip(waiting, parsed, strict=True)
            if isinstance(tree, reply_json.Tree)
        )
        for one, tree in zip(waiting, parsed, strict=True):
            self._read(one, tree, masks)

    def _flush(self) -> None:
        self._read_waiting()
        if self._quick is None or not self._quick.count:
            self._findings.flush()
            return
        boxes, said, handed_back = self._quick.settle(self._findings.rows_of_block)
        self._findings.said += said
        for number, reply in handed_back.items():
            self._read(_Waiting(number, reply, Texts(None, None)), reply_json.parse(reply), {})
        self._findings.flush(boxes)

    def _read(self, waiting: _Waiting, parsed: reply_json.Tree | Fault, masks: Checked) -> None:
        self._findings.open_row(waiting.number)
        document = self._document(waiting.reply, parsed)
        if document is None:
            return
        image_hw = self._findings.rows_of_block.image_hw(waiting.number)

        def check_mask(mask: Mapping[str, object]) -> rle.Rle | rle.BadRle:
            return masks.get(id(mask)) or rle.check(mask["size"], mask["counts"], image_hw)

        ReplyReader(self._findings, self._features, self._has_frames, check_mask, waiting.texts).read(document)

    def _document(self, reply: str, parsed: reply_json.Tree | Fault) -> dict[str, object] | None:
        """The reply as an object keyed by feature; None where it is none, after that was put on record."""
        if isinstance(parsed, reply_json.NotJson):
            return self._document_in_text(reply, parsed)
        if isinstance(parsed, Fault):
            self._refuse(parsed, reply)
            return None
        if isinstance(parsed.value, str):
            return self._document_in_text(parsed.value, None)
        if isinstance(parsed.value, dict):
            return self._without_repeats(parsed)
        if parsed.value == [] and isinstance(parsed.value, list):
            return None
        hint = "; looks like an answer wrapped in a list" if _is_wrapped(parsed.value) else ""
        fault = wrong_type("an object keyed by feature, or a string", parsed.value)
        self._refuse(Fault(fault.reason, fault.message + hint), parsed.value)
        return None

    def _document_in_text(self, text: str, not_json: reply_json.NotJson | None) -> dict[str, object] | None:
        """A string that holds a JSON object, bare or in its only fence, else free text.

        `not_json` says why the text is no JSON itself, where that is known already.
        """
        fences = _FENCE.findall(text) if text.count("```") == 2 else []
        for candidate in (text.strip(), *(fence.strip() for fence in fences)):
            if candidate.startswith("{"):
                parsed = reply_json.parse(candidate)
                if isinstance(parsed, reply_json.Tree):
                    return self._without_repeats(parsed)
                if not isinstance(parsed, reply_json.NotJson):
                    self._refuse(parsed, text)
                    return None
        self._free_text(text, not_json)
        return None

    def _free_text(self, text: str, not_json: reply_json.NotJson | None) -> None:
        name = self._features.only_text()
        if not_json is not None and not text.strip():
            self._refuse(Fault("not_json", "the body is empty"), text)
        elif name is not None:
            feature = self._features.find(name, text)
            assert isinstance(feature, Feature)
            if _is_cut_off(text):
                fault = Fault("truncated", "a text that begins like JSON and ends in the middle of it; kept as text")
                self._findings.reject(Place(feature=name), fault, text)
            read_answers(self._findings, feature, Place(feature=name), text)
        elif not_json is not None and text.lstrip().startswith(("{", "[")):
            self._refuse(not_json, text)
        else:
            self._refuse(Fault("unexpected_text", "free text needs exactly one text feature to go to"), text)

    def _without_repeats(self, tree: reply_json.Tree) -> dict[str, object]:
        assert isinstance(tree.value, dict)
        for repeat in tree.repeats:
            fault = Fault("duplicate_key", "the key is there twice; the first one stays")
            self._findings.reject(self._place_of(repeat.path), fault, repeat.value)
        return tree.value

    def _place_of(self, path: Path) -> Place:
        """The place at a path, with the feature and frame that the path leads through."""
        names = [step for step in path if isinstance(step, str)]
        if self._has_frames and names[0] == "frames":
            frame = frame_number(names[1]) if len(names) > 1 else None
            return Place(path, names[2] if len(names) > 2 else None, frame)
        return Place(path, names[0])

    def _refuse(self, fault: Fault, value: object) -> None:
        """Put the whole reply on record as refused."""
        self._findings.reject(Place(), fault, value)


def _is_wrapped(value: object) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict)


def _is_cut_off(text: str) -> bool:
    """Whether JSON begins here, bare or in a fence, and ends in the middle."""
    begun = _OPEN_FENCE.search(text) if text.count("```") == 1 else None
    parsed = reply_json.parse((begun[1] if begun else text).strip())
    return isinstance(parsed, reply_json.NotJson) and parsed.is_cut_off
