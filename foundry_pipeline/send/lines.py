"""The lines of a `labelbox` export, ready to be sent: read file by file, checked against its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from foundry_pipeline.errors import ConfigError, Problem, StorageError
from foundry_pipeline.exports.publish import MANIFEST
from foundry_pipeline.home import Run
from foundry_pipeline.store import Store

FORMAT = "labelbox"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `uuid` is its identity on the platform, `ends` the uuids that a relationship needs beside it."""

    uuid: str
    global_key: str
    feature: str | None
    content: bytes
    ends: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the line, hexadecimal: one that has changed is sent again."""
        return hashlib.sha256(self.content).hexdigest()


def exported_files(run: Run, store: Store) -> Iterator[list[Line]]:
    """The lines of every file of the export, a list a file: at most 1,000 data rows, an import of their own.

    Raises ConfigError where there is no export, StorageError where a file is not the one that its manifest names.
    """
    folder = f"annotations/run={run.name}/{FORMAT}"
    manifest = store.read_file(f"{folder}/{MANIFEST}")
    if manifest is None:
        message = f"there is no export to send: foundry-pipeline export {run.name} {FORMAT}"
        raise ConfigError([Problem(run.file, message, "$.exports")])
    for file in orjson.loads(manifest)["files"]:
        if file["name"].endswith(".ndjson"):
            content = store.read_file(f"{folder}/{file['name']}")
            if content is None or hashlib.sha256(content).hexdigest() != file["sha256"]:
                raise StorageError(f"{folder}/{file['name']}: is not the file that was exported; export again")
            yield [_line(one) for one in content.splitlines()]


def splits(run: Run, store: Store) -> dict[str, str]:
    """Global key -> its part of the split, where the export has one."""
    content = store.read_file(f"annotations/run={run.name}/{FORMAT}/data_rows.jsonl") or b""
    rows = map(orjson.loads, content.splitlines())
    return {row["global_key"]: row["split"] for row in rows if "split" in row}


def with_ends(pending: Iterable[Line], of_file: Iterable[Line]) -> list[Line]:
    """The lines, and those that their relationships join: the platform looks for both ends in the same import."""
    chosen = {line.uuid for line in pending}
    chosen |= {end for line in of_file if line.uuid in chosen for end in line.ends}
    return [line for line in of_file if line.uuid in chosen]


def _line(content: bytes) -> Line:
    parsed: dict[str, Any] = orjson.loads(content)
    relationship = parsed.get("relationship")
    ends = (relationship["source"], relationship["target"]) if relationship else ()
    feature = parsed.get("name") or next((one["name"] for one in parsed.get("masks", {}).get("instances", ())), None)
    return Line(parsed["uuid"], parsed["dataRow"]["globalKey"], feature, content, ends)
