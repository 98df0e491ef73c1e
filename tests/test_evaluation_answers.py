"""Radio, checklist, free text and entities against ground truth."""

from __future__ import annotations

import pytest

from foundry_pipeline.evaluation.answers import FoundAnswer, evaluate_choices, evaluate_texts, likeness
from foundry_pipeline.evaluation.measures import BACKGROUND, Findings
from foundry_pipeline.evaluation.spans import FoundEntity, evaluate_entities
from foundry_pipeline.evaluation.truth import TrueAnswer, TrueEntity


def true(key: str, *answers: str, feature: str = "mood") -> TrueAnswer:
    return TrueAnswer(f"t-{key}", key, feature, answers)


def said(key: str, answer: str, feature: str = "mood") -> FoundAnswer:
    return FoundAnswer(f"p-{key}-{answer}", key, feature, answer)


def values(findings: Findings, **wanted: str) -> dict[str, float | None]:
    return {m.metric: m.value for m in findings.measures if all(getattr(m, k) == v for k, v in wanted.items())}


def test_radio_has_accuracy_f1_and_confusion() -> None:
    truths = [true("a", "glad"), true("b", "glad"), true("c", "sad"), true("d", "sad")]
    findings = evaluate_choices(truths, [said("a", "glad"), said("b", "sad"), said("c", "sad")], {"mood"})
    of_question = values(findings, feature="mood", answer="")
    assert of_question["accuracy"] == 0.5
    assert of_question["micro_precision"] == pytest.approx(2 / 3)
    assert of_question["micro_recall"] == 0.5
    assert values(findings, answer="glad") == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert values(findings, answer="sad") == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    (confusion,) = findings.confusions
    assert confusion.labels == ("glad", "sad", BACKGROUND)
    assert confusion.counts == ((1, 1, 0), (0, 1, 1), (0, 0, 0))
    assert [v.verdict for v in findings.verdicts] == ["match", "wrong", "match", "missed"]


def test_a_checklist_is_right_only_as_a_whole_and_counted_by_option() -> None:
    truths = [true("a", "x", "y"), true("b", "x")]
    findings = evaluate_choices(truths, [said("a", "y"), said("a", "x"), said("b", "x"), said("b", "z")], set())
    of_question = values(findings, feature="mood", answer="")
    assert of_question["exact_match"] == 0.5
    assert of_question["micro_precision"] == 0.75
    assert of_question["micro_recall"] == 1.0
    assert values(findings, answer="z")["precision"] == 0.0
    assert sorted(v.verdict for v in findings.verdicts) == ["extra", "match", "match", "match"]


def test_an_empty_checklist_that_the_model_left_empty_is_right() -> None:
    findings = evaluate_choices([true("a")], [], set())
    assert values(findings, answer="")["exact_match"] == 1.0


def test_answers_that_no_person_was_asked_are_named_and_left_out() -> None:
    findings = evaluate_choices([true("a", "glad")], [said("a", "glad"), said("a", "big", "size")], {"mood"})
    assert values(findings, feature="mood", answer="")["accuracy"] == 1.0
    assert "'size'" in findings.notes[0]


def test_texts_have_exact_matches_and_likeness_and_a_missing_one_counts_nothing() -> None:
    truths = [true("a", "hello"), true("b", "hello"), true("c", "hello"), true("d", "hello")]
    findings = evaluate_texts(truths, [said("a", " hello\n"), said("b", "hallo"), said("c", "zzz")])
    measured = values(findings, feature="mood")
    assert measured["exact_match"] == 0.25
    assert measured["likeness"] == pytest.approx((1 + 0.8 + 0 + 0) / 4)
    assert [v.verdict for v in findings.verdicts] == ["match", "partial", "wrong", "missed"]


def test_likeness_is_symmetric_at_its_ends() -> None:
    assert likeness("", "") == 1.0
    assert likeness("abc", "abc") == 1.0
    assert likeness("abc", "xyz") == 0.0


def entity(start: int, end: int, feature: str = "person", key: str = "a", message: str | None = None) -> FoundEntity:
    return FoundEntity(f"p{start}-{end}", key, feature, start, end, message)


def span(start: int, end: int, feature: str = "person", key: str = "a", message: str | None = None) -> TrueEntity:
    return TrueEntity(f"t{start}-{end}", key, feature, start, end, message)


def test_entities_are_judged_strictly_and_partly() -> None:
    findings = evaluate_entities([span(0, 5), span(10, 15), span(20, 25)], [entity(0, 5), entity(10, 14)])
    over_all = values(findings, feature="")
    assert over_all["strict_precision"] == 0.5
    assert over_all["strict_recall"] == pytest.approx(1 / 3)
    assert over_all["partial_precision"] == 1.0
    assert over_all["partial_recall"] == pytest.approx(2 / 3)
    assert sorted(v.verdict for v in findings.verdicts) == ["match", "missed", "partial"]


def test_an_entity_of_another_feature_is_a_miss_of_one_and_an_extra_of_the_other() -> None:
    findings = evaluate_entities([span(0, 5), span(10, 15, "city")], [entity(0, 5, "city"), entity(10, 15, "city")])
    assert values(findings, feature="city")["strict_precision"] == 0.5
    assert values(findings, feature="person")["strict_recall"] == 0.0
    (confusion,) = findings.confusions
    assert confusion.labels == ("city", "person")
    assert confusion.counts == ((1, 0), (1, 0))


def test_a_truth_is_met_once_by_what_shares_most_of_it() -> None:
    findings = evaluate_entities([span(0, 10)], [entity(0, 4), entity(1, 10)])
    assert {v.prediction_id: v.verdict for v in findings.verdicts} == {"p0-4": "extra", "p1-10": "partial"}


def test_touching_spans_share_nothing() -> None:
    findings = evaluate_entities([span(0, 5)], [entity(5, 8)])
    assert sorted(v.verdict for v in findings.verdicts) == ["extra", "missed"]


def test_offsets_in_two_messages_are_two_places() -> None:
    findings = evaluate_entities([span(0, 5, message="m1")], [entity(0, 5, message="m2")])
    assert sorted(v.verdict for v in findings.verdicts) == ["extra", "missed"]
