"""The tables: one schema each, built strictly, and described on a page that cannot differ from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from foundry_pipeline.decoding.rejects import REASONS
from foundry_pipeline.ontology import FeatureKind
from foundry_pipeline.table_docs import predictions_page
from foundry_pipeline.tables import BOXES, PREDICTION_TABLES, REJECTS, TABLE_OF_KIND, TABLES, TableSpec, build, empty

PAGE = Path(__file__).parents[1] / "docs" / "predictions.md"
EVERY_TABLE = pytest.mark.parametrize("spec", TABLES.values(), ids=list(TABLES))


def box_columns(**more: list[object]) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {name: ["x"] for name in BOXES.schema.names}
    columns |= {name: [1] for name in ("index", "frame", "image_width", "image_height")}
    return columns | {name: [0.5] for name in ("score", "left", "top", "width", "height")} | more


def test_a_table_is_built_in_its_schema() -> None:
    table = build(BOXES, box_columns(score=[None]))
    assert table.schema.equals(BOXES.schema, check_metadata=True)
    assert table["score"].to_pylist() == [None]


def test_a_null_in_a_required_column_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"boxes\.left: 1 nulls"):
        build(BOXES, box_columns(left=[None]))


def test_columns_that_are_missing_or_unknown_are_refused_with_their_names() -> None:
    with pytest.raises(ValueError, match="colour"):
        build(BOXES, box_columns(colour=["red"]))
    columns = box_columns()
    del columns["top"]
    with pytest.raises(ValueError, match="top"):
        build(BOXES, columns)


@EVERY_TABLE
def test_a_table_without_rows_has_its_schema(spec: TableSpec) -> None:
    assert empty(spec).num_rows == 0
    assert empty(spec).schema.equals(spec.schema, check_metadata=True)


def types_in(kind: pa.DataType) -> Iterator[pa.DataType]:
    yield kind
    for place in range(kind.num_fields):
        yield from types_in(kind.field(place).type)


@EVERY_TABLE
def test_no_column_has_a_type_that_hive_readers_refuse(spec: TableSpec) -> None:
    """pyarrow cannot join `large_string` beside partition columns."""
    kinds = {kind for field in spec.schema for kind in types_in(field.type)}
    assert not kinds & {pa.large_string(), pa.large_binary(), pa.string_view()}


@EVERY_TABLE
def test_every_column_says_what_it_means_and_a_key_is_never_null(spec: TableSpec) -> None:
    for field in spec.schema:
        assert field.metadata[b"meaning"]
    assert all(not spec.schema.field(name).nullable for name in spec.key)


def test_every_kind_has_a_table() -> None:
    assert set(TABLE_OF_KIND) == set(FeatureKind)
    assert {spec.name for spec in TABLE_OF_KIND.values()} == {spec.name for spec in PREDICTION_TABLES}


def test_rejects_have_the_columns_that_predictions_share() -> None:
    shared = BOXES.schema.names[: BOXES.schema.names.index("left")]
    assert REJECTS.schema.names[: len(shared)] == shared


def test_the_page_of_tables_and_reasons_is_up_to_date() -> None:
    """Write it anew with `python -m foundry_pipeline.table_docs docs/predictions.md`."""
    assert PAGE.read_text(encoding="utf-8") == predictions_page()


def test_the_page_has_every_table_column_and_reason() -> None:
    page = predictions_page()
    for spec in TABLES.values():
        section = page.split(f"### {spec.name}\n")[1].split("\n#")[0]
        for field in spec.schema:
            assert f"| `{field.name}` |" in section
    for reason, meaning in REASONS.items():
        assert f"| `{reason}` | {meaning} |" in page
