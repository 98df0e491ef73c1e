"""Plain CSV: a line a prediction, whatever its kind; a data row in which nothing was found has a line without one.

RFC 4180 with line feeds, UTF-8, every text in quotes, numbers and nothing without. Polygons, lines and points are JSON,
masks COCO's JSON. A text that a spreadsheet would run as a formula has a `'` in front, and is counted.

Source: OWASP, CSV injection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson

from foundry_pipeline.exports.annotated import AnnotatedRow, Prediction, kind_of, with_nested
from foundry_pipeline.exports.format import ALL_MEDIA, Export, Exporter, Rendered, no_plan
from foundry_pipeline.exports.pictures import ltwh_of, ring_of
from foundry_pipeline.exports.shards import Shards
from foundry_pipeline.exports.tally import Change, RowLoss
from foundry_pipeline.home import Run

COLUMNS = (
    "global_key",
    "data_row_id",
    "prediction_id",
    "parent_id",
    "feature",
    "kind",
    "score",
    "frame",
    "message_id",
    "left",
    "top",
    "width",
    "height",
    "points",
    "rle",
    "start",
    "end",
    "text",
    "answer",
    "source_id",
    "target_id",
    "direction",
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")
Cells = dict[str, object]


def render(export: Export, _plan: None, annotated: AnnotatedRow) -> Rendered | None:
    """The lines of one answered data row."""
    if not annotated.answered:
        export.tally.leave_row_out(annotated, RowLoss.NOT_ANSWERED)
    elif export.takes(annotated, written=bool(annotated.predictions)):
        return Rendered(annotated.split, (b"".join(_lines(export, annotated)),), {})
    return None


def write(run: Run, _plan: None, rows: Iterable[Rendered], folder: Path) -> None:
    """Write the files into `folder`."""
    with Shards(folder, "predictions", ".csv", head=_line(_columns(run)), always=True) as files:
        for rendered in rows:
            files.add(*rendered.contents)


def _columns(run: Run) -> tuple[str, ...]:
    """The last one is there where the run has a split."""
    return COLUMNS if run.split is None else (*COLUMNS, "split")


def _lines(export: Export, annotated: AnnotatedRow) -> Iterator[bytes]:
    columns = _columns(export.run)
    row: Cells = {"global_key": annotated.row.global_key, "data_row_id": annotated.row.data_row_id}
    row["split"] = annotated.split
    if not annotated.predictions:
        yield _line([_safe(row.get(name)) for name in columns])
    for prediction in with_nested(annotated.predictions):
        cells = row | _cells(prediction)
        safe = {name: _safe(value) for name, value in cells.items()}
        _count_changes(export, prediction, cells, safe)
        yield _line([safe.get(name) for name in columns])


def _cells(prediction: Prediction) -> Cells:
    columns = ("prediction_id", "parent_id", "score", "frame", "message_id")
    same = {name: prediction.values.get(name) for name in columns}
    about = {"feature": prediction.feature, "kind": kind_of(prediction)}
    return same | about | PLACES[prediction.table](prediction)


def _box(prediction: Prediction) -> Cells:
    return dict(zip(("left", "top", "width", "height"), ltwh_of(prediction.values), strict=True))


def _mask(prediction: Prediction) -> Cells:
    """The run lengths as an object: alone, they may begin like a formula."""
    values = prediction.values
    rle = {"size": [values["size_h"], values["size_w"]], "counts": values["counts"]}
    return _box(prediction) | {"rle": orjson.dumps(rle).decode()}


def _ring(prediction: Prediction) -> Cells:
    return {"points": orjson.dumps(ring_of(prediction.values).tolist()).decode()}


def _point(prediction: Prediction) -> Cells:
    return {"points": orjson.dumps([[prediction.values["x"], prediction.values["y"]]]).decode()}


def _entity(prediction: Prediction) -> Cells:
    return {name: prediction.values[name] for name in ("start", "end", "text")}


def _answer(prediction: Prediction) -> Cells:
    return {"answer": prediction.values["answer"]}


def _edge(prediction: Prediction) -> Cells:
    values = prediction.values
    return {"source_id": values["source_id"], "target_id": values["target_id"], "direction": values["type"]}


PLACES: Mapping[str, Callable[[Prediction], Cells]] = {
    "boxes": _box,
    "masks": _mask,
    "polygons": _ring,
    "lines": _ring,
    "points": _point,
    "entities": _entity,
    "classifications": _answer,
    "texts": _answer,
    "edges": _edge,
}


def _count_changes(export: Export, prediction: Prediction, cells: Cells, safe: Cells) -> None:
    texts = [(value, safe[name]) for name, value in cells.items() if isinstance(value, str)]
    if any("\0" in text for text, _ in texts):
        export.tally.change(prediction, Change.CHARACTERS_REPLACED)
    if any(str(now).startswith("'") and not text.startswith("'") for text, now in texts):
        export.tally.change(prediction, Change.FORMULA_QUOTED)


def _safe(value: object) -> object:
    """A text as spreadsheets may see it: not as a formula, and without NUL, at which some readers stop."""
    if not isinstance(value, str):
        return value
    text = value.replace("\0", "\ufffd")
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def _line(cells: Sequence[object]) -> bytes:
    return (",".join(map(_cell, cells)) + "\n").encode()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    return repr(value)


EXPORTER = Exporter(
    name="csv",
    version=1,
    media_types=ALL_MEDIA,
    conventions={
        "left, top, width, height": "pixels of the picture as displayed, not clipped; of masks, their bounding box",
        "points": "JSON, [[x, y], ...] in pixels, not clipped; polygons open",
        "rle": 'JSON, {"size": [height, width], "counts": COCO compressed run lengths}',
        "offset_unit": "codepoint",
        "entity_end": "exclusive",
        "quotes": "around texts; nothing between two commas is null",
        "formulas": "a text that begins with = + - @, a tab or a carriage return has ' in front, numbers excepted",
    },
    split="the column split",
    plan=no_plan,
    render=render,
    write=write,
)
