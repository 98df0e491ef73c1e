"""Tables of records: CSV, JSON, NDJSON and Parquet files, each record with its place in its file.

Everything is streamed, except a JSON list, which has a size limit. One bad line costs itself alone.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, TextIO, TypeAlias

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from foundry_pipeline.errors import ConfigError, Problem, RowUnavailable, shown
from foundry_pipeline.home import Dataset, Settings
from foundry_pipeline.rows.local_files import LocalFiles
from foundry_pipeline.rows.records import OLD_NAMES, ExportV1Error, LoadProblem, Record, RecordShape, is_export_v1

MAX_JSON_BYTES = 256 * 1024 * 1024
"""A JSON list is parsed whole; longer lists are written as NDJSON."""

TABLE_SUFFIXES = frozenset({".csv", ".json", ".ndjson", ".jsonl", ".parquet"})

_BOM = b"\xef\xbb\xbf"

Listed: TypeAlias = Record | LoadProblem
Raw: TypeAlias = tuple[str, object] | LoadProblem
"""Where a record stands in its file, and the record; or what is wrong there."""


def source_error(dataset: Dataset, message: str) -> ConfigError:
    """The error that says a dataset's source as a whole cannot be used."""
    return ConfigError([Problem(dataset.file, f"{shown(dataset.source, 200)}: {message}", "$.source")])


def read_tables(dataset: Dataset, files: LocalFiles, settings: Settings, paths: Sequence[str]) -> Iterator[Listed]:
    """The records of table files, in order. `paths` are absolute; the suffix says what each is.

    Raises ConfigError where a file as a whole cannot be used.
    """
    for path in paths:
        name = os.path.relpath(path, dataset.base.absolute())
        shape = RecordShape(dataset.media_type, str(PurePosixPath(path).parent), files)
        try:
            with files.open(path) as file:
                for raw in _raw_records(file, name, dataset, settings):
                    yield raw if isinstance(raw, LoadProblem) else shape.read(*raw)
        except RowUnavailable as err:
            raise source_error(dataset, err.message) from None
        except ExportV1Error:
            message = f"{name} is a Labelbox export v1, which is not read; export again as v2 (NDJSON)"
            raise source_error(dataset, message) from None


def _raw_records(file: BinaryIO, name: str, dataset: Dataset, settings: Settings) -> Iterator[Raw]:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".csv":
        return _csv_records(file, name, dataset, settings.max_row_bytes)
    if suffix == ".json":
        return _json_records(file, name, dataset)
    if suffix == ".parquet":
        return _parquet_records(file, name, dataset)
    return _ndjson_records(file, name, settings.max_row_bytes)


def _ndjson_records(file: BinaryIO, name: str, max_line_bytes: int) -> Iterator[Raw]:
    for number, line in _lines(file, max_line_bytes):
        place = f"{name}:{number}"
        if line is None:
            yield LoadProblem(place, "line_too_long", f"over max_row_bytes = {max_line_bytes:,} bytes")
        elif text := line.removeprefix(_BOM).strip() if number == 1 else line.strip():
            try:
                yield place, orjson.loads(text)
            except orjson.JSONDecodeError as err:
                yield LoadProblem(place, "malformed", f"not JSON: {shown(str(err))}")


def _lines(file: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers from 1; None instead of one that is too long."""
    number = 0
    while line := file.readline(max_bytes + 2):
        number += 1
        if line.endswith(b"\n") or len(line) <= max_bytes:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(1 << 20)
        yield number, None


def _json_records(file: BinaryIO, name: str, dataset: Dataset) -> Iterator[Raw]:
    content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise source_error(dataset, f"{name} is over {MAX_JSON_BYTES:,} bytes; write long lists as NDJSON")
    try:
        value = orjson.loads(content.removeprefix(_BOM))
    except orjson.JSONDecodeError as err:
        raise source_error(dataset, f"{name} is not JSON: {shown(str(err))}") from None
    records = value.get("data_rows") if isinstance(value, dict) else value
    if not isinstance(records, list):
        raise source_error(dataset, f'{name}: expected a list of data rows, or {{"data_rows": [...]}}')
    for index, record in enumerate(records):
        yield f"{name}[{index}]", record


def _csv_records(file: BinaryIO, name: str, dataset: Dataset, max_chars: int) -> Iterator[Raw]:
    # The limit of a field is the csv module's own, shared by the process; it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), max_chars))
    encoding = "utf-8-sig" if dataset.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else dataset.encoding
    # A byte that is not of the encoding becomes a lone surrogate here and costs its own record below, not the file.
    text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
    try:
        yield from _csv_lines(text, name, dataset, max_chars)
    finally:
        text.detach()  # the file is closed by who opened it


def _csv_lines(text: TextIO, name: str, dataset: Dataset, max_chars: int) -> Iterator[Raw]:
    reader = csv.reader(iter(lambda: text.readline(max_chars), ""), strict=True)
    header = _csv_header(reader, name, dataset)
    while True:
        place = f"{name}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            yield LoadProblem(place, "malformed", f"not CSV: {err}")
            continue
        except UnicodeError as err:
            raise source_error(dataset, f"{place}: not {dataset.encoding}: {shown(str(err))}") from None
        if cells:
            yield _csv_record(place, header, cells)


def _csv_header(reader: Iterator[list[str]], name: str, dataset: Dataset) -> list[str]:
    try:
        header = next(reader, [])
    except (csv.Error, UnicodeError) as err:
        raise source_error(dataset, f"{name}: not CSV: {shown(str(err))}") from None
    _check_columns(header, name, dataset)
    return header


def _csv_record(place: str, header: Sequence[str], cells: Sequence[str]) -> Raw:
    if len(cells) != len(header):
        return LoadProblem(place, "malformed", f"expected {len(header)} fields, got {len(cells)}")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return LoadProblem(place, "row_encoding", "holds bytes that are not of the dataset's encoding")
    return place, dict(zip(header, cells, strict=True))


def _parquet_records(file: BinaryIO, name: str, dataset: Dataset) -> Iterator[Raw]:
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            _check_columns(table.schema_arrow.names, name, dataset)
            for batch in table.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{name}: row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        where = f"after row {number}" if number else "at its start"
        raise source_error(dataset, f"{name}: not readable as Parquet {where}: {shown(str(err), 200)}") from None


def _check_columns(columns: Sequence[str], name: str, dataset: Dataset) -> None:
    if is_export_v1(columns):
        raise ExportV1Error
    twice = sorted(column for column, count in Counter(columns).items() if count > 1)
    if twice:
        raise source_error(dataset, f"{name}: column {shown(twice[0])} stands there twice")
    if not {"row_data", *OLD_NAMES["row_data"]}.intersection(columns):
        raise source_error(dataset, f"{name}: expected a column row_data, got {shown(', '.join(columns), 200)}")
