"""What an evaluation says: measures, and the verdict on each prediction and truth. Their tables are in `tables.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

BACKGROUND = "(nothing)"
"""The row and column of a confusion matrix for what one side has and the other has not."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number. `feature` empty: over all; `answer`: of one option; `value` None: nothing can be said."""

    table: str
    metric: str
    value: float | None
    truths: int
    predictions: int
    feature: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one prediction, or of one truth that no prediction met; see `tables.MATCHES`."""

    table: str
    global_key: str
    verdict: str
    feature: str | None = None
    answer: str | None = None
    true_feature: str | None = None
    true_answer: str | None = None
    score: float | None = None
    overlap: float | None = None
    prediction_id: str | None = None
    truth_id: str | None = None
    frame: int | None = None
    message_id: str | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often `labels[row]` was taken for `labels[column]`; rows are the truth. `title` names what of."""

    title: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision at the recalls 0, 0.01, ... 1 for one feature, at IoU 0.5; -1 where no truth is."""

    table: str
    feature: str
    precision: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """The evaluation of one prediction table, or of several put together with `+`."""

    measures: tuple[Measure, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    curves: tuple[Curve, ...] = ()
    min_scores: Mapping[str, float] = field(default_factory=dict)
    """Feature -> the threshold with the best F1."""
    notes: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.measures + other.measures,
            self.verdicts + other.verdicts,
            self.confusions + other.confusions,
            self.curves + other.curves,
            {**self.min_scores, **other.min_scores},
            self.notes + other.notes,
        )


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to divide by."""
    return part / whole if whole else None


def f1_measures(
    table: str, found: Counter[str], *, feature: str = "", answer: str = "", prefix: str = ""
) -> tuple[Measure, ...]:
    """Precision, recall and F1 from the counts `match`, `missed` and `extra`."""
    match, missed, extra = found["match"], found["missed"], found["extra"]
    truths, predictions = match + missed, match + extra
    values = {
        "precision": ratio(match, predictions),
        "recall": ratio(match, truths),
        "f1": ratio(2 * match, truths + predictions),
    }
    return tuple(
        Measure(table, prefix + name, value, truths, predictions, feature, answer) for name, value in values.items()
    )


def confusion(title: str, pairs: Iterable[tuple[str, str]], order: Sequence[str] = ()) -> Confusion:
    """From (true, predicted) pairs. Labels stand in `order`, then by name, `BACKGROUND` last."""
    counts = Counter(pairs)
    seen = {label for pair in counts for label in pair}
    known = [label for label in order if label in seen]
    labels = [*known, *sorted(seen - {*known, BACKGROUND}), *([BACKGROUND] if BACKGROUND in seen else [])]
    return Confusion(title, tuple(labels), tuple(tuple(counts[true, said] for said in labels) for true in labels))
