"""What a format is to the rest of the package: a name, its conventions, and one function that writes its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from foundry_pipeline.exports.annotated import AnnotatedRow
from foundry_pipeline.exports.tally import Tally
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store

WriteFiles = Callable[[Run, Store, Iterator[AnnotatedRow], Path, Tally], None]
"""(run, store, rows, folder, tally): reads `rows` once, writes the format's files into `folder`, counts what it
leaves out or changes. The store is for a first look at the tables; what is exported comes through `rows`."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """One annotation format. `version` grows when the files' shape changes; `conventions` go into `manifest.json`;
    `file_names` matches every name the format may ever write, so that files of an earlier export can be told."""

    name: str
    version: int
    file_names: re.Pattern[str]
    conventions: Mapping[str, str]
    write: WriteFiles
