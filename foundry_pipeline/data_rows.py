"""The data row: what a dataset consists of and a model is asked about.

`datasets.py` loads data rows from a source into slices; `content.py` reads what a row points at.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Attachment:
    """Further content of a data row. `type` is a Labelbox attachment type such as IMAGE or RAW_TEXT."""

    type: str
    value: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of the `data_rows` table; see `tables.DATA_ROWS` for units and meanings."""

    data_row_id: str
    global_key: str
    media_type: str
    row_data: str
    external_id: str | None = None
    mime_type: str | None = None
    width: int | None = None
    height: int | None = None
    exif_orientation: int | None = None
    attachments: tuple[Attachment, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_sha256: str | None = None
    frame_count: int | None = None
    frames_per_second: float | None = None


_ID_NAMESPACE = uuid.UUID("6c1f8d4e-52a7-5b0c-9a57-3f0c6f6e7d21")


def data_row_id(dataset: str, global_key: str) -> str:
    """The id of a data row that its source gives none: the same on every load."""
    return str(uuid.uuid5(_ID_NAMESPACE, f"{dataset}\x1f{global_key}"))


def rows_of(table: pa.Table | pa.RecordBatch) -> Iterator[DataRow]:
    """The data rows of a `data_rows` table, in its order."""
    names = table.schema.names
    attachments_at, metadata_at = names.index("attachments"), names.index("metadata")
    for values in zip(*(column.to_pylist() for column in table.columns), strict=True):
        facts = dict(zip(names, values, strict=True))
        facts["attachments"] = tuple(Attachment(**a) for a in values[attachments_at])
        facts["metadata"] = dict(values[metadata_at])
        yield DataRow(**facts)
