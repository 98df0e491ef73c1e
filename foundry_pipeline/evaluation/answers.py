"""Radio, checklist and free text against ground truth.

A question that a person answered and the model did not is a miss. Options and texts are compared exactly; for texts
there is a likeness too: difflib's ratio, 0 to 1, of the texts without outer white space.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from foundry_pipeline.evaluation.measures import (
    BACKGROUND,
    Confusion,
    Findings,
    Measure,
    Verdict,
    confusion,
    f1_measures,
    ratio,
)
from foundry_pipeline.evaluation.truth import TrueAnswer

COMPARED_CHARS = 20_000
"""Of a text, for its likeness: difflib's time grows with the square of the length."""

Question = tuple[str, str, int | str | None]
"""Global key, feature, and the frame or message it is about; None for the whole data row."""


@dataclass(frozen=True, slots=True)
class FoundAnswer:
    """One predicted answer about a data row, a frame or a message, under your name of its question."""

    prediction_id: str
    global_key: str
    feature: str
    answer: str
    score: float | None = None
    frame: int | None = None
    message_id: str | None = None


def evaluate_choices(truths: Sequence[TrueAnswer], found: Sequence[FoundAnswer], single: Collection[str]) -> Findings:
    """Radio and checklist. `single`: the questions with one answer. What no person was asked is left out."""
    said = _by_question(found)
    verdicts: list[Verdict] = []
    for truth in truths:
        answers = said.get(_question(truth), [])
        judge = _one_answer if truth.feature in single else _any_answers
        verdicts.extend(judge(truth, answers))
    features = sorted({truth.feature for truth in truths})
    of = {name: [v for v in verdicts if name in (v.true_feature, v.feature)] for name in features}
    return Findings(
        measures=tuple(m for name in features for m in _choice_measures(name, truths, of[name], name in single)),
        verdicts=tuple(verdicts),
        confusions=tuple(_confused(name, of[name]) for name in features if name in single),
        notes=tuple(_strangers("classifications", truths, found)),
    )


def evaluate_texts(truths: Sequence[TrueAnswer], found: Sequence[FoundAnswer]) -> Findings:
    """Free text: exact match and mean likeness, a missing answer counting 0."""
    said = _by_question(found)
    verdicts = tuple(_text_verdict(t, said.get(_question(t), [])) for t in truths)
    measures = []
    for name in sorted({truth.feature for truth in truths}):
        of = [verdict for verdict in verdicts if verdict.true_feature == name]
        answered = sum(verdict.verdict != "missed" for verdict in of)
        exact = ratio(sum(verdict.verdict == "match" for verdict in of), len(of))
        alike = ratio(sum(verdict.overlap or 0.0 for verdict in of), len(of))
        measures.append(Measure("texts", "exact_match", exact, len(of), answered, name))
        measures.append(Measure("texts", "likeness", alike, len(of), answered, name))
    return Findings(tuple(measures), verdicts, notes=tuple(_strangers("texts", truths, found)))


def _question(truth: TrueAnswer) -> Question:
    return truth.global_key, truth.feature, truth.part


def _by_question(found: Iterable[FoundAnswer]) -> dict[Question, list[FoundAnswer]]:
    by_question: defaultdict[Question, list[FoundAnswer]] = defaultdict(list)
    for answer in found:
        part = answer.message_id if answer.frame is None else answer.frame
        by_question[answer.global_key, answer.feature, part].append(answer)
    return by_question


def _one_answer(truth: TrueAnswer, answers: Sequence[FoundAnswer]) -> Iterator[Verdict]:
    wanted = truth.answers[0] if truth.answers else None
    if not answers:
        yield _missed("classifications", truth, wanted)
    for answer in answers:
        yield _answered("classifications", truth, answer, "match" if answer.answer == wanted else "wrong", wanted)


def _any_answers(truth: TrueAnswer, answers: Sequence[FoundAnswer]) -> Iterator[Verdict]:
    said = {answer.answer: answer for answer in answers}
    for wanted in truth.answers:
        if wanted in said:
            yield _answered("classifications", truth, said.pop(wanted), "match", wanted)
        else:
            yield _missed("classifications", truth, wanted)
    for answer in said.values():
        yield _answered("classifications", truth, answer, "extra", None)


