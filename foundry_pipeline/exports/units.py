"""What annotation platforms count as one annotation, and how many of one feature they take on one data row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from foundry_pipeline.exports.annotated import Prediction
from foundry_pipeline.exports.tally import Loss, Tally

PER_FEATURE = 5_000
"""On one data row: more are refused by Labelbox' client, and hang editors."""

Unit = tuple[Prediction, ...]
"""One annotation: one prediction, or all chosen answers of one checklist."""


def units_of(predictions: Iterable[Prediction]) -> list[Unit]:
    """Checklist answers of one question, frame and message together, where the first of them stands."""
    units: dict[object, list[Prediction]] = defaultdict(list)
    for place, prediction in enumerate(predictions):
        values = prediction.values
        chosen = prediction.table == "classifications" and values["kind"] == "checklist"
        units[(prediction.feature, values["frame"], values["message_id"]) if chosen else place].append(prediction)
    return [tuple(unit) for unit in units.values()]


def within_limit(units: Sequence[Unit], tally: Tally) -> list[Unit]:
    """At most `PER_FEATURE` units of one feature: the highest scores, in their order. No score is taken for 1."""
    by_feature: defaultdict[str, list[int]] = defaultdict(list)
    for place, unit in enumerate(units):
        by_feature[unit[0].feature].append(place)
    surplus: set[int] = set()
    for places in by_feature.values():
        if len(places) > PER_FEATURE:
            places.sort(key=lambda place: _score(units[place]), reverse=True)
            surplus.update(places[PER_FEATURE:])
    for place in sorted(surplus):
        tally.leave_out_all(units[place], Loss.TOO_MANY_PER_FEATURE)
    return [unit for place, unit in enumerate(units) if place not in surplus]


def _score(unit: Unit) -> float:
    return max(1.0 if p.values["score"] is None else float(p.values["score"]) for p in unit)
