"""The content of data rows, as a resource, for steps that are no event loop: texts to decode, pictures to draw."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from foundry_pipeline.errors import ConfigError, Problem, RowUnavailable
from foundry_pipeline.home import Dataset, Settings, load_home
from foundry_pipeline.rows.content import RowReader
from foundry_pipeline.rows.local_files import LocalFiles

MOST_TRUTH_BYTES = 1 << 31


@dataclass(frozen=True, slots=True)
class Contents:
    """Opens readers under the home's rules about folders, addresses and sizes."""

    home_root: Path
    settings: Settings

    def open(self, dataset: Dataset) -> RowReader:
        """A reader for one dataset's rows."""
        return RowReader(self.home_root, self.settings, encoding=dataset.encoding)

    def ground_truth(self, dataset: Dataset) -> bytes:
        """The content of the dataset's ground truth. Raises ConfigError where it cannot be read."""
        assert dataset.ground_truth is not None
        files = LocalFiles(self.home_root, self.settings.allow_folders)
        try:
            return files.read(os.path.normpath(dataset.base / dataset.ground_truth), MOST_TRUTH_BYTES)
        except RowUnavailable as err:
            raise ConfigError([Problem(dataset.file, err.message, "$.ground_truth")]) from None


class ContentsResource(dg.ConfigurableResource[Contents]):
    """Hands out Contents."""

    home_root: str = Field(description="The home folder; foundry.yaml in it says what may be read.")

    def create_resource(self, context: dg.InitResourceContext) -> Contents:  # noqa: ARG002, Dagster's signature
        """The home's rules, read anew."""
        home = load_home(Path(self.home_root), os.environ)
        return Contents(home.root, home.settings)