def _text_verdict(truth: TrueAnswer, answers: Sequence[FoundAnswer]) -> Verdict:
    wanted = truth.answers[0].strip()
    if not answers:
        return _missed("texts", truth, wanted)
    alike = likeness(answers[0].answer, wanted)
    verdict = "match" if answers[0].answer.strip() == wanted else "partial" if alike >= 0.5 else "wrong"
    return _answered("texts", truth, answers[0], verdict, wanted, alike)


def likeness(one: str, other: str) -> float:
    """0 to 1; 1 for equal texts."""
    parts = one.strip()[:COMPARED_CHARS], other.strip()[:COMPARED_CHARS]
    return difflib.SequenceMatcher(None, *parts, autojunk=False).ratio()


def _missed(table: str, truth: TrueAnswer, wanted: str | None) -> Verdict:
    return Verdict(
        table,
        truth.global_key,
        "missed",
        true_feature=truth.feature,
        true_answer=wanted,
        overlap=0.0 if table == "texts" else None,
        truth_id=truth.truth_id,
        frame=truth.frame,
        message_id=truth.message_id,
    )


def _answered(
    table: str, truth: TrueAnswer, said: FoundAnswer, verdict: str, wanted: str | None, overlap: float | None = None
) -> Verdict:
    return Verdict(
        table,
        truth.global_key,
        verdict,
        feature=said.feature,
        answer=said.answer,
        true_feature=None if verdict == "extra" else truth.feature,
        true_answer=wanted,
        score=said.score,
        overlap=overlap,
        prediction_id=said.prediction_id,
        truth_id=None if verdict == "extra" else truth.truth_id,
        frame=truth.frame,
        message_id=truth.message_id,
    )


def _choice_measures(
    feature: str, truths: Sequence[TrueAnswer], verdicts: Sequence[Verdict], single: bool
) -> Iterator[Measure]:
    asked = [truth for truth in truths if truth.feature == feature]
    predictions = sum(verdict.prediction_id is not None for verdict in verdicts)
    right = _wholly_right(asked, verdicts)
    name = "accuracy" if single else "exact_match"
    yield Measure("classifications", name, ratio(right, len(asked)), len(asked), predictions, feature)
    of_options = _counts_by_option(verdicts)
    by_option = {option: f1_measures("classifications", n, feature=feature, answer=option) for option, n in of_options}
    values = [m.value for measures in by_option.values() for m in measures if m.metric == "f1" and m.value is not None]
    macro = ratio(sum(values), len(values))
    yield Measure("classifications", "macro_f1", macro, len(asked), predictions, feature)
    total = sum((counts for _, counts in of_options), Counter[str]())
    yield from f1_measures("classifications", total, feature=feature, prefix="micro_")
    for measures in by_option.values():
        yield from measures


def _wholly_right(asked: Sequence[TrueAnswer], verdicts: Iterable[Verdict]) -> int:
    """Data rows, or parts of them, on which nothing was wrong, missed or extra."""
    faulty = {(v.global_key, v.frame, v.message_id) for v in verdicts if v.verdict != "match"}
    return sum((truth.global_key, truth.frame, truth.message_id) not in faulty for truth in asked)


def _counts_by_option(verdicts: Iterable[Verdict]) -> list[tuple[str, Counter[str]]]:
    """Option -> its counts; a wrong answer is an extra of the one and a miss of the other."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        if verdict.verdict == "match":
            counts[str(verdict.answer)]["match"] += 1
            continue
        if verdict.answer is not None:
            counts[verdict.answer]["extra"] += 1
        if verdict.true_answer is not None:
            counts[verdict.true_answer]["missed"] += 1
    return sorted(counts.items())


def _confused(feature: str, verdicts: Iterable[Verdict]) -> Confusion:
    return confusion(feature, ((v.true_answer or BACKGROUND, v.answer or BACKGROUND) for v in verdicts))


def _strangers(table: str, truths: Sequence[TrueAnswer], found: Sequence[FoundAnswer]) -> Iterator[str]:
    asked = {truth.feature for truth in truths}
    strange: Mapping[str, int] = Counter(answer.feature for answer in found if answer.feature not in asked)
    for feature, count in sorted(strange.items()):
        yield f"{table}: {count} answers to {feature!r}, which the ground truth does not have, were left out"
