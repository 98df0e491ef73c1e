"""Decoding one reply in a test, and an ontology with a feature of every kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.decode import SliceDecoder
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Option, Tool

ALL_KINDS = tuple(FeatureKind)


def radio(name: str, *options: Option) -> Classification:
    return Classification(name, FeatureKind.RADIO, name, options)


def options(*values: str) -> tuple[Option, ...]:
    return tuple(Option(value, f"{value}!".capitalize(), place) for place, value in enumerate(values))


def checklist(name: str, *values: str) -> Classification:
    return Classification(name, FeatureKind.CHECKLIST, name, options(*values))


def text(name: str) -> Classification:
    return Classification(name, FeatureKind.TEXT, name)


def ontology(*features: Tool | Classification) -> Ontology:
    tools = tuple(feature for feature in features if isinstance(feature, Tool))
    return Ontology(None, tuple(feature for feature in features if isinstance(feature, Classification)), tools)


STRENGTH = radio("strength", *options("light", "heavy"))
EVERYTHING = ontology(
    Tool("car", FeatureKind.RECTANGLE, (radio("colour", *options("red", "blue")), checklist("damage", "dent", "rust"))),
    Tool("lake", FeatureKind.POLYGON),
    Tool("lane", FeatureKind.LINE),
    Tool("nose", FeatureKind.POINT),
    Tool("tree", FeatureKind.MASK),
    Tool("person", FeatureKind.ENTITY, (text("role"),)),
    Tool("owns", FeatureKind.EDGE),
    radio("weather", Option("sun", "Sun!", 0), Option("rain", "Rain!", 1, (STRENGTH,))),
    checklist("signs", "joy", "fear"),
    text("summary"),
)


def data_row(global_key: str = "row", media_type: str = "image", **more: Any) -> DataRow:
    return DataRow(f"id-{global_key}", global_key, media_type, "content", **more)


def decode(
    reply: object,
    known: Ontology | None = EVERYTHING,
    *,
    kinds: tuple[FeatureKind, ...] = ALL_KINDS,
    media_type: str = "image",
    text: str | None = None,
    messages: Mapping[str, str] | None = None,
    size_wh: tuple[int | None, int | None] = (None, None),
    **decoder: Any,
) -> dict[str, list[dict[str, Any]]]:
    """The tables of one reply, as records. A reply that is no string is sent as JSON."""
    tables = decode_tables(
        reply, known, kinds=kinds, media_type=media_type, text=text, messages=messages, size_wh=size_wh, **decoder
    )
    return {name: table.to_pylist() for name, table in tables.items()}


def decode_tables(
    reply: object,
    known: Ontology | None = EVERYTHING,
    *,
    kinds: tuple[FeatureKind, ...] = ALL_KINDS,
    media_type: str = "image",
    text: str | None = None,
    messages: Mapping[str, str] | None = None,
    size_wh: tuple[int | None, int | None] = (None, None),
    **decoder: Any,
) -> dict[str, pa.Table]:
    slice_decoder = SliceDecoder("run", "model", "dataset", known, kinds, media_type, **decoder)
    row = data_row("row", media_type, width=size_wh[0], height=size_wh[1])
    body = reply if isinstance(reply, str) else json.dumps(reply)
    slice_decoder.add(row, "call", body, text, messages)
    return slice_decoder.finish()


def rejected(tables: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """(path, reason) of every reject."""
    return [(reject["path"], reject["reason"]) for reject in tables["rejects"]]


def values(records: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """The named columns, a tuple a row."""
    return [tuple(record[name] for name in names) for record in records]
