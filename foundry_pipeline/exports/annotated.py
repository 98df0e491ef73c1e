"""What exporters see: a data row with the predictions that the run lets out, nested ones under their parents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.rle import Rle
from foundry_pipeline.tables import CLASSIFICATIONS, TABLE_OF_KIND

NOT_ASKED = "not_asked"
KINDS: Mapping[str, str] = {
    spec.name: kind.value for kind, spec in TABLE_OF_KIND.items() if spec is not CLASSIFICATIONS
}
"""Table -> the kind of its rows; those of `classifications` say theirs."""

Record = Mapping[str, Any]
"""One row of a prediction table, without the columns that are the same for the whole run."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of the prediction table `table`. `feature` is your name for it, `values["feature"]` the model's.

    `nested` are the answers to questions about this object or answer.
    """

    table: str
    feature: str
    values: Record
    nested: tuple[Prediction, ...] = ()


@dataclass(frozen=True, slots=True)
class AnnotatedRow:
    """A data row, its outcome (one of `tables.OUTCOMES`, or `not_asked`) and its predictions.

    A row that took several calls is `ok` where one of them was answered; `calls_unanswered` are its others. `split` is
    its part (`train`, `val`, `test`), None where the run has no split.
    """

    row: DataRow
    outcome: str
    predictions: tuple[Prediction, ...]
    calls_unanswered: int = 0
    split: str | None = None

    @property
    def answered(self) -> bool:
        """Whether the model answered. Without predictions it then found nothing, which is not the same as silence."""
        return self.outcome == "ok"


def with_nested(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """The predictions, each before what is nested under it."""
    for prediction in predictions:
        yield prediction
        yield from with_nested(prediction.nested)


def kind_of(prediction: Prediction) -> str:
    """The prediction's kind, as ontologies call it: rectangle, radio, ..."""
    return str(prediction.values["kind"]) if prediction.table == CLASSIFICATIONS.name else KINDS[prediction.table]


def rle_of(values: Record) -> Rle:
    """The mask in a row of the `masks` table."""
    box_ltwh = (values["left"], values["top"], values["width"], values["height"])
    return Rle((values["size_h"], values["size_w"]), values["counts"], values["area"], box_ltwh)
