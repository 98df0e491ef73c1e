"""What a name in a reply may mean: the ontology made ready for look-ups, or kinds inferred where there is none."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from foundry_pipeline.decoding.places import is_text, quoted
from foundry_pipeline.decoding.rejects import Fault
from foundry_pipeline.ontology import CLASSIFICATION_KINDS, Classification, FeatureKind, Ontology, Tool

GEOMETRY_KEYS: Mapping[FeatureKind, str] = {
    FeatureKind.RECTANGLE: "boxes",
    FeatureKind.MASK: "masks",
    FeatureKind.POLYGON: "polygons",
    FeatureKind.LINE: "lines",
    FeatureKind.POINT: "points",
    FeatureKind.EDGE: "edges",
}
"""Kind -> the key that holds its items in a reply."""

RAW_ANSWER = "response"
"""The feature of an answer that is nothing but text, where no ontology names one."""
MAX_NAME_BYTES = 1024
"""Of a name that no ontology knows, as UTF-8: it is repeated in every row."""
_SUGGESTED_NAMES = 8


@dataclass(frozen=True, slots=True)
class Choice:
    """One option of a radio or checklist: the value to store, and the questions nested under it."""

    value: str
    questions: Features


@dataclass(frozen=True, slots=True)
class Feature:
    """What a name means. `choices` is found by an option's value, or else its label; None where any answer stands.
    `questions` are nested under each object of a tool."""

    kind: FeatureKind
    questions: Features
    choices: Mapping[str, Choice] | None = None

    def choice(self, answer: str) -> Choice | None:
        """The option that an answer names. Where there are no options, any answer but the empty one is its own."""
        if self.choices is not None:
            return self.choices.get(answer)
        return Choice(answer, self.questions) if answer else None


@dataclass(slots=True)
class Features:
    """Names -> features. Without an ontology (`known` is None) a kind follows from a value's shape, among `allowed`."""

    known: Mapping[str, Feature] | None
    allowed: frozenset[FeatureKind] = frozenset()
    _suggested: dict[str, str] = field(default_factory=dict)

    def find(self, name: str, value: object) -> Feature | Fault:
        """The feature of this name, or why there is none. `value` tells the kind where no ontology does."""
        if not is_text(name):
            return Fault("bad_text", "the name holds half a surrogate pair")
        if self.known is not None:
            found = self.known.get(name)
            return found if found is not None else Fault("unknown_feature", self._unknown(name, value))
        if (size := len(name.encode())) > MAX_NAME_BYTES:
            return Fault("too_large", f"a name of {size} bytes, the limit is {MAX_NAME_BYTES}")
        return self._inferred(value)

    def names(self, name: str) -> bool:
        """Whether the ontology has a feature of this name."""
        return self.known is not None and name in self.known

    def has(self, kind: FeatureKind) -> bool:
        """Whether a reply may hold features of this kind at its top."""
        if self.known is None:
            return kind in self.allowed
        return any(feature.kind is kind for feature in self.known.values())

    def rectangles(self) -> frozenset[str] | None:
        """The names whose `boxes` are boxes; None where that may be any name."""
        if self.known is None:
            return None if FeatureKind.RECTANGLE in self.allowed else frozenset()
        return frozenset(name for name, feature in self.known.items() if feature.kind is FeatureKind.RECTANGLE)

    def only_text(self) -> str | None:
        """The name of the one free-text feature, `response` without an ontology; None where that is not one."""
        if self.known is None:
            return RAW_ANSWER if FeatureKind.TEXT in self.allowed else None
        names = [name for name, feature in self.known.items() if feature.kind is FeatureKind.TEXT]
        return names[0] if len(names) == 1 else None

    def _inferred(self, value: object) -> Feature | Fault:
        fitting = _kinds_of_shape(value)
        kind = next((kind for kind in fitting if kind in self.allowed), None)
        if kind is not None:
            return Feature(kind, Features(None, self.allowed & CLASSIFICATION_KINDS))
        seen = " or ".join(fitting) or "no kind that is known"
        return Fault("wrong_kind", f"expected one of {', '.join(sorted(self.allowed)) or 'no'}; its shape is {seen}")

    def _unknown(self, name: str, value: object) -> str:
        """Once a name, the nearest known one is looked for; comparing is dear, so only for a few names."""
        message = f"the ontology has no feature {quoted(name)}; items: {_item_count(value)}"
        if name not in self._suggested and len(self._suggested) < _SUGGESTED_NAMES:
            self._suggested[name] = _nearest(name, self.known or ())
        suggestion = self._suggested.get(name)
        return f"{message}; did you mean {quoted(suggestion)}?" if suggestion else message


def features_of(ontology: Ontology | None, kinds: Iterable[FeatureKind]) -> Features:
    """The features that a model's replies may name at the top. No kinds and no ontology means: any kind."""
    if ontology is None:
        return Features(None, frozenset(kinds) or frozenset(FeatureKind))
    known: dict[str, Feature] = {}
    for feature in ontology.features():
        known.setdefault(feature.name, _feature(feature))
    return Features(known)


def _feature(feature: Tool | Classification) -> Feature:
    if isinstance(feature, Tool):
        return Feature(feature.kind, _nested(feature.classifications))
    choices: dict[str, Choice] = {}
    for option in feature.options:
        choices.setdefault(option.value, Choice(option.value, _nested(option.classifications)))
    for option in feature.options:
        choices.setdefault(option.label, choices[option.value])
    return Feature(feature.kind, Features({}), choices or None)


def _nested(classifications: Iterable[Classification]) -> Features:
    return Features({c.name: _feature(c) for c in reversed(tuple(classifications))})


def _kinds_of_shape(value: object) -> list[FeatureKind]:
    """The kinds that a value looks like, likeliest first. Source: the table of reply shapes in docs/predictions.md."""
    if isinstance(value, dict):
        if "answer" in value:
            return [FeatureKind.TEXT, FeatureKind.RADIO]
        return [kind for kind, key in GEOMETRY_KEYS.items() if key in value]
    if isinstance(value, str):
        return [FeatureKind.TEXT, FeatureKind.RADIO]
    if isinstance(value, list):
        return _kinds_of_list(value)
    return []


def _kinds_of_list(items: list[object]) -> list[FeatureKind]:
    if any(isinstance(item, dict) and "start" in item and "end" in item for item in items):
        return [FeatureKind.ENTITY]
    if any(isinstance(item, str) or (isinstance(item, dict) and "answer" in item) for item in items):
        return [FeatureKind.CHECKLIST]
    return []


def _item_count(value: object) -> int:
    if isinstance(value, dict):
        lists = [value[key] for key in GEOMETRY_KEYS.values() if isinstance(value.get(key), list)]
        return sum(map(len, lists)) if lists else 1
    return len(value) if isinstance(value, list) else 1


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name that differs in case, space or Unicode form, or else in few letters; empty where none is near."""
    by_plain = {_plain(other): other for other in known}
    near = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=0.75)
    return by_plain[near[0]] if near else ""


def _plain(name: str) -> str:
    text = unicodedata.normalize("NFKC", name[:100]).casefold()
    return "".join(char for char in text if char.isalnum())
