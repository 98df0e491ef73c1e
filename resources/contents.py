"""The content of data rows, as a resource, for steps that are no event loop: texts to decode, pictures to draw."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from pydantic import Field

from foundry_pipeline.home import Dataset, Settings, load_home
from foundry_pipeline.rows.content import RowReader


@dataclass(frozen=True, slots=True)
class Contents:
    """Opens readers under the home's rules about folders, addresses and sizes."""

    home_root: Path
    settings: Settings

    def open(self, dataset: Dataset) -> RowReader:
        """A reader for one dataset's rows."""
        return RowReader(self.home_root, self.settings, encoding=dataset.encoding)


class ContentsResource(dg.ConfigurableResource[Contents]):
    """Hands out Contents."""

    home_root: str = Field(description="The home folder; foundry.yaml in it says what may be read.")

    def create_resource(self, context: dg.InitResourceContext) -> Contents:  # noqa: ARG002, Dagster's signature
        """The home's rules, read anew."""
        home = load_home(Path(self.home_root), os.environ)
        return Contents(home.root, home.settings)
