"""The ontology block of a manifest -> Ontology, with defaults filled in and all problems gathered.

Source: Labelbox's normalized ontology JSON. A block copied from the platform keeps its ids and editor settings: they
are known and mean nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from foundry_pipeline.config.fields import Block, Reader, choice, flag, one_of, refuse, text, whole
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import shown
from foundry_pipeline.ontology import (
    CLASSIFICATION_KINDS,
    MEDIA_TYPES,
    Classification,
    FeatureKind,
    Ontology,
    Option,
    Tool,
)

MAX_FEATURES = 4000
"""Labelbox's limit for the features of one ontology."""

KIND_ALIASES = {"superpixel": FeatureKind.MASK.value}
"""Labelbox's old name for segmentation, still found in exports."""

_CLASSIFICATION_TYPES = tuple(kind.value for kind in FeatureKind if kind in CLASSIFICATION_KINDS)
_TOOL_TYPES = tuple(kind.value for kind in FeatureKind if kind not in CLASSIFICATION_KINDS)
_PLATFORM_KEYS = ("featureSchemaId", "schemaNodeId", "attributes", "uiMode", "archived", "isLikertScale", "definition")

T = TypeVar("T")

feature_name = text(200)
media_type = choice(MEDIA_TYPES, any_case=True)


def read_ontology(item: Item, found: Findings) -> Ontology | None:
    """The ontology at this item; None, with a problem, where it is no mapping."""
    block = Block.of(item, found)
    if block is None:
        return None
    media = block.read("media_type", media_type)
    tools = _read_each(_entries(block, "tools", found), _tool, found)
    classifications = _read_each(_entries(block, "classifications", found), _top_classification, found)
    block.ignore(*_PLATFORM_KEYS)
    block.close()
    named: list[tuple[Item, Tool | Classification]] = [*tools, *classifications]
    _refuse_twins(((place, feature.name) for place, feature in named), "name", found)  # the keys of one reply
    ontology = Ontology(media, tuple(one for _, one in classifications), tuple(one for _, one in tools))
    if all(part is None or part.value == () for part in (block.item("tools"), block.item("classifications"))):
        refuse(item, found, "names no feature: list tools or classifications, or leave the ontology out")
    if (count := sum(1 for _ in walk_features(ontology.features()))) > MAX_FEATURES:
        refuse(item, found, f"an ontology may have {MAX_FEATURES} features; this one has {count}")
    return ontology


def kinds_of(ontology: Ontology) -> dict[FeatureKind, None]:
    """Every kind the ontology uses, nested ones too, in its order."""
    return {feature.kind: None for feature in walk_features(ontology.features())}


def walk_features(features: Iterable[Tool | Classification]) -> Iterator[Tool | Classification]:
    """Each feature, followed by the questions nested under it."""
    for feature in features:
        yield feature
        yield from walk_features(feature.classifications if isinstance(feature, Tool) else ())
        for option in () if isinstance(feature, Tool) else feature.options:
            yield from walk_features(option.classifications)


def _entries(block: Block, key: str, found: Findings) -> tuple[Item, ...]:
    """The items of the list at `key`; none, with a problem, where it is something else."""
    item = block.item(key)
    if item is None:
        return ()
    if isinstance(item.value, tuple):
        return item.value
    refuse(item, found, "expected a list (`- name: ...`)")
    return ()


def _read_each(items: Iterable[Item], read: Reader[T], found: Findings) -> list[tuple[Item, T]]:
    """The sound entries, each with its place."""
    return [(item, value) for item in items if (value := read(item, found)) is not None]


def _refuse_twins(named: Iterable[tuple[Item, object]], what: str, found: Findings) -> None:
    lines: dict[object, int] = {}
    for item, value in named:
        if value in lines:
            refuse(item, found, f"the {what} {shown(value)} stands twice; first in line {lines[value]}")
        lines.setdefault(value, item.line)


def _kind(known: tuple[str, ...], others: tuple[str, ...], elsewhere: str) -> Reader[str]:
    """A feature kind; the message knows where a kind of the other sort belongs."""
    read_kind = choice(known, aliases=KIND_ALIASES)

    def read(item: Item, found: Findings) -> str | None:
        if item.value in others:
            refuse(item, found, f"{item.text} belongs under {elsewhere}; expected one of {one_of(known)}")
            return None
        return read_kind(item, found)

    return read


_tool_kind = _kind(_TOOL_TYPES, _CLASSIFICATION_TYPES, "classifications")
_classification_kind = _kind(_CLASSIFICATION_TYPES, _TOOL_TYPES, "tools")


def _tool(item: Item, found: Findings) -> Tool | None:
    block = Block.of(item, found)
    if block is None:
        return None
    name = block.read("name", feature_name, required=True)
    kind = block.read("tool", _tool_kind, required=True)
    required = block.read("required", flag) or False
    color = block.read("color", text(40))
    nested = _nested(block, "classifications", found)
    block.ignore(*_PLATFORM_KEYS)
    block.close()
    return Tool(name, FeatureKind(kind), nested, required, color) if name and kind else None


def _nested(block: Block, key: str, found: Findings) -> tuple[Classification, ...]:
    placed = _read_each(_entries(block, key, found), _nested_classification, found)
    _refuse_twins(((item, one.name) for item, one in placed), "name", found)
    return tuple(one for _, one in placed)


def _top_classification(item: Item, found: Findings) -> Classification | None:
    return _classification(item, found, top=True)


def _nested_classification(item: Item, found: Findings) -> Classification | None:
    return _classification(item, found, top=False)


def _classification(item: Item, found: Findings, *, top: bool) -> Classification | None:
    """`name` falls back to `instructions`, and the other way round. Only at the top has it a scope."""
    block = Block.of(item, found)
    if block is None:
        return None
    instructions = block.read("instructions", text(2000))
    name = block.read("name", feature_name, required=block.item("instructions") is None) or instructions
    kind = block.read("type", _classification_kind, required=True)
    required = block.read("required", flag) or False
    scope = block.read("scope", choice(("global", "index"))) or "global"
    options = _options(block, kind, item, found)
    block.ignore(*_PLATFORM_KEYS)
    block.close()
    if not name or not kind:
        return None
    return Classification(name, FeatureKind(kind), instructions or name, options, required, scope if top else "global")


def _options(block: Block, kind: str | None, item: Item, found: Findings) -> tuple[Option, ...]:
    entries = _entries(block, "options", found)
    if kind == FeatureKind.TEXT and entries:
        refuse(item, found, "a text classification has no options")
    elif kind not in (None, FeatureKind.TEXT) and not entries:
        refuse(item, found, f"a {kind} classification needs at least one option")
    placed = [(entry, one) for n, entry in enumerate(entries) if (one := _option(entry, n, found)) is not None]
    _refuse_twins(((entry, option.value) for entry, option in placed), "value", found)
    _refuse_twins(((entry, option.position) for entry, option in placed), "position", found)
    return tuple(option for _, option in placed)


def _option(item: Item, place: int, found: Findings) -> Option | None:
    """`value` falls back to `label`, and the other way round; `position` to the place in the list."""
    block = Block.of(item, found)
    if block is None:
        return None
    label = block.read("label", text(200))
    value = block.read("value", feature_name, required=block.item("label") is None) or label
    position = block.read("position", whole(0, 1_000_000))
    nested = _nested(block, "options", found)
    block.ignore(*_PLATFORM_KEYS)
    block.close()
    return Option(value, label or value, place if position is None else position, nested) if value else None
