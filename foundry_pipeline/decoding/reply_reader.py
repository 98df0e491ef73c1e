"""One reply that is an object -> its features, in frames or for all that was sent, each given to its reader.

Single items are read in `objects.py`, `entities.py` and `answers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from foundry_pipeline.decoding.answers import read_answers
from foundry_pipeline.decoding.entities import Texts, read_entities
from foundry_pipeline.decoding.features import GEOMETRY_KEYS, Feature, Features
from foundry_pipeline.decoding.findings import Findings
from foundry_pipeline.decoding.geometry import CheckMask
from foundry_pipeline.decoding.objects import Listed, Scope, read_objects
from foundry_pipeline.decoding.places import Place, frame_number
from foundry_pipeline.decoding.rejects import Fault, wrong_type
from foundry_pipeline.decoding.remarks import fault_of, remarks_in
from foundry_pipeline.ontology import FeatureKind


class About(NamedTuple):
    """What a reply is about: a video (`has_frames`), a conversation (`has_messages`), or neither.

    What it says about all that was sent is at `whole`; `frames` are those of a video that were sent, None for all.
    """

    has_frames: bool
    has_messages: bool
    whole: Place
    frames: frozenset[int] | None


class ReplyReader:
    """Reads one reply into `findings`, in which its data row is open."""

    def __init__(
        self, findings: Findings, features: Features, about: About, check_mask: CheckMask, texts: Texts
    ) -> None:
        self._findings, self._features, self._about = findings, features, about
        self._check_mask, self._texts = check_mask, texts
        self._message_of = texts.message_id if about.has_messages else None

    def read(self, document: Mapping[str, object]) -> None:
        """The frames of a video, then what is said about all that was sent."""
        if self._about.has_frames and "frames" in document:
            self._read_frames(Place(("frames",)), document["frames"])
            document = self._beside_frames(document)
        self._read_part(self._about.whole, self._without_remarks(document))

    def _beside_frames(self, document: Mapping[str, object]) -> Mapping[str, object]:
        """What stands beside `frames`. Where it is about a frame, that frame may have said the same thing already."""
        beside = {name: value for name, value in document.items() if name != "frames"}
        frames, whole = document["frames"], self._about.whole
        said = frames.get(str(whole.frame)) if isinstance(frames, dict) else None
        for name in [name for name in beside if isinstance(said, dict) and name in said]:
            fault = Fault("duplicate_key", f"frame {whole.frame} has this feature already, which stays")
            self._findings.reject(whole.named(name), fault, beside.pop(name))
        return beside

    def _without_remarks(self, document: Mapping[str, object]) -> Mapping[str, object]:
        """The features, once what the model says about its answer is on record."""
        remarks = {key: said for key, said in remarks_in(document) if not self._features.names(key)}
        for key, said in remarks.items():
            if (fault := fault_of(key, said)) is not None:
                self._findings.reject(self._about.whole.at(key), fault, said)
        return {name: value for name, value in document.items() if name not in remarks} if remarks else document

    def _read_frames(self, place: Place, frames: object) -> None:
        if frames is None:
            return
        if not isinstance(frames, dict):
            self._findings.reject(place, wrong_type("an object keyed by frame", frames), frames)
            return
        for key, part in frames.items():
            frame = frame_number(key)
            if frame is None:
                fault = Fault("bad_frame", "expected a frame's number as a decimal string, without leading zeros")
                self._findings.reject(place.at(key), fault, part)
            elif self._about.frames is not None and frame not in self._about.frames:
                fault = Fault("bad_frame", f"frame {frame} was not sent; sent were {_in_words(self._about.frames)}")
                self._findings.reject(place.at(key), fault, part)
            elif isinstance(part, dict):
                self._read_part(Place((*place.path, key), frame=frame), part)
            elif part is not None and part != []:
                self._findings.reject(place.at(key), wrong_type("an object keyed by feature", part), part)

    def _read_part(self, place: Place, part: Mapping[str, object]) -> None:
        """One object keyed by feature: the reply, or a frame of it. Edges come last: they refer to the others."""
        self._findings.open_frame()
        ends: dict[str, Listed | None] = {}
        scope = Scope(self._findings, self._check_mask, ends)
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


def _takes_list(feature: Feature | Fault) -> bool:
    """Whether an empty list says "nothing found" here. Without an ontology it has no shape, so it may be anything."""
    if isinstance(feature, Fault):
        return feature.reason == "wrong_kind"
    return feature.kind not in (FeatureKind.TEXT, FeatureKind.RADIO)


def _geometry_key(value: dict[str, object]) -> str | None:
    return next((key for key in GEOMETRY_KEYS.values() if key in value), None)
