"""The way to a run's endpoint, as a resource: calls that share the ledger and the rate with every other process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from pydantic import Field

from foundry_pipeline.home import Home, Run, load_home
from foundry_pipeline.invoke import Invoker, TransportFactory
from foundry_pipeline.store import Store


@dataclass(frozen=True, slots=True)
class ModelCalls:
    """Opens an Invoker for a run. `transport` makes each connection's transport; None is the network."""

    home: Home
    store: Store
    ledger: str = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    transport: TransportFactory | None = None

    def open(self, run: Run) -> Invoker:
        """To be used as a context manager. Raises ConfigError for what this version cannot do."""
        return Invoker(
            run,
            self.store,
            self.home.settings,
            home_root=self.home.root,
            ledger=self.ledger,
            environ=self.environ,
            transport=self.transport,
        )


class ModelCallsResource(dg.ConfigurableResource[ModelCalls]):
    """Hands out ModelCalls. Secrets are no fields: the manifest names them, the environment holds them."""

    # Places are plain fields and not resources of their own: Dagster 1.13 warns of itself where resources nest.
    home_root: str = Field(description="The home folder; foundry.yaml in it says what may be called and read.")
    warehouse_root: str = Field(description="Where tables go: a folder, or a URL such as s3://bucket/path.")
    ledger: str = Field(
        description="Keeps every answer until its slice is committed, and the rates: a folder on a local disk, or the "
        "URL of a PostgreSQL database, which several machines share and which is given as dg.EnvVar."
    )

    def create_resource(self, context: dg.InitResourceContext) -> ModelCalls:  # noqa: ARG002, Dagster's signature
        """Nothing is opened yet: each step opens its run's calls, and closes them."""
        home = load_home(Path(self.home_root), os.environ)
        return ModelCalls(home, Store(self.warehouse_root), self.ledger, os.environ)
