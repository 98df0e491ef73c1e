"""`datasets/<dataset>.yaml` -> Dataset: where data rows come from. Listing and loading them is `sources.py`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry_pipeline.config.catalogue_source import Freshness, freshness, owner, tags
from foundry_pipeline.config.fields import Block, Reader, choice, list_of, refuse, seen, text, whole
from foundry_pipeline.config.ontology_source import media_type
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.rows.frames import NO_DECODER, has_decoder
from foundry_pipeline.rows.local_files import LocalFiles


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where data rows come from. `base` is the folder that relative paths start at: the dataset file's own."""

    name: str
    file: str
    base: Path
    media_type: str
    source: str
    rows_per_slice: int = 1000
    ground_truth: str | None = None
    encoding: str = "utf-8"
    roles: Mapping[str, str] = field(default_factory=dict)
    """Of conversations: speaker (user id or name; `*` is every other) -> user, assistant or system."""
    owners: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    freshness: Freshness | None = None
    """How long ago the last load may be; None: as long as it likes."""


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a dataset's paths start, and what may be read."""

    base: Path
    home: Path
    files: LocalFiles


def dataset_of(root: Item, name: str, base: Path, home: Path, settings: Settings, found: Findings) -> Dataset | None:
    """The dataset in a file's items; None where `found` has problems. `base` is the file's folder; both are absolute.

    What the dataset names must be there, and be readable under the rules for data rows (`local_files.py`).
    """
    block = Block.of(root, found)
    if block is None:
        return None
    places = _Places(base, home, LocalFiles(home, settings.allow_folders))
    media = block.read("media_type", media_type, required=True) or ""
    source = block.read("source", _source(places), required=True) or ""
    readers: Mapping[str, Reader[Any]] = {
        "rows_per_slice": whole(1, 100_000),
        "ground_truth": _ground_truth(places),
        "encoding": _encoding,
        "roles": _roles,
        "owners": list_of(owner, empty=True),
        "tags": tags,
        "freshness": freshness,
    }
    plain = block.given(readers)
    block.close()
    _check_decoder(media, block, found)
    _check_roles(media, block, found)
    return None if found.problems else Dataset(name, found.file, base, media, source, **plain)


def _source(places: _Places) -> Reader[str]:
    """A glob, folder or file, as it is written."""

    def read(item: Item, found: Findings) -> str | None:
        word = _local_path(item, found)
        first = None if word is None else _first_match(places.base, word)
        if word is None:
            return None
        if first is None:
            what = "no file matches" if glob.has_magic(word) else "there is no file or folder"
            refuse(item, found, f"{what} {shown(word, 200)}{_elsewhere(places, word)}")
        elif fault := _reading_fault(places, first):
            refuse(item, found, fault)
        return word

    return read


def _ground_truth(places: _Places) -> Reader[str]:
    def read(item: Item, found: Findings) -> str | None:
        word = _local_path(item, found)
        if word is None:
            return None
        file = _first_match(places.base, glob.escape(word))
        if file is None:
            refuse(item, found, f"there is no file {shown(word, 200)}{_elsewhere(places, word)}")
        elif file.is_dir():
            refuse(item, found, f"expected a file; {shown(word, 200)} is a folder")
        elif fault := _reading_fault(places, file):
            refuse(item, found, fault)
        return word

    return read


def _local_path(item: Item, found: Findings) -> str | None:
    word = text(4096)(item, found)
    if word is None:
        return None
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", word):
        refuse(item, found, "expected a path; URLs of data rows stand in a .csv, .ndjson, .json or .parquet file")
        return None
    if word.startswith("~"):
        refuse(item, found, "~ is not expanded here: write a path relative to this file")
        return None
    return word


def _first_match(base: Path, word: str) -> Path | None:
    """What stands at this path, or the first file that matches where it is a glob; None where nothing does."""
    try:
        if (base / word).exists():
            return base / word
        # Path.glob knows neither absolute patterns nor `..`.
        matches = glob.iglob(word, root_dir=base, recursive=True)  # noqa: PTH207
        return next((base / match for match in matches if (base / match).exists()), None)
    except OSError:  # a name too long, a folder without permission: nothing that could be read
        return None


def _reading_fault(places: _Places, path: Path) -> str | None:
    """Why data rows may not be read from here; None where they may."""
    absolute = os.path.normpath(path)
    try:
        if Path(absolute).is_dir():
            places.files.check_folder(absolute)
        else:
            places.files.open(absolute).close()
    except RowUnavailable as error:
        return error.message
    return None


def _elsewhere(places: _Places, word: str) -> str:
    """The usual slip: a path written from the home folder instead of from the file's own."""
    is_there = not Path(word).is_absolute() and _first_match(places.home, word) is not None
    up = "../" * len(places.base.relative_to(places.home).parts)
    return f" (did you mean {up + word!r}? paths are relative to this file)" if is_there else ""


def _encoding(item: Item, found: Findings) -> str | None:
    word = text(40)(item, found)
    if word is None:
        return None
    try:
        "".encode(word)
    except (LookupError, UnicodeError):
        refuse(item, found, f"expected a text encoding such as utf-8 or latin-1; got {shown(word)}")
        return None
    return word


_role = choice(("user", "assistant", "system"))


def _roles(item: Item, found: Findings) -> dict[str, str] | None:
    if not isinstance(item.value, Mapping) or not item.value:
        refuse(item, found, f"expected a mapping (`speaker: user`); got {seen(item)}")
        return None
    roles = {speaker: _role(entry, found) for speaker, entry in item.value.items()}
    return {speaker: role for speaker, role in roles.items() if role is not None}


def _check_roles(media: str, block: Block, found: Findings) -> None:
    item = block.item("roles")
    if item is not None and media and media != "conversational":
        refuse(item, found, f"has no effect: the data rows are {media}, not conversational")


def _check_decoder(media: str, block: Block, found: Findings) -> None:
    item = block.item("media_type")
    if item is not None and media == "video" and not has_decoder():
        found.warn(NO_DECODER, item.path, item.line)
