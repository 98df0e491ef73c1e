"""What an export could not say: one fixed list of reasons, and the counts of one export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from foundry_pipeline.exports.annotated import Prediction


class Loss(StrEnum):
    """Why a prediction is missing from an export, or differs there from what the model said."""

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
    ZERO_SIZE = "zero_size"
    OUTSIDE_PICTURE = "outside_picture"
    PICTURE_SIZE_UNKNOWN = "picture_size_unknown"
    MASK_SIZE_DIFFERS = "mask_size_differs"
    TOO_FEW_POINTS = "too_few_points"
    TOO_MANY_PER_FEATURE = "too_many_per_feature"
    RELATIONSHIP_ENDPOINT_MISSING = "relationship_endpoint_missing"

    CLIPPED_TO_PICTURE = "clipped_to_picture"
    SCORE_NOT_REPRESENTABLE = "score_not_representable"
    SCORE_MISSING_WRITTEN_AS_1 = "score_missing_written_as_1"
    ZERO_SIZE_ONLY_IN_RESULTS = "zero_size_only_in_results"


CHANGES = frozenset(
    {
        Loss.CLIPPED_TO_PICTURE,
        Loss.SCORE_NOT_REPRESENTABLE,
        Loss.SCORE_MISSING_WRITTEN_AS_1,
        Loss.ZERO_SIZE_ONLY_IN_RESULTS,
    }
)
"""Reasons whose prediction is in the export all the same. All others: it is left out."""


class Tally:
    """Counts of one export: data rows by outcome, predictions by feature, losses by reason.

    Predictions are table rows, nested answers included, so that came in = written + left out, feature by feature.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.rows_with_predictions = 0
        self.came: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.lost: Counter[Loss] = Counter()

    def leave_out(self, prediction: Prediction, why: Loss) -> None:
        """The prediction is not written, and with it everything nested under it."""
        self.left[prediction.feature] += 1
        self.lost[why] += 1
        self.leave_out_all(prediction.nested, Loss.PARENT_LEFT_OUT)

    def leave_out_all(self, predictions: Iterable[Prediction], why: Loss) -> None:
        """None of the predictions is written."""
        for prediction in predictions:
            self.leave_out(prediction, why)

    def change(self, why: Loss) -> None:
        """One prediction is written, but not as the model said it."""
        self.lost[why] += 1

    def written(self, feature: str) -> int:
        """How many predictions of `feature` are in the export."""
        return self.came[feature] - self.left[feature]
