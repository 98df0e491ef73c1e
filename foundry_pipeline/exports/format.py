"""What a format is to the rest of the package: a name, its conventions, and one function that writes its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.annotated import AnnotatedRow
from foundry_pipeline.exports.tally import RowLoss, Tally
from foundry_pipeline.home import Run
from foundry_pipeline.ontology import MEDIA_TYPES
from foundry_pipeline.store import Store

ReadText = Callable[[DataRow], str]
"""The text of a data row that is no picture; raises RowUnavailable where it cannot be had."""


@dataclass(frozen=True, slots=True)
class Export:
    """What a writer may ask beside the rows it is given.

    The store is for a first look at the tables, such as which features there are; what is exported comes as rows.
    """

    run: Run
    store: Store
    read_text: ReadText
    tally: Tally

    def takes(self, annotated: AnnotatedRow, *, written: bool) -> bool:
        """Whether an answered data row has a place in the files, and count it. `written`: it has something to say."""
        if written or self.run.keep_empty:
            self.tally.rows_written += 1
            return True
        self.tally.leave_row_out(annotated, RowLoss.NOTHING_WRITTEN)
        return False


PICTURES = frozenset({"image"})
TEXTS = frozenset({"text", "conversational"})
ALL_MEDIA = frozenset(MEDIA_TYPES)

WriteFiles = Callable[[Export, Iterator[AnnotatedRow], Path], None]
"""(export, rows, folder): reads `rows` once, writes the format's files into `folder`, in folders of its own where the
format has such, and counts in `export.tally` every data row and prediction that is not in them as the model said it."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """One annotation format. `version` grows when the files' shape changes; `conventions` go into `manifest.json`;
    data rows of other than its `media_types` have no place in it."""

    name: str
    version: int
    media_types: frozenset[str]
    conventions: Mapping[str, str]
    write: WriteFiles
