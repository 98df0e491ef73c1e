"""Objects in a reply: one feature's parallel lists (items, scores, nested classifications), and edges between items.

What one item must look like is in `geometry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foundry_pipeline.decoding.answers import read_nested, read_score
from foundry_pipeline.decoding.features import GEOMETRY_KEYS, Feature
from foundry_pipeline.decoding.findings import Findings
from foundry_pipeline.decoding.geometry import GEOMETRIES, CheckMask, Geometry, Values, plain_numbers
from foundry_pipeline.decoding.item_columns import ItemRows
from foundry_pipeline.decoding.places import Place, json_path, quoted
from foundry_pipeline.decoding.rejects import Fault, json_type, wrong_type
from foundry_pipeline.ontology import FeatureKind


@dataclass(slots=True)
class Listed:
    """What became of one feature's list: how many items it had, which were refused, and where the others went."""

    rows: ItemRows
    length: int
    refused: set[int] = field(default_factory=set)


Ends = Mapping[str, Listed | None]
"""Feature -> its list in this part of the reply, None where the feature is there but has no readable list: what edges
may refer to."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What the objects of one part of a reply, the whole or a frame, have around them. `ends` matters to edges only."""

    findings: Findings
    check_mask: CheckMask
    ends: Ends


def read_objects(scope: Scope, feature: Feature, place: Place, value: object) -> Listed | None:
    """The items of one feature's object. None where there is no list to refer to."""
    findings, geometry = scope.findings, GEOMETRIES[feature.kind]
    if not isinstance(value, dict):
        findings.reject(place, wrong_type(f'an object with "{geometry.key}"', value), value)
        return None
    others = _reject_other_kinds(findings, geometry, place, value)
    if geometry.key not in value:
        if not others:
            findings.reject(place, Fault("missing_key", f'expected the key "{geometry.key}"'), value)
        return None
    items = value[geometry.key] if value[geometry.key] is not None else []
    if not isinstance(items, list):
        findings.reject(place.at(geometry.key), wrong_type("a list", items), items)
        return None
    return _read_items(scope, feature, place, value, items)


def _reject_other_kinds(findings: Findings, geometry: Geometry, place: Place, value: dict[str, object]) -> int:
    """How many geometry keys of another kind are there. Empty ones say nothing, so nothing is lost with them."""
    others = [key for key in value if key != geometry.key and key in GEOMETRY_KEYS.values()]
    for key in others:
        if value[key]:
            fault = Fault("wrong_kind", f'this feature is a {geometry.kind}: expected "{geometry.key}", got "{key}"')
            findings.reject(place.at(key), fault, value[key])
    return len(others)


def _read_items(scope: Scope, feature: Feature, place: Place, value: dict[str, object], items: list[object]) -> Listed:
    findings, geometry = scope.findings, GEOMETRIES[feature.kind]
    scores = _beside(findings, place, value, "scores", len(items))
    nested = _beside(findings, place, value, "classifications", len(items))
    listed = Listed(findings.rows(geometry.spec, place), len(items))
    admitted = findings.admit(place.at(geometry.key), items)
    if _read_plainly(geometry, listed.rows, admitted, scores, nested):
        return listed
    for index, item in enumerate(admitted):
        values = _read_item(scope, geometry, item)
        score = read_score(scores[index]) if scores else None
        if isinstance(values, Fault):
            findings.reject(place.at(geometry.key, index), values, item, index)
            listed.refused.add(index)
        elif isinstance(score, Fault):
            findings.reject(place.at("scores", index), _percent_hint(score, scores), scores[index], index)
            listed.refused.add(index)
        else:
            listed.rows.add(index, score, values)
            if nested and nested[index] is not None:
                below = place.at("classifications", index)
                read_nested(findings, feature.questions, below, nested[index], listed.rows.id_of(index))
    return listed


def _read_plainly(
    geometry: Geometry, rows: ItemRows, items: list[object], scores: list[object], nested: list[object]
) -> bool:
    """Read the whole list at once, where nothing about it is unusual."""
    if nested or not items or not plain_numbers(scores, 0.0, 1.0):
        return False
    columns = geometry.read_plain(items)
    if columns is None:
        return False
    rows.add_all(columns, scores[: len(items)] if scores else [None] * len(items))  # type: ignore[arg-type]
    return True


def _read_item(scope: Scope, geometry: Geometry, item: object) -> Values | Fault:
    values = geometry.read(item, scope.check_mask)
    if geometry.kind is FeatureKind.EDGE and not isinstance(values, Fault):
        return _resolved(values, scope.ends)
    return values


def _beside(findings: Findings, place: Place, value: dict[str, object], key: str, length: int) -> list[object]:
    """The list parallel to the items; empty where there is none, or nobody can tell what belongs to which item."""
    beside = value.get(key)
    if beside is None:
        return []
    if not isinstance(beside, list):
        findings.reject(place.at(key), wrong_type("a list", beside), beside)
        return []
    if len(beside) != length:
        message = f"{len(beside)} {key} beside {length} items; the items stay, without {key}"
        findings.reject(place.at(key), Fault("length_mismatch", message), beside)
        return []
    return beside


def _percent_hint(fault: Fault, scores: list[object]) -> Fault:
    if fault.reason == "bad_score" and all(isinstance(s, int | float) and 1 <= s <= 100 for s in scores):
        return Fault(fault.reason, f"{fault.message}; looks like percent")
    return fault


def _resolved(edge: Values, ends: Ends) -> Values | Fault:
    """The edge with its ends as prediction ids."""
    source, target, kind = edge
    found = []
    for name, reference in (("source", source), ("target", target)):
        end = _end(reference, ends)
        if isinstance(end, Fault):
            return Fault(end.reason, f"{name}: {end.message}")
        found.append(end)
    return (*found, kind)


def _end(reference: object, ends: Ends) -> str | Fault:
    """The prediction id that {"feature": name, "index": place} stands for. Places are counted before rejection."""
    if not isinstance(reference, dict):
        return Fault("bad_reference", f'expected {{"feature": ..., "index": ...}}, got {json_type(reference)}')
    name, index = reference.get("feature"), reference.get("index")
    if not isinstance(name, str) or type(index) is not int or index < 0:
        return Fault("bad_reference", "expected a feature's name and a place from 0")
    if name not in ends:
        return Fault("bad_reference", f"the reply has no objects of feature {quoted(name)} here")
    listed = ends[name]
    if listed is not None and index >= listed.length:
        return Fault("bad_reference", f"{quoted(name)} has {listed.length} items, expected a place below")
    if listed is None or index in listed.refused:
        return Fault("edge_endpoint_rejected", f"{json_path((name, index))[2:]} was rejected")
    return listed.rows.id_of(index)
