"""What a format is to the rest of the package: a name, its conventions, and how its files are made in two steps.

`render` makes of one data row what it puts into the files: bytes that depend on that row and on the plan, and on no
other row, so that they can be kept while other slices change. `write` puts all of them in order into the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.annotated import AnnotatedRow
from foundry_pipeline.exports.overview import Overview
from foundry_pipeline.exports.tally import RowLoss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.ontology import MEDIA_TYPES

ReadText = Callable[[DataRow], str]
"""The text of a data row that is no picture; raises RowUnavailable where it cannot be had."""

Plan = TypeVar("Plan")
"""What a format must know before the first row, such as the numbers of classes."""


@dataclass(frozen=True, slots=True)
class Export:
    """What a renderer may ask beside the row it is given, and where it counts."""

    run: Run
    read_text: ReadText
    tally: Tally

    def takes(self, annotated: AnnotatedRow, *, written: bool) -> bool:
        """Whether an answered data row has a place in the files, and count it. `written`: it has something to say."""
        if written or self.run.keep_empty:
            self.tally.write_row(annotated)
            return True
        self.tally.leave_row_out(annotated, RowLoss.NOTHING_WRITTEN)
        return False


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one data row puts into the files. `split` is its part (`train`, ...), None where the run has no split.

    `about` is what JSON can hold; with it, `write` knows where `contents` belong.
    """

    split: str | None
    contents: tuple[bytes, ...]
    about: Mapping[str, Any]


PICTURES = frozenset({"image"})
TEXTS = frozenset({"text", "conversational"})
ALL_MEDIA = frozenset(MEDIA_TYPES)


@dataclass(frozen=True, slots=True)
class Exporter(Generic[Plan]):
    """One annotation format. `version` grows when the files' shape changes; `conventions` go into `manifest.json`;
    data rows of other than its `media_types` have no place in it."""

    name: str
    version: int
    media_types: frozenset[str]
    conventions: Mapping[str, str]
    split: str
    """How a split of the run is written, for `manifest.json`."""
    plan: Callable[[Run, Overview], Plan]
    render: Callable[[Export, Plan, AnnotatedRow], Rendered | None]
    """None where the data row is not in the files. Counts in `export.tally` every data row and prediction that is not
    there as the model said it."""
    write: Callable[[Run, Plan, Iterable[Rendered], Path], None]
    """Reads the rendered rows once, writes the files into the folder, in folders of its own where it has such."""
    renders_classes: bool = False
    """Whether what is rendered depends on which features all slices have together, such as numbers of classes."""
    renders_names: bool = False
    """Whether what is rendered holds the names of pictures."""


def parts_of(run: Run) -> tuple[str | None, ...]:
    """The parts of the run's split that files are made for; (None,) where it has none: then all rows are together."""
    return (None,) if run.split is None else run.split.parts


def named(stem: str, part: str | None) -> str:
    """A file's name before its suffix: `results`, or `results_train`."""
    return stem if part is None else f"{stem}_{part}"


def no_plan(_run: Run, _overview: Overview) -> None:
    """The plan of a format that needs to know nothing before the first row."""
