"""Replies of a model -> predictions and rejects. Total: no reply makes it raise, no bad item costs its neighbours.

Owns the shapes of a whole reply: strings and fences, features, frames. Single items are read in `objects.py`,
`entities.py` and `answers.py`; what the tables hold is in `tables.py`, why something is refused in `rejects.py`.
Sources: Labelbox "Custom model integration", Response; our extension of it in docs/predictions.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decoding import reply_json
from foundry_pipeline.decoding.answers import read_answers
from foundry_pipeline.decoding.entities import Texts, read_entities
from foundry_pipeline.decoding.features import GEOMETRY_KEYS, Feature, Features, features_of
from foundry_pipeline.decoding.findings import FLUSH_ITEMS, Findings
from foundry_pipeline.decoding.objects import Listed, Scope, read_objects
from foundry_pipeline.decoding.places import WHOLE_ROW, Path, Place, Sent
from foundry_pipeline.decoding.quick_boxes import QuickBoxes
from foundry_pipeline.decoding.rejects import REASONS, Fault, wrong_type
from foundry_pipeline.manifest import Manifest
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Tool
from foundry_pipeline.tables import PREDICTION_TABLES, REJECTS, TABLE_OF_KIND, TEXTS, TableSpec

__all__ = ["REASONS", "Sent", "SliceDecoder", "spoken_text", "tables_needed"]

MAX_OBJECTS_PER_ROW = 10_000

_MAX_QUICK_CHARS = 500_000
"""A longer reply may have more values than the limit allows."""
_FENCE = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)
_FRAME = re.compile(r"0|[1-9][0-9]{0,9}")
_MAX_FRAME = 2**31 - 1


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


def spoken_text(model: Manifest, reply: str) -> str | None:
    """What a model says in a conversation: its first free text, by the rules for replies; None where there is none."""
    decoder = SliceDecoder("", "", "", model.ontology, model.allowed_feature_kinds, "conversational")
    decoder.add(DataRow("", "", "conversational", ""), "", reply, None)
    texts = decoder.finish().get(TEXTS.name)
    answers = [] if texts is None else texts.select(["answer", "parent_id"]).to_pylist()
    return next((row["answer"] for row in answers if row["parent_id"] is None), None)


class SliceDecoder:
    """Decodes the replies of one slice. Add replies one by one, then take the tables.

    `media_type` is the dataset's; frames exist in videos only. Without `shortcut`, replies of boxes alone are read item
    by item like all others, with the same result.
    """

    def __init__(
        self,
        run: str,
        model: str,
        dataset: str,
        ontology: Ontology | None,
        kinds: tuple[FeatureKind, ...],
        media_type: str,
        max_objects_per_row: int = MAX_OBJECTS_PER_ROW,
        shortcut: bool = True,
    ) -> None:
        self._features = features_of(ontology, kinds)
        self._has_frames = media_type == "video"
        self._has_messages = media_type == "conversational"
        self._whole = Place()
        self._findings = Findings(run, model, dataset, tables_needed(ontology, kinds), max_objects_per_row)
        boxes = self._features.rectangles()
        quick = shortcut and boxes != frozenset()
        self._quick = QuickBoxes(boxes, max_objects_per_row) if quick else None

    def add(
        self,
        row: DataRow,
        call_id: str,
        reply: str,
        text: str | None,
        messages: Mapping[str, str] | None = None,
        sent: Sent = WHOLE_ROW,
    ) -> None:
        """Decode one reply, the body as it came.

        `text` is what the entities of a text row stand in, None where there is none or nobody can read it; `messages`
        is message id -> content of a conversation; `sent` is the part of the row that the call was about.
        """
        if self._findings.is_full or (self._quick is not None and self._quick.count >= FLUSH_ITEMS):
            self._flush()
        number = self._findings.add_row(row, call_id, len(reply))
        if self._quick is None or sent != WHOLE_ROW or not self._take_quickly(self._quick, number, reply):
            self._read(reply, number, Texts(text, messages), sent)

    def finish(self) -> dict[str, pa.Table]:
        """Every table that the model needs, by name, empty ones included; rows in the order added, then by place."""
        self._flush()
        return self._findings.finish()

    def _take_quickly(self, quick: QuickBoxes, number: int, reply: str) -> bool:
        if len(reply) > _MAX_QUICK_CHARS or not reply.startswith("{"):
            return False
        document = reply_json.load_unchecked(reply)
        if type(document) is not dict or (self._has_frames and "frames" in document):
            return False
        return quick.take(number, reply, document)

    def _flush(self) -> None:
        if self._quick is None or not self._quick.count:
            self._findings.flush()
            return
        boxes, handed_back = self._quick.settle(self._findings.rows_of_block)
        for number, reply in handed_back.items():
            self._read(reply, number, Texts(None, None), WHOLE_ROW)
        self._findings.flush(boxes)

    def _read(self, reply: str, number: int, texts: Texts, sent: Sent) -> None:
        self._findings.open_row(number, sent.message_id if sent.frame is None else sent.frame)
        self._whole = Place((), None, sent.frame, sent.message_id)
        document = self._document(reply)
        if document is not None:
            image_hw = self._findings.rows_of_block.image_hw(number)
            reader = _ReplyReader(
                self._findings, self._features, image_hw, texts, self._whole, sent.frames, self._has_messages
            )
            reader.read(document, self._has_frames)

    def _document(self, reply: str) -> dict[str, object] | None:
        """The reply as an object keyed by feature; None where it is none, after that was put on record."""
        parsed = reply_json.parse(reply)
        if isinstance(parsed, Fault):
            if parsed.reason == "not_json":
                return self._document_in_text(reply, parsed)
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

    def _document_in_text(self, text: str, not_json: Fault | None) -> dict[str, object] | None:
        """A string that holds a JSON object, bare or in its only fence, else free text.

        `not_json` says why the text is no JSON itself, where that is known already.
        """
        fences = _FENCE.findall(text) if text.count("```") == 2 else []
        for candidate in (text.strip(), *(fence.strip() for fence in fences)):
            if candidate.startswith("{"):
                parsed = reply_json.parse(candidate)
                if isinstance(parsed, Fault) and parsed.reason != "not_json":
                    self._refuse(parsed, text)
                    return None
                if not isinstance(parsed, Fault):
                    return self._without_repeats(parsed)
        self._free_text(text, not_json)
        return None

    def _free_text(self, text: str, not_json: Fault | None) -> None:
        name = self._features.only_text()
        if not_json is not None and not text.strip():
            self._refuse(Fault("not_json", "the body is empty"), text)
        elif name is not None:
            feature = self._features.find(name, text)
            assert isinstance(feature, Feature)
            read_answers(self._findings, feature, self._whole._replace(feature=name), text)
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
            frame = _frame_number(names[1]) if len(names) > 1 else None
            return Place(path, names[2] if len(names) > 2 else None, frame)
        return self._whole._replace(path=path, feature=names[0])

    def _refuse(self, fault: Fault, value: object) -> None:
        """Put the whole reply on record as refused."""
        self._findings.reject(self._whole, fault, value)


class _ReplyReader:
    """Reads one reply that is an object."""

    def __init__(
        self,
        findings: Findings,
        features: Features,
        image_hw: tuple[int, int] | None,
        texts: Texts,
        whole: Place,
        frames: frozenset[int] | None,
        is_conversation: bool,
    ) -> None:
        self._findings, self._features, self._image_hw, self._texts = findings, features, image_hw, texts
        self._whole, self._frames = whole, frames
        self._message_of = texts.message_id if is_conversation else None

    def read(self, document: dict[str, object], has_frames: bool) -> None:
        """The frames of a video, then what is said about all that was sent."""
        if has_frames and "frames" in document:
            self._read_frames(Place(("frames",)), document["frames"])
            document = self._beside_frames(document)
        self._read_part(self._whole, document)

    def _beside_frames(self, document: dict[str, object]) -> dict[str, object]:
        """What stands beside `frames`. Where it is about a frame, that frame may have said the same thing already."""
        beside = {name: value for name, value in document.items() if name != "frames"}
        frames = document["frames"]
        said = frames.get(str(self._whole.frame)) if isinstance(frames, dict) else None
        for name in beside.keys() & (said.keys() if isinstance(said, dict) else set()):
            fault = Fault("duplicate_key", f"frame {self._whole.frame} has this feature already, which stays")
            self._findings.reject(self._whole.named(name), fault, beside.pop(name))
        return beside

    def _read_frames(self, place: Place, frames: object) -> None:
        if frames is None:
            return
        if not isinstance(frames, dict):
            self._findings.reject(place, wrong_type("an object keyed by frame", frames), frames)
            return
        for key, part in frames.items():
            frame = _frame_number(key)
            if frame is None:
                fault = Fault("bad_frame", "expected a frame's number as a decimal string, without leading zeros")
                self._findings.reject(place.at(key), fault, part)
            elif self._frames is not None and frame not in self._frames:
                fault = Fault("bad_frame", f"frame {frame} was not sent; sent were {_in_words(self._frames)}")
                self._findings.reject(place.at(key), fault, part)
            elif isinstance(part, dict):
                self._read_part(Place((*place.path, key), frame=frame), part)
            elif part is not None and part != []:
                self._findings.reject(place.at(key), wrong_type("an object keyed by feature", part), part)

    def _read_part(self, place: Place, part: dict[str, object]) -> None:
        """One object keyed by feature: the reply, or a frame of it. Edges come last: they refer to the others."""
        ends: dict[str, Listed | None] = {}
        scope = Scope(self._findings, self._image_hw, ends)
        edges: list[tuple[Feature, Place, object]] = []
        for name, value in part.items():
            feature = self._features.find(name, value) if value is not None else None
            if feature is None or (value == [] and _takes_list(feature)):
                continue
            below = place.named(name)
            if isinstance(feature, Fault):
                self._findings.reject(below, feature, value)
                ends[name] = None
            elif feature.kind is FeatureKind.EDGE:
                edges.append((feature, below, value))
            elif feature.kind in GEOMETRY_KEYS:
                ends[name] = read_objects(scope, feature, below, value)
            elif isinstance(value, dict) and (key := _geometry_key(value)) is not None:
                fault = Fault("wrong_kind", f'this feature is a {feature.kind}: expected no "{key}"')
                self._findings.reject(below, fault, value)
                ends[name] = None
            elif feature.kind is FeatureKind.ENTITY:
                ends[name] = read_entities(self._findings, feature, below, value, self._texts)
            else:
                read_answers(self._findings, feature, below, value, self._message_of)
        for feature, below, value in edges:
            read_objects(scope, feature, below, value)


def _in_words(frames: frozenset[int]) -> str:
    numbers = sorted(frames)
    return ", ".join(map(str, numbers)) if len(numbers) < 9 else f"{len(numbers)} from {numbers[0]} to {numbers[-1]}"


def _frame_number(key: str) -> int | None:
    """A frame's number, as in the request; None where the key is no plain decimal integer that fits the table."""
    return int(key) if _FRAME.fullmatch(key) is not None and int(key) <= _MAX_FRAME else None


def _is_wrapped(value: object) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict)


def _takes_list(feature: Feature | Fault) -> bool:
    """Whether an empty list says "nothing found" here. Without an ontology it has no shape, so it may be anything."""
    if isinstance(feature, Fault):
        return feature.reason == "wrong_kind"
    return feature.kind not in (FeatureKind.TEXT, FeatureKind.RADIO)


def _geometry_key(value: dict[str, object]) -> str | None:
    return next((key for key in GEOMETRY_KEYS.values() if key in value), None)
