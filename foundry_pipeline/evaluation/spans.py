"""Named entities against ground truth: strictly, and partly.

Strict: the same feature, start and end. Partial: the same feature and a shared character; each truth is met once, by
the prediction that shares most of it (characters in common over characters in either).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foundry_pipeline.evaluation.measures import (
    BACKGROUND,
    Findings,
    Measure,
    Verdict,
    confusion,
    f1_measures,
)
from foundry_pipeline.evaluation.truth import TrueEntity


@dataclass(frozen=True, slots=True)
class FoundEntity:
    """A predicted span in code points, half open, under your name of its feature."""

    prediction_id: str
    global_key: str
    feature: str
    start: int
    end: int
    message_id: str | None = None
    score: float | None = None


def evaluate_entities(truths: Sequence[TrueEntity], found: Sequence[FoundEntity]) -> Findings:
    """Precision, recall and F1, strict and partial, over all and by feature; spans taken for another feature."""
    asked = {truth.feature for truth in truths}
    known = [entity for entity in found if entity.feature in asked]
    verdicts = tuple(_verdicts(truths, known))
    strange = Counter(entity.feature for entity in found if entity.feature not in asked)
    return Findings(
        measures=tuple(_measures(verdicts, sorted(asked))),
        verdicts=verdicts,
        confusions=(
            confusion(
                "entities that share a character",
                ((v.true_feature or BACKGROUND, v.feature or BACKGROUND) for v in verdicts),
            ),
        ),
        notes=tuple(
            f"entities: {count} of feature {feature!r}, which the ground truth does not have, were left out"
            for feature, count in sorted(strange.items())
        ),
    )


def _verdicts(truths: Sequence[TrueEntity], found: Sequence[FoundEntity]) -> Iterator[Verdict]:
    texts: defaultdict[tuple[str, str], tuple[list[TrueEntity], list[FoundEntity]]] = defaultdict(lambda: ([], []))
    for truth in truths:
        texts[truth.global_key, truth.message_id or ""][0].append(truth)
    for entity in found:
        texts[entity.global_key, entity.message_id or ""][1].append(entity)
    for key in sorted(texts):
        yield from _text_verdicts(*texts[key])


def _text_verdicts(truths: Sequence[TrueEntity], found: Sequence[FoundEntity]) -> Iterator[Verdict]:
    """The closest pairs first, those of one feature before all others."""
    pairs = sorted(
        (said.feature != true.feature, -shared, i, k)
        for i, said in enumerate(found)
        for k, true in enumerate(truths)
        if (shared := _shared(said, true)) > 0
    )
    met: dict[int, int] = {}
    for _, _, i, k in pairs:
        if i not in met and k not in met.values():
            met[i] = k
    for i, said in enumerate(found):
        yield _verdict(said, truths[met[i]] if i in met else None)
    for k, true in enumerate(truths):
        if k not in met.values():
            yield Verdict(
                "entities",
                true.global_key,
                "missed",
                true_feature=true.feature,
                truth_id=true.truth_id,
                message_id=true.message_id,
            )


def _verdict(said: FoundEntity, true: TrueEntity | None) -> Verdict:
    return Verdict(
        "entities",
        said.global_key,
        _word(said, true),
        feature=said.feature,
        true_feature=true.feature if true else None,
        score=said.score,
        overlap=_shared(said, true) if true else None,
        prediction_id=said.prediction_id,
        truth_id=true.truth_id if true else None,
        message_id=said.message_id,
    )


def _word(said: FoundEntity, true: TrueEntity | None) -> str:
    if true is None:
        return "extra"
    if said.feature != true.feature:
        return "wrong"
    return "match" if (said.start, said.end) == (true.start, true.end) else "partial"


def _shared(said: FoundEntity, true: TrueEntity) -> float:
    common = min(said.end, true.end) - max(said.start, true.start)
    return common / (max(said.end, true.end) - min(said.start, true.start)) if common > 0 else 0.0


def _measures(verdicts: Sequence[Verdict], features: Sequence[str]) -> Iterator[Measure]:
    for name, met in (("strict", {"match"}), ("partial", {"match", "partial"})):
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for verdict in verdicts:
            if verdict.verdict in met:
                counts[str(verdict.feature)]["match"] += 1
                continue
            if verdict.feature is not None:
                counts[verdict.feature]["extra"] += 1
            if verdict.true_feature is not None:
                counts[verdict.true_feature]["missed"] += 1
        yield from f1_measures("entities", sum(counts.values(), Counter()), prefix=f"{name}_")
        for feature in features:
            yield from f1_measures("entities", counts[feature], feature=feature, prefix=f"{name}_")
