"""The files of one export into their place: the new ones, then away with those of the export before, then the manifest.

Which files are ours is what manifests say: an export folder may lie where a person keeps other things. `LISTING` holds
the names while the files are moved, so that a killed export leaves nothing that nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

import orjson

from foundry_pipeline.store import Store, Written, files_below

MANIFEST = "manifest.json"
LISTING = ".writing.json"

DescribeFiles = Callable[[tuple[Written, ...]], Mapping[str, object]]


def publish(target: Store, folder: str, made: Path, describe: DescribeFiles) -> tuple[Written, ...]:
    """Move every file below `made` under `folder` of the store and write the manifest that `describe` makes of them.

    The manifest names each file relative to `folder`, under `files`. Files of an earlier export that are not part of
    this one are removed. Raises StorageError or OSError where the store refuses.
    """
    new = set(files_below(made))
    old = {*_listed(target, within(folder, MANIFEST)), *_listed(target, within(folder, LISTING))}
    target.write_file(within(folder, LISTING), _json({"files": [{"name": name} for name in sorted(old | new)]}))
    files = target.put_folder(folder, made)
    for name in sorted(old - new):
        target.remove_file(within(folder, name))
    target.write_file(within(folder, MANIFEST), _json(describe(files)))
    target.remove_file(within(folder, LISTING))
    return files


def within(folder: str, name: str) -> str:
    """The store's name of a file of an export."""
    return "/".join(part for part in (folder, name) if part)


def about_files(folder: str, files: Iterable[Written]) -> list[dict[str, object]]:
    """The manifest's list: name relative to `folder`, size and sha256 of each file."""
    begin = len(within(folder, "-")) - 1
    return [{"name": w.path[begin:], "size_bytes": w.size_bytes, "sha256": w.sha256} for w in files]


def _listed(target: Store, name: str) -> list[str]:
    """The names in an earlier list. It may be a stranger's: nothing in it leads out of the folder."""
    content = target.read_file(name)
    try:
        found = orjson.loads(content or b"{}")
        names = [str(file["name"]) for file in found.get("files", ())]
    except (ValueError, TypeError, AttributeError, KeyError):
        return []
    return [name for name in names if _is_below(name)]


def _is_below(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and name not in (MANIFEST, LISTING)


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
