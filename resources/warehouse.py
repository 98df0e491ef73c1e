"""The warehouse as a resource: where the tables live."""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from foundry_pipeline.store import Store


class WarehouseResource(dg.ConfigurableResource[Store]):
    """Hands out the store, after finishing what a killed process had committed."""

    root: str = Field(description="Where tables and exports go: a folder, or a URL such as s3://bucket/path.")

    def create_resource(self, context: dg.InitResourceContext) -> Store:  # noqa: ARG002, Dagster's signature
        """The store, recovered."""
        store = Store(self.root)
        store.recover()
        return store
