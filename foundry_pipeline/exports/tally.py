"""What an export could not say: fixed lists of reasons, and the counts of one export.

Predictions are table rows, nested answers included, so that came in = written + lost, feature by feature.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction

Counts = defaultdict[str, Counter[StrEnum]]
"""Feature -> reason -> predictions."""


class Loss(StrEnum):
    """Why a prediction is not in an export."""

    DATA_ROW_MISSING = "data_row_missing"
    ROW_NOT_ANSWERED = "row_not_answered"
    MAPPED_TO_NULL = "mapped_to_null"
    BELOW_MIN_SCORE = "below_min_score"
    PARENT_LEFT_OUT = "parent_left_out"
    KIND_NOT_REPRESENTABLE = "kind_not_representable"
    NOT_IMPORTABLE_FOR_MEDIA = "not_importable_for_media"
    FRAME_MISSING = "frame_missing"
    MESSAGE_MISSING = "message_missing"
    EMPTY_SPAN = "empty_span"
    SPAN_OUTSIDE_TEXT = "span_outside_text"
    TEXT_UNAVAILABLE = "text_unavailable"
    ONLY_WHITE_SPACE = "only_white_space"
    OVERLAPS_A_LONGER_ONE = "overlaps_a_longer_one"
    ZERO_SIZE = "zero_size"
    OUTSIDE_PICTURE = "outside_picture"
    PICTURE_SIZE_UNKNOWN = "picture_size_unknown"
    MASK_SIZE_DIFFERS = "mask_size_differs"
    TOO_FEW_POINTS = "too_few_points"
    TOO_MANY_PER_FEATURE = "too_many_per_feature"
    RELATIONSHIP_ENDPOINT_MISSING = "relationship_endpoint_missing"


class Change(StrEnum):
    """How a prediction that is in an export differs there from what the model said."""

    CLIPPED_TO_PICTURE = "clipped_to_picture"
    SCORE_NOT_REPRESENTABLE = "score_not_representable"
    SCORE_MISSING_WRITTEN_AS_1 = "score_missing_written_as_1"
    ZERO_SIZE_ONLY_IN_RESULTS = "zero_size_only_in_results"
    REDUCED_TO_BOX = "reduced_to_box"
    HOLES_FILLED = "holes_filled"
    SPLIT_INTO_PARTS = "split_into_parts"
    ROUNDED_TO_PIXELS = "rounded_to_pixels"
    DRAWN_AS_PIXELS = "drawn_as_pixels"
    PARTLY_HIDDEN = "partly_hidden"
    MASK_NOT_DRAWN = "mask_not_drawn"
    MOVED_TO_TOKENS = "moved_to_tokens"
    CHARACTERS_REPLACED = "characters_replaced"
    FORMULA_QUOTED = "formula_quoted"


class RowLoss(StrEnum):
    """Why a data row is not in an export."""

    NOT_ANSWERED = "not_answered"
    OTHER_MEDIA_TYPE = "other_media_type"
    NOTHING_WRITTEN = "nothing_written"
    PICTURE_SIZE_UNKNOWN = "picture_size_unknown"
    TEXT_UNAVAILABLE = "text_unavailable"


class Tally:
    """Counts of one export: data rows by outcome, predictions by feature, losses and changes by reason.

    A prediction is lost for one reason, but may be changed for several.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.calls_unanswered = 0
        self.rows_with_predictions = 0
        self.rows_written = 0
        self.rows_of_split: Counter[str] = Counter()
        """Written data rows by the part of the run's split that they belong to."""
        self.rows_lost: Counter[RowLoss] = Counter()
        self.came: Counter[str] = Counter()
        self.lost: Counts = defaultdict(Counter)
        self.changed: Counts = defaultdict(Counter)
        self.unfit: set[str] = set()
        """What the project's ontology lacks of what would be written, in words. One is enough to write nothing."""

    def write_row(self, annotated: AnnotatedRow) -> None:
        """The data row is in the export."""
        self.rows_written += 1
        if annotated.split is not None:
            self.rows_of_split[annotated.split] += 1

    def leave_out(self, prediction: Prediction, why: Loss) -> None:
        """The prediction is not written, and with it everything nested under it."""
        self.lost[prediction.feature][why] += 1
        self.leave_out_all(prediction.nested, Loss.PARENT_LEFT_OUT)

    def leave_out_all(self, predictions: Iterable[Prediction], why: Loss) -> None:
        """None of the predictions is written."""
        for prediction in predictions:
            self.leave_out(prediction, why)

    def change(self, prediction: Prediction, how: Change) -> None:
        """The prediction is written, but not as the model said it."""
        self.changed[prediction.feature][how] += 1

    def leave_row_out(self, annotated: AnnotatedRow, why: RowLoss, of_predictions: Loss | None = None) -> None:
        """The data row is not in the export; its predictions are lost for the reason `of_predictions`."""
        self.rows_lost[why] += 1
        if of_predictions is not None:
            self.leave_out_all(annotated.predictions, of_predictions)

    def as_json(self) -> dict[str, Any]:
        """The counts, for `add`."""
        counters: Sequence[Mapping[Any, int]] = (self.outcomes, self.rows_of_split, self.rows_lost, self.came)
        return {
            "rows": [self.rows_with_predictions, self.rows_written, self.calls_unanswered],
            "counters": [_plain(counter) for counter in counters],
            "unfit": sorted(self.unfit),
            "by_feature": [{f: _plain(c) for f, c in counts.items()} for counts in (self.lost, self.changed)],
        }

    def add(self, counts: Mapping[str, Any]) -> None:
        """Count what another tally has counted, as its `as_json` says it."""
        with_predictions, written, calls_unanswered = counts["rows"]
        self.rows_with_predictions += with_predictions
        self.rows_written += written
        self.calls_unanswered += calls_unanswered
        outcomes, of_split, rows_lost, came = counts["counters"]
        self.outcomes.update(outcomes)
        self.rows_of_split.update(of_split)
        self.rows_lost.update({RowLoss(why): count for why, count in rows_lost.items()})
        self.came.update(came)
        self.unfit.update(counts["unfit"])
        for mine, theirs, reason in zip((self.lost, self.changed), counts["by_feature"], (Loss, Change), strict=True):
            for feature, of_feature in theirs.items():
                mine[feature].update({reason(why): count for why, count in of_feature.items()})


def _plain(counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(what): count for what, count in counts.items()}


def by_reason(counts: Iterable[Counter[StrEnum]], reasons: type[StrEnum]) -> dict[str, int]:
    """Reason -> predictions, of all features in `counts`, in the order of the list; without those that were not met."""
    total = sum(counts, Counter[StrEnum]())
    return {reason.value: total[reason] for reason in reasons if total[reason]}
