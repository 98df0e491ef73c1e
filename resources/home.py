"""The home folder as a resource: read anew for every Dagster run."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg
from pydantic import Field

from foundry_pipeline.home import Home, load_home


class HomeResource(dg.ConfigurableResource[Home]):
    """Hands out what the home folder says. Raises ConfigError where the folder is missing."""

    root: str = Field(description="The home folder: models/, datasets/, runs/ and, optionally, foundry.yaml.")

    def create_resource(self, context: dg.InitResourceContext) -> Home:  # noqa: ARG002, Dagster's signature
        """The home, sound files and problems alike."""
        return load_home(Path(self.root), os.environ)
