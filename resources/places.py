"""Where a deployment keeps its things: the home folder, the warehouse, the ledger and Dagster's own files.

Owns the defaults that belong to the checkout; those that belong to the home folder are in `foundry_pipeline.home`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from foundry_pipeline.home import home_root_of, ledger_of, warehouse_of

CHECKOUT = Path(__file__).resolve().parents[1]
DEMO_HOME = CHECKOUT / "demo" / "home"


@dataclass(frozen=True, slots=True)
class Places:
    """`home` and `dagster_home` are absolute folders; `warehouse` is a folder or URL; `ledger` is a folder, or the URL
    of a database, which may hold a password: show `shown_ledger` of it."""

    home: Path
    warehouse: str
    ledger: str = field(repr=False)
    dagster_home: Path


def places_of(environ: Mapping[str, str], home: str | Path | None = None) -> Places:
    """The places that the environment names. `home` takes the place of FOUNDRY_HOME.

    DAGSTER_HOME is `.dagster` in the home folder, where it is not set: runs and their history then lie beside what
    they were made from.
    """
    root = home_root_of(home, environ, DEMO_HOME)
    dagster_home = Path(environ.get("DAGSTER_HOME") or root / ".dagster").absolute()
    return Places(root, warehouse_of(root, environ), ledger_of(root, environ), dagster_home)
