"""Exporting in a test: a run with one slice, what was written, and what the accounts say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foundry_pipeline.exports import export_run
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store
from tests.warehouse import Record, fill

PICTURE = {"global_key": "g.jpg", "width": 60, "height": 40}
AT = {"global_key": "g.jpg"}
BOX = AT | {"feature": "cat", "left": 5.0, "top": 6.0, "width": 30.0, "height": 20.0}
TRIANGLE = [{"x": 5.0, "y": 5.0}, {"x": 45.0, "y": 5.0}, {"x": 5.0, "y": 35.0}]

PROBE = np.zeros((40, 60), bool)
"""A square with a hole, and a separate part: what usual writers lose. 495 pixels."""
PROBE[5:25, 5:25] = True
PROBE[10:15, 10:15] = False
PROBE[2:17, 40:48] = True


@dataclass(frozen=True, slots=True)
class Exported:
    """The folder of an export and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def lost(self) -> dict[str, int]:
        """Reason -> predictions that were lost or changed."""
        return {**self.manifest["lost"], **self.manifest["changed"]}

    def read(self, name: str) -> str:
        """The text of one file."""
        return (self.folder / name).read_text()

    def json_lines(self, pattern: str) -> list[Any]:
        """The values in all files that `pattern` names, in their order."""
        files = sorted(self.folder.glob(pattern))
        return [json.loads(line) for file in files for line in file.read_text().split("\n") if line]

    def names(self) -> list[str]:
        """Every file but the manifest, relative to the folder."""
        files = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(set(files) - {"manifest.json"})


def exported(
    tmp_path: Path,
    run: Run,
    format_name: str,
    *,
    data_rows: Sequence[Record] = (PICTURE,),
    outcomes: Mapping[str, str | None] | None = None,
    **tables: Sequence[Record],
) -> Exported:
    """Export a run with one slice, and check what holds for every export: its accounts close."""
    store = Store(tmp_path)
    fill(store, run, "000000", data_rows=data_rows, outcomes=outcomes, **tables)  # type: ignore[arg-type]
    export_run(run, store, format_name)
    folder = tmp_path / f"annotations/run={run.name}/{format_name}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert_accounts_close(manifest)
    return Exported(folder, manifest)


def assert_accounts_close(manifest: Mapping[str, Any]) -> None:
    """in = out + lost, for all predictions and for each feature; every data row is written or left out."""
    counts, rows = manifest["predictions"], manifest["data_rows"]
    assert counts["in"] == counts["out"] + sum(manifest["lost"].values())
    assert counts["in"] == sum(feature["in"] for feature in counts["features"].values())
    for feature in counts["features"].values():
        assert feature["in"] == feature["out"] + sum(feature.get("lost", {}).values())
    assert sum(rows["outcomes"].values()) == rows["written"] + sum(rows["left_out"].values())
