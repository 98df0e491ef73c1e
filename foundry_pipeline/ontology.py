"""What a model may predict: features, their kinds and their options.

Owns the vocabulary only. Reading it from a manifest is `manifest.py`, checking replies against it `decode.py`.
Shape and defaults follow Labelbox's normalized ontology JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

MEDIA_TYPES = ("image", "text", "conversational", "html", "video")


class FeatureKind(StrEnum):
    """The document's `allowed_feature_kinds`, and `line`, which ontologies have but the document does not list."""

    TEXT = "text"
    RADIO = "radio"
    CHECKLIST = "checklist"
    RECTANGLE = "rectangle"
    MASK = "raster-segmentation"
    ENTITY = "named-entity"
    POLYGON = "polygon"
    POINT = "point"
    EDGE = "edge"
    LINE = "line"


CLASSIFICATION_KINDS = frozenset({FeatureKind.TEXT, FeatureKind.RADIO, FeatureKind.CHECKLIST})


@dataclass(frozen=True, slots=True)
class Option:
    """One choice of a radio or checklist. `value` is the machine name, `label` what people read."""

    value: str
    label: str
    position: int
    classifications: tuple[Classification, ...] = ()


@dataclass(frozen=True, slots=True)
class Classification:
    """A question about a data row, an object or an answer. `kind` is text, radio or checklist."""

    name: str
    kind: FeatureKind
    instructions: str
    options: tuple[Option, ...] = ()
    required: bool = False
    scope: str = "global"


@dataclass(frozen=True, slots=True)
class Tool:
    """A kind of object to find, with the questions asked about each."""

    name: str
    kind: FeatureKind
    classifications: tuple[Classification, ...] = ()
    required: bool = False
    color: str | None = None


@dataclass(frozen=True, slots=True)
class Ontology:
    """The features a model was given. `media_type` is lower case, or None where the manifest leaves it out."""

    media_type: str | None
    classifications: tuple[Classification, ...]
    tools: tuple[Tool, ...]

    def features(self) -> Iterator[Tool | Classification]:
        """Tools, then classifications, in the order of the manifest."""
        yield from self.tools
        yield from self.classifications

    def as_json(self) -> dict[str, object]:
        """Normalized JSON, as sent in a request: keys in a fixed order, defaults filled in, no ids."""
        return {
            "media_type": self.media_type.upper() if self.media_type else None,
            "classifications": [_classification_json(c) for c in self.classifications],
            "tools": [_tool_json(t) for t in self.tools],
        }


def _tool_json(tool: Tool) -> dict[str, object]:
    return {
        "name": tool.name,
        "tool": tool.kind.value,
        "required": tool.required,
        "color": tool.color,
        "classifications": [_classification_json(c) for c in tool.classifications],
    }


def _classification_json(classification: Classification) -> dict[str, object]:
    return {
        "name": classification.name,
        "instructions": classification.instructions,
        "type": classification.kind.value,
        "required": classification.required,
        "scope": classification.scope,
        "options": [
            {
                "label": option.label,
                "value": option.value,
                "position": option.position,
                "options": [_classification_json(c) for c in option.classifications],
            }
            for option in classification.options
        ],
    }
