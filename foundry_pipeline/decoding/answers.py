"""Answers to classifications in a reply: free text, radio and checklist, plain or with a score, and nested ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from foundry_pipeline.decoding.features import Choice, Feature, Features
from foundry_pipeline.decoding.findings import Findings
from foundry_pipeline.decoding.item_columns import ItemRows
from foundry_pipeline.decoding.places import Place, is_text, quoted
from foundry_pipeline.decoding.rejects import Fault, wrong_type
from foundry_pipeline.decoding.remarks import fault_of, remarks_in
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.tables import TABLE_OF_KIND

MessageOf = Callable[[object], str | Fault]
"""What an answer says of its message -> the message's id, or what is wrong with it."""

_SHOWN_OPTIONS = 10


def read_score(value: object) -> float | Fault | None:
    """A score from 0 to 1; None where the model gave none. A score of 87 means percent, and guessing would lie."""
    if value is None:
        return None
    if type(value) is not float and type(value) is not int:
        return wrong_type("a score as a number", value)
    if 0 <= value <= 1:
        return float(value)
    return Fault("bad_score", f"expected a score from 0 to 1, got {value}")


def score_in(item: Mapping[str, object]) -> tuple[str, object]:
    """(key, what stands there) of the score in an answer or entity. `confidence` is the platform's word for it."""
    key = "confidence" if item.get("score") is None and "confidence" in item else "score"
    return key, item.get(key)


def read_answers(
    findings: Findings, feature: Feature, place: Place, value: object, message_of: MessageOf | None = None
) -> None:
    """What a reply says for one classification: a row per answer. In a conversation, where `message_of` is given, an
    answer may be about one message, and radio and text may have a list of such answers."""
    rows = findings.rows(TABLE_OF_KIND[feature.kind], place)
    if isinstance(value, list) and (feature.kind is FeatureKind.CHECKLIST or (message_of and _about_messages(value))):
        for index, item in enumerate(findings.admit(place, value)):
            _read_answer(findings, rows, feature, place.at(index), item, index, message_of)
    elif feature.kind is not FeatureKind.CHECKLIST:
        for item in findings.admit(place, [value]):
            _read_answer(findings, rows, feature, place, item, 0, message_of)
    else:
        findings.reject(place, wrong_type("a list of answers", value), value)


def read_nested(findings: Findings, questions: Features, place: Place, value: object, parent_id: str) -> None:
    """An object of nested classifications and their answers, under the prediction `parent_id`."""
    if not isinstance(value, dict):
        findings.reject(place, wrong_type("an object of classifications", value), value)
        return
    for name, answer in value.items():
        below = place.named(name, parent_id)
        if answer is None:
            continue
        feature = questions.find(name, answer)
        if isinstance(feature, Fault):
            findings.reject(below, feature, answer)
        else:
            read_answers(findings, feature, below, answer)


def _about_messages(items: list[object]) -> bool:
    objects = [item for item in items if isinstance(item, dict)]
    return len(objects) == len(items) and any("message_id" in item for item in objects)


def _read_answer(
    findings: Findings,
    rows: ItemRows,
    feature: Feature,
    place: Place,
    value: object,
    index: int,
    message_of: MessageOf | None,
) -> None:
    """One answer, plain or wrapped in an object that may say, in a conversation, which message it is about."""
    if message_of is not None:
        rows.of_message(place.message_id)
    if not isinstance(value, dict):
        _add_answer(findings, rows, feature, place, value, index, None)
    elif _said_no(findings, place, value, index):
        return
    elif "answer" not in value:
        findings.reject(place, Fault("missing_key", 'expected the key "answer"'), value, index)
    else:
        key, said = score_in(value)
        score = read_score(said)
        if isinstance(score, Fault):
            findings.reject(place.at(key), score, said, index)
            return
        if message_of is not None and value.get("message_id") is not None:
            message = message_of(value["message_id"])
            if isinstance(message, Fault):
                findings.reject(place.at("message_id"), message, value["message_id"], index)
                return
            place = place._replace(message_id=message)
            rows.of_message(message)
        choice = _add_answer(findings, rows, feature, place.at("answer"), value["answer"], index, score)
        nested = value.get("classifications")
        if choice is not None and nested is not None:
            read_nested(findings, choice.questions, place.at("classifications"), nested, rows.id_of(index))


def _said_no(findings: Findings, place: Place, value: Mapping[str, object], index: int) -> bool:
    """Put on record what the model says about this answer. True where it refused, and gave none."""
    refused = False
    for key, said in remarks_in(value):
        if (fault := fault_of(key, said)) is None:
            continue
        is_answer = not refused and fault.reason == "refusal" and value.get("answer") is None
        findings.reject(place.at(key), fault, said, index if is_answer else None)
        refused = refused or is_answer
    return refused


def _add_answer(
    findings: Findings,
    rows: ItemRows,
    feature: Feature,
    place: Place,
    said: object,
    index: int,
    score: float | None,
) -> Choice | None:
    """A row for the answer, unless it is refused: then None."""
    choice = _chosen(feature, said)
    if isinstance(choice, Fault):
        findings.reject(place, choice, said, index)
        return None
    own = (choice.value,) if feature.kind is FeatureKind.TEXT else (feature.kind.value, choice.value)
    rows.add(index, score, (*own, place.parent_id))
    return choice


def _chosen(feature: Feature, answer: object) -> Choice | Fault:
    if not isinstance(answer, str):
        return wrong_type("a string", answer)
    if not is_text(answer):
        return Fault("bad_text", "the answer holds half a surrogate pair")
    if feature.kind is FeatureKind.TEXT:
        return Choice(answer, feature.questions)
    choice = feature.choice(answer)
    return choice if choice is not None else Fault("unknown_option", _unknown_option(feature, answer))


def _unknown_option(feature: Feature, answer: str) -> str:
    options = sorted({choice.value for choice in (feature.choices or {}).values()})
    shown = ", ".join(quoted(option, 40) for option in options[:_SHOWN_OPTIONS])
    more = f" and {len(options) - _SHOWN_OPTIONS} more" if len(options) > _SHOWN_OPTIONS else ""
    return f"expected one of {shown or 'any but the empty answer'}{more}; got {quoted(answer)}"
