"""One record of a source, in any of the shapes people have, -> one data row to load, or the problem with it.

Shapes: our own names, the platform's create form with its old names, and a line of the platform's export v2. Source:
Labelbox docs, "Import data" pages and "Export v2"; which columns a table of ours may have is in the README.
"""

from __future__ import annotations

import hashlib
import os.path
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from foundry_pipeline.data_rows import Attachment
from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.rows.content import Kind, locate
from foundry_pipeline.rows.data_uris import data_uri_reference, is_data_uri
from foundry_pipeline.rows.labels import lines_of_export
from foundry_pipeline.rows.local_files import LocalFiles

OLD_NAMES = {
    "row_data": ("imageUrl", "videoUrl", "conversationalData", "data"),
    "external_id": ("externalId",),
    "data_row_id": ("id",),
}
"""Our name for a field -> the create form's old names, read where our name is missing."""

_OWN_FIELDS = frozenset(
    {"row_data", "global_key", "external_id", "data_row_id", "media_type", "attachments", "metadata", "metadata_fields"}
)
_NOT_METADATA = _OWN_FIELDS | {"dataset_id", "embeddings"}
"""The last two are of the create form, and say nothing about the data row itself."""


@dataclass(frozen=True, slots=True)
class LoadProblem:
    """What is wrong at one place of a source. `code` is `malformed`, `missing_row_data`, `empty_key`,
    `duplicate_key`, `duplicate_id`, `media_type`, `line_too_long`, `left_out`, `label_left_out`, `source_empty`, or a
    `row_*` code."""

    place: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Record:
    """One data row that a source lists, before its content was looked at. `row_data` is as the table holds it."""

    place: str
    global_key: str
    kind: Kind
    row_data: str
    data_row_id: str | None = None
    external_id: str | None = None
    attachments: tuple[Attachment, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    labels: str = ""
    """Of a platform export: its annotation lines (`labels.py`), one after the other."""
    labels_lost: str = ""
    """Labels that have no line, in words."""


def is_export_v1(names: Collection[object]) -> bool:
    """Whether a record with fields of these names is a line of a platform export of version 1."""
    return "DataRow ID" in names and "Labeled Data" in names


class ExportV1Error(Exception):
    """The source is a platform export of version 1, whose ids and labels mean other things."""


class _RefusedError(Exception):
    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class RecordShape:
    """What a record of one source file is read against: `folder` is where its relative paths start."""

    media_type: str
    folder: str
    files: LocalFiles

    def read(self, place: str, raw: object) -> Record | LoadProblem:
        """The data row of one raw record, a mapping of field names to JSON-like values.

        Raises ExportV1Error where the record is a line of an export v1.
        """
        try:
            return self._read(place, raw)
        except (_RefusedError, RowUnavailable) as err:
            return LoadProblem(place, err.code, err.message)

    def _read(self, place: str, raw: object) -> Record:
        if not isinstance(raw, Mapping):
            raise _RefusedError("malformed", f"expected an object with row_data, got {shown(raw)}")
        if is_export_v1(raw):
            raise ExportV1Error
        is_export = isinstance(raw.get("data_row"), Mapping)
        fields = _flat_export(raw) if is_export else _renamed(raw)
        self._check_media_type(fields)
        value = self._row_data(fields.get("row_data"))
        kind, row_data = locate(value, self.media_type, self.files, self.folder)
        return Record(
            place,
            _global_key(fields, kind, value),
            kind,
            row_data,
            _text_or_none(fields, "data_row_id"),
            _text_or_none(fields, "external_id"),
            self._attachments(_nested(fields, "attachments")),
            tuple(_metadata(fields).items()),
            *(_labels(raw) if is_export else ()),
        )

    def _check_media_type(self, fields: Mapping[str, object]) -> None:
        named = _text_or_none(fields, "media_type")
        if named is not None and named.lower() != self.media_type:
            message = f"expected the dataset's media_type {self.media_type}, got {shown(named)}"
            raise _RefusedError("media_type", message)

    def _row_data(self, value: object) -> str:
        if value is None or value == "":
            raise _RefusedError("missing_row_data", "expected row_data: a URL, a path or a text")
        if self.media_type == "conversational" and isinstance(value, dict | list):
            return orjson.dumps(value).decode()
        if not isinstance(value, str):
            raise _RefusedError("malformed", f"row_data: expected a text, got {shown(value)}")
        return value

    def _attachments(self, value: object) -> tuple[Attachment, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            raise _RefusedError("malformed", f"attachments: expected a list, got {shown(value)}")
        return tuple(self._attachment(index, item) for index, item in enumerate(value))

    def _attachment(self, index: int, item: object) -> Attachment:
        texts = [item.get(key) for key in ("type", "value")] if isinstance(item, Mapping) else []
        name = item.get("name") if isinstance(item, Mapping) else None
        if not texts or not all(isinstance(text, str) and text for text in texts) or not isinstance(name, str | None):
            message = f"attachments[{index}]: expected type, value and perhaps name, all texts; got {shown(item)}"
            raise _RefusedError("malformed", message)
        kind, value = str(texts[0]), str(texts[1])
        # RAW_TEXT holds the text itself, every other type a URL or, here, a path.
        if kind != "RAW_TEXT" and not re.match(r"[a-z][a-z0-9+.-]*:", value, re.IGNORECASE):
            value = os.path.normpath(Path(self.folder, value))
        return Attachment(kind, value, name)


def _renamed(raw: Mapping[str, object]) -> dict[str, object]:
    fields = dict(raw)
    for name, old_names in OLD_NAMES.items():
        for old in old_names:
            if fields.get(name) is None and fields.get(old) is not None:
                fields[name] = fields.pop(old)
    return fields


def _flat_export(raw: Mapping[str, object]) -> dict[str, object]:
    """A line of an export v2 as one record, without its labels."""
    row, media = raw["data_row"], raw.get("media_attributes")
    assert isinstance(row, Mapping)
    mime_type = media.get("mime_type") if isinstance(media, Mapping) else None
    major = str(mime_type).partition("/")[0]
    key = row.get("global_key")
    return {
        "row_data": row.get("row_data"),
        # Signed links differ in every export, the platform's id does not.
        "global_key": row.get("id") if key is None else key,
        "data_row_id": row.get("id"),
        "external_id": row.get("external_id"),
        "media_type": major if major in ("image", "video") else None,
        "attachments": raw.get("attachments"),
        "metadata_fields": raw.get("metadata_fields"),
    }


def _labels(raw: Mapping[str, object]) -> tuple[str, str]:
    lines, lost = lines_of_export(raw)
    in_words = ", ".join(f"{shown(kind)} {count}" for kind, count in sorted(lost.items()))
    return b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines).decode(), in_words


def _global_key(fields: Mapping[str, object], kind: Kind, row_data: str) -> str:
    """The record's own key, else what it was listed by, else what the text is."""
    key = fields.get("global_key")
    if key is not None:
        text = _as_text(key) if isinstance(key, str | int) and not isinstance(key, bool) else None
        if text is None or not text.strip():
            raise _RefusedError("empty_key", f"global_key: expected a text that is not empty, got {shown(key)}")
        return text
    if kind.is_in_row:
        return f"sha256:{hashlib.sha256(row_data.encode()).hexdigest()[:32]}"
    return row_data


def _text_or_none(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise _RefusedError("malformed", f"{name}: expected a text, got {shown(value)}")
    return str(value)


def _nested(fields: Mapping[str, object], name: str) -> object:
    """A field that is a list or object; CSV and some Parquet files hold it as JSON text."""
    value = fields.get(name)
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as err:
        raise _RefusedError("malformed", f"{name}: expected JSON: {shown(str(err))}") from None


def _metadata(fields: Mapping[str, object]) -> dict[str, str]:
    """`metadata`, `metadata_fields` and every other field, as texts; what is null is left out.

    A `data:` URI among them is content, not a fact about it: its sha256 stands for it.
    """
    pairs = [(str(key), value) for key, value in fields.items() if key not in _NOT_METADATA]
    pairs += _metadata_pairs(_nested(fields, "metadata"), "metadata")
    pairs += _metadata_pairs(_nested(fields, "metadata_fields"), "metadata_fields")
    texts = {key: text for key, value in pairs if (text := _as_text(value)) is not None}
    return {key: data_uri_reference(text) if is_data_uri(text) else text for key, text in texts.items()}


def _metadata_pairs(value: object, name: str) -> list[tuple[str, object]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if not isinstance(value, list):
        raise _RefusedError("malformed", f"{name}: expected an object or a list, got {shown(value)}")
    return [_metadata_pair(item, f"{name}[{index}]") for index, item in enumerate(value)]


def _metadata_pair(item: object, place: str) -> tuple[str, object]:
    if isinstance(item, tuple):  # an entry of a Parquet map
        return str(item[0]), item[1]
    if isinstance(item, Mapping):
        for key in ("name", "schema_name", "schema_id", "schemaId"):
            if isinstance(item.get(key), str):
                return str(item[key]), item.get("value")
    raise _RefusedError("malformed", f"{place}: expected name (or schema_id) and value, got {shown(item)}")


def _as_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | list | dict):
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    return value.hex() if isinstance(value, bytes) else str(value)
